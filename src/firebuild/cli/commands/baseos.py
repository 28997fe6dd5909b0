"""`firebuild baseos`: from a Dockerfile to a base operating system that machines boot whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from firebuild.cli.commands.rootfs import parse_labels, parse_machine
from firebuild.cli.log_options import log_calls_option
from firebuild.cli.output import note
from firebuild.cli.renderers import open_renderer
from firebuild.cli.retired import BUILD_OPTIONS, REFUSED, refused_options, retired_options
from firebuild.engine.core import Engine
from firebuild.names import parse_reference


@click.command()
@click.argument("context", required=False)
@click.option("--dockerfile", "--file", "-f", help="A file, a URL, `-`, or a Dockerfile's text.")
@click.option("--tag", "-t", "tag", help="The name that it stands for; without it the name in the Dockerfile's FROM.")
@click.option(
    "--filesystem-size-mbs", "filesystem_mib", type=click.IntRange(1, 1 << 20),
    help="Fail if its files take more MiB than this. [default: no limit: disks are sparse]",
)  # fmt: skip
@click.option(
    "--build-arg", "build_args", multiple=True, help="Build argument K=V; a bare K takes the caller's variable."
)
@click.option("--no-cache", is_flag=True, help="Run every step, whatever is cached.")
@click.option("--pull", is_flag=True, help="Ask the registries for newer base images.")
@click.option("--label", "labels", multiple=True, help="Label K=V of the image.")
@click.option(
    "--trust-host-ca/--no-trust-host-ca", default=None,
    help="Whether RUN steps trust the certificate authorities of this host. [default: no]",
)  # fmt: skip
@click.option("--mem", "--memory", "-m", "memory", help="Memory of the build machine: MiB, or with a unit: 512m, 2g.")
@click.option("--cpu", "--cpus", "cpus", type=click.IntRange(1, 32), help="Processors of the build machine.")
@click.option("--disk-size", help="Size of the build machine's work disk (sparse): MiB, or with a unit.")
@click.option("--cni-network-name", "machine_network", help="The CNI network of the build machine.")
@click.option("--vmlinux-id", "--kernel", "kernel", help="The kernel of the build machine; without it the newest.")
@click.option("--progress", default="auto", show_default=True, help="auto, plain, tty, rawjson or quiet.")
@click.option("--quiet", "-q", is_flag=True, help="Show nothing but the image's id.")
@click.option("--iidfile", type=click.Path(path_type=Path), help="Write the image's id to a file.")
@log_calls_option
@retired_options(BUILD_OPTIONS)
@refused_options(REFUSED)
def baseos(**options: Any) -> None:
    """Build a base operating system: an init, a console, OpenSSH, a user.

    It is stored beside the image that it is built from; FROM and run take it for that image from then on. Machines of it,
    and of what is built FROM it, start in system mode: its own init is PID 1.
    """
    from firebuild.cli.options import parse_environment
    from firebuild.engine.baseos import BaseosRequest, build_baseos
    from firebuild.engine.builds import RootfsRequest
    from firebuild.engine.proxies import load_proxy_args

    build = RootfsRequest(
        dockerfile=options["dockerfile"],
        context=options["context"],
        tags=[],
        build_args=parse_environment((), options["build_args"]),
        no_cache=options["no_cache"],
        labels=parse_labels(options["labels"]),
        pull=options["pull"],
        machine=parse_machine(options),
        trust_host_ca=options["trust_host_ca"],
        defaults=load_proxy_args(),
    )
    tag = parse_reference(options["tag"]) if options["tag"] is not None else None
    request = BaseosRequest(build=build, tag=tag, filesystem_mib=options["filesystem_mib"])
    mode = "quiet" if options["quiet"] else options["progress"]
    with Engine() as engine, open_renderer(mode, sys.stderr) as sink:
        built = build_baseos(engine, request, sink, stdin=sys.stdin.buffer)
    image = built.result.image
    if options["iidfile"] is not None:
        options["iidfile"].write_text(image.id)
    if not options["quiet"]:
        note(f"stored the base operating system {built.reference}: FROM and run now take it for {built.stands_for}")
        if not built.own_init:
            note("note: it brings no init (/sbin/init): machines of it start with firebuild's own")
    click.echo(image.id)
