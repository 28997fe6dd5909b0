"""Image archives as `save` writes them and `load` takes them: tar files that are read and written as data, never unpacked.

OCI archives are a tarred image layout (OCI image-layout.md). What `save` calls a docker-archive is the same layout with plain
layers and a `manifest.json` beside them, which is how Docker itself has written archives since version 25, and what every
Docker loads. Docker archives without a layout (older Dockers' and Podman's) are handed to skopeo.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from firebuild.errors import ImageError, RegistryError, StoreError, damaged_blob
from firebuild.host.files import map_os_error
from firebuild.images.archive import open_layer
from firebuild.images.blobs import BlobSink
from firebuild.images.compression import sniff, uncompress
from firebuild.images.listing import docker_names
from firebuild.images.ocilayout import (
    LAYOUT_MARKER,
    MANIFEST_LIMIT,
    MANIFEST_TYPE,
    BlobDescriptor,
    MovedImage,
    digest_of,
    parse_manifest,
    read_bounded,
    to_oci_manifest,
)
from firebuild.images.transfer import Progress, load_docker_archive
from firebuild.names import Digest, Reference

D = TypeVar("D")

_MEMBERS_MAX = 100_000
_DEPTH_MAX = 3
_CHUNK = 1 << 20
_PLAIN_TYPE = "application/vnd.oci.image.layer.v1.tar"
_NAME = "org.opencontainers.image.ref.name"
# An image's full name, as containerd and docker write it beside OCI's short one.
_FULL_NAME = "io.containerd.image.name"
_INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")


class _IndexEntry(BlobDescriptor):
    platform: dict[str, Any] | None = None


class _Index(msgspec.Struct):
    manifests: list[_IndexEntry] = []


class _Archive:
    """The regular members of a tar by name, and where their bytes are."""

    def __init__(self, file: BinaryIO, subject: str) -> None:
        self._file = file
        self.subject = subject
        self.members: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for count, member in enumerate(archive):
                    if count > _MEMBERS_MAX:
                        raise ImageError(f"{subject} has more than {_MEMBERS_MAX} entries: it is not an image archive")
                    if member.isreg() and member.sparse is None:
                        self.members[member.name.removeprefix("./")] = (member.offset_data, member.size)
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as error:
            raise ImageError(f"{subject} cannot be read: {error}") from error

    def pieces(self, name: str) -> Iterator[bytes]:
        """A member's bytes."""
        if name not in self.members:
            raise ImageError(f"{self.subject} lacks `{name}`, which its index names")
        offset, left = self.members[name]
        self._file.seek(offset)
        while left:
            piece = self._file.read(min(left, _CHUNK))
            if not piece:
                raise ImageError(f"{self.subject} is cut short")
            left -= len(piece)
            yield piece

    def read(self, name: str) -> bytes:
        """A small member."""
        if self.members.get(name, (0, 0))[1] > MANIFEST_LIMIT:
            raise ImageError(f"`{name}` in {self.subject} has {self.members[name][1]} bytes, far too many")
        return b"".join(self.pieces(name))


def load_archive(
    path: Path,
    blobs: BlobSink[D],
    *,
    architecture: str = "amd64",
    progress: Progress | None = None,
) -> list[MovedImage[D]]:
    """Take in every image of an archive that `docker save`, `podman save` or `firebuild image save` wrote, compressed or not.

    Of an index of several platforms the image for `architecture` is taken. Every blob's digest is verified. Raises
    ImageError, RegistryError (reason `damaged`), DiskFullError; no name is given, and nothing but nameless blobs remains.
    """
    subject = f"the archive `{path}`"
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ImageError(f"{subject} cannot be read: {error.strerror}") from error
    with file, blobs.stage_folder() as stage:
        plain_path = path
        if sniff(file.read(8)) != "none":
            file.seek(0)
            plain_path = _uncompress(file, stage / "plain.tar", subject)
        with open(plain_path, "rb") as plain:
            archive = _Archive(plain, subject)
            if "index.json" in archive.members and "oci-layout" in archive.members:
                return _load_layout(archive, blobs, architecture, progress)
            if "manifest.json" not in archive.members:
                raise ImageError(
                    f"{subject} is not an image archive: it has neither a `manifest.json` nor an `index.json`",
                    hint="a file tree as a tarball is taken in with `firebuild image import`",
                )
            names = docker_names(archive.read("manifest.json"), subject)
        moved = []
        for number, tags in enumerate(names):
            image = load_docker_archive(
                plain_path, blobs, f":@{number}", subject=subject, architecture=architecture, progress=progress
            )
            image.names = tags
            moved.append(image)
        return moved


