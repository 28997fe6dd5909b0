"""Use cases that look at images: listed, inspected, their history and differences shown."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.disk_keys import find_root_disk
from firebuild.engine.images import find_image_names
from firebuild.engine.layers import load_layer_sizes, measure_layers
from firebuild.errors import StoreError, UsageError
from firebuild.images.treediff import Change, LayerSource, compare_packages, compare_trees, load_tree
from firebuild.names import Digest, parse_reference
from firebuild.store.facts import FactStore
from firebuild.store.images import TYPE_ANNOTATION, Image

FILTERS = ("reference", "kind", "label", "before", "since", "until", "dangling")


class ListedImage(msgspec.Struct, frozen=True):
    """A row of `image ls`. Sizes in bytes: `size`: of the plain layers; `shared_size`: of those that other images have
    too; `stored_size`: of its blobs as they are kept; `disk_size`: what its bootable disk occupies, 0 without one."""

    reference: str
    id: str
    digest: str
    kind: str
    created: str | None
    size: int
    shared_size: int
    stored_size: int
    disk_size: int
    labels: dict[str, str]


def list_images(
    engine: Engine, filters: Sequence[str] = (), on_damage: Callable[[str, StoreError], None] | None = None
) -> list[ListedImage]:
    """Every named image that passes the filters, by name. Layers that were never measured are read once.

    `filters`: `KEY=VALUE`; of one key any may hold, of several keys all must. Raises UsageError, StoreError.
    """
    images = engine.images.list_images(on_damage)
    sizes = _all_sizes(engine, images)
    unique = {image.manifest_digest: image for image in images}
    users = Counter(diff_id for image in unique.values() for diff_id in set(image.config.rootfs.diff_ids))
    rows = []
    for image in _apply_filters(engine, images, filters):
        diff_ids = image.config.rootfs.diff_ids
        disk = find_root_disk(engine, image.chain_id)
        rows.append(
            ListedImage(
                reference=parse_reference(image.reference).familiar if image.reference else "<none>",
                id=image.id,
                digest=image.manifest_digest,
                kind=find_kind(engine, image),
                created=image.created,
                size=sum(sizes.get(diff_id, 0) for diff_id in diff_ids),
                shared_size=sum(sizes.get(diff_id, 0) for diff_id in diff_ids if users[diff_id] > 1),
                stored_size=image.size,
                disk_size=disk.path.stat().st_blocks * 512 if disk else 0,
                labels=image.config.config.labels,
            )
        )
    return rows


def _all_sizes(engine: Engine, images: Iterable[Image]) -> dict[Digest, int]:
    sizes = load_layer_sizes(engine)
    for image in images:
        if not set(image.config.rootfs.diff_ids) <= sizes.keys():
            sizes |= measure_layers(engine, image)
    return sizes


def find_kind(engine: Engine, image: Image) -> str:
    """`baseos` or `rootfs` for what firebuild built, else `image`."""
    if image.manifest.annotations.get(TYPE_ANNOTATION) == "baseos":
        return "baseos"
    facts, known = FactStore(engine.database).find(image.manifest_digest)
    return facts.kind if known else "image"


def _apply_filters(engine: Engine, images: Sequence[Image], filters: Sequence[str]) -> list[Image]:
    wanted: dict[str, list[Callable[[Image], bool]]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if key not in FILTERS or not equals or not value:
            raise UsageError(f"`{text[:200]}` is not a filter of images", hint=f"KEY=VALUE with {', '.join(FILTERS)}")
        wanted.setdefault(key, []).append(_filter(engine, key, value))
    return [image for image in images if all(any(test(image) for test in tests) for tests in wanted.values())]


def _filter(engine: Engine, key: str, value: str) -> Callable[[Image], bool]:
    if key == "reference":
        return lambda image: _matches(image, value)
    if key == "kind":
        if value not in ("baseos", "rootfs", "image"):
            raise UsageError(f"`{value}` is not a kind of image", hint="baseos, rootfs or image")
        return lambda image: find_kind(engine, image) == value
    if key == "label":
        name, equals, text = value.partition("=")
        return lambda image: name in (labels := image.config.config.labels) and (not equals or labels[name] == text)
    if key == "dangling":
        # What has no name is not listed; `image prune` finds it.
        return lambda image: value.lower() in ("0", "false")
    moment = parse_moment(value) if key == "until" else parse_moment(engine.images.get_named(value).created or "")
    if key == "since":
        return lambda image: created_s(image) > moment
    return lambda image: created_s(image) < moment


def _matches(image: Image, pattern: str) -> bool:
    if image.reference is None:
        return False
    reference = parse_reference(image.reference)
    name = reference.familiar.partition("@")[0]
    bare = name.rpartition(":")[0] if reference.tag else name
    return any(fnmatch.fnmatchcase(text, pattern) for text in (name, bare, reference.full, reference.name))


def created_ns(text: str | None) -> int:
    """A time of an image as Unix nanoseconds; 0 for none, and for what is none."""
    try:
        return int(parse_moment(text or "") * 1e9)
    except UsageError:
        return 0


def created_s(image: Image) -> float:
    """An image's own time as Unix seconds; 0 where it has none that parses."""
    return created_ns(image.created) / 1e9


