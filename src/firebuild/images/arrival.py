"""An image that skopeo has put into a layout: how it is told to keep the image as it is, and the way into the store.

Of its own, skopeo writes an OCI layout by converting Docker's manifests (image-manifest-v2-2), and what OCI's configuration
has no field for, HEALTHCHECK, ONBUILD and SHELL among them, is lost, and with it the image's id.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from firebuild.errors import ImageError, RegistryError, StoreError
from firebuild.host.files import write_atomic
from firebuild.images.blobs import BlobSink
from firebuild.images.compression import sniff
from firebuild.images.ocilayout import (
    CONFIG_TYPE,
    LAYERS_MAX,
    MANIFEST_TYPE,
    BlobDescriptor,
    MovedImage,
    digest_of,
    parse_manifest,
    read_bounded,
)
from firebuild.names import Digest

D = TypeVar("D")

# Without this flag skopeo would compress plain layers, and their digests would be others.
KEEP_PLAIN = "--dest-oci-accept-uncompressed-layers"
DOCKER_FORMAT = ("--format", "v2s2")
_DOCKER_TYPES = "application/vnd.docker."
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
# Variants of one architecture in an index: arm has four.
_FITTING_MAX = 16
_SUFFIXES = {"gzip": "+gzip", "zstd": "+zstd"}


class _Index(msgspec.Struct):
    manifests: list[BlobDescriptor]


def check_manifest(data: bytes, subject: str, architecture: str) -> list[Digest]:
    """Look at what a registry answers for a name before anything it names is moved: of an image's manifest its limits; of an
    index, whose bytes say nothing of layers, the digests of the manifests that may be chosen for `architecture`.

    Raises ImageError, RegistryError as parse_manifest does; ImageError for an index with too many that fit.
    """
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        if "manifests" not in found:
            # Docker's first schema has no `layers`; skopeo makes a manifest of the second of it.
            if "layers" in found:
                parse_manifest(data, subject)
            elif len(found.get("fsLayers") or []) > LAYERS_MAX:
                raise ImageError(f"{subject} has {len(found['fsLayers'])} layers; {LAYERS_MAX} are allowed")
            return []
        entries = msgspec.convert(found["manifests"], list[dict[str, Any]])
        fitting = [
            msgspec.convert(entry, BlobDescriptor).digest
            for entry in entries
            if (platform := entry.get("platform") or {}).get("architecture") == architecture
            and platform.get("os") == "linux"
        ]
    except (msgspec.MsgspecError, RecursionError, TypeError, AttributeError) as error:
        raise RegistryError(f"{subject} has a manifest that does not parse: {error}", reason="damaged") from error
    if len(fitting) > _FITTING_MAX:
        raise ImageError(f"{subject} has {len(fitting)} images for linux/{architecture}; {_FITTING_MAX} are allowed")
    return [Digest(digest) for digest in fitting]


def plan_format(raw: bytes, architecture: str) -> tuple[str, ...]:
    """The flags that let skopeo keep the format of an image whose manifest or index is `raw`: none for OCI's."""
    try:
        manifest: Any = msgspec.json.decode(raw)
        entries = [
            entry for entry in manifest.get("manifests") or () if
            (entry.get("platform") or {}).get("architecture", architecture) == architecture
        ]  # fmt: skip
        types = [str(entry.get("mediaType")) for entry in entries or [manifest]]
    except (msgspec.MsgspecError, AttributeError, TypeError, RecursionError):
        return ()  # skopeo says what is wrong with it
    # Schema 1 has no media type of its own; of what it says, Docker's format keeps the most.
    docker = types[0].startswith(_DOCKER_TYPES) or manifest.get("schemaVersion") == 1
    return DOCKER_FORMAT if docker else ()


def adopt_layout(layout: Path, blobs: BlobSink[D], subject: str, *, own_manifest: bool = False) -> MovedImage[D]:
    """Verify each blob of a layout with one image and move it into the store, the manifest last.

    `own_manifest`: the manifest that came is skopeo's invention, as for Docker's archives and daemon, which have none and
    whose layers it mislabels; an OCI manifest of the same blobs takes its place. Else its bytes, and so its digest, are kept.
    Raises ImageError, RegistryError (reason `damaged`) naming `subject`, DiskFullError.
    """
    try:
        index = msgspec.json.decode(read_bounded(layout / "index.json"), type=_Index)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RegistryError(f"{subject} has an index that does not parse: {error}", reason="damaged") from error
    if len(index.manifests) != 1:
        raise ImageError(f"{subject} came as {len(index.manifests)} images, not one")
    entry = index.manifests[0]
    data = read_bounded(_blob(layout, entry))
    config, layers = parse_manifest(data, subject)
    for blob in (*layers, config):
        if not os.path.lexists(_blob(layout, blob)):
            raise ImageError(
                f"{subject} has a part that did not come with it: {blob.digest} ({blob.media_type[:100]})",
                hint="layers that a manifest keeps at other addresses (foreign layers) are not fetched",
            )
    if own_manifest:
        data = _write_manifest(layout, config, layers)
        entry = BlobDescriptor(MANIFEST_TYPE, digest_of(data), len(data))
        write_atomic(_blob(layout, entry), data)
    adopted = {}
    try:
        for blob in (*layers, config, entry):
            if blob.digest not in adopted:
                adopted[blob.digest] = blobs.adopt(_blob(layout, blob), Digest(blob.digest), blob.size, blob.media_type)
    except StoreError as error:
        raise RegistryError(f"{subject} arrived damaged: {error}", reason="damaged") from error
    return MovedImage(Digest(entry.digest), list(adopted.values()))


def _write_manifest(layout: Path, config: BlobDescriptor, layers: list[BlobDescriptor]) -> bytes:
    """An OCI manifest of the blobs, with layer types that are true. Equal blobs, equal bytes."""

    def describe(blob: BlobDescriptor, media_type: str) -> dict[str, object]:
        return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}

    described = []
    for layer in layers:
        with open(_blob(layout, layer), "rb") as file:
            described.append(describe(layer, _LAYER_TYPE + _SUFFIXES.get(sniff(file.read(8)), "")))
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": describe(config, CONFIG_TYPE),
        "layers": described,
    }
    return msgspec.json.encode(document)


def _blob(layout: Path, descriptor: BlobDescriptor) -> Path:
    return layout / "blobs" / "sha256" / descriptor.digest[7:]
