"""The bootable disk and the kernel of an image as artifacts beside it in a registry: packed, and unpacked again with checks.

An artifact is an OCI manifest with an `artifactType`, a `subject` (the image's manifest) and the media types below; see
docs/reference/media-types.md. OCI image-spec: manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec

from firebuild.errors import ImageError, RegistryError
from firebuild.host.files import map_os_error
from firebuild.images.compression import ExpansionLimits, load_zstd, uncompress
from firebuild.images.ocilayout import MANIFEST_TYPE, BlobDescriptor, digest_of, read_bounded

DISK_TYPE = "application/vnd.firebuild.disk.v1"
DISK_CONFIG_TYPE = "application/vnd.firebuild.disk.config.v1+json"
CHUNK_TYPE = "application/vnd.firebuild.disk.chunk.v1+zstd"
KERNEL_TYPE = "application/vnd.firebuild.kernel.v1"
KERNEL_CONFIG_TYPE = "application/vnd.firebuild.kernel.config.v1+json"
VMLINUX_TYPE = "application/vnd.firebuild.kernel.vmlinux.v1+zstd"
MODULES_TYPE = "application/vnd.firebuild.kernel.modules.v1.tar+zstd"
# Of a disk's manifest: the key, by which its taker sees that it fits before a byte of it is moved.
KEY_ANNOTATION = "vnd.firebuild.disk.key"
BUILD_CONFIG_TYPE = "application/vnd.firebuild.kernel.build-config.v1+zstd"

CHUNK_BYTES = 64 << 20
_CHUNK_BYTES_MAX = 256 << 20
_KERNEL_FILE_MAX = 512 << 20
_BLOCK = 4096
_LEVEL = 3

T = TypeVar("T")
Told = Callable[[int, int | None], None]


class Subject(msgspec.Struct, frozen=True):
    """The image's manifest, which an artifact belongs to."""

    media_type: str
    digest: str
    size: int


class Chunk(msgspec.Struct, frozen=True):
    """Where the plain bytes of a chunk stand in the disk."""

    offset: Annotated[int, msgspec.Meta(ge=0)]
    size: Annotated[int, msgspec.Meta(gt=0, le=_CHUNK_BYTES_MAX)]


class DiskConfig(msgspec.Struct, frozen=True):
    """What a disk is, by which its taker decides whether it fits. `chunks`: one for each of the manifest's layers, in order."""

    key: str
    chain_id: str
    parameters: dict[str, str]
    size_bytes: Annotated[int, msgspec.Meta(gt=0)]
    chunks: list[Chunk]


class KernelConfig(msgspec.Struct, frozen=True):
    """What a kernel is. `digest`: of the plain vmlinux."""

    name: str
    version: str
    architecture: str
    digest: str


class ArtifactManifest(msgspec.Struct, rename="camel"):
    """The parts of an artifact's manifest that firebuild reads."""

    config: BlobDescriptor
    layers: list[BlobDescriptor]
    artifact_type: str = ""
    subject: BlobDescriptor | None = None
    annotations: dict[str, str] | None = None


class Artifact(msgspec.Struct, frozen=True):
    """An artifact in a layout. `descriptor`: its entry for an index, with its `artifactType`."""

    digest: str
    descriptor: dict[str, Any]
    stored_bytes: int


