"""Use cases of images that change the store: pulled, loaded, imported, tagged, removed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from firebuild.engine.architecture import host_architecture
from firebuild.engine.core import Engine
from firebuild.engine.happenings import note_image
from firebuild.engine.image_changes import apply_changes, parse_changes
from firebuild.engine.layers import measure_layers, note_layer_sizes
from firebuild.engine.space import require_room, spare_room
from firebuild.errors import BusyError, ImageError, NotFoundError, StoreError, UsageError
from firebuild.images.skopeo import Access
from firebuild.images.transfer import Place, Progress, pull
from firebuild.machine.state import ENDED
from firebuild.names import Reference, parse_reference
from firebuild.store.images import History, Image, ImageConfig, RootFs, RunConfig

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_URL_SCHEMES = ("http://", "https://")


class Wanted(msgspec.Struct, frozen=True):
    """The platform of which an image is wanted, in OCI's words."""

    architecture: str
    variant: str | None = None


def parse_wanted(text: str | None) -> Wanted:
    """`linux/arch[/variant]` or `arch`; None: this host's. Raises UsageError."""
    if text is None:
        return Wanted(host_architecture())
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if parts[0] != "linux" or len(parts) > 3 or not all(part.isalnum() for part in parts):
        raise UsageError(f"`{text[:100]}` is not a platform", hint="write for example linux/amd64 or linux/arm64/v8")
    return Wanted(parts[1], parts[2] if len(parts) == 3 else None)


