"""Checking a store: every name down to every byte, damage named and set aside, leftovers swept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from firebuild.errors import FirebuildError, StoreError
from firebuild.names import Digest
from firebuild.store.blobs import BlobStore
from firebuild.store.disks import DiskStore
from firebuild.store.images import ImageStore, parse_manifest
from firebuild.store.volumes import VolumeStore

Kind = Literal["index", "image", "blob", "disk", "volume"]


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong. `object`: a reference, digest or key; `action`: what fsck did about it, or nothing."""

    kind: Kind
    object: str
    message: str
    action: str = ""


class FsckReport(msgspec.Struct):
    """What was checked and found. `swept`: leftovers of dead processes that were removed, which is no problem."""

    images: int = 0
    blobs: int = 0
    disks: int = 0
    volumes: int = 0
    bytes_read: int = 0
    swept: int = 0
    problems: list[Problem] = []

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_store(
    blobs: BlobStore,
    disks: DiskStore | None = None,
    *,
    repair: bool = True,
    progress: Callable[[str], None] | None = None,
) -> FsckReport:
    """Recompute every digest, follow every name, check every disk's metadata.

    With `repair`, damaged blobs go to `quarantine/` (so that a pull brings them again), damaged disks are removed (they are
    derived), leftovers are swept. `progress` is called with each object's name. Raises StoreError only where nothing can be read.
    """
    report = FsckReport()
    if repair:
        report.swept = len(blobs.sweep())
    damaged = _check_blobs(blobs, report, repair, progress)
    _check_images(blobs, report, damaged, progress)
    if disks is not None:
        if repair:
            report.swept += len(disks.sweep())
        _check_disks(disks, report, repair, progress)
    return report


def check_volumes(volumes: VolumeStore, report: FsckReport, *, repair: bool = True) -> None:
    """Look at every volume's record and at the head of its disk; with `repair` sweep what interrupted work left. Nothing of a
    volume is changed: its bytes are the user's. The caller holds the volumes' lock."""
    if repair:
        report.swept += volumes.sweep()
    for name in volumes.list_names():
        report.volumes += 1
        report.problems += [Problem("volume", name, message) for message in volumes.find_faults(name)]


def _check_blobs(
    blobs: BlobStore, report: FsckReport, repair: bool, progress: Callable[[str], None] | None
) -> set[Digest]:
    damaged = set()
    for digest in blobs.list_digests():
        if progress:
            progress(digest)
        report.blobs += 1
        try:
            size = blobs.size(digest)
            found = blobs.compute_digest(digest)
        except StoreError as error:
            if not blobs.has(digest):
                continue  # collected while we looked
            damaged.add(digest)
            report.problems.append(Problem("blob", digest, error.message))
            continue
        except OSError as error:
            damaged.add(digest)
            report.problems.append(Problem("blob", digest, f"it cannot be read: {error.strerror}"))
            continue
        report.bytes_read += size
        if found != digest:
            damaged.add(digest)
            action = f"set aside as `{blobs.quarantine(digest)}`" if repair else ""
            message = f"its content has the digest {found} and {size} bytes"
            report.problems.append(Problem("blob", digest, message, action))
    return damaged


def _check_images(
    blobs: BlobStore, report: FsckReport, damaged: set[Digest], progress: Callable[[str], None] | None
) -> None:
    images = ImageStore(blobs)
    try:
        references = images.list_references()
    except StoreError as error:
        report.problems.append(Problem("index", str(blobs.index), error.message))
        return
    for name, manifest_digest in sorted(references.items()):
        if progress:
            progress(name)
        report.images += 1
        try:
            needed = [manifest_digest]
            if manifest_digest not in damaged:
                manifest = parse_manifest(blobs.read(manifest_digest))
                needed += [manifest.config.digest, *(layer.digest for layer in manifest.layers)]
            broken = [digest for digest in needed if digest in damaged or not blobs.has(digest)]
            if broken:
                raise StoreError(
                    "it needs blobs that are damaged or missing: "
                    + ", ".join(broken)
                    + "; pull, load or build the image again"
                )
            image = images.load_image(manifest_digest)
            for blob in (image.manifest.config, *image.layers):
                if blobs.size(blob.digest) != blob.size:
                    raise StoreError(f"its manifest states another size for the blob {blob.digest}")
        except StoreError as error:
            report.problems.append(Problem("image", name, error.message))


def _check_disks(disks: DiskStore, report: FsckReport, repair: bool, progress: Callable[[str], None] | None) -> None:
    for key in disks.list_keys():
        if progress:
            progress(key)
        report.disks += 1
        try:
            disk = disks.find_disk(key)
            if disk is None:
                raise StoreError("its metadata is missing")
            if disk.digest is not None:
                report.bytes_read += disk.size_bytes
                disks.verify(disk)
        except FirebuildError as error:
            if repair:
                disks.remove(key)
            report.problems.append(Problem("disk", key, error.message, "removed" if repair else ""))
