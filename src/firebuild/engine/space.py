"""Room on the disk: quotas, checks before work starts, and freeing space where there is none left to free it with."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from firebuild.engine.core import Engine
from firebuild.errors import BusyError, DiskFullError, StoreError
from firebuild.host.deadline import Deadline
from firebuild.host.files import free_bytes, map_os_error, require_free
from firebuild.host.locks import hold_lock
from firebuild.names import Digest
from firebuild.store.collect import Garbage, collect, plan_collection, plan_step_removal
from firebuild.store.leases import Lease, LeaseStore, describe_owner

# Databases, indexes and logs need a little even where the work itself needs nothing.
SPARE_BYTES = 32 << 20
# What a database needs to open and to take a transaction of deletions.
RESERVE_BYTES = 2 << 20
_SLACK_BYTES = 128 << 10
_LOCK_S = 120.0


class Collection(msgspec.Struct, frozen=True):
    """While nobody begins to work on the store. `adders`: who adds to it still; `kept`: manifests that somebody uses;
    `since_ns`: when the first of those who still work began, or None."""

    adders: list[Lease]
    kept: set[Digest]
    since_ns: int | None


@contextmanager
def spare_room(engine: Engine) -> Iterator[None]:
    """Let the block delete on a full disk: a file that is kept for this makes room meanwhile, and is made anew after it."""
    reserve = engine.layout.reserve
    engine.layout.ensure()
    if free_bytes(engine.layout.state) < RESERVE_BYTES:
        reserve.unlink(missing_ok=True)
    try:
        yield
    finally:
        keep_reserve(engine)


def keep_reserve(engine: Engine) -> None:
    """Make the reserve, or as much of it as there is room for. Raises HostError."""
    reserve = engine.layout.reserve
    size = reserve.stat().st_size if reserve.exists() else 0
    wanted = min(RESERVE_BYTES, size + free_bytes(engine.layout.state) - _SLACK_BYTES)
    if wanted <= size or wanted < _SLACK_BYTES:
        return
    try:
        descriptor = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, wanted)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise map_os_error(error, f"making `{reserve}`") from error
        # Somebody else was faster: the next command that deletes makes it.
        reserve.unlink(missing_ok=True)


@contextmanager
def open_collection(engine: Engine, *, alone: bool = False) -> Iterator[Collection]:
    """Hold the store for removing things: nobody begins work on it meanwhile; of those at work it is told.

    `alone`: raises BusyError, naming one, if anybody adds to the store still. Raises BusyError also if another collection
    takes too long.
    """
    deadline = Deadline(_LOCK_S, "waiting for whoever begins work on the store")
    with spare_room(engine), hold_lock(engine.layout.store_lock, "the store", deadline=deadline):
        live = LeaseStore(engine.database).list_live()
        work = [lease for lease in live if lease.object.startswith("work:")]
        adders = [lease for lease in work if lease.object.startswith("work:add:")]
        if alone and adders:
            raise BusyError(
                f"the store is at work: {describe_owner(adders[0].owner)}", hint="try again when it has ended"
            )
        kept = {Digest(lease.object.removeprefix("image:")) for lease in live if lease.object.startswith("image:")}
        begun = [int(lease.object.rpartition(":")[2]) for lease in work]
        yield Collection(adders, kept, min(begun, default=None))


def list_attached(engine: Engine) -> set[Path]:
    """The disks that machines have, and saved ones."""
    specs = [record.spec for record in engine.machines.records.list_all(kind=None)]
    if engine.layout.snapshots.is_dir():
        specs += [snapshot.spec for snapshot in engine.snapshots.list_all()]
    return {Path(drive.path) for spec in specs for drive in spec.drives}


def plan_garbage(engine: Engine, open_: Collection, *, drop_cache: bool) -> Garbage:
    """What can go while those at work have what they need. Raises StoreError where an image is damaged."""
    return plan_collection(
        engine.blobs, engine.disks, engine.database, used_disks=list_attached(engine), drop_cache=drop_cache,
        kept_images=open_.kept, since_ns=open_.since_ns, keep_blobs=bool(open_.adders),
    )  # fmt: skip


def measure_store(engine: Engine) -> int:
    """Bytes that images and disks occupy on this host."""
    total = sum(engine.blobs.size(digest) for digest in engine.blobs.list_digests())
    for key in engine.disks.list_keys():
        try:
            disk = engine.disks.find_disk(key)
            total += disk.path.stat().st_blocks * 512 if disk is not None else 0
        except (FileNotFoundError, StoreError):
            continue  # removed while we looked, or damaged: `fsck` tells of it
    return total


def require_room(engine: Engine, needed_bytes: int, purpose: str) -> None:
    """Before work starts: the disk must have `needed_bytes` and a little more, and the store must be below its quota.

    Above a quota the cached steps that were not used for longest go first, and what nothing needs. Raises DiskFullError
    naming the path, what is needed and what there is.
    """
    engine.layout.ensure()
    keep_reserve(engine)
    require_free(engine.layout.state, needed_bytes + SPARE_BYTES, purpose)
    _shrink_cache(engine)
    quota = engine.settings.store_quota_bytes
    if not quota or (used := measure_store(engine)) + needed_bytes <= quota:
        return
    with open_collection(engine) as held:
        garbage = plan_garbage(engine, held, drop_cache=False)
        collect(garbage, engine.blobs, engine.disks, engine.database)
        used = measure_store(engine)
        if used + needed_bytes > quota and not held.adders:
            _drop_oldest_steps(engine, used + needed_bytes - quota)
            used = measure_store(engine)
    if used + needed_bytes > quota:
        raise DiskFullError(
            f"{purpose} needs {needed_bytes >> 20} MiB in `{engine.layout.store}`; it takes {used >> 20} MiB already, "
            f"and its quota is {quota >> 20} MiB",
            hint="remove images with `firebuild image rm` or `firebuild image prune -a`, or raise --store-quota",
        )


def _shrink_cache(engine: Engine) -> None:
    quota = engine.settings.cache_quota_bytes
    if not quota:
        return
    rows = engine.database.query("SELECT sum(layer_size) FROM steps")
    used = int(rows[0][0] or 0)
    if used > quota:
        with open_collection(engine) as held:
            if not held.adders:
                _drop_oldest_steps(engine, used - quota)


def _drop_oldest_steps(engine: Engine, excess_bytes: int) -> None:
    rows = engine.database.query("SELECT key, layer_size FROM steps ORDER BY used_at_ns, key")
    keys: Sequence[str] = []
    freed = 0
    for row in rows:
        if freed >= excess_bytes:
            break
        keys = [*keys, row["key"]]
        freed += row["layer_size"] or 0
    garbage = plan_step_removal(engine.blobs, engine.database, set(keys))
    collect(garbage, engine.blobs, engine.disks, engine.database)
