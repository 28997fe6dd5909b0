"""`firebuild version`."""

from __future__ import annotations

import click

from firebuild import __version__


@click.command()
def version() -> None:
    """Show the version."""
    click.echo(f"firebuild {__version__}")
