"""Where a build's base images come from: the store, or the registry where they are not stored or `--pull` asks for it."""

from __future__ import annotations

from firebuild.engine.core import Engine
from firebuild.engine.images import host_architecture, pull_image
from firebuild.errors import ImageError, NotFoundError, RegistryError
from firebuild.images.remote import load_remote_config
from firebuild.names import Reference
from firebuild.store.images import Image, parse_config


def resolve_base(engine: Engine, reference: Reference, *, pull: bool = False) -> Image:
    """The stored image of a reference, else the registry's. With `pull` the registry's, which is only fetched if it is
    another one than the stored image; what a digest names cannot be another one. Raises NotFoundError."""
    image = engine.keep_image(lambda: engine.images.find_image(reference))
    if image is not None and (not pull or reference.digest is not None):
        return image
    try:
        if image is not None and _is_current(reference, image):
            return image
        return pull_image(engine, reference)
    except ImageError as error:
        raise _explain(reference, error, stored=image is not None) from error


def _is_current(reference: Reference, image: Image) -> bool:
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
