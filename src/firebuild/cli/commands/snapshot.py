"""`firebuild snapshot create|ls|inspect|rm`: running machines, saved with their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

from firebuild.cli.filters import parse_filters
from firebuild.cli.options import format_option
from firebuild.cli.output import format_size, format_time, note, print_rows
from firebuild.cli.several import each_object
from firebuild.engine import snapshots
from firebuild.engine.core import Engine
from firebuild.engine.snapshots import SnapshotView

_LS_KEYS = ("name", "label", "machine", "image", "kind")


@click.group()
def snapshot() -> None:
    """Snapshots: running machines, saved with their memory and disks, from which others are started."""


@snapshot.command()
@click.argument("machine")
@click.argument("name")
@click.option(
    "--full/--diff",
    default=True,
    help="All of its memory (the default), or what changed since it was started from a snapshot.",
)
@click.option("--stop", is_flag=True, help="End the machine then; without it, it goes on.")
@click.option("--label", "labels", multiple=True, help="Label K=V.")
def create(machine: str, name: str, full: bool, stop: bool, labels: tuple[str, ...]) -> None:
    """Save a running machine: its memory, its own disks, the state of its devices. Prints the snapshot's name."""
    pairs = dict(label.partition("=")[::2] for label in labels)
    with Engine() as engine:
        made = snapshots.create(engine, machine, name, diff=not full, stop=stop, labels=pairs)
    methods = {disk.method for disk in made.own_disks}
    if methods:
        note("its disks share their blocks with the machine's" if methods == {"reflink"} else "its disks were copied")
    click.echo(made.name)


@snapshot.command()
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="name, machine, image, label, kind=full|diff."
)
@format_option
def ls(quiet: bool, filters: tuple[str, ...], format_name: str) -> None:
    """List snapshots. MEMORY is the guest's, USED what all its files take on this host."""
    chosen = _make_filter(parse_filters(filters, _LS_KEYS))
    with Engine() as engine:
        views = [view for view in snapshots.list_views(engine) if chosen(view)]
    if quiet:
        for view in views:
            click.echo(view.snapshot.name)
        return
    rows = [
        [
            view.snapshot.name, view.snapshot.kind, view.snapshot.spec.name, view.snapshot.spec.image,
            format_size(view.snapshot.spec.memory_mib << 20), format_size(view.used_bytes), view.snapshot.parent or "-",
            format_time(view.snapshot.created_at_ns) or "-",
        ]
        for view in views
    ]  # fmt: skip
    titles = ["NAME", "KIND", "MACHINE", "IMAGE", "MEMORY", "USED", "PARENT", "CREATED"]
    print_rows(format_name, titles, rows, [_describe(view) for view in views])


@snapshot.command()
@click.argument("names", nargs=-1, required=True)
def inspect(names: tuple[str, ...]) -> int:
    """Show everything about snapshots, as one JSON document each."""

    def show(engine: Engine, name: str) -> str:
        found = snapshots.view(engine, name)
        document = _describe(found)
        document["Folder"] = str(engine.snapshots.folder(name))
        document["Spec"] = msgspec.to_builtins(found.snapshot.spec)
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()

    return each_object(names, show)


@snapshot.command()
@click.argument("names", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="One that is not there is no failure.")
def rm(names: tuple[str, ...], force: bool) -> int:
    """Remove snapshots that no diff needs. Machines that were started from them go on."""

    def remove(engine: Engine, name: str) -> str:
        snapshots.remove(engine, name, force=force)
        return name

    return each_object(names, remove)


def _make_filter(wanted: dict[str, list[str]]) -> Callable[[SnapshotView], bool]:
    def has_label(view: SnapshotView, text: str) -> bool:
        key, equals, value = text.partition("=")
        labels = view.snapshot.labels
        return key in labels and (not equals or labels[key] == value)

    def chosen(view: SnapshotView) -> bool:
        saved = view.snapshot
        facts = {"machine": (saved.spec.name, saved.spec.id), "image": (saved.spec.image,), "kind": (saved.kind,)}
        return (
            ("name" not in wanted or any(text in saved.name for text in wanted["name"]))
            and ("label" not in wanted or any(has_label(view, text) for text in wanted["label"]))
            and all(any(text in values for text in wanted[key]) for key, values in facts.items() if key in wanted)
        )

    return chosen


def _describe(view: SnapshotView) -> dict[str, Any]:
    saved = view.snapshot
    return {
        "Name": saved.name, "Id": saved.id, "Kind": saved.kind, "CreatedAt": format_time(saved.created_at_ns),
        "Machine": {"Id": saved.spec.id, "Name": saved.spec.name}, "Image": saved.spec.image,
        "ImageDigest": saved.spec.image_digest, "Kernel": saved.spec.kernel, "Cpus": saved.spec.cpus,
        "Memory": saved.spec.memory_mib << 20, "Used": view.used_bytes, "Parent": saved.parent or None,
        "Children": view.children, "VmmVersion": saved.vmm_version, "HostMode": saved.host_mode,
        "CpuModel": saved.cpu_model, "Disks": msgspec.to_builtins(saved.own_disks),
        "SharedDisks": msgspec.to_builtins(saved.shared_disks), "MemoryDigest": saved.memory_digest,
        "Labels": dict(saved.labels),
    }  # fmt: skip
