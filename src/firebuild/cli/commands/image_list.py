"""`firebuild image ls|inspect|history|diff|tag|rm|prune`: looking at what is stored, and naming it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from firebuild.cli.output import format_age, format_size, note, print_json, print_table
from firebuild.cli.progress import open_meter
from firebuild.cli.template import is_template, render_template
from firebuild.engine.core import Engine
from firebuild.errors import FirebuildError, UsageError
from firebuild.events.text import neutralise
from firebuild.names import parse_reference

_COMMAND_WIDTH = 60
_FORMAT = click.option(
    "--format", "format_name", default="table", show_default=True,
    help="table, json (one object a line), or a template: {{.Key}}.",
)  # fmt: skip


def print_objects(
    format_name: str, headings: Sequence[str], rows: Sequence[Sequence[str]], objects: Sequence[dict[str, Any]]
) -> None:
    """A table, an object a line, or a template for each. Raises UsageError for another format."""
    if format_name == "table":
        print_table(headings, rows)
        return
    if format_name != "json" and not is_template(format_name):
        raise UsageError(f"`{format_name}` is not an output format", hint="choose table, json or a template: {{.Key}}")
    for item in objects:
        line = msgspec.json.encode(item).decode() if format_name == "json" else render_template(format_name, item)
        click.echo(line)


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Print image ids only.")
@click.option("-f", "--filter", "filters", multiple=True, help="reference=, kind=, label=, before=, since=, until=.")
@click.option("--digests", is_flag=True, help="Show the manifests' digests.")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@_FORMAT
def ls(quiet: bool, filters: tuple[str, ...], digests: bool, no_trunc: bool, format_name: str) -> None:
    """List images. SIZE is that of the unpacked layers, SHARED what other images have too, DISK what the bootable disk
    occupies."""
    from firebuild.engine.image_list import created_ns, list_images

    with Engine() as engine:
        images = list_images(engine, filters, lambda name, error: note(f"warning: {name}: {error}"))
    if quiet:
        for identity in dict.fromkeys(item.id for item in images):
            click.echo(identity)
        return
    rows, objects = [], []
    for item in images:
        created = created_ns(item.created)
        identity = item.id if no_trunc else item.id.removeprefix("sha256:")[:12]
        row = [item.reference, *([item.digest] if digests else []), identity, item.kind]
        row += [format_age(created) if created else "-", format_size(item.size), format_size(item.shared_size)]
        rows.append([*row, format_size(item.disk_size) if item.disk_size else "-"])
        bare, _, version = item.reference.partition("@")[0].rpartition(":")
        objects.append(
            {
                "reference": item.reference, "id": item.id, "digest": item.digest, "kind": item.kind,
                "created": item.created, "size": item.size, "shared_size": item.shared_size,
                "stored_size": item.stored_size, "disk_size": item.disk_size, "labels": item.labels,
            }
            if format_name == "json"
            else {
                "Reference": item.reference, "Repository": bare, "Tag": version, "ID": identity, "Digest": item.digest,
                "Kind": item.kind, "CreatedAt": item.created or "", "CreatedSince": row[-3], "Size": row[-2],
                "SharedSize": row[-1], "Labels": item.labels,
            }
        )  # fmt: skip
    headings = ["REFERENCE", *(["DIGEST"] if digests else []), "ID", "KIND", "CREATED", "SIZE", "SHARED", "DISK"]
    print_objects(format_name, headings, rows, objects)


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--format", "format_name", default="json", show_default=True, help="json, or a template: {{.Key}}.")
def inspect(names: tuple[str, ...], format_name: str) -> None:
    """Show images as a JSON list; the OCI configuration of each stands under `Config`."""
    from firebuild.engine.image_list import describe_image

    if format_name != "json" and not is_template(format_name):
        raise UsageError(f"`{format_name}` is not an output format", hint="choose json or a template: {{.Config.Env}}")
    with Engine() as engine:
        documents = [describe_image(engine, name) for name in names]
    if format_name == "json":
        print_json(documents)
        return
    for document in documents:
        click.echo(render_template(format_name, document))


@click.command()
@click.argument("name", metavar="IMAGE")
@click.option("-q", "--quiet", is_flag=True, help="Print layer ids only.")
@click.option("--no-trunc", is_flag=True, help="Show whole commands and ids.")
@_FORMAT
def history(name: str, quiet: bool, no_trunc: bool, format_name: str) -> None:
    """Show what made an image, newest first."""
    from firebuild.engine.image_list import created_ns, list_history

    with Engine() as engine:
        entries = list_history(engine, name)
    if quiet:
        for entry in entries:
            click.echo(entry["Id"])
        return
    rows = []
    for entry in entries:
        command = neutralise(" ".join(entry["CreatedBy"].split()))
        if not no_trunc and len(command) > _COMMAND_WIDTH:
            command = command[: _COMMAND_WIDTH - 1] + "…"
        created = created_ns(entry["Created"])
        identity = entry["Id"] if no_trunc else entry["Id"].removeprefix("sha256:")[:12]
        rows.append(
            [identity, format_age(created) if created else "-", command, format_size(entry["Size"]),
             neutralise(entry["Comment"])]
        )  # fmt: skip
    print_objects(format_name, ["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"], rows, entries)


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--format", "format_name", default="text", show_default=True, help="text, or json.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def diff(old: str, new: str, format_name: str, quiet: bool) -> None:
    """Show how NEW differs from OLD: files (A added, C changed, D removed), packages of dpkg and apk, configuration."""
    from firebuild.engine.image_list import compare_images

    if format_name not in ("text", "json"):
        raise UsageError(f"`{format_name}` is not an output format", hint="choose text or json")
    with Engine() as engine, open_meter(f"comparing {old} and {new}", quiet=quiet) as progress:
        found = compare_images(engine, old, new, progress)
    if format_name == "json":
        print_json(found)
        return
    for change in found.files:
        letter = {"added": "A", "changed": "C", "removed": "D"}[change.kind]
        what = f" ({', '.join(change.what)})" if change.what else ""
        click.echo(f"{letter} {neutralise(change.path)}{what}")
    for package in found.packages:
        click.echo(f"package {neutralise(_from_to(package['name'], package['old'], package['new']))}")
    for entry in found.config:
        click.echo(f"config {neutralise(_from_to(entry['key'], _json(entry['old']), _json(entry['new'])))}")


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _from_to(name: str | None, old: str | None, new: str | None) -> str:
    if old is None:
        return f"added {name} {new}"
    return f"removed {name} {old}" if new is None else f"changed {name} {old} -> {new}"


@click.command()
@click.argument("source")
@click.argument("target")
def tag(source: str, target: str) -> None:
    """Give an image one more name."""
    from firebuild.engine.images import tag_image

    with Engine() as engine:
        tag_image(engine, source, parse_reference(target))


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Of an image that is named by its id remove all names.")
def rm(names: tuple[str, ...], force: bool) -> int:
    """Remove images' names, each given as a name, an id or the beginning of one. `image prune` or `gc` free the space."""
    from firebuild.cli.output import print_error
    from firebuild.engine.images import remove_image

    failed = False
    with Engine() as engine:
        for name in names:
            try:
                removed = remove_image(engine, name, force=force)
            except FirebuildError as error:
                if len(names) == 1:
                    raise
                failed = True
                print_error(error)
                continue
            for full in removed:
                click.echo(parse_reference(full).familiar)
    return 1 if failed else 0


@click.command()
@click.option(
    "-a", "--all", "everything", is_flag=True, help="Also the names of images that no machine was started from."
)
@click.option("--filter", "filters", multiple=True, help="With --all: until=24h, label=KEY[=VALUE], label!=KEY.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def prune(everything: bool, filters: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Remove what no name, machine or cached step needs."""
    from firebuild.engine.image_prune import apply_prune, plan_prune

    with Engine() as engine:
        plan = plan_prune(engine, everything=everything, filters=filters)
        for name in plan.names:
            click.echo(parse_reference(name).familiar)
        what = f"{_count(len(plan.names), 'name')}, {_count(len(plan.disk_keys), 'disk')}, {_count(len(plan.blobs), 'blob')}"
        if dry_run:
            click.echo(f"would remove {what}: {format_size(plan.size_bytes)}")
            return
        if plan.names and not force:
            if not sys.stdin.isatty():
                raise UsageError("names would be removed, and nobody can be asked", hint="use --force, or --dry-run")
            click.confirm(f"remove {what}: {format_size(plan.size_bytes)}?", abort=True, err=True)
        done = apply_prune(engine, everything=everything, filters=filters)
    click.echo(f"Total reclaimed space: {format_size(done.size_bytes)}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"
