"""`image prune`: first a plan, then what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.image_list import created_s, parse_moment
from firebuild.engine.space import open_collection, plan_garbage
from firebuild.errors import NotFoundError, UsageError
from firebuild.names import Digest, parse_reference
from firebuild.store.collect import collect, plan_collection
from firebuild.store.images import Image


class PrunePlan(msgspec.Struct, frozen=True):
    """What a prune removes. `names`: full names; `blobs`: digests of no other use; `disk_keys`; `size_bytes`: what all occupy."""

    names: list[str]
    blobs: list[Digest]
    disk_keys: list[str]
    size_bytes: int


def plan_prune(engine: Engine, *, everything: bool, filters: Sequence[str] = ()) -> PrunePlan:
    """What can go: blobs and disks that no name, machine or cached step needs; with `everything` also the names of images
    from which no machine was started. `filters`: `until=TIME`, `label=KEY[=VALUE]`, `label!=…`. Changes nothing."""
    tests = [_parse_filter(text) for text in filters]
    if filters and not everything:
        raise UsageError("filters choose among named images", hint="add --all")
    records = engine.machines.records.list_all(kind=None)
    used = {record.spec.image_digest for record in records}
    images = engine.images.list_images()
    doomed = {
        image.reference
        for image in images
        if everything and image.manifest_digest not in used and all(_passes(image, *test) for test in tests)
    }
    kept = [image for image in images if image.reference not in doomed]
    attached = {Path(drive.path) for record in records for drive in record.spec.drives}
    now = plan_collection(engine.blobs, engine.disks, engine.database, used_disks=attached, drop_cache=False)
    cached = {row["layer_digest"] for row in engine.database.query("SELECT layer_digest FROM steps")}
    needed = {digest for image in kept for digest in _blobs(image)} | cached
    blobs = set(now.blobs) | {
        digest for image in images if image.reference in doomed for digest in _blobs(image) if digest not in needed
    }
    chains = {image.chain_id for image in kept}
    disks = set(now.disk_keys)
    size = now.size_bytes + sum(engine.blobs.size(digest) for digest in blobs - set(now.blobs))
    for key in engine.disks.list_keys():
        disk = engine.disks.find_disk(key)
        if disk and key not in disks and disk.chain_id not in chains and disk.path not in attached:
            disks.add(key)
            size += disk.path.stat().st_blocks * 512
    return PrunePlan(sorted(name for name in doomed if name), sorted(blobs), sorted(disks), size)


def apply_prune(engine: Engine, *, everything: bool, filters: Sequence[str] = ()) -> PrunePlan:
    """Plan and remove, while nobody adds to the store: names first, then disks and blobs. Raises BusyError while a build or
    a start runs."""
    engine.repair()
    with open_collection(engine, alone=True) as held:
        plan = plan_prune(engine, everything=everything, filters=filters)
        for name in plan.names:
            try:
                engine.images.untag(parse_reference(name))
            except NotFoundError:
                continue  # somebody else removed it meanwhile, which is what was wanted
        # Planned anew from what is there now: what got a name or a machine meanwhile stays.
        garbage = plan_garbage(engine, held, drop_cache=False)
        collect(garbage, engine.blobs, engine.disks, engine.database)
    return PrunePlan(plan.names, garbage.blobs, garbage.disk_keys, garbage.size_bytes)


def _blobs(image: Image) -> list[Digest]:
    return [image.manifest_digest, image.config_digest, *(layer.digest for layer in image.layers)]


def _parse_filter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if key not in ("until", "label", "label!") or not equals or not value:
        raise UsageError(f"`{text[:200]}` is not a filter of prune", hint="until=24h, label=KEY or label!=KEY=VALUE")
    if key == "until":
        parse_moment(value)
    return key, value


def _passes(image: Image, key: str, value: str) -> bool:
    if key == "until":
        return created_s(image) < parse_moment(value)
    name, equals, text = value.partition("=")
    labels = image.config.config.labels
    return (name in labels and (not equals or labels[name] == text)) == (key == "label")
