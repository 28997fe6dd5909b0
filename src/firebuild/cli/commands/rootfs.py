"""`firebuild rootfs` (alias `build`): from a Dockerfile to a bootable root file system."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firebuild.cli.output import note, print_json
from firebuild.cli.renderers import open_renderer
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.names import parse_reference

if TYPE_CHECKING:
    from firebuild.engine.builds import RootfsRequest


@click.command()
@click.argument("context", required=False)
@click.option(
    "--dockerfile", "--file", "-f", help="A file, a URL, `-`, or a Dockerfile's text; without it CONTEXT's Dockerfile."
)
@click.option("--build-context", "build_contexts", multiple=True, help="A named context: NAME=PATH, URL or image.")
@click.option("--tag", "-t", "tags", multiple=True, help="A name for the result: [org/]name[:version].")
@click.option(
    "--build-arg", "build_args", multiple=True, help="Build argument K=V; a bare K takes the caller's variable."
)
@click.option("--target", "--dockerfile-stage", "target", help="The stage to build; without it the last.")
@click.option("--no-cache", is_flag=True, help="Run every step, whatever is cached.")
@click.option("--label", "labels", multiple=True, help="Label K=V of the image.")
@click.option(
    "--secret", "secrets", multiple=True, help="For RUN --mount=type=secret: id=NAME,src=FILE or id=NAME,env=VARIABLE."
)
@click.option("--ssh", "agents", multiple=True, help="For RUN --mount=type=ssh: default, or ID=SOCKET of an agent.")
@click.option("--network", default="default", show_default=True, help="The network of RUN steps: default or none.")
@click.option("--progress", default="auto", show_default=True, help="auto, plain, tty, rawjson or quiet.")
@click.option("--quiet", "-q", is_flag=True, help="Show nothing but the image's id.")
@click.option("--iidfile", type=click.Path(path_type=Path), help="Write the image's id to a file.")
@click.option("--check", is_flag=True, help="Only look for what is wrong with the Dockerfile; exit 1 if something is.")
@click.option("--format", "format_name", default="text", show_default=True, help="How --check reports: text or json.")
def rootfs(
    context: str | None,
    dockerfile: str | None,
    build_contexts: tuple[str, ...],
    tags: tuple[str, ...],
    build_args: tuple[str, ...],
    target: str | None,
    no_cache: bool,
    labels: tuple[str, ...],
    secrets: tuple[str, ...],
    agents: tuple[str, ...],
    network: str,
    progress: str,
    quiet: bool,
    iidfile: Path | None,
    check: bool,
    format_name: str,
) -> None:
    """Build a root file system from a Dockerfile. Its steps run inside a build microVM.

    CONTEXT is what COPY and ADD take from: a folder, an archive, a URL of an archive or of a git repository, or `-` for
    an archive on standard input; without it, the Dockerfile's own folder.
    """
    from firebuild.cli.lending import parse_lent
    from firebuild.cli.options import parse_environment
    from firebuild.engine.builds import RootfsRequest, build_rootfs

    if network not in ("default", "none"):
        raise UsageError(f"`{network}` is not a network for RUN steps", hint="choose default or none")
    if format_name not in ("text", "json"):
        raise UsageError(f"`{format_name}` is not a format of the report", hint="choose text or json")
    if not tags and not check:
        raise UsageError("name the result", hint="--tag org/name:version")
    request = RootfsRequest(
        dockerfile=dockerfile,
        context=context,
        tags=[parse_reference(tag) for tag in tags],
        build_args=parse_environment((), build_args),
        target=target,
        no_cache=no_cache,
        labels=dict(label.partition("=")[::2] for label in labels),
        network=network,
        build_contexts=build_contexts,
        lent=parse_lent(secrets, agents),
    )
    if check:
        _check(request, format_name)
        return
    with Engine() as engine, open_renderer("quiet" if quiet else progress, sys.stderr) as sink:
        result = build_rootfs(engine, request, sink, stdin=sys.stdin.buffer)
    if iidfile is not None:
        iidfile.write_text(result.image.id)
    if not quiet:
        cached = f", {result.cached} cached" if result.cached else ""
        names = ", ".join(tags) or result.image.id
        note(
            f"built {names}: {result.steps} steps{cached}; build machine: {'booted' if result.booted else 'not needed'}"
        )
    click.echo(result.image.id)


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
