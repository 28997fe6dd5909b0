"""`firebuild kernel pull|import|ls|rm`."""

from __future__ import annotations

from pathlib import Path

import click

from firebuild.cli.options import format_option
from firebuild.cli.output import format_size, note, print_rows
from firebuild.engine.core import Engine


@click.group()
def kernel() -> None:
    """Kernels that machines boot."""


@kernel.command()
@click.option("--name", help="The kernel's name; without it DISTRIBUTION-VERSION.")
def pull(name: str | None) -> None:
    """Fetch the distribution's cloud kernel with apt, without installing it."""
    from firebuild.engine.kernels import pull_kernel

    with Engine() as engine:
        stored = pull_kernel(engine, name=name, report=note)
    click.echo(stored.name)


@kernel.command("import")
@click.option(
    "--vmlinux", required=True, type=click.Path(path_type=Path), help="The kernel: an ELF vmlinux or a bzImage."
)
@click.option("--modules", type=click.Path(path_type=Path), help="Its modules folder (lib/modules/VERSION).")
@click.option("--name", help="The kernel's name; without it the file's name.")
def import_(vmlinux: Path, modules: Path | None, name: str | None) -> None:
    """Take in a kernel of your own."""
    from firebuild.engine.kernels import import_kernel

    with Engine() as engine:
        stored = import_kernel(engine, vmlinux=vmlinux, modules=modules, name=name)
    for warning in stored.warnings:
        note(f"warning: {warning}")
    click.echo(stored.name)


@kernel.command()
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@format_option
def ls(quiet: bool, format_name: str) -> None:
    """List kernels."""
    with Engine() as engine:
        kernels = engine.kernels.list()
    if quiet:
        for item in kernels:
            click.echo(item.name)
        return
    rows = [[item.name, item.version, item.format, format_size(item.size_bytes), item.source] for item in kernels]
    objects = [
        {
            "name": item.name,
            "version": item.version,
            "format": item.format,
            "source": item.source,
            "digest": item.digest,
        }
        for item in kernels
    ]
    print_rows(format_name, ["NAME", "VERSION", "FORMAT", "SIZE", "SOURCE"], rows, objects)


@kernel.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove kernels that no machine uses."""
    from firebuild.engine.kernels import remove_kernel

    with Engine() as engine:
        for name in names:
            remove_kernel(engine, name)
            click.echo(name)
