"""`firebuild fsck`: verify everything that is stored."""

from __future__ import annotations

import click

from firebuild.cli.output import note
from firebuild.engine.core import Engine


@click.command()
@click.option("--repair", is_flag=True, help="Set damaged blobs aside and remove damaged disks.")
def fsck(repair: bool) -> int:
    """Verify every stored image, disk and record. Exit status 1 if something is damaged."""
    from firebuild.engine.store import check

    with Engine() as engine:
        problems = check(engine, repair=repair)
    for problem in problems:
        click.echo(problem)
    note("clean" if not problems else f"{len(problems)} problem{'s' if len(problems) != 1 else ''}")
    return 1 if problems else 0
