"""One image on its way to a program: a private OCI layout that borrows the store's blobs; and what a manifest says.

OCI image-spec: image-layout.md, manifest.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from firebuild.errors import ImageError, RegistryError
from firebuild.host.files import map_os_error, write_atomic
from firebuild.images.archive import open_layer
from firebuild.images.blobs import BlobSink
from firebuild.names import Digest, oci_layer_type

D = TypeVar("D")
Compression = Literal["keep", "plain", "gzip"]

MANIFEST_LIMIT = 4 << 20
LAYERS_MAX = 1000
_GZIP_LEVEL = 6
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
LAYOUT_MARKER = b'{"imageLayoutVersion":"1.0.0"}'
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


class MovedImage(msgspec.Struct, Generic[D]):
    """An image whose blobs are in the store now, without a name. `names`: what an archive calls it."""

    manifest_digest: Digest
    blobs: list[D]
    names: list[str] = []


class BlobDescriptor(msgspec.Struct, rename="camel"):
    """Media type, digest and size of a blob (OCI descriptor.md); the digest's form is checked."""

    media_type: str
    digest: Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0)]
    annotations: dict[str, str] | None = None


class _Manifest(msgspec.Struct):
    config: BlobDescriptor
    layers: list[BlobDescriptor]


def digest_of(data: bytes) -> Digest:
    """The sha256 digest of bytes."""
    import hashlib

    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def parse_manifest(data: bytes, subject: str) -> tuple[BlobDescriptor, list[BlobDescriptor]]:
    """Configuration and layers of an image manifest, within limits. Raises ImageError, RegistryError naming `subject`."""
    try:
        if b'"manifests"' in data and "manifests" in msgspec.json.decode(data):
            raise ImageError(f"{subject} came as an index of several platforms, not as one image")
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RegistryError(f"{subject} has a manifest that does not parse: {error}", reason="damaged") from error
    if len(manifest.layers) > LAYERS_MAX:
        raise ImageError(f"{subject} has {len(manifest.layers)} layers; {LAYERS_MAX} are allowed")
    if manifest.config.size > MANIFEST_LIMIT:
        raise ImageError(f"{subject} has a configuration of {manifest.config.size} bytes; {MANIFEST_LIMIT} are allowed")
    return manifest.config, manifest.layers


def to_oci_manifest(data: bytes) -> bytes:
    """A manifest of Docker's as OCI's, over the same blobs, so that the image's id stays; any other as it is.

    An OCI layout is to hold OCI manifests: skopeo and Podman do not find others in it by their names.
    """
    manifest = msgspec.json.decode(data)
    if manifest.get("mediaType") != _DOCKER_MANIFEST_TYPE:
        return data
    manifest["mediaType"] = MANIFEST_TYPE
    manifest["config"]["mediaType"] = CONFIG_TYPE
    for layer in manifest["layers"]:
        layer["mediaType"] = oci_layer_type(layer["mediaType"])
    return msgspec.json.encode(manifest)