def pull_image(
    engine: Engine,
    source: Reference | Place,
    *,
    access: Access = Access(),  # noqa: B008 - immutable
    wanted: Wanted | None = None,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> Image:
    """Bring an image from a registry, a layout, an archive or Docker, check every layer, and tag it.

    `reference`: the name to give it, where the source is not a name itself. Raises UsageError without a name, ImageError,
    RegistryError, DiskFullError, DeadlineError, MissingProgramError.
    """
    place = Place("docker", source) if isinstance(source, Reference) else source
    name = reference or place.reference or (parse_reference(place.name) if place.name else None)
    if name is None:
        raise UsageError(f"`{place}` has no name of its own", hint="give it one: firebuild image pull SOURCE NAME")
    wanted = wanted or Wanted(host_architecture())
    require_room(engine, 0, f"pulling {name}")
    with engine.use_store():
        moved = pull(
            place,
            engine.blobs,
            architecture=wanted.architecture,
            variant=wanted.variant,
            access=access,
            progress=progress,
        )
        image = _take_in(engine, [name], engine.images.load_image(moved.manifest_digest), progress)
        note_image(engine, "pulled", image, name.familiar)
        return image


def load_images(
    engine: Engine, source: Path | BinaryIO, *, wanted: Wanted | None = None, progress: Progress | None = None
) -> list[Image]:
    """Take in every image of an archive, from a file or from a stream. Names that are none are left out.

    Raises ImageError, RegistryError, DiskFullError; images before the faulty one are in then.
    """
    from firebuild.images.archives import load_archive, spool

    wanted = wanted or Wanted(host_architecture())
    images = []
    require_room(
        engine, source.stat().st_size if isinstance(source, Path) and source.is_file() else 0, "loading images"
    )
    with engine.use_store(), ExitStack() as stack:
        if not isinstance(source, Path):
            target = stack.enter_context(engine.blobs.stage_folder()) / "stdin.tar"
            spool(source, target, progress)
            source = target
        for moved in load_archive(source, engine.blobs, architecture=wanted.architecture, progress=progress):
            image = engine.images.load_image(moved.manifest_digest)
            images.append(_take_in(engine, [parse_reference(name) for name in moved.names], image, progress))
            note_image(engine, "loaded", images[-1], ", ".join(moved.names))
    return images


def _take_in(engine: Engine, names: Sequence[Reference], image: Image, progress: Progress | None) -> Image:
    """Check what has arrived, then name it: nothing points to an image whose layers are not what it says."""
    try:
        measure_layers(engine, image, progress)
    except ImageError as error:
        subject = f"the image `{names[0]}`" if names else f"the image {image.id}"
        raise ImageError(f"{subject} cannot be taken in: {error.message}", hint=error.hint) from error
    for name in names:
        image = engine.images.tag(name, image.manifest_digest)
    return image


def import_image(
    engine: Engine,
    source: Path | BinaryIO | str,
    reference: Reference | None,
    *,
    changes: Sequence[str] = (),
    message: str = "",
    wanted: Wanted | None = None,
    progress: Progress | None = None,
) -> Image:
    """Make an image of one layer from a tarball of a root file system. `source`: a file, a stream or a URL; `changes`:
    Dockerfile instructions for its configuration. Raises ImageError, ContextError, DockerfileError, DiskFullError.
    """
    from firebuild.images.archive import import_layer
    from firebuild.images.archives import spool

    wanted = wanted or Wanted(host_architecture())
    parsed = parse_changes(changes)
    require_room(engine, source.stat().st_size if isinstance(source, Path) and source.is_file() else 0, "an import")
    with engine.use_store(), ExitStack() as stack:
        name = source if isinstance(source, str) else source.name if isinstance(source, Path) else "-"
        if isinstance(source, str):
            source = _fetch(engine, source, stack)
        if not isinstance(source, Path):
            target = stack.enter_context(engine.blobs.stage_folder()) / "stream.tar"
            spool(source, target, progress)
            source = target
        layer = import_layer(source, engine.blobs, progress=(lambda done: progress(done, None)) if progress else None)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        config = ImageConfig(
            architecture=wanted.architecture,
            variant=wanted.variant,
            os="linux",
            created=now,
            config=RunConfig(env=[DEFAULT_PATH], cmd=["/bin/sh"]),
            rootfs=RootFs(diff_ids=[layer.diff_id]),
            history=[History(created=now, created_by=f"firebuild image import {name}", comment=message or None)],
        )
        apply_changes(config, parsed)
        note_layer_sizes(engine, {layer.diff_id: layer.size_bytes})
        image = engine.images.commit_image(config, [layer.descriptor], [reference] if reference else [])
        note_image(engine, "imported", image, reference.familiar if reference else "")
        return image


def is_url(text: str) -> bool:
    """Whether an import's source is fetched."""
    return text.startswith(_URL_SCHEMES)


def _fetch(engine: Engine, url: str, stack: ExitStack) -> BinaryIO:
    from firebuild.build.sources.http import fetch
    from firebuild.build.sources.scratch import Scratch
    from firebuild.build.sources.url import parse_url

    scratch = stack.enter_context(Scratch(engine.layout.scratch))
    file = fetch(parse_url(url, ("http", "https")), scratch).file
    file.seek(0)
    return stack.enter_context(file)


def tag_image(engine: Engine, source: str, target: Reference) -> Image:
    """Give an image one more name. Raises NotFoundError, UsageError for a target with a digest."""
    if target.digest is not None:
        raise UsageError(f"`{target}` cannot be a new name: it has a digest", hint="write org/name:tag")
    with engine.use_store():
        return engine.images.tag(target, engine.images.get_named(source).manifest_digest)


def remove_image(engine: Engine, text: str, *, force: bool = False) -> list[str]:
    """Remove a name, or by id all names of an image; the full names that were removed.

    Raises NotFoundError; BusyError while a machine that has not ended was started from it and no other name would be
    left; UsageError for an id with several names without `force`.
    """
    with spare_room(engine):
        return _remove_image(engine, text, force)


def _remove_image(engine: Engine, text: str, force: bool) -> list[str]:
    try:
        image = engine.images.get_named(text)
    except StoreError:
        # A damaged image must be removable by its name: until then nothing can be collected.
        reference = parse_reference(text)
        engine.images.untag(reference)
        return [reference.full]
    names = _names_meant(engine, text, image)
    all_names = [name for name, digest in engine.images.list_references().items() if digest == image.manifest_digest]
    if len(names) > 1 and not force:
        raise UsageError(
            f"the image {image.id[:19]} has {len(names)} names: {', '.join(parse_reference(name).familiar for name in names)}",
            hint="name the one to remove, or use --force for all",
        )
    if not set(all_names) - set(names):
        check_unused(engine, image, text)
    for name in names:
        engine.images.untag(parse_reference(name))
    return names


def _names_meant(engine: Engine, text: str, image: Image) -> list[str]:
    references = engine.images.list_references()
    try:
        reference = parse_reference(text)
    except UsageError:
        reference = None
    if reference is not None and engine.images.find_image(reference) is not None:
        keys = [f"{reference.name}@{reference.digest}"] if reference.digest else [reference.full]
        return [key for key in keys if key in references] or [image.reference or reference.full]
    names = [name for name, digest in references.items() if digest == image.manifest_digest]
    if not names:
        raise NotFoundError(f"the image {image.id} has no name", hint="`firebuild image prune` removes it")
    return names


def check_unused(engine: Engine, image: Image, text: str) -> None:
    """Raises BusyError while a machine that has not ended was started from the image."""
    for record in engine.machines.records.list_all():
        if record.spec.image_digest == image.manifest_digest and record.state not in ENDED:
            raise BusyError(
                f"the image {text} is used by the machine {record.spec.name}", hint=f"firebuild stop {record.spec.name}"
            )


def find_image_names(engine: Engine, image: Image) -> list[str]:
    """All names of an image, in their short form."""
    return [
        parse_reference(name).familiar
        for name, digest in sorted(engine.images.list_references().items())
        if digest == image.manifest_digest
    ]
