"""Images and their names: OCI configurations and manifests as blobs, index.json as the one atomic pointer to them.

Each entry of index.json is an image manifest's descriptor whose annotation `org.opencontainers.image.ref.name` holds a
full normalised reference (`docker.io/library/debian:bookworm-slim`). A name is changed by rewriting index.json under
`index.lock` and renaming it into place, so a reader sees the old image or the new one, whole.
OCI image-spec: config.md, manifest.md, image-index.md, annotations.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from firebuild.errors import NotFoundError, StoreError, UsageError
from firebuild.host.files import write_atomic
from firebuild.names import Digest, Reference, oci_layer_type, parse_reference
from firebuild.store.blobs import BlobStore, Descriptor

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"
# Of a manifest: `baseos` for a base operating system. An annotation, as labels go on to what is built upon an image.
TYPE_ANNOTATION = "org.firebuild.type"
_DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_INDEX_LIMIT = 64 << 20
_ID = re.compile(r"(?:sha256:)?[0-9a-f]{4,64}")


class Healthcheck(msgspec.Struct, omit_defaults=True, rename="pascal"):
    """HEALTHCHECK (Docker's image configuration). Times are nanoseconds."""

    test: list[str] = []
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class RunConfig(msgspec.Struct, omit_defaults=True, rename="pascal"):
    """`config` of an image configuration (OCI config.md and Docker's additions). A null in the JSON counts as absent."""

    user: str = ""
    exposed_ports: dict[str, dict[str, Any]] = {}
    env: list[str] = []
    entrypoint: list[str] = []
    cmd: list[str] = []
    volumes: dict[str, dict[str, Any]] = {}
    working_dir: str = ""
    labels: dict[str, str] = {}
    stop_signal: str = ""
    stop_timeout: int | None = None
    healthcheck: Healthcheck | None = None
    on_build: list[str] = []
    shell: list[str] = []


class RootFs(msgspec.Struct):
    """`rootfs`: the digests of the uncompressed layers, lowest first."""

    type: str = "layers"
    diff_ids: list[Digest] = []


class History(msgspec.Struct, omit_defaults=True):
    """One entry of `history`: what made a layer, or no layer at all (`empty_layer`)."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, omit_defaults=True):
    """An OCI image configuration (config.md). Times are RFC 3339 texts."""

    architecture: str
    os: str
    created: str | None = None
    author: str | None = None
    variant: str | None = None
    os_version: str | None = msgspec.field(name="os.version", default=None)
    config: RunConfig = msgspec.field(default_factory=RunConfig)
    rootfs: RootFs = msgspec.field(default_factory=RootFs)
    history: list[History] = []


class Manifest(msgspec.Struct, omit_defaults=True, rename="camel"):
    """An OCI image manifest (manifest.md)."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    artifact_type: str | None = None
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct, omit_defaults=True, rename="camel"):
    schema_version: int
    media_type: str = ""
    manifests: list[Descriptor] = []
    annotations: dict[str, str] = {}


class Image(msgspec.Struct, frozen=True):
    """An image of the store. `size`: bytes of manifest, configuration and compressed layers together."""

    reference: str | None
    manifest_digest: Digest
    manifest: Manifest
    config_digest: Digest
    config: ImageConfig
    layers: list[Descriptor]
    created: str | None
    size: int

    @property
    def id(self) -> str:
        """Docker's image id: the configuration's digest."""
        return self.config_digest

    @property
    def chain_id(self) -> Digest:
        """The identity of the layers' stack, see compute_chain_id."""
        return compute_chain_id(self.config.rootfs.diff_ids)


def compute_chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """The chain id of a stack of layers, lowest first (OCI config.md, "Layer ChainID"). Of no layers: sha256 of nothing."""
    import hashlib

    if not diff_ids:
        return Digest("sha256:" + hashlib.sha256(b"").hexdigest())
    chain: str = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest()
    return Digest(chain)


def parse_config(data: bytes) -> ImageConfig:
    """Decode an image configuration. Raises StoreError. Docker writes null for what is not set: it counts as absent."""
    try:
        return msgspec.convert(_without_nulls(msgspec.json.decode(data)), ImageConfig)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise StoreError(f"an image configuration does not parse: {error}") from error


