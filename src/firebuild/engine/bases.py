"""Where a build's base images come from: the store, or the registry where they are not stored or `--pull` asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from firebuild.build.sources.spec import ImageContext, OciLayout, Source
from firebuild.engine.architecture import host_architecture
from firebuild.engine.core import Engine
from firebuild.errors import ContextError, ImageError, NotFoundError, RegistryError, UsageError
from firebuild.names import Reference, baseos_reference, is_baseos, parse_reference
from firebuild.store.images import Image, parse_config

POLICIES = ("stored", "registry")


def list_layouts(contexts: Mapping[str, Source | ImageContext]) -> dict[str, OciLayout]:
    """The image layouts among named contexts, by the full references that stand for them."""
    return {
        context.reference.full: context.layout
        for context in contexts.values()
        if isinstance(context, ImageContext) and context.layout is not None and context.reference is not None
    }


def load_layout_image(engine: Engine, layout: OciLayout) -> Image:
    """Bring the image of a layout into the store, without a name. Raises ContextError, ImageError, DiskFullError."""
    from firebuild.images import transfer
    from firebuild.images.ocilayout import stage_view

    path = Path(layout.path).absolute()
    if not (path / "index.json").is_file():
        raise ContextError(f"`{layout.path}` is no folder of an OCI image layout: it has no index.json")
    with engine.use_store(), engine.blobs.stage_folder() as stage:
        if layout.digest is not None:
            path = stage_view(stage, path, layout.digest)
        # Of a tag and a digest, the digest says more.
        place = transfer.Place("oci", path=path, name="" if layout.digest is not None else layout.name)
        moved = transfer.pull(place, engine.blobs, architecture=host_architecture())
        return engine.images.load_image(moved.manifest_digest)


def find_stored(engine: Engine, reference: Reference, policy: str = "stored") -> Image | None:
    """The stored image of a name, its base operating system before the image itself, unless `policy` is registry.

    What a digest names is that image and no other. An operating system has no IPv6 registry in its name.
    """
    if policy == "stored" and reference.digest is None and not reference.domain.startswith("["):
        image = engine.images.find_image(baseos_reference(reference))
        if image is not None:
            return image
    return engine.images.find_image(reference)


def find_baseos(engine: Engine, name: str) -> Image | None:
    """The stored base operating system that stands for the image of a reference; None for ids and digests."""
    try:
        reference = parse_reference(name)
        stored = baseos_reference(reference)
    except UsageError:
        return None
    return engine.images.find_image(stored) if reference.digest is None else None


def resolve_base(
    engine: Engine, reference: Reference, *, pull: bool = False, policy: str = "stored",
    layouts: Mapping[str, OciLayout] | None = None,
) -> Image:  # fmt: skip
    """The stored base operating system or image of a reference, else the registry's image. With `pull` the registry's, which
    is only fetched if it is another one than the stored image; what a digest names cannot be another one. `layouts`:
    references that stand for images in layouts. Raises NotFoundError, ContextError, ImageError."""
    layout = layouts.get(reference.full) if layouts else None
    if layout is not None:
        return load_layout_image(engine, layout)
    if is_baseos(reference):
        return engine.keep_image(lambda: engine.images.get_image(reference))
    image = engine.keep_image(lambda: find_stored(engine, reference, "registry" if pull else policy))
    if image is not None and (not pull or reference.digest is not None):
        return image
    from firebuild.engine.images import pull_image

    try:
        if image is not None and _is_current(reference, image):
            return image
        return pull_image(engine, reference)
    except ImageError as error:
        raise _explain(reference, error, stored=image is not None) from error


def _is_current(reference: Reference, image: Image) -> bool:
    from firebuild.images.remote import load_remote_config

    config = parse_config(load_remote_config(reference, architecture=host_architecture()))
    return (config.rootfs, config.config) == (image.config.rootfs, image.config.config)


def _explain(reference: Reference, error: ImageError, *, stored: bool) -> NotFoundError:
    registry = reference.domain
    causes = {
        "unreachable": f"its registry {registry} cannot be reached",
        "unauthorized": f"its registry {registry} does not have it or does not show it to you",
        "not-found": f"its registry {registry} does not have it",
        "tls": f"its registry {registry} has no trusted certificate",
        "platform": f"its registry {registry} does not have it for {host_architecture()}",
        "damaged": f"it arrived damaged from {registry}",
    }
    reason = error.reason if isinstance(error, RegistryError) else ""
    cause = causes.get(reason, error.message)
    hint = f"bring it as a file: firebuild image import FILE {reference}"
    if reason in ("not-found", "unauthorized"):
        hint = f"check the name; `firebuild image ls` shows what is stored; or {hint}"
    if stored:
        return NotFoundError(
            f"the base image `{reference}` cannot be pulled anew: {cause}",
            hint="without --pull the stored image is used",
            details=error.details,
        )
    return NotFoundError(f"the base image `{reference}` is not stored, and {cause}", hint=hint, details=error.details)
