"""What becomes of images, snapshots and builds, as events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from firebuild.errors import FirebuildError
from firebuild.events.journal import note_event
from firebuild.names import parse_reference

if TYPE_CHECKING:
    from firebuild.build.services import BuildResult
    from firebuild.engine.core import Engine
    from firebuild.machine.snapshots import Snapshot
    from firebuild.names import Reference
    from firebuild.store.images import Image


def note_names(engine: Engine, names: Sequence[str]) -> None:
    """Names have been given to images, or taken from them."""
    references = engine.images.list_references()
    with engine.database.transaction() as database:
        for name in names:
            digest = references.get(name)
            action = "untagged" if digest is None else "tagged"
            note_event(database, "image", action, digest or name, {"image": parse_reference(name).familiar})


def note_image(engine: Engine, action: str, image: Image, name: str) -> None:
    """An image has been pulled, loaded, imported or pushed."""
    note_event(engine.database, "image", action, image.manifest_digest, {"image": name})


def note_snapshot(engine: Engine, action: str, name: str, snapshot: Snapshot | None) -> None:
    """A snapshot has been created or removed; None: its record could not be read. One that ends with its command is nobody's business."""
    if snapshot is None:
        note_event(engine.database, "snapshot", action, "", {"name": name})
    elif snapshot.owner is None:
        spec = snapshot.spec
        known = {"name": name, "image": spec.image or None, "machine": spec.name, "kind": snapshot.kind}
        note_event(engine.database, "snapshot", action, snapshot.id, known, snapshot.labels)


@contextmanager
def noted_build(engine: Engine, tags: Sequence[Reference]) -> Iterator[list[BuildResult]]:
    """Note how the build of the block ends; its result goes into the list. One whose steps were all cached changes nothing,
    and nothing is noted."""
    names = ", ".join(tag.familiar for tag in tags) or None
    results: list[BuildResult] = []
    try:
        yield results
    except FirebuildError as error:
        note_event(engine.database, "build", "failed", "", {"image": names, "code": error.code})
        raise
    for result in results:
        if result.booted:
            note_event(engine.database, "build", "finished", result.image.manifest_digest, {"image": names})