def pack_disk(
    disk: Path, facts: Mapping[str, Any], subject: Subject, layout: Path, progress: Told | None = None
) -> Artifact:
    """Write a disk into a layout as compressed chunks; what is a hole or zero from end to end of a chunk is left out.

    `facts`: key, chain_id, parameters. Raises DiskFullError, HostError.
    """
    chunks, layers = [], []
    try:
        with open(disk, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for offset in range(0, size, CHUNK_BYTES):
                data = _read_chunk(file, offset, min(CHUNK_BYTES, size - offset))
                if progress:
                    progress(offset + CHUNK_BYTES, size)
                if data is None:
                    continue
                layers.append(_put(layout, _compress(data), CHUNK_TYPE))
                chunks.append(Chunk(offset, len(data)))
    except OSError as error:
        raise map_os_error(error, f"packing `{disk}`") from error
    config = DiskConfig(size_bytes=size, chunks=chunks, **facts)
    annotations = {KEY_ANNOTATION: config.key}
    return _put_manifest(layout, DISK_TYPE, DISK_CONFIG_TYPE, msgspec.json.encode(config), layers, subject, annotations)


def _read_chunk(file: BinaryIO, offset: int, size: int) -> bytes | None:
    """The bytes at `offset`, or None if there is nothing but zeros."""
    try:
        start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
    except OSError:
        return None  # ENXIO: nothing but a hole up to the end
    if start >= offset + size:
        return None
    data = os.pread(file.fileno(), size, offset)
    return data if data.count(0) != len(data) else None


def pack_kernel(
    config: KernelConfig, vmlinux: Path, modules: Path | None, build_config: Path | None, subject: Subject, layout: Path
) -> Artifact:
    """Write a kernel, its modules and its configuration into a layout. Raises DiskFullError, HostError."""
    parts = ((vmlinux, VMLINUX_TYPE), (modules, MODULES_TYPE), (build_config, BUILD_CONFIG_TYPE))
    try:
        layers = [_put(layout, _compress(path.read_bytes()), kind) for path, kind in parts if path is not None]
    except OSError as error:
        raise map_os_error(error, f"packing the kernel `{config.name}`") from error
    return _put_manifest(layout, KERNEL_TYPE, KERNEL_CONFIG_TYPE, msgspec.json.encode(config), layers, subject)


def _compress(data: bytes) -> bytes:
    zstd = load_zstd()
    options = {zstd.CompressionParameter.compression_level: _LEVEL, zstd.CompressionParameter.checksum_flag: 1}
    packed = zstd.compress(data, options=options)
    assert isinstance(packed, bytes)
    return packed


def _put(layout: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = digest_of(data)
    (layout / "blobs" / "sha256" / digest[7:]).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _put_manifest(
    layout: Path,
    kind: str,
    config_type: str,
    config: bytes,
    layers: list[dict[str, Any]],
    subject: Subject,
    annotations: Mapping[str, str] | None = None,
) -> Artifact:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": kind,
        "config": _put(layout, config, config_type),
        "layers": layers,
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    entry = _put(layout, msgspec.json.encode(manifest), MANIFEST_TYPE)
    stored = sum(layer["size"] for layer in layers)
    return Artifact(entry["digest"], {**entry, "artifactType": kind}, stored)


def parse_artifact(data: bytes, subject: str) -> ArtifactManifest:
    """An artifact's manifest. Raises RegistryError naming `subject`."""
    try:
        return msgspec.json.decode(data, type=ArtifactManifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RegistryError(f"{subject} has a manifest that does not parse: {error}", reason="damaged") from error


def load_disk_config(layout: Path, manifest: ArtifactManifest, subject: str) -> DiskConfig:
    """The facts of a fetched disk. Raises ImageError naming `subject` where they contradict themselves or the manifest."""
    config = _load_config(layout, manifest, DISK_CONFIG_TYPE, DiskConfig, subject)
    end = 0
    for chunk in config.chunks:
        if chunk.offset < end or chunk.offset + chunk.size > config.size_bytes:
            raise ImageError(f"{subject} has chunks that overlap or stand outside of it")
        end = chunk.offset + chunk.size
    if len(config.chunks) != len(manifest.layers) or any(layer.media_type != CHUNK_TYPE for layer in manifest.layers):
        raise ImageError(f"{subject} has {len(manifest.layers)} layers that are not its {len(config.chunks)} chunks")
    return config


def unpack_disk(
    layout: Path,
    manifest: ArtifactManifest,
    config: DiskConfig,
    target: Path,
    subject: str,
    progress: Told | None = None,
) -> None:
    """Write a fetched disk's chunks into `target`, a hole of the right size, each checked by its digest and its size.

    Raises RegistryError (`damaged`) naming `subject`, DiskFullError, HostError.
    """
    try:
        with open(target, "r+b", buffering=0) as file:
            for chunk, layer in zip(config.chunks, manifest.layers, strict=True):
                data = _load_blob(layout, layer, chunk.size, subject)
                if len(data) != chunk.size:
                    raise RegistryError(
                        f"{subject} has a chunk of {len(data)} bytes, not {chunk.size}", reason="damaged"
                    )
                for start, end in _written(data):
                    os.pwrite(file.fileno(), memoryview(data)[start:end], chunk.offset + start)
                if progress:
                    progress(chunk.offset + chunk.size, config.size_bytes)
    except OSError as error:
        raise map_os_error(error, f"writing `{target}`") from error


def _written(data: bytes) -> Iterator[tuple[int, int]]:
    """The runs of blocks that are not zero: the others stay holes."""
    zeros = bytes(_BLOCK)
    start = None
    for offset in range(0, len(data), _BLOCK):
        block = data[offset : offset + _BLOCK]
        if block == zeros[: len(block)]:
            if start is not None:
                yield start, offset
                start = None
        elif start is None:
            start = offset
    if start is not None:
        yield start, len(data)


def load_kernel_config(layout: Path, manifest: ArtifactManifest, subject: str) -> KernelConfig:
    """The facts of a fetched kernel. Raises ImageError."""
    return _load_config(layout, manifest, KERNEL_CONFIG_TYPE, KernelConfig, subject)


def load_kernel_parts(layout: Path, manifest: ArtifactManifest, config: KernelConfig, subject: str) -> dict[str, bytes]:
    """A fetched kernel's files by media type, checked. Raises RegistryError (`damaged`), ImageError without a kernel."""
    parts = {layer.media_type: _load_blob(layout, layer, _KERNEL_FILE_MAX, subject) for layer in manifest.layers}
    if VMLINUX_TYPE not in parts:
        raise ImageError(f"{subject} holds no kernel")
    found = digest_of(parts[VMLINUX_TYPE])
    if found != config.digest:
        raise RegistryError(f"{subject} arrived damaged: expected {config.digest}, got {found}", reason="damaged")
    return parts


def _load_config(layout: Path, manifest: ArtifactManifest, media_type: str, kind: type[T], subject: str) -> T:
    if manifest.config.media_type != media_type:
        raise ImageError(f"{subject} has a configuration of the type `{manifest.config.media_type[:100]}`")
    data = read_bounded(layout / "blobs" / "sha256" / manifest.config.digest[7:])
    if digest_of(data) != manifest.config.digest:
        raise RegistryError(f"{subject} arrived damaged: its configuration has another digest", reason="damaged")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ImageError(f"{subject} has a configuration that does not parse: {error}") from error


def _load_blob(layout: Path, blob: BlobDescriptor, limit: int, subject: str) -> bytes:
    """A small-enough zstd blob, verified and uncompressed."""
    import hashlib

    path = layout / "blobs" / "sha256" / blob.digest[7:]
    try:
        with open(path, "rb") as file:
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            if found != blob.digest or path.stat().st_size != blob.size:
                raise RegistryError(f"{subject} arrived damaged: expected {blob.digest}, got {found}", reason="damaged")
            file.seek(0)
            return b"".join(uncompress(file, subject, ExpansionLimits(bytes=limit)))
    except FileNotFoundError:
        raise RegistryError(f"{subject} arrived without {blob.digest}", reason="damaged") from None
