"""`firebuild cache ls|rm|prune`: what builds keep to be faster the next time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from firebuild.cli.filters import parse_age, parse_filters
from firebuild.cli.options import format_option
from firebuild.cli.output import format_age, format_size, format_time, note, print_rows
from firebuild.engine.cache import KINDS, CacheEntry, Pruned, list_cache, prune_cache, remove_cache
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.events.text import neutralise
from firebuild.names import parse_size

_FILTER_KEYS = ("id", "kind", "shared", "unused-for", "until")
_FILTER_HELP = "kind=step|mount|file, id=…, shared=true|false, unused-for=24h (also until=)."
_DESCRIPTION_MAX = 60


@click.group()
def cache() -> None:
    """The build cache: results of steps, the folders of RUN --mount=type=cache, and files that ADD fetched."""


@cache.command()
@click.option("--filter", "filters", multiple=True, help=_FILTER_HELP)
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("--no-trunc", is_flag=True, help="Print whole ids and descriptions.")
@format_option
def ls(filters: tuple[str, ...], quiet: bool, no_trunc: bool, format_name: str) -> None:
    """List the build cache, the least recently used first."""
    chosen = make_filter(filters)
    with Engine() as engine:
        entries = [entry for entry in list_cache(engine) if chosen(entry)]
    if quiet:
        for entry in entries:
            click.echo(entry.id if no_trunc else entry.id[:12])
        return
    rows = [_row(entry, no_trunc=no_trunc) for entry in entries]
    print_rows(
        format_name, ["ID", "KIND", "SIZE", "SHARED", "LAST USED", "DESCRIPTION"], rows, [describe(e) for e in entries]
    )
    if format_name == "table":
        note(f"{len(entries)} entries, {format_size(sum(entry.size_bytes for entry in entries))}")


@cache.command()
@click.argument("ids", nargs=-1, required=True)
def rm(ids: tuple[str, ...]) -> None:
    """Remove parts of the build cache by their ids."""
    with Engine() as engine:
        pruned = remove_cache(engine, ids)
    for entry in pruned.entries:
        click.echo(entry.id[:12])
    note(f"freed {format_size(pruned.size_bytes)}")


@cache.command()
@click.option("--force", "-f", is_flag=True, help="Do not ask.")
@click.option("--filter", "filters", multiple=True, help=_FILTER_HELP)
@click.option("--keep-storage", help="Stop when the cache takes this much or less: 500m, 10g.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def prune(force: bool, filters: tuple[str, ...], keep_storage: str | None, dry_run: bool) -> None:
    """Remove the build cache, or what the filters choose of it, the least recently used first.

    Images stay, and so do the layers that they hold. A cache that a build has now stays too.
    """
    chosen = make_filter(filters)
    keep_bytes = parse_size(keep_storage) if keep_storage is not None else 0
    if not force and not dry_run:
        if not sys.stdin.isatty():
            raise UsageError("`cache prune` asks before it removes anything, and there is no terminal", hint="--force")
        what = "what the filters choose of the build cache" if filters else "the whole build cache"
        click.confirm(f"This removes {what}. Go on?", abort=True, err=True)
    with Engine() as engine:
        pruned = prune_cache(engine, chosen, keep_bytes=keep_bytes, dry_run=dry_run)
    _report(pruned, dry_run=dry_run)


def _report(pruned: Pruned, *, dry_run: bool) -> None:
    for entry in pruned.entries:
        click.echo(f"{entry.id[:12]}   {entry.kind}   {format_size(entry.size_bytes)}   {_shorten(entry.description)}")
    for entry in pruned.busy:
        note(f"the cache `{neutralise(entry.description)}` stays: a build has it")
    click.echo(f"{'Would reclaim' if dry_run else 'Total reclaimed'} space: {format_size(pruned.size_bytes)}")


def make_filter(texts: tuple[str, ...]) -> Callable[[CacheEntry], bool]:
    """Whether an entry is chosen by all keys of the filters. Raises UsageError."""
    filters = parse_filters(texts, _FILTER_KEYS)
    for kind in filters.get("kind", ()):
        if kind not in KINDS:
            raise UsageError(f"`{kind[:100]}` is not a kind of cache", hint=f"it is {' or '.join(KINDS)}")
    for word in filters.get("shared", ()):
        if word not in ("true", "false"):
            raise UsageError(f"shared=`{word[:100]}`", hint="it is true or false")
    ages_s = [parse_age(text) for key in ("unused-for", "until") for text in filters.get(key, ())]
    now = time.time_ns()

    def chosen(entry: CacheEntry) -> bool:
        return (
            ("kind" not in filters or entry.kind in filters["kind"])
            and ("shared" not in filters or str(entry.shared).lower() in filters["shared"])
            and ("id" not in filters or any(entry.id.startswith(prefix) for prefix in filters["id"]))
            and all(now - entry.used_at_ns >= age_s * 10**9 for age_s in ages_s)
        )

    return chosen


def describe(entry: CacheEntry) -> dict[str, Any]:
    """An entry as JSON."""
    return {
        "ID": entry.id,
        "Kind": entry.kind,
        "Size": entry.size_bytes,
        "Shared": entry.shared,
        "CreatedAt": format_time(entry.created_at_ns),
        "LastUsedAt": format_time(entry.used_at_ns),
        "Dockerfile": entry.dockerfile,
        "Description": entry.description,
    }


def _row(entry: CacheEntry, *, no_trunc: bool) -> list[str]:
    text = neutralise(entry.description) if no_trunc else _shorten(entry.description)
    return [
        entry.id if no_trunc else entry.id[:12], entry.kind, format_size(entry.size_bytes),
        "yes" if entry.shared else "no", format_age(entry.used_at_ns), text,
    ]  # fmt: skip


def _shorten(text: str) -> str:
    text = neutralise(" ".join(text.split()))
    return text if len(text) <= _DESCRIPTION_MAX else text[: _DESCRIPTION_MAX - 1] + "…"
