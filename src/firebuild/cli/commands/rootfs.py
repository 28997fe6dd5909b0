"""`firebuild rootfs` (alias `build`): from a Dockerfile to a bootable root file system."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from firebuild.cli.output import note
from firebuild.cli.renderers import open_renderer
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.names import parse_reference


@click.command()
@click.argument("context", required=False, type=click.Path(path_type=Path))
@click.option(
    "--dockerfile", "-f", type=click.Path(path_type=Path), help="The Dockerfile; without it CONTEXT/Dockerfile."
)
@click.option("--tag", "-t", "tags", multiple=True, help="A name for the result: [org/]name[:version].")
@click.option(
    "--build-arg", "build_args", multiple=True, help="Build argument K=V; a bare K takes the caller's variable."
)
@click.option("--target", "--dockerfile-stage", "target", help="The stage to build; without it the last.")
@click.option("--no-cache", is_flag=True, help="Run every step, whatever is cached.")
@click.option("--label", "labels", multiple=True, help="Label K=V of the image.")
@click.option("--network", default="default", show_default=True, help="The network of RUN steps: default or none.")
@click.option("--progress", default="auto", show_default=True, help="auto, plain, tty, rawjson or quiet.")
@click.option("--quiet", "-q", is_flag=True, help="Show nothing but the image's id.")
@click.option("--iidfile", type=click.Path(path_type=Path), help="Write the image's id to a file.")
def rootfs(
    context: Path | None,
    dockerfile: Path | None,
    tags: tuple[str, ...],
    build_args: tuple[str, ...],
    target: str | None,
    no_cache: bool,
    labels: tuple[str, ...],
    network: str,
    progress: str,
    quiet: bool,
    iidfile: Path | None,
) -> None:
    """Build a root file system from a Dockerfile. Its steps run inside a build microVM.

    CONTEXT is the folder that COPY and ADD take from; without it, the Dockerfile's own folder.
    """
    from firebuild.cli.options import parse_environment
    from firebuild.engine.builds import RootfsRequest, build_rootfs

    if network not in ("default", "none"):
        raise UsageError(f"`{network}` is not a network for RUN steps", hint="choose default or none")
    if not tags and iidfile is None and not quiet:
        note("warning: without --tag the result has no name; it can only be found by its id")
    request = RootfsRequest(
        dockerfile=dockerfile,
        context=context,
        tags=[parse_reference(tag) for tag in tags],
        build_args=parse_environment((), build_args),
        target=target,
        no_cache=no_cache,
        labels=dict(label.partition("=")[::2] for label in labels),
        network=network,
    )
    with Engine() as engine, open_renderer("quiet" if quiet else progress, sys.stderr) as sink:
        result = build_rootfs(engine, request, sink)
    if iidfile is not None:
        iidfile.write_text(result.image.id)
    if not quiet:
        cached = f", {result.cached} cached" if result.cached else ""
        names = ", ".join(tags) or result.image.id
        note(
            f"built {names}: {result.steps} steps{cached}; build machine: {'booted' if result.booted else 'not needed'}"
        )
    click.echo(result.image.id)
