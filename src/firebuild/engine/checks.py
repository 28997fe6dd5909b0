"""The use case of `rootfs --check`: what is wrong with a Dockerfile, told without building it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import BinaryIO

from firebuild.build.build import check_request
from firebuild.build.check import CheckReport
from firebuild.build.sources.spec import OciLayout
from firebuild.engine.architecture import host_architecture
from firebuild.engine.bases import find_stored, list_layouts
from firebuild.engine.builds import RootfsRequest, open_build_request
from firebuild.engine.core import Engine
from firebuild.errors import ImageError, NotFoundError, RegistryError
from firebuild.events.progress import NullSink, Reporter
from firebuild.images.remote import load_remote_config
from firebuild.names import Digest, Reference, is_baseos
from firebuild.store.blobs import Descriptor
from firebuild.store.images import CONFIG_TYPE, Image, Manifest, parse_config


def check_rootfs(engine: Engine, request: RootfsRequest, *, stdin: BinaryIO | None = None) -> CheckReport:
    """Lint and plan a Dockerfile. Of base images that are not stored only the configuration is fetched, and not kept.

    Raises UsageError and ContextError for what is not there at all; every other fault is in the report.
    """
    with open_build_request(engine, request, Reporter(NullSink()), stdin=stdin) as wanted:
        layouts = list_layouts(wanted.contexts)
        return check_request(wanted, lambda reference: _find_base(engine, reference, request.base_policy, layouts))


def _find_base(engine: Engine, reference: Reference, policy: str, layouts: Mapping[str, OciLayout]) -> Image:
    """The stored image, else one without layers whose configuration is the registry's."""
    if reference.full in layouts:
        raise ImageError(f"the image in the layout `{layouts[reference.full].path}` is looked at by a build only")
    if is_baseos(reference):
        return engine.images.get_image(reference)
    image = find_stored(engine, reference, policy)
    if image is not None:
        return image
    try:
        data = load_remote_config(reference, architecture=host_architecture())
    except RegistryError as error:
        if error.reason == "not-found":
            raise NotFoundError(
                f"the base image `{reference}` is neither stored nor in its registry", hint=error.hint
            ) from error
        raise
    digest = Digest("sha256:" + hashlib.sha256(data).hexdigest())
    config = parse_config(data)
    descriptor = Descriptor(media_type=CONFIG_TYPE, digest=digest, size=len(data))
    return Image(
        reference=reference.full,
        manifest_digest=digest,
        manifest=Manifest(schema_version=2, config=descriptor, layers=[]),
        config_digest=digest,
        config=config,
        layers=[],
        created=config.created,
        size=0,
    )
