"""Use cases that take images out: pushed, saved as an archive, exported as a tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from firebuild.engine.core import Engine
from firebuild.engine.disks import export_tree
from firebuild.engine.happenings import note_image
from firebuild.engine.layers import load_layer_sizes
from firebuild.errors import ConflictError, UsageError
from firebuild.host.files import open_atomic
from firebuild.images.archives import SavedImage, write_archive
from firebuild.images.ocilayout import Compression
from firebuild.images.skopeo import Access
from firebuild.images.transfer import Place, Progress, push
from firebuild.names import Digest, Reference, parse_reference
from firebuild.store.images import Image


def push_image(
    engine: Engine,
    name: str,
    target: Place | None = None,
    *,
    compression: Compression = "gzip",
    access: Access = Access(),  # noqa: B008 - immutable
    progress: Progress | None = None,
) -> tuple[Image, Digest]:
    """Write an image to a registry, a layout, an archive or Docker; the image and the digest of its manifest there.

    Raises NotFoundError, UsageError without a target, RegistryError, DiskFullError, DeadlineError, MissingProgramError.
    """
    with engine.use_store():
        image = _keep(engine, name)
        place = target or Place("docker", _own_reference(image, name))
        digest = push(
            image.manifest_digest, engine.blobs, place, compression=compression, access=access, progress=progress
        )
    note_image(engine, "pushed", image, str(place))
    return image, digest


def _keep(engine: Engine, name: str) -> Image:
    """The image of that name or id; what it has stays until all of it is out, whoever takes its name away meanwhile."""
    return engine.keep_image(lambda: engine.images.get_named(name))


def _own_reference(image: Image, name: str) -> Reference:
    if image.reference is None or name.startswith("sha256:") or parse_reference(image.reference).digest:
        raise UsageError(f"where is `{name}` to be pushed?", hint="name the target: firebuild image push IMAGE TARGET")
    return parse_reference(image.reference)


def save_images(
    engine: Engine,
    names: Sequence[str],
    output: Path | BinaryIO,
    *,
    archive_format: str,
    progress: Progress | None = None,
) -> list[Image]:
    """Write images as one archive, to a file that appears whole or not at all, or to a stream.

    Raises NotFoundError, ConflictError if the file exists, ImageError, StoreError, DiskFullError.
    """
    with engine.use_store():
        images: dict[Digest, tuple[Image, list[Reference]]] = {}
        for name in names:
            image = _keep(engine, name)
            _, references = images.setdefault(image.manifest_digest, (image, []))
            # By an id no name is saved, as with Docker.
            if image.reference is not None and _is_name(engine, name):
                references.append(parse_reference(image.reference))
        sizes = load_layer_sizes(engine)
        saved = [
            SavedImage(digest, image.config.rootfs.diff_ids, references, sizes)
            for digest, (image, references) in images.items()
        ]
        with ExitStack() as stack:
            write = _open_output(stack, output)
            write_archive(saved, engine.blobs, write, archive_format=archive_format, progress=progress)
    return [image for image, _ in images.values()]


def _is_name(engine: Engine, text: str) -> bool:
    if text.startswith("sha256:") or len(text) == 64:
        return False
    return engine.images.find_image(parse_reference(text)) is not None


def export_image(
    engine: Engine,
    name: str,
    output: Path | BinaryIO,
    *,
    progress: Progress | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> int:
    """Write an image's whole tree as a tar, to a file that appears whole or not at all, or to a stream; returns the number
    of entries. Raises NotFoundError, ConflictError if the file exists, and what machines raise."""
    done = 0
    with engine.use_store(), ExitStack() as stack:
        image = _keep(engine, name)
        write = _open_output(stack, output)

        def put(data: bytes) -> None:
            nonlocal done
            write(data)
            done += len(data)
            if progress:
                progress(done, None)

        return export_tree(engine, image, put, report, progress)


def _open_output(stack: ExitStack, output: Path | BinaryIO) -> Callable[[bytes], object]:
    if not isinstance(output, Path):
        return output.write
    if output.exists():
        raise ConflictError(f"`{output}` exists already", hint="choose another file, or remove it")
    return stack.enter_context(open_atomic(output, mode=0o644)).write