def parse_moment(text: str) -> float:
    """Unix seconds of an RFC 3339 time, of Unix seconds, or of an age (`24h`, `10m`, `7d`). Raises UsageError."""
    import datetime
    import re
    import time

    age = re.fullmatch(r"([0-9]+)([smhd])", text)
    if age:
        return time.time() - int(age[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[age[2]]
    if text.isdecimal():
        return float(text)
    try:
        moment = datetime.datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text).replace("Z", "+00:00"))
    except ValueError:
        raise UsageError(f"`{text[:100]}` is not a time", hint="write 2026-01-31T12:00:00Z, or an age as 24h") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def describe_image(engine: Engine, name: str) -> dict[str, Any]:
    """An image in the shape of `docker image inspect`, its OCI configuration under `Config`, and firebuild's own keys.

    Raises NotFoundError, UsageError, StoreError.
    """
    image = engine.images.get_named(name)
    config = msgspec.to_builtins(image.config)
    names = find_image_names(engine, image)
    disk = find_root_disk(engine, image.chain_id)
    sizes = measure_layers(engine, image)
    return {
        "Id": image.id,
        "Digest": image.manifest_digest,
        "RepoTags": [text for text in names if "@" not in text],
        "RepoDigests": sorted({f"{_repository(text)}@{image.manifest_digest}" for text in names}),
        "Kind": find_kind(engine, image),
        "Created": image.created,
        "Author": image.config.author or "",
        "Architecture": image.config.architecture,
        "Variant": image.config.variant or "",
        "Os": image.config.os,
        "Size": sum(sizes.values()),
        "StoredSize": image.size,
        "Config": config.get("config", {}),
        "RootFS": {"Type": "layers", "Layers": list(image.config.rootfs.diff_ids)},
        "ChainID": image.chain_id,
        "Layers": [
            {"MediaType": layer.media_type, "Digest": layer.digest, "StoredSize": layer.size, "Size": sizes[diff_id]}
            for layer, diff_id in zip(image.layers, image.config.rootfs.diff_ids, strict=True)
        ],
        "Annotations": image.manifest.annotations,
        "Disk": {"Key": disk.key, "Path": str(disk.path), "Size": disk.size_bytes} if disk else None,
        "History": config.get("history", []),
    }  # fmt: skip


def _repository(name: str) -> str:
    """A name without its tag and digest."""
    bare = name.partition("@")[0]
    return bare.rpartition(":")[0] if parse_reference(name).tag else bare


def list_history(engine: Engine, name: str) -> list[dict[str, Any]]:
    """What made an image, newest first: `Id`, `Created`, `CreatedBy`, `Size` (bytes of the plain layer), `Comment`."""
    image = engine.images.get_named(name)
    sizes = measure_layers(engine, image)
    diff_ids = list(image.config.rootfs.diff_ids)
    entries = []
    for entry in image.config.history:
        diff_id = diff_ids.pop(0) if not entry.empty_layer and diff_ids else None
        entries.append(
            {
                "Id": diff_id or "<missing>",
                "Created": entry.created,
                "CreatedBy": entry.created_by or "",
                "Size": sizes[diff_id] if diff_id else 0,
                "Comment": entry.comment or "",
            }
        )
    # Layers that the history does not speak of.
    entries += [{"Id": each, "Created": None, "CreatedBy": "", "Size": sizes[each], "Comment": ""} for each in diff_ids]
    return entries[::-1]


class ImageDiff(msgspec.Struct, frozen=True):
    """How one image differs from another. `packages`: name, old and new version; `config`: key, old and new value."""

    files: list[Change]
    packages: list[dict[str, str | None]]
    config: list[dict[str, Any]]


def compare_images(
    engine: Engine, old_name: str, new_name: str, progress: Callable[[int, int | None], None] | None = None
) -> ImageDiff:
    """What is added, changed and removed from one image to another. Layers are read as data; those that both have at the
    bottom are only listed. Raises NotFoundError, ImageError."""
    old, new = engine.images.get_named(old_name), engine.images.get_named(new_name)
    one, other = find_sources(engine, old), find_sources(engine, new)
    shared = 0
    while shared < min(len(one), len(other)) and one[shared].diff_id == other[shared].diff_id:
        shared += 1
    told = (lambda done: progress(done, None)) if progress else None
    if len(one) == len(other) == shared:
        return ImageDiff([], [], _compare_config(old, new))
    before = load_tree(one, unread=shared, progress=told)
    after = load_tree(other, unread=shared, progress=told)
    return ImageDiff(compare_trees(before, after), compare_packages(before, after), _compare_config(old, new))


def find_sources(engine: Engine, image: Image) -> list[LayerSource]:
    """An image's layers, lowest first, as what reads their trees takes them."""
    return [
        LayerSource(engine.blobs.path(layer.digest), layer.media_type, diff_id)
        for layer, diff_id in zip(image.layers, image.config.rootfs.diff_ids, strict=True)
    ]


def _compare_config(old: Image, new: Image) -> list[dict[str, Any]]:
    one, other = (msgspec.to_builtins(image.config) for image in (old, new))
    before = {**one.get("config", {}), "Architecture": old.config.architecture, "Os": old.config.os}
    after = {**other.get("config", {}), "Architecture": new.config.architecture, "Os": new.config.os}
    return [
        {"key": key, "old": before.get(key), "new": after.get(key)}
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
