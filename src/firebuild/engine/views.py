"""Keeps what the storage provider shows in step with the names of the store: after each change, and after a crash."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.disk_keys import find_root_disk
from firebuild.errors import StoreError
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, write_atomic
from firebuild.host.locks import hold_lock
from firebuild.names import Digest, baseos_stands_for, is_baseos, parse_reference
from firebuild.store.facts import FactStore
from firebuild.store.images import Image
from firebuild.store.provider import stamp_of
from firebuild.store.view import RootfsMetadata, make_metadata

_LOCK_S = 60.0
_PARENTS = 16
# Two changes may bear one time where they are closer than a tick of the kernel's clock (CONFIG_HZ: at most 10 ms).
_TICK_NS = 100 * 10**6


def mend_views(engine: Engine) -> list[str]:
    """As `sync_views` of all names, but only where names, facts, disks or settings are not those of the last time that
    nothing was left to do: so a crash between a change and its view is mended, and else one small file is read."""
    state, newest_ns = _read_state(engine)
    stamp = engine.layout.view_stamp
    try:
        if stamp.read_bytes() == state:
            return []
    except FileNotFoundError:
        pass
    except OSError as error:
        raise map_os_error(error, f"reading `{stamp}`") from error
    done = sync_views(engine)
    if time.time_ns() - newest_ns > _TICK_NS:
        # Not synced: one that is lost or torn costs a look at all views, no more.
        write_atomic(stamp, state, durable=False)
    return done


def _read_state(engine: Engine) -> tuple[bytes, int]:
    """What all views were derived from, as far as it can be told without reading it; and the latest time in it."""
    index, disks = engine.blobs.index.stat(), engine.layout.disks.stat()
    settings = engine.settings
    words = (
        index.st_ino, index.st_size, index.st_mtime_ns, disks.st_ino, disks.st_mtime_ns,
        FactStore(engine.database).count_changes(), settings.root_disk_bytes, settings.storage_provider,
        sorted(settings.storage_strings.items()), sorted(settings.storage_integers.items()),
    )  # fmt: skip
    return repr(words).encode(), max(index.st_mtime_ns, disks.st_mtime_ns)


def sync_views(engine: Engine, names: Collection[str] | None = None) -> list[str]:
    """Show each of these full names as the store has it now (None: all names, of either side); a sentence for each change.

    Names are read under a lock, so that whoever changes one last is who shows it last. Images that are damaged are
    left as they are shown: `fsck` tells of them. Raises BusyError and what the provider raises.
    """
    engine.layout.ensure()
    deadline = Deadline(_LOCK_S, "waiting for the view of the images")
    with hold_lock(engine.layout.view_lock, "the view of the images", deadline=deadline):
        wanted = _list_places(engine.images.list_references())
        # Of a few names that have changed it would be more work to find out what is shown than to show them again.
        shown = engine.storage.list_published() if names is None else {}
        changed: list[str] = []
        for name in sorted({*wanted, *shown} if names is None else {_place_of(name) for name in names}):
            reference = parse_reference(name)
            if reference.tag is None or reference.digest is not None:
                continue
            if name not in wanted:
                if name in shown or names is not None:
                    engine.storage.withdraw(reference)
                    changed.append(f"the view of {reference}: removed")
                continue
            try:
                metadata = plan_metadata(engine, name, wanted[name])
                disk = find_root_disk(engine, metadata.chain_id)
            except StoreError:
                continue
            path = disk.path if disk is not None else None
            if shown.get(name) != stamp_of(metadata, path):
                engine.storage.publish(reference, metadata, path)
                changed.append(f"the view of {reference}: renewed")
        return changed


def _place_of(name: str) -> str:
    """The name under which the image of a full name is shown: a base operating system under that of the image it stands for."""
    reference = parse_reference(name)
    return baseos_stands_for(reference).full if is_baseos(reference) else name


def _list_places(references: Mapping[str, Digest]) -> dict[str, Digest]:
    """What is shown under which name. Of an image and a base operating system of one name that one which FROM takes."""
    plain = {name: digest for name, digest in references.items() if _place_of(name) == name}
    return plain | {_place_of(name): digest for name, digest in references.items() if name not in plain}


def plan_metadata(engine: Engine, name: str, manifest_digest: Digest) -> RootfsMetadata:
    """The metadata of an image under a name, its parents' in it. Raises StoreError if the image is damaged."""
    image = engine.images.load_image(manifest_digest)
    facts = FactStore(engine.database)
    return _plan(engine, facts, image, name, _PARENTS)


def _plan(engine: Engine, store: FactStore, image: Image, name: str, depth: int) -> RootfsMetadata:
    facts, facts_digest = store.find(image.manifest_digest)
    parent = None
    if facts.parent and depth:
        below: dict[str, object] = {"Tag": facts.parent_name, "ManifestDigest": facts.parent}
        try:
            found = engine.images.load_image(Digest(facts.parent))
            below = msgspec.to_builtins(_plan(engine, store, found, facts.parent_name, depth - 1))
        except StoreError:
            pass  # it has been removed since: its name and digest are all that is left to tell
        parent = below
    disk = find_root_disk(engine, image.chain_id)
    return make_metadata(
        image, parse_reference(name), kind=facts.kind, disk=disk, build=facts.build, parent=parent, steps=facts.steps,
        facts_digest=facts_digest,
    )  # fmt: skip