def stage_image(
    stage: Path,
    blobs: BlobSink[Any],
    manifest_digest: Digest,
    *,
    compression: Compression = "keep",
    oci: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[Path, Digest]:
    """A layout below `stage` that holds one image and borrows the store's blobs; returns it and the image's digest in it.

    `compression`: of zstd layers, which neither Docker's archives nor Docker before 23 know: `gzip` and `plain` write them
    anew, under a manifest that says so; the configuration, and so the image's id, stays. `oci`: an OCI manifest takes the
    place of Docker's. `progress`: plain bytes written.
    Raises ImageError, DiskFullError, HostError.
    """
    layout = stage / "source"
    folder = layout / "blobs" / "sha256"
    try:
        folder.mkdir(parents=True)
        stored = read_bounded(blobs.path(manifest_digest))
        data = to_oci_manifest(stored) if oci else stored
        manifest = msgspec.json.decode(data)
        changed = data != stored
        for blob in (manifest["config"], *manifest["layers"]):
            path = blobs.path(Digest(blob["digest"]))
            if compression != "keep" and blob["mediaType"].endswith("zstd"):
                docker = blob["mediaType"].startswith(_DOCKER_LAYER_TYPE)
                blob.update(_recompress(path, blob["mediaType"], folder, compression, docker, progress))
                changed = True
            elif not os.path.lexists(folder / path.name):
                os.symlink(path.absolute(), folder / path.name)
        if changed:
            data = msgspec.json.encode(manifest)
            manifest_digest = digest_of(data)
        write_atomic(folder / manifest_digest[7:], data)
    except OSError as error:
        raise map_os_error(error, f"making `{layout}`") from error
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise ImageError(f"the manifest {manifest_digest} does not parse: {error}") from error
    entry = {"mediaType": manifest.get("mediaType") or MANIFEST_TYPE, "digest": manifest_digest, "size": len(data)}
    write_index(layout, [entry])
    return layout, manifest_digest


def write_index(layout: Path, entries: list[dict[str, Any]]) -> None:
    """Make a folder of blobs a layout with these entries. Raises DiskFullError, HostError."""
    write_atomic(layout / "oci-layout", LAYOUT_MARKER)
    write_atomic(layout / "index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": entries}))


def _recompress(
    path: Path, media_type: str, folder: Path, compression: str, docker: bool, progress: Callable[[int], None] | None
) -> dict[str, Any]:
    """Write a layer anew into a layout's blobs; what is to stand in its descriptor."""
    import hashlib
    import zlib

    total, size, done = hashlib.sha256(), 0, 0
    # A gzip header without time and name: equal layers give equal bytes.
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31) if compression == "gzip" else None
    partial = folder / "partial"
    with open_layer(path, media_type) as layer, open(partial, "wb") as file:

        def put(piece: bytes) -> None:
            nonlocal size
            file.write(piece)
            total.update(piece)
            size += len(piece)

        for plain in layer:
            put(packer.compress(plain) if packer else plain)
            done += len(plain)
            if progress:
                progress(done)
        if packer:
            put(packer.flush())
    os.rename(partial, folder / total.hexdigest())
    suffix = ("+gzip" if not docker else ".gzip") if packer else ""
    base = _DOCKER_LAYER_TYPE if docker else _LAYER_TYPE
    return {"mediaType": base + suffix, "digest": f"sha256:{total.hexdigest()}", "size": size}


def stage_view(stage: Path, layout: Path, digest: Digest) -> Path:
    """A layout below `stage` that shows one manifest or index of another layout, which skopeo picks by name only.

    Raises ImageError where the layout does not have it, or has something else in its place; HostError.
    """
    source = layout / "blobs" / "sha256" / digest[7:]
    if not source.is_file():
        raise ImageError(f"the layout `{layout}` has no image {digest}")
    data = read_bounded(source)
    try:
        kind = msgspec.json.decode(data).get("mediaType") or MANIFEST_TYPE
    except (msgspec.MsgspecError, AttributeError, RecursionError) as error:
        raise ImageError(f"{digest} in the layout `{layout}` is no image") from error
    if digest_of(data) != digest:
        raise ImageError(f"the layout `{layout}` is damaged: {digest} has another content")
    view = stage / "view"
    try:
        view.mkdir()
        os.symlink((layout / "blobs").absolute(), view / "blobs")
    except OSError as error:
        raise map_os_error(error, f"making `{view}`") from error
    write_index(view, [{"mediaType": kind, "digest": digest, "size": len(data)}])
    return view


def read_bounded(path: Path) -> bytes:
    """A manifest, index or configuration. Raises ImageError for an absent, empty or enormous one."""
    data = b""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        data = file.read(MANIFEST_LIMIT + 1)
    if not data or len(data) > MANIFEST_LIMIT:
        raise ImageError(f"`{path.name[:80]}` of the image has {len(data)} bytes, which cannot be right")
    return data
