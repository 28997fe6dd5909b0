"""`firebuild rootfs` (alias `build`): from a Dockerfile to a bootable root file system."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firebuild.cli.log_options import log_calls_option
from firebuild.cli.output import note, print_json
from firebuild.cli.renderers import open_renderer
from firebuild.cli.retired import BUILD_OPTIONS, REFUSED, refused_options, retired_options
from firebuild.cli.template import check_template, is_template, render_template
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.names import parse_reference, parse_size

if TYPE_CHECKING:
    from firebuild.engine.builds import RootfsRequest
    from firebuild.engine.disk_keys import MachineWish
    from firebuild.engine.docker_image import DockerImageRequest

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("context", required=False)
@click.option(
    "--dockerfile", "--file", "-f", help="A file, a URL, `-`, or a Dockerfile's text; without it CONTEXT's Dockerfile."
)
@click.option(
    "--build-context", "build_contexts", multiple=True,
    help="A named context: NAME=PATH, NAME=URL, NAME=docker-image://REFERENCE or NAME=oci-layout://PATH[:TAG][@DIGEST].",
)  # fmt: skip
@click.option("--docker-image", help="Take this image as it is, in place of building a Dockerfile.")
@click.option(
    "--docker-image-base", help="With --docker-image: the base operating system that the image is moved onto."
)
@click.option("--tag", "-t", "tags", multiple=True, help="A name for the result: [org/]name[:version].")
@click.option(
    "--build-arg", "build_args", multiple=True, help="Build argument K=V; a bare K takes the caller's variable."
)
@click.option("--target", "--dockerfile-stage", "target", help="The stage to build; without it the last.")
@click.option("--no-cache", is_flag=True, help="Run every step, whatever is cached.")
@click.option("--no-cache-filter", multiple=True, help="Run every step of these stages: NAME[,NAME].")
@click.option("--pull", is_flag=True, help="Ask the registries for newer base images.")
@click.option(
    "--base-policy", default="stored", show_default=True,
    help="Where FROM looks first: stored (base operating systems and images), or registry (no base operating system).",
)  # fmt: skip
@click.option("--label", "labels", multiple=True, help="Label K=V of the image.")
@click.option(
    "--secret", "secrets", multiple=True, help="For RUN --mount=type=secret: id=NAME,src=FILE or id=NAME,env=VARIABLE."
)
@click.option("--ssh", "agents", multiple=True, help="For RUN --mount=type=ssh: default, or ID=SOCKET of an agent.")
@click.option("--network", default="default", show_default=True, help="The network of RUN steps: default or none.")
@click.option(
    "--trust-host-ca/--no-trust-host-ca", default=None,
    help="Whether RUN steps trust the certificate authorities of this host. [default: no]",
)  # fmt: skip
@click.option("--pre-build-command", "pre_commands", multiple=True, help="Run this, as root, before the first step.")
@click.option("--post-build-command", "post_commands", multiple=True, help="Run this, as root, after the last step.")
@click.option("--mem", "--memory", "-m", "memory", help="Memory of the build machine: MiB, or with a unit: 512m, 2g.")
@click.option("--cpu", "--cpus", "cpus", type=click.IntRange(1, 32), help="Processors of the build machine.")
@click.option("--disk-size", help="Size of the build machine's work disk (sparse): MiB, or with a unit.")
@click.option("--cni-network-name", "machine_network", help="The CNI network of the build machine.")
@click.option("--vmlinux-id", "--kernel", "kernel", help="The kernel of the build machine; without it the newest.")
@click.option("--progress", default="auto", show_default=True, help="auto, plain, tty, rawjson or quiet.")
@click.option("--quiet", "-q", is_flag=True, help="Show nothing but the image's id.")
@click.option("--iidfile", type=_FILE, help="Write the image's id to a file.")
@click.option("--metadata-file", type=_FILE, help="Write what was built, as JSON, to a file.")
@click.option("--check", is_flag=True, help="Only look for what is wrong with the Dockerfile; exit 1 if something is.")
@click.option(
    "--format", "format_name", default="text", show_default=True,
    help="How the result, or the report of --check, is shown: text, json, or for a result a template, {{.Id}}.",
)  # fmt: skip
@click.option(
    "--on-failure", default="error", metavar="error|shell", help="`shell` opens a shell in the step that fails."
)
@click.option(
    "--debug-at", "debug_lines", multiple=True, type=click.IntRange(1), metavar="LINE",
    help="Open a shell before the step of this line of the Dockerfile.",
)  # fmt: skip
@log_calls_option
@retired_options(BUILD_OPTIONS)
@refused_options(REFUSED)
def rootfs(**options: Any) -> None:
    """Build a root file system from a Dockerfile. Its steps run inside a build microVM.

    CONTEXT is what COPY and ADD take from: a folder, an archive, a URL of an archive or of a git repository, or `-` for
    an archive on standard input; without it, the Dockerfile's own folder.
    """
    from firebuild.engine.builds import build_rootfs
    from firebuild.engine.report import RESULT_KEYS, describe_build, make_build_metadata

    format_name, check = options["format_name"], options["check"]
    if format_name not in ("text", "json") and (check or not is_template(format_name)):
        hint = "choose text or json" if check else "choose text, json or a template like {{.Id}}"
        raise UsageError(f"`{format_name}` is not a format of the {'report' if check else 'result'}", hint=hint)
    if not options["tags"] and not check:
        raise UsageError("name the result", hint="--tag org/name:version")
    if is_template(format_name):
        check_template(format_name, RESULT_KEYS)
    image = make_image_request(options)
    request = make_request(options)
    if check:
        _check(request, format_name)
        return
    files = [path for path in (options["iidfile"], options["metadata_file"]) if path is not None]
    for path in files:
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise UsageError(f"`{path}` cannot be written", hint="name a file in a folder that exists")
    debugs = options["on_failure"] != "error" or bool(options["debug_lines"])
    if debugs:
        from firebuild.cli.debugging import check_debugging, make_debugging

        debugs = check_debugging(options["on_failure"], options["debug_lines"])
    mode = "quiet" if options["quiet"] else options["progress"]
    with Engine() as engine, open_renderer(mode, sys.stderr) as sink:
        debug = make_debugging(options["on_failure"], options["debug_lines"], sink) if debugs else None
        build = partial(build_rootfs, stdin=sys.stdin.buffer, debug=debug)
        if image is not None:
            from firebuild.engine.docker_image import build_from_image

            result = build_from_image(engine, image, sink)
        else:
            result = build(engine, request, sink)
    if options["iidfile"] is not None:
        options["iidfile"].write_text(result.image.id)
    if options["metadata_file"] is not None:
        options["metadata_file"].write_bytes(make_build_metadata(result, request.tags, None if image else request))
    if format_name == "json":
        print_json(describe_build(result, request.tags))
    elif format_name != "text":
        click.echo(render_template(format_name, describe_build(result, request.tags)))
    else:
        if not options["quiet"]:
            cached = f", {result.cached} cached" if result.cached else ""
            machine = "booted" if result.booted else "not needed"
            note(f"built {', '.join(options['tags'])}: {result.steps} steps{cached}; build machine: {machine}")
        click.echo(result.image.id)


def make_request(options: Mapping[str, Any]) -> RootfsRequest:
    """What the options ask for. Raises UsageError, ConfigError."""
    from firebuild.cli.lending import parse_lent
    from firebuild.cli.options import parse_environment
    from firebuild.engine.builds import RootfsRequest
    from firebuild.engine.proxies import load_proxy_args

    if options["network"] not in ("default", "none"):
        raise UsageError(f"`{options['network']}` is not a network for RUN steps", hint="choose default or none")
    if options["base_policy"] not in ("stored", "registry"):
        raise UsageError(
            f"`{options['base_policy']}` is not a policy for base images", hint="choose stored or registry"
        )
    for command in (*options["pre_commands"], *options["post_commands"]):
        if not command.strip() or "\0" in command:
            raise UsageError(
                "a command before or after the build is empty", hint="--pre-build-command 'apt-get update'"
            )
    return RootfsRequest(
        dockerfile=options["dockerfile"],
        context=options["context"],
        tags=[parse_reference(tag) for tag in options["tags"]],
        build_args=parse_environment((), options["build_args"]),
        target=options["target"],
        no_cache=options["no_cache"],
        labels=parse_labels(options["labels"]),
        network=options["network"],
        build_contexts=options["build_contexts"],
        lent=parse_lent(options["secrets"], options["agents"]),
        no_cache_filter=[name for text in options["no_cache_filter"] for name in text.split(",") if name],
        pull=options["pull"],
        base_policy=options["base_policy"],
        machine=parse_machine(options),
        pre_commands=options["pre_commands"],
        post_commands=options["post_commands"],
        trust_host_ca=options["trust_host_ca"],
        defaults={**load_proxy_args(), **_load_epoch(os.environ)},
    )


def _load_epoch(environment: Mapping[str, str]) -> dict[str, str]:
    """The caller's SOURCE_DATE_EPOCH, as docker buildx takes it (reproducible-builds.org)."""
    epoch = environment.get("SOURCE_DATE_EPOCH")
    return {"SOURCE_DATE_EPOCH": epoch} if epoch else {}


