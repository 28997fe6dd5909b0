"""Finding and removing what no name, no machine and no cache record needs any more."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from firebuild.errors import DiskFullError
from firebuild.names import Digest
from firebuild.store.blobs import BlobStore
from firebuild.store.database import Database
from firebuild.store.disks import DiskStore
from firebuild.store.images import ImageStore


class Garbage(msgspec.Struct, frozen=True):
    """What can go. `disk_keys`, `blobs`, `step_keys`: their names; `size_bytes`: what their files occupy."""

    disk_keys: list[str]
    blobs: list[Digest]
    step_keys: list[str]
    size_bytes: int


def plan_collection(
    blobs: BlobStore,
    disks: DiskStore,
    database: Database,
    *,
    used_disks: Collection[Path],
    drop_cache: bool,
    kept_images: Collection[str] = (),
    since_ns: int | None = None,
    keep_blobs: bool = False,
) -> Garbage:
    """What nothing needs: disks of no named image that no machine has attached, blobs that no named image and no cached
    step holds, and with `drop_cache` the cached steps too. Nothing is changed. Raises StoreError where an image is damaged:
    what it holds cannot be known.

    `kept_images`: manifests that somebody uses, named or not; `since_ns`: disks made since then stay; `keep_blobs`: all
    blobs and cached steps stay, as somebody adds to the store and may build upon any of them.
    """
    store = ImageStore(blobs)
    images = store.list_images()
    images += [store.load_image(Digest(digest)) for digest in kept_images if blobs.has(Digest(digest))]
    chains = {image.chain_id for image in images}
    kept: set[Digest] = set()
    for image in images:
        kept |= {image.manifest_digest, image.config_digest, *(layer.digest for layer in image.layers)}
    rows = database.query("SELECT key, layer_digest FROM steps")
    if not drop_cache:
        kept |= {Digest(row["layer_digest"]) for row in rows}
    size = 0
    disk_keys = []
    for key in disks.list_keys():
        disk = disks.find_disk(key)
        if disk is not None and disk.chain_id not in chains and disk.path not in used_disks:
            status = disk.path.stat()
            if since_ns is None or status.st_ctime_ns < since_ns:
                disk_keys.append(key)
                size += status.st_blocks * 512
    if keep_blobs:
        return Garbage(disk_keys, [], [], size)
    doomed = [digest for digest in blobs.list_digests() if digest not in kept]
    size += sum(blobs.size(digest) for digest in doomed)
    return Garbage(disk_keys, doomed, [row["key"] for row in rows] if drop_cache else [], size)


def collect(garbage: Garbage, blobs: BlobStore, disks: DiskStore, database: Database) -> None:
    """Remove it: the records first, so that none names what is gone. The caller sees to it that nobody adds meanwhile.

    Where the disk is too full to write even that, the records go last: one whose layer is gone counts as none.
    """
    late = False
    try:
        _forget_steps(garbage, database)
    except DiskFullError:
        late = True
    for key in garbage.disk_keys:
        disks.remove(key)
    for digest in garbage.blobs:
        blobs.remove(digest)
    if late:
        _forget_steps(garbage, database)


def _forget_steps(garbage: Garbage, database: Database) -> None:
    if garbage.step_keys:
        with database.transaction():
            for key in garbage.step_keys:
                database.execute("DELETE FROM steps WHERE key = ?", (key,))


def plan_step_removal(
    blobs: BlobStore, database: Database, step_keys: Collection[str], kept_images: Collection[str] = ()
) -> Garbage:
    """What goes with these cached steps: their records, and the layers that no other step and no named image holds.

    `kept_images`: manifests that somebody uses, named or not. Raises StoreError where an image is damaged.
    """
    store = ImageStore(blobs)
    images = store.list_images()
    images += [store.load_image(Digest(digest)) for digest in kept_images if blobs.has(Digest(digest))]
    kept = {layer.digest for image in images for layer in image.layers}
    doomed: set[Digest] = set()
    found: list[str] = []
    for row in database.query("SELECT key, layer_digest FROM steps"):
        if row["key"] in step_keys:
            found.append(row["key"])
            doomed.add(Digest(row["layer_digest"]))
        else:
            kept.add(Digest(row["layer_digest"]))
    going = sorted(digest for digest in doomed - kept if blobs.has(digest))
    return Garbage([], going, found, sum(blobs.size(digest) for digest in going))