def parse_manifest(data: bytes) -> Manifest:
    """Decode an image manifest. Raises StoreError, also for an index, and for what could be read as either (CVE-2021-41190)."""
    try:
        raw = msgspec.json.decode(data)
        if not isinstance(raw, dict):
            raise StoreError("an image manifest does not parse: it is not an object")
        if "manifests" in raw:
            raise StoreError("this is an image index (a list of images for several platforms), not an image manifest")
        manifest = msgspec.convert(_without_nulls(raw), Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise StoreError(f"an image manifest does not parse: {error}") from error
    if manifest.schema_version != 2 or manifest.media_type not in ("", MANIFEST_TYPE, _DOCKER_MANIFEST_TYPE):
        raise StoreError(
            f"an image manifest has schema version {manifest.schema_version} and media type `{manifest.media_type}`, "
            "which firebuild does not know"
        )
    return manifest


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


class ImageStore:
    """The images of a BlobStore, by name and by digest. `on_change` is told the full names that were pointed elsewhere or
    removed, once that is durable: whoever shows names to the world keeps in step so."""

    def __init__(self, blobs: BlobStore, on_change: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        self.blobs = blobs
        self._on_change = on_change

    # -- reading -------------------------------------------------------------------------------------------------

    def find_image(self, reference: Reference) -> Image | None:
        """The image of that name, or None. A digest decides alone, the tag beside it is ignored, as with Docker.

        Raises StoreError if the image is damaged.
        """
        entry = _find_entry(self._load_index(), reference)
        return None if entry is None else self._load(entry.digest, entry.annotations.get(REFERENCE_ANNOTATION))

    def get_image(self, reference: Reference) -> Image:
        """As find_image; raises NotFoundError with names like it."""
        image = self.find_image(reference)
        if image is None:
            raise NotFoundError(
                f"there is no image `{reference}`", hint=self._suggest(reference) or "`firebuild image ls` lists them"
            )
        return image

    def get_named(self, text: str) -> Image:
        """The image that a user means: by reference, else by the beginning of its id. Raises NotFoundError, UsageError."""
        looks_like_id = _ID.fullmatch(text) is not None
        if looks_like_id and (text.startswith("sha256:") or len(text) == 64):
            return self.get_by_id(text)
        reference = parse_reference(text)
        if looks_like_id and self.find_image(reference) is None:
            return self.get_by_id(text)
        return self.get_image(reference)

    def get_by_id(self, prefix: str) -> Image:
        """The image whose configuration's or manifest's digest begins so (with or without `sha256:`).

        Raises NotFoundError, and UsageError for a prefix of several.
        """
        wanted = prefix.removeprefix("sha256:")
        found: dict[Digest, Image] = {}
        if wanted and not set(wanted) - set("0123456789abcdef"):
            for image in self.list_images():
                if image.config_digest[7:].startswith(wanted) or image.manifest_digest[7:].startswith(wanted):
                    found.setdefault(image.config_digest, image)
        if not found:
            raise NotFoundError(f"there is no image with the id `{prefix}`", hint="`firebuild image ls` lists them")
        if len(found) > 1:
            raise UsageError(f"the id `{prefix}` is the beginning of {len(found)} images' ids", hint="give more digits")
        return next(iter(found.values()))

    def list_images(self, on_damage: Callable[[str, StoreError], None] | None = None) -> list[Image]:
        """Every named image, one per name, sorted by name.

        A damaged image raises StoreError, or with `on_damage` is reported with its name and left out.
        """
        images = []
        for entry in self._load_index().manifests:
            name = entry.annotations.get(REFERENCE_ANNOTATION)
            if name is None:
                continue
            try:
                images.append(self._load(entry.digest, name))
            except StoreError as error:
                if on_damage is None:
                    raise
                on_damage(name, error)
        return sorted(images, key=lambda image: image.reference or "")

    def list_references(self) -> dict[str, Digest]:
        """Every full name and the manifest that it points to; reads index.json only."""
        entries = self._load_index().manifests
        return {
            entry.annotations[REFERENCE_ANNOTATION]: entry.digest
            for entry in entries
            if REFERENCE_ANNOTATION in entry.annotations
        }

    def load_image(self, manifest_digest: Digest) -> Image:
        """The image of a manifest in the store, named or not. Raises StoreError if it is missing or damaged."""
        return self._load(manifest_digest, None)

    # -- writing -------------------------------------------------------------------------------------------------

    def commit_image(
        self,
        config: ImageConfig,
        layers: Sequence[Descriptor],
        references: Sequence[Reference],
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """Make an image of layers that are in the store and give it names; durable when this returns.

        `annotations` go into the manifest. The same input gives the same digests. Raises StoreError if a layer is
        missing or the layers and `rootfs.diff_ids` differ in number, DiskFullError.
        """
        config_blob = self.blobs.put(msgspec.json.encode(config, order="deterministic"), CONFIG_TYPE)
        # An OCI manifest names OCI's types, also for the layers of a base that came with a manifest of Docker's.
        plain = [Descriptor(oci_layer_type(layer.media_type), layer.digest, layer.size) for layer in layers]
        manifest = Manifest(
            schema_version=2,
            media_type=MANIFEST_TYPE,
            config=config_blob,
            layers=plain,
            annotations=dict(annotations or {}),
        )
        self._check(config, manifest)
        blob = self.blobs.put(msgspec.json.encode(manifest, order="deterministic"), MANIFEST_TYPE)
        return self._point(references, blob.digest)

    def tag(self, reference: Reference, manifest_digest: Digest) -> Image:
        """Point a name at an image whose blobs are in the store; the last one to do so wins.

        A reference with tag and digest gives two names. Raises StoreError if the image is incomplete, DiskFullError.
        """
        return self._point([reference], manifest_digest)

    def untag(self, reference: Reference) -> None:
        """Remove a name; the image's bytes stay until garbage collection. Raises NotFoundError."""
        with self.blobs.lock_index():
            index = self._load_index()
            names = set(_keys(reference))
            kept = [entry for entry in index.manifests if entry.annotations.get(REFERENCE_ANNOTATION) not in names]
            if len(kept) == len(index.manifests):
                raise NotFoundError(f"there is no image `{reference}`", hint=self._suggest(reference))
            index.manifests = kept
            self._save_index(index)
        self._on_change(sorted(names))

    def _point(self, references: Sequence[Reference], manifest_digest: Digest) -> Image:
        keys = [key for reference in references for key in _keys(reference)]
        image = self._load(manifest_digest, keys[0] if keys else None)
        for blob in (image.manifest.config, *image.layers):
            if self.blobs.size(blob.digest) != blob.size:
                raise StoreError(f"the blob {blob.digest} has not the size of {blob.size} bytes that its image states")
        if not keys:
            return image
        size = self.blobs.size(manifest_digest)
        media_type = image.manifest.media_type or MANIFEST_TYPE
        with self.blobs.lock_index():
            index = self._load_index()
            kept = [entry for entry in index.manifests if entry.annotations.get(REFERENCE_ANNOTATION) not in keys]
            kept += [
                Descriptor(media_type, manifest_digest, size, annotations={REFERENCE_ANNOTATION: key})
                for key in dict.fromkeys(keys)
            ]
            kept.sort(key=lambda entry: entry.annotations.get(REFERENCE_ANNOTATION, ""))
            if kept == index.manifests:
                return image
            index.manifests = kept
            self._save_index(index)
        self._on_change(keys)
        return image

    # -- inside --------------------------------------------------------------------------------------------------

    def _load_index(self) -> _Index:
        path = self.blobs.index
        try:
            with open(path, "rb") as file:
                data = file.read(_INDEX_LIMIT + 1)
        except OSError as error:
            raise StoreError(f"the store's index `{path}` cannot be read: {error.strerror}") from error
        try:
            if len(data) > _INDEX_LIMIT:
                raise msgspec.ValidationError("it is too large")
            return msgspec.json.decode(data, type=_Index)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise StoreError(
                f"the store's index `{path}` is damaged: {error}",
                hint="restore the file from a backup, or move it away: images can then be pulled or built again",
            ) from error

    def _save_index(self, index: _Index) -> None:
        index.media_type = INDEX_TYPE
        write_atomic(self.blobs.index, msgspec.json.encode(index, order="deterministic"))

    def _load(self, manifest_digest: Digest, name: str | None) -> Image:
        try:
            data = self.blobs.read(manifest_digest)
            manifest = parse_manifest(data)
            config = parse_config(self.blobs.read(manifest.config.digest))
            self._check(config, manifest)
        except StoreError as error:
            subject = f"the image `{_familiar(name)}`" if name else f"the image {manifest_digest}"
            raise StoreError(
                f"{subject} is damaged: {error}", hint=error.hint or "pull or build it again", details=error.details
            ) from error
        size = len(data) + manifest.config.size + sum(layer.size for layer in manifest.layers)
        return Image(
            reference=name,
            manifest_digest=manifest_digest,
            manifest=manifest,
            config_digest=manifest.config.digest,
            config=config,
            layers=manifest.layers,
            created=config.created,
            size=size,
        )

    @staticmethod
    def _check(config: ImageConfig, manifest: Manifest) -> None:
        if config.rootfs.type != "layers":
            raise StoreError(f"its rootfs has the type `{config.rootfs.type}`, not `layers`")
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise StoreError(
                f"its manifest has {len(manifest.layers)} layers, its configuration {len(config.rootfs.diff_ids)}"
            )

    def _suggest(self, reference: Reference) -> str | None:
        import difflib

        names = sorted(_familiar(name) for name in self.list_references())
        same = [name for name in names if name.rpartition(":")[0] == reference.familiar.rpartition(":")[0]]
        similar = same or difflib.get_close_matches(reference.familiar, names, n=3, cutoff=0.5)
        return f"did you mean {', '.join(f'`{name}`' for name in similar[:5])}?" if similar else None


def _keys(reference: Reference) -> list[str]:
    """The names under which the index keeps a reference: `name:tag`, `name@digest`, or both."""
    keys = []
    if reference.tag is not None:
        keys.append(f"{reference.name}:{reference.tag}")
    if reference.digest is not None:
        keys.append(f"{reference.name}@{reference.digest}")
    return keys


def _find_entry(index: _Index, reference: Reference) -> Descriptor | None:
    keys = _keys(reference)
    if not keys:
        return None  # a name that no index has, as of an image in somebody's layout
    key = keys[-1]
    for entry in index.manifests:
        if entry.annotations.get(REFERENCE_ANNOTATION) == key:
            return entry
    if reference.digest is not None:
        # Tagged by name only: the manifest's own digest is asked for.
        for entry in index.manifests:
            name = entry.annotations.get(REFERENCE_ANNOTATION, "")
            if entry.digest == reference.digest and name.startswith((f"{reference.name}:", f"{reference.name}@")):
                return entry
    return None


def _familiar(name: str) -> str:
    try:
        return parse_reference(name).familiar
    except UsageError:
        return name