# What only a Dockerfile has a use for, by the option's name.
_DOCKERFILE_ONLY = (
    "context", "dockerfile", "build_contexts", "build_args", "target", "no_cache_filter", "secrets", "agents",
    "pre_commands", "post_commands", "check",
)  # fmt: skip


def make_image_request(options: Mapping[str, Any]) -> DockerImageRequest | None:
    """What --docker-image asks for; None without it. Raises UsageError."""
    if options["docker_image"] is None:
        if options["docker_image_base"] is not None:
            raise UsageError("--docker-image-base without --docker-image", hint="a Dockerfile names its base in FROM")
        return None
    from firebuild.engine.docker_image import DockerImageRequest

    for name in _DOCKERFILE_ONLY:
        if options[name]:
            words = name.rstrip("s").replace("_", "-") if name != "context" else "a build context"
            raise UsageError(
                f"--docker-image takes an image as it is; {words} has no place there",
                hint=f"to change it write a Dockerfile: FROM {options['docker_image']}",
            )
    base = options["docker_image_base"]
    return DockerImageRequest(
        image=parse_reference(options["docker_image"]),
        base=parse_reference(base) if base is not None else None,
        tags=[parse_reference(tag) for tag in options["tags"]],
        labels=parse_labels(options["labels"]),
        pull=options["pull"],
        machine=parse_machine(options),
    )


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """--label K=V; a bare K has an empty value. Raises UsageError."""
    labels = dict(text.partition("=")[::2] for text in texts)
    if "" in labels:
        raise UsageError("a label has no name", hint="write --label K=V")
    return labels


