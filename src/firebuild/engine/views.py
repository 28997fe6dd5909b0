"""Keeps what the storage provider shows in step with the names of the store: after each change, and after a crash."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.disks import find_root_disk
from firebuild.errors import StoreError
from firebuild.host.deadline import Deadline
from firebuild.host.locks import hold_lock
from firebuild.names import Digest, baseos_stands_for, is_baseos, parse_reference
from firebuild.store.facts import FactStore
from firebuild.store.images import Image
from firebuild.store.provider import stamp_of
from firebuild.store.view import RootfsMetadata, make_metadata

_LOCK_S = 60.0
_PARENTS = 16


def sync_views(engine: Engine, names: Collection[str] | None = None) -> list[str]:
    """Show each of these full names as the store has it now (None: all names, of either side); a sentence for each change.

    Names are read under a lock, so that whoever changes one last is who shows it last. Images that are damaged are
    left as they are shown: `fsck` tells of them. Raises BusyError and what the provider raises.
    """
    engine.layout.ensure()
    deadline = Deadline(_LOCK_S, "waiting for the view of the images")
    with hold_lock(engine.layout.view_lock, "the view of the images", deadline=deadline):
        wanted = _list_places(engine.images.list_references())
        shown = engine.storage.list_published()
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
