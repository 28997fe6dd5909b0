"""Use cases of the build cache: the records of steps and the disks of cache mounts, listed, removed, pruned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from firebuild.build.explain import Explanation
from firebuild.engine.core import Engine
from firebuild.engine.space import open_collection
from firebuild.errors import BusyError, NotFoundError, UsageError
from firebuild.store.collect import collect, plan_step_removal
from firebuild.store.images import ImageStore

STEP = "step"
MOUNT = "mount"
FILE = "file"
KINDS = (STEP, MOUNT, FILE)


class CacheEntry(msgspec.Struct, frozen=True):
    """One part of the build cache. `id`: 64 hex digits; `kind`: step, mount, or file
    (that ADD fetched); `size_bytes`: of the layer or the disk on this
    host; `shared`: an image or another step holds the layer too, so that removing the record frees nothing; `dockerfile`:
    whose step it is, and its stage; `description`: the instruction as written, the cache mount's id, or the URL."""

    id: str
    kind: str
    size_bytes: int
    created_at_ns: int
    used_at_ns: int
    description: str
    dockerfile: str = ""
    shared: bool = False


class Pruned(msgspec.Struct, frozen=True):
    """What was removed, or would be. `busy`: caches that a build has now, and that stay."""

    entries: list[CacheEntry]
    size_bytes: int
    busy: list[CacheEntry] = []


def list_cache(engine: Engine) -> list[CacheEntry]:
    """All of it, the least recently used first. Raises StoreError, HostError."""
    entries = _list_steps(engine)
    entries += [
        CacheEntry(info.key, MOUNT, info.size_bytes, info.created_at_ns, info.used_at_ns, info.name)
        for info in engine.caches.list_caches()
    ]
    entries += [
        CacheEntry(kept.key, FILE, kept.size_bytes, kept.created_at_ns, kept.used_at_ns, kept.shown)
        for kept in engine.http_cache.list_kept()
    ]
    return sorted(entries, key=lambda entry: (entry.used_at_ns, entry.id))


def _list_steps(engine: Engine) -> list[CacheEntry]:
    rows = engine.database.query("SELECT key, layer_digest, layer_size, explain, created_at_ns, used_at_ns FROM steps")
    held: dict[str, int] = {}
    for row in rows:
        held[row["layer_digest"]] = held.get(row["layer_digest"], 0) + 1
    # A damaged image holds nothing that can be known here; `fsck` reports it.
    for image in ImageStore(engine.blobs).list_images(on_damage=lambda name, error: None):
        for layer in image.layers:
            held[layer.digest] = held.get(layer.digest, 0) + 1
    entries = []
    for row in rows:
        try:
            explanation = msgspec.json.decode(row["explain"], type=Explanation)
            text, place = explanation.text, explanation.position.rpartition("/")[0]
        except msgspec.MsgspecError:
            text, place = "", ""  # of another version; it can still be removed
        entries.append(
            CacheEntry(
                row["key"], STEP, row["layer_size"] or 0, row["created_at_ns"], row["used_at_ns"], text, place,
                held[row["layer_digest"]] > 1,
            )
        )  # fmt: skip
    return entries


def find_entry(entries: Sequence[CacheEntry], prefix: str) -> CacheEntry:
    """The entry whose id begins so. Raises NotFoundError, and UsageError for a beginning of several."""
    found = [entry for entry in entries if prefix and entry.id.startswith(prefix)]
    if not found:
        raise NotFoundError(f"the build cache has no `{prefix[:100]}`", hint="`firebuild cache ls` lists it")
    if len(found) > 1:
        raise UsageError(f"`{prefix}` is the beginning of {len(found)} ids", hint="give more digits")
    return found[0]


def remove_cache(engine: Engine, prefixes: Sequence[str]) -> Pruned:
    """Remove entries by their ids. Raises NotFoundError, UsageError before anything is removed; BusyError while a build runs."""
    entries = list_cache(engine)
    chosen = {entry.id: entry for entry in (find_entry(entries, prefix) for prefix in prefixes)}
    pruned = _remove(engine, list(chosen.values()), dry_run=False)
    if pruned.busy:
        raise BusyError(
            f"the cache `{pruned.busy[0].description}` is in use", hint="try again when the build that has it has ended"
        )
    return pruned


def prune_cache(
    engine: Engine, wanted: Callable[[CacheEntry], bool], *, keep_bytes: int = 0, dry_run: bool = False
) -> Pruned:
    """Remove what is `wanted` gone, the least recently used first, until the cache takes `keep_bytes` or less."""
    entries = list_cache(engine)
    total = sum(entry.size_bytes for entry in entries)
    chosen = []
    for entry in entries:
        if keep_bytes and total <= keep_bytes:
            break
        if wanted(entry):
            chosen.append(entry)
            total -= entry.size_bytes
    return _remove(engine, chosen, dry_run=dry_run)


def _remove(engine: Engine, entries: Sequence[CacheEntry], *, dry_run: bool) -> Pruned:
    steps: Collection[str] = {entry.id for entry in entries if entry.kind == STEP}
    done: list[CacheEntry] = [entry for entry in entries if entry.kind == STEP]
    busy: list[CacheEntry] = []
    # Nobody builds meanwhile: a step that a build has found must stay until it is done.
    with open_collection(engine, alone=bool(steps) and not dry_run) as held:
        garbage = plan_step_removal(engine.blobs, engine.database, steps, held.kept)
        if not dry_run:
            collect(garbage, engine.blobs, engine.disks, engine.database)
        size = garbage.size_bytes
        for entry in entries:
            if entry.kind == FILE:
                if not dry_run:
                    engine.http_cache.remove(entry.id)
                done.append(entry)
                size += entry.size_bytes
            if entry.kind == MOUNT:
                try:
                    if not dry_run:
                        engine.caches.remove_cache(entry.id)
                except BusyError:
                    busy.append(entry)
                    continue
                done.append(entry)
                size += entry.size_bytes
    return Pruned(done, size, busy)
