"""`firebuild volume create|ls|inspect|update|rm|prune`: disks that outlive the machines that have them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from firebuild.cli.filters import parse_age, parse_filters
from firebuild.cli.options import format_option
from firebuild.cli.output import format_size, format_time, print_error, print_rows
from firebuild.cli.several import each_object
from firebuild.engine import volumes
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.names import parse_size
from firebuild.store.volumes import DEFAULT_BYTES, Volume

_LS_KEYS = ("name", "label", "dangling", "until")
_PRUNE_KEYS = ("label", "until")


@click.group()
def volume() -> None:
    """Volumes: ext4 disks that machines mount, and that outlive them."""


@volume.command()
@click.argument("name")
@click.option("--size", default=f"{DEFAULT_BYTES >> 30}g", show_default=True, help="Its size (sparse): 500m, 20g.")
@click.option("--label", "labels", multiple=True, help="Label K=V.")
def create(name: str, size: str, labels: tuple[str, ...]) -> None:
    """Make an empty volume. Prints its name."""
    pairs = dict(label.partition("=")[::2] for label in labels)
    with Engine() as engine:
        made = volumes.create(engine, name, size_bytes=parse_size(size, default_unit="m"), labels=pairs)
    click.echo(made.name)


@volume.command()
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="name, label, dangling=true|false, until=24h."
)
@format_option
def ls(quiet: bool, filters: tuple[str, ...], format_name: str) -> None:
    """List volumes. SIZE is what a machine sees, USED what it takes on this host."""
    wanted = parse_filters(filters, _LS_KEYS)
    for word in wanted.get("dangling", ()):
        if word not in ("true", "false"):
            raise UsageError(f"dangling=`{word[:100]}`", hint="it is true or false")
    chosen = _make_filter(wanted)
    with Engine() as engine:
        views = [view for view in volumes.list_views(engine) if chosen(view.volume)]
    if "dangling" in wanted:
        views = [view for view in views if str(not view.users).lower() in wanted["dangling"]]
    if quiet:
        for view in views:
            click.echo(view.volume.name)
        return
    rows = [
        [
            view.volume.name, format_size(view.volume.size_bytes), format_size(view.volume.used_bytes),
            ", ".join(f"{user['Name']} ({user['Mode']}, {user['State']})" for user in view.users) or "-",
        ]
        for view in views
    ]  # fmt: skip
    print_rows(format_name, ["NAME", "SIZE", "USED", "MACHINES"], rows, [_describe(view) for view in views])


@volume.command()
@click.argument("name")
@click.option("--size", required=True, help="Its new size, no smaller than it is: 20g.")
def update(name: str, size: str) -> None:
    """Make a volume larger; no running machine may have it. Prints its name."""
    from firebuild.engine.growth import grow_volume

    with Engine() as engine:
        click.echo(grow_volume(engine, name, parse_size(size, default_unit="m")).name)


@volume.command()
@click.argument("names", nargs=-1, required=True)
def inspect(names: tuple[str, ...]) -> int:
    """Show everything about volumes, as one JSON document each."""

    def show(engine: Engine, name: str) -> str:
        document = _describe(volumes.view(engine, name))
        document["Disk"] = str(volumes.open_store(engine).disk(name))
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()

    return each_object(names, show)


@volume.command()
@click.argument("names", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="One that is not there is no failure.")
def rm(names: tuple[str, ...], force: bool) -> int:
    """Remove volumes that no machine has, ended machines included. What is in them is lost."""

    def remove(engine: Engine, name: str) -> str:
        volumes.remove(engine, name, force=force)
        return name

    return each_object(names, remove)


@volume.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="label=K[=V], until=24h.")
def prune(force: bool, filters: tuple[str, ...]) -> int:
    """Remove all volumes that no machine has, ended machines included. What is in them is lost."""
    chosen = _make_filter(parse_filters(filters, _PRUNE_KEYS))
    if not force:
        if not sys.stdin.isatty():
            raise UsageError("`volume prune` asks before it removes anything, and there is no terminal", hint="--force")
        click.confirm("This removes all volumes that no machine has, and what is in them. Go on?", abort=True, err=True)
    with Engine() as engine:
        removed, failures = volumes.prune(engine, chosen)
    for item in removed:
        click.echo(item.name)
    for error in failures:
        print_error(error)
    click.echo(f"Total reclaimed space: {format_size(sum(item.used_bytes for item in removed))}")
    return 1 if failures else 0


def _make_filter(wanted: dict[str, list[str]]) -> Callable[[Volume], bool]:
    ages_s = [parse_age(text) for text in wanted.get("until", ())]

    def has_label(item: Volume, text: str) -> bool:
        key, equals, value = text.partition("=")
        return key in item.labels and (not equals or item.labels[key] == value)

    def chosen(item: Volume) -> bool:
        return (
            ("name" not in wanted or any(text in item.name for text in wanted["name"]))
            and ("label" not in wanted or any(has_label(item, text) for text in wanted["label"]))
            and all(volumes.is_older(item, age_s) for age_s in ages_s)
        )

    return chosen


def _describe(view: volumes.VolumeView) -> dict[str, Any]:
    item = view.volume
    return {
        "Name": item.name, "Driver": "local", "Scope": "local", "CreatedAt": format_time(item.created_at_ns),
        "Size": item.size_bytes, "Used": item.used_bytes, "Labels": dict(item.labels), "Machines": view.users,
    }  # fmt: skip