def parse_machine(options: Mapping[str, Any]) -> MachineWish:
    """How large the build machine is to be. Raises UsageError."""
    from firebuild.engine.disk_keys import MachineWish

    memory_mib = disk_bytes = None
    if options["memory"] is not None:
        memory_mib = parse_size(options["memory"], default_unit="m") >> 20
        if not 128 <= memory_mib <= 1 << 20:
            raise UsageError(f"--mem {options['memory']}: a build machine has at least 128 MiB, at most 1 TiB")
    if options["disk_size"] is not None:
        disk_bytes = parse_size(options["disk_size"], default_unit="m")
        if not 64 << 20 <= disk_bytes <= 16 << 40:
            raise UsageError(f"--disk-size {options['disk_size']}: a work disk has at least 64 MiB, at most 16 TiB")
    return MachineWish(
        memory_mib=memory_mib, cpus=options["cpus"], disk_bytes=disk_bytes, network=options["machine_network"],
        kernel=options["kernel"],
    )  # fmt: skip


def _check(request: RootfsRequest, format_name: str) -> None:
    """Report on standard output; fails like a build with the error that a build would have, or with 1 for warnings."""
    from firebuild.cli.renderers.check import make_check_document, render_check
    from firebuild.engine.checks import check_rootfs

    with Engine() as engine:
        report = check_rootfs(engine, request, stdin=sys.stdin.buffer)
    if format_name == "json":
        print_json(make_check_document(report))
    else:
        for notice in report.notices:
            note(f"note: {notice}")
        click.echo(render_check(report), nl=False)
        if report.error is not None:
            raise report.error
    if not report.passed:
        raise click.exceptions.Exit(1)
