"""`firebuild firecracker install|ls|rm`."""

from __future__ import annotations

import click

from firebuild.cli.options import format_option
from firebuild.cli.output import note, print_rows
from firebuild.engine.core import Engine


@click.group()
def firecracker() -> None:
    """Firecracker's own programs, from its official releases."""


@firecracker.command()
@click.option("--version", help="The version, such as 1.16.1; without it the newest.")
def install(version: str | None) -> None:
    """Fetch a release, check it against its checksum, and keep `firecracker` and `jailer`."""
    from firebuild.engine.firecracker import install_firecracker

    with Engine() as engine:
        installed = install_firecracker(engine, version, note)
        profile = engine.settings.profile
    click.echo(str(installed.firecracker))
    click.echo(str(installed.jailer))
    note(
        f"to run machines with it: firebuild profile create --profile {profile} "
        f"--binary-firecracker {installed.firecracker} --binary-jailer {installed.jailer}"
    )


@firecracker.command()
@click.option("-q", "--quiet", is_flag=True, help="Print versions only.")
@format_option
def ls(quiet: bool, format_name: str) -> None:
    """List the installed versions, and what each lacks that newer ones have."""
    from firebuild.engine.firecracker import list_firecrackers

    with Engine() as engine:
        installed = list_firecrackers(engine)
    if quiet:
        for one in installed:
            click.echo(one.version)
        return
    rows = [[one.version, str(one.firecracker), ", ".join(one.lacks)] for one in installed]
    objects = [
        {"version": one.version, "firecracker": str(one.firecracker), "jailer": str(one.jailer), "lacks": one.lacks}
        for one in installed
    ]
    print_rows(format_name, ["VERSION", "PROGRAM", "LACKS"], rows, objects)


@firecracker.command()
@click.argument("versions", nargs=-1, required=True)
def rm(versions: tuple[str, ...]) -> None:
    """Remove installed versions that no machine's profile here runs."""
    from firebuild.engine.firecracker import remove_firecracker

    with Engine() as engine:
        for version in versions:
            remove_firecracker(engine, version)
            click.echo(version)