def _uncompress(file: BinaryIO, target: Path, subject: str) -> Path:
    try:
        with open(target, "wb") as plain:
            for piece in uncompress(file, subject):
                plain.write(piece)
    except OSError as error:
        raise map_os_error(error, f"uncompressing {subject}") from error
    return target


def _load_layout(
    archive: _Archive, blobs: BlobSink[D], architecture: str, progress: Progress | None
) -> list[MovedImage[D]]:
    index = _decode_index(archive.read("index.json"), archive.subject)
    if not index.manifests:
        raise ImageError(f"{archive.subject} holds no image")
    moved: dict[str, MovedImage[D]] = {}
    done = 0

    def take(blob: BlobDescriptor) -> D:
        nonlocal done
        size = archive.members.get(f"blobs/sha256/{blob.digest[7:]}", (0, blob.size))[1]
        if size != blob.size:
            raise RegistryError(
                f"{archive.subject} is damaged: {blob.digest} has {size} bytes, not {blob.size}", reason="damaged"
            )
        try:
            with blobs.ingest(blob.media_type) as writer:
                for piece in archive.pieces(f"blobs/sha256/{blob.digest[7:]}"):
                    writer.write(piece)
                    done += len(piece)
                    if progress:
                        progress(done, None)
                return writer.commit(Digest(blob.digest))
        except StoreError as error:
            raise RegistryError(f"{archive.subject} is damaged: {error}", reason="damaged") from error

    for entry in index.manifests:
        annotations = entry.annotations or {}
        names = [annotations[key] for key in (_FULL_NAME, _NAME) if key in annotations][:1]
        chosen, data = _choose(archive, entry, architecture)
        image = moved.get(chosen.digest)
        if image is None:
            config, layers = parse_manifest(data, archive.subject)
            wanted = {blob.digest: blob for blob in (*layers, config, chosen)}
            image = MovedImage(Digest(chosen.digest), [take(blob) for blob in wanted.values()])
            moved[chosen.digest] = image
        image.names = [*image.names, *names]
    return list(moved.values())


def _choose(archive: _Archive, entry: _IndexEntry, architecture: str) -> tuple[_IndexEntry, bytes]:
    """The image manifest that an entry of the index means, and its bytes; nested indexes are followed by platform."""
    for _ in range(_DEPTH_MAX):
        data = archive.read(f"blobs/sha256/{entry.digest[7:]}")
        if digest_of(data) != entry.digest:
            raise RegistryError(f"{archive.subject} is damaged: {entry.digest} has another content", reason="damaged")
        if entry.media_type not in _INDEX_TYPES and b'"manifests"' not in data:
            return entry, data
        inner = _decode_index(data, archive.subject).manifests
        fitting = [
            item for item in inner if (item.platform or {}).get("architecture") == architecture and
            (item.platform or {}).get("os") == "linux"
        ]  # fmt: skip
        if not fitting:
            raise RegistryError(
                f"{archive.subject} holds no image for linux/{architecture}", reason="platform", hint="see --platform"
            )
        entry = fitting[0]
    raise ImageError(f"{archive.subject} nests its indexes too deeply")


def _decode_index(data: bytes, subject: str) -> _Index:
    try:
        return msgspec.json.decode(data, type=_Index)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ImageError(f"the index of {subject} does not parse: {error}") from error


class SavedImage(msgspec.Struct, frozen=True):
    """An image to be saved. `sizes`: the plain layers' sizes in bytes by diff id, where they are known."""

    manifest_digest: Digest
    diff_ids: Sequence[Digest]
    names: Sequence[Reference]
    sizes: Mapping[Digest, int] = {}


