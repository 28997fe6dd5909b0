"""`firebuild fsck|gc`: verify what is stored, and free space."""

from __future__ import annotations

import click

from firebuild.cli.output import format_size, note
from firebuild.engine.core import Engine


@click.command()
@click.option("--repair", is_flag=True, help="Set damaged blobs aside and remove damaged disks.")
def fsck(repair: bool) -> int:
    """Verify every stored image, disk, volume and record. Exit status 1 if something is damaged."""
    from firebuild.engine.store import check

    with Engine() as engine:
        problems = check(engine, repair=repair)
    for problem in problems:
        click.echo(problem)
    note("clean" if not problems else f"{len(problems)} problem{'s' if len(problems) != 1 else ''}")
    return 1 if problems else 0


@click.command()
@click.option("--all", "-a", "drop_cache", is_flag=True, help="Drop the build cache too.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def gc(drop_cache: bool, dry_run: bool) -> None:
    """Free space: remove disks, layers and files that no named image, no machine and no cached step needs."""
    from firebuild.engine.store import free_space
    from firebuild.engine.warm import collect_warm

    with Engine() as engine:
        warm = collect_warm(engine, dry_run=dry_run)
        garbage = free_space(engine, drop_cache=drop_cache, dry_run=dry_run)
    counts = [
        (len(garbage.disk_keys), "disk"),
        (len(garbage.blobs), "blob"),
        (len(garbage.step_keys), "cached step"),
    ]
    if warm:
        counts.append((len(warm), "snapshot"))
    what = ", ".join(f"{count} {word}{'s' if count != 1 else ''}" for count, word in counts)
    click.echo(f"{'would remove' if dry_run else 'removed'} {what}: {format_size(garbage.size_bytes)}")