def write_archive(
    images: Sequence[SavedImage],
    blobs: BlobSink[Any],
    write: Callable[[bytes], object],
    *,
    archive_format: str,
    progress: Progress | None = None,
) -> None:
    """Write images as one tar. `archive_format`: `oci-archive` (every digest stays, but those of Docker's manifests: both
    formats hold OCI's) or `docker-archive` (plain layers).

    Raises ImageError for another format and for a layer that is not what its image says, StoreError.
    """
    if archive_format not in ("oci-archive", "docker-archive"):
        raise ImageError(f"`{archive_format}` is not an archive format", hint="oci-archive or docker-archive")
    with _TarWriter(write, progress).open() as tar:
        tar.add_bytes("oci-layout", LAYOUT_MARKER)
        entries, listed = [], []
        for image in images:
            data = to_oci_manifest(read_bounded(blobs.path(image.manifest_digest)))
            config, layers = parse_manifest(data, f"the image {image.manifest_digest}")
            if archive_format == "docker-archive":
                data = _add_plain_layers(tar, blobs, image, data, layers)
            else:
                for layer in layers:
                    tar.add_file(_member(layer.digest), blobs.path(Digest(layer.digest)))
            tar.add_file(_member(config.digest), blobs.path(Digest(config.digest)))
            tar.add_bytes(_member(digest_of(data)), data)
            full = [name.full for name in image.names]
            kind = msgspec.json.decode(data).get("mediaType") or MANIFEST_TYPE
            entry = {"mediaType": kind, "digest": digest_of(data), "size": len(data)}
            entries += [{**entry, "annotations": {_FULL_NAME: name, _NAME: name}} for name in full] or [entry]
            paths = [_member(str(diff_id)) for diff_id in image.diff_ids]
            tags = [name.familiar for name in image.names if name.tag and name.digest is None]
            listed.append({"Config": _member(config.digest), "RepoTags": tags, "Layers": paths})
        tar.add_bytes("index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": entries}))
        if archive_format == "docker-archive":
            tar.add_bytes("manifest.json", msgspec.json.encode(listed))


def _add_plain_layers(
    tar: _TarWriter, blobs: BlobSink[Any], image: SavedImage, data: bytes, layers: Sequence[BlobDescriptor]
) -> bytes:
    """Add an image's layers uncompressed; returns the manifest that names them so."""
    manifest = msgspec.json.decode(data)
    for number, (layer, diff_id) in enumerate(zip(layers, image.diff_ids, strict=True)):
        path = blobs.path(Digest(layer.digest))
        size = image.sizes.get(diff_id)
        if size is None:
            with open_layer(path, layer.media_type, expected_diff_id=diff_id) as stream:
                size = sum(len(piece) for piece in stream)
        if not tar.has(_member(str(diff_id))):
            with open_layer(path, layer.media_type, expected_diff_id=diff_id) as stream:
                tar.add(_member(str(diff_id)), size, stream)
        manifest["layers"][number] = {"mediaType": _PLAIN_TYPE, "digest": diff_id, "size": size}
    return msgspec.json.encode(manifest)


def _member(digest: str) -> str:
    return f"blobs/sha256/{digest[7:]}"


class _TarWriter:
    """A tar written member by member to a function; members of equal name are written once. Equal input, equal bytes."""

    def __init__(self, write: Callable[[bytes], object], progress: Progress | None) -> None:
        self._write = write
        self._progress = progress
        self._names: set[str] = set()
        self._done = 0

    @contextmanager
    def open(self) -> Iterator[_TarWriter]:
        yield self
        self._put(bytes(2 * tarfile.BLOCKSIZE))

    def has(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str, size: int, pieces: Iterator[bytes] | Any) -> None:
        if name in self._names:
            return
        self._names.add(name)
        header = tarfile.TarInfo(name)
        header.size, header.mode = size, 0o444
        self._put(header.tobuf(tarfile.PAX_FORMAT))
        written = 0
        for piece in pieces:
            self._put(piece)
            written += len(piece)
        if written != size:
            raise ImageError(f"`{name}` has {written} bytes and should have {size}: `firebuild fsck` finds damage")
        self._put(bytes(-size % tarfile.BLOCKSIZE))

    def add_bytes(self, name: str, data: bytes) -> None:
        self.add(name, len(data), iter([data]))

    def add_file(self, name: str, path: Path) -> None:
        """A blob of the store, by its path there. Raises StoreError if it is damaged."""
        import hashlib

        if name in self._names:
            return
        total = hashlib.sha256()

        def read() -> bytes:
            data = file.read(_CHUNK)
            total.update(data)
            return data

        try:
            with open(path, "rb") as file:
                self.add(name, os.fstat(file.fileno()).st_size, iter(read, b""))
            if total.hexdigest() != path.name:
                raise damaged_blob(f"sha256:{path.name}", f"sha256:{total.hexdigest()}")
        except FileNotFoundError:
            raise StoreError(
                f"the blob sha256:{path.name} is missing from the store", hint="pull the image again"
            ) from None

    def _put(self, data: bytes) -> None:
        self._write(data)
        self._done += len(data)
        if self._progress:
            self._progress(self._done, None)


def spool(source: BinaryIO, target: Path, progress: Progress | None = None) -> None:
    """Keep a stream that cannot seek (standard input) as a file. Raises DiskFullError, HostError."""
    done = 0
    try:
        with open(target, "wb") as file:
            while data := source.read(_CHUNK):
                file.write(data)
                done += len(data)
                if progress:
                    progress(done, None)
    except OSError as error:
        raise map_os_error(error, f"writing `{target}`") from error
