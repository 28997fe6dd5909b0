"""Use cases of builds: a Dockerfile becomes an image, its disk, and its place in the rootfs view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from firebuild.build.build import build_image
from firebuild.build.services import BuildRequest, BuildResult, BuildServices
from firebuild.dockerfile.scope import Platform
from firebuild.engine.core import Engine
from firebuild.engine.disks import ensure_root_disk, open_machine, root_disk_key
from firebuild.engine.images import host_architecture, pull_image
from firebuild.errors import ContextError, ImageError, NotFoundError, UsageError
from firebuild.events.progress import NullSink, ProgressSink
from firebuild.names import Reference
from firebuild.store.disk_check import check_disk
from firebuild.store.images import Image
from firebuild.store.view import BuildConfig, ensure_view, make_metadata

_DOCKERFILE_LIMIT = 1 << 20


class RootfsRequest(msgspec.Struct, frozen=True):
    """What `rootfs` is asked for. `context`: a folder; None: the Dockerfile's own. `dockerfile`: a file; None: the context's."""

    dockerfile: Path | None
    context: Path | None
    tags: Sequence[Reference]
    build_args: Mapping[str, str] = {}
    target: str | None = None
    no_cache: bool = False
    labels: Mapping[str, str] = {}
    network: str = "default"


def build_rootfs(engine: Engine, request: RootfsRequest, progress: ProgressSink | None = None) -> BuildResult:
    """Build a Dockerfile. Raises UsageError, ContextError, DockerfileError, BuildError and what machines raise."""
    dockerfile, context = _find_files(request)
    data = _read_dockerfile(dockerfile)
    engine.repair()
    sink = progress or NullSink()
    services = BuildServices(
        blobs=engine.blobs,
        images=engine.images,
        disks=engine.disks,
        database=engine.database,
        open_build_machine=partial(open_machine, engine, network=True),
        resolve_base=lambda reference: _resolve(engine, reference),
        ensure_disk=lambda image: ensure_root_disk(engine, image),
        disk_key=lambda chain_id: root_disk_key(engine, chain_id),
        disk_size_bytes=engine.settings.root_disk_bytes,
        check_disk=check_disk,
    )
    result = build_image(
        BuildRequest(
            dockerfile=data,
            name=str(request.dockerfile or dockerfile.name),
            context=context,
            build_args=request.build_args,
            target=request.target,
            tags=request.tags,
            no_cache=request.no_cache,
            labels=request.labels,
            network=request.network,
            progress=sink,
            platform=Platform("linux", host_architecture()),
            ignore_name=dockerfile.name if dockerfile.parent == context else "",
            identity=str(dockerfile),
        ),
        services,
    )
    if result.disk is not None:
        facts = BuildConfig(build_args=dict(request.build_args), dockerfile=str(request.dockerfile or dockerfile.name))
        for tag in request.tags:
            metadata = make_metadata(result.image, tag, kind="rootfs", disk=result.disk, build=facts)
            ensure_view(engine.layout.rootfs, tag, result.disk, metadata)
    return result


def _find_files(request: RootfsRequest) -> tuple[Path, Path]:
    """The Dockerfile and the context's folder, absolute."""
    if request.dockerfile is None and request.context is None:
        raise UsageError(
            "name a Dockerfile or a build context", hint="firebuild rootfs --dockerfile Dockerfile --tag org/name:1"
        )
    if request.context is not None and not request.context.is_dir():
        raise ContextError(f"the build context `{request.context}` is not a folder")
    dockerfile = request.dockerfile or Path(str(request.context)) / "Dockerfile"
    context = request.context or dockerfile.parent
    return dockerfile.absolute(), context.absolute()


def _read_dockerfile(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_DOCKERFILE_LIMIT + 1)
    except OSError as error:
        raise ContextError(f"the Dockerfile `{path}` cannot be read: {error.strerror}") from error
    return data


def _resolve(engine: Engine, reference: Reference) -> Image:
    """The stored image of that reference; else the registry's. Raises NotFoundError, ImageError."""
    image = engine.images.find_image(reference)
    if image is not None:
        return image
    try:
        return pull_image(engine, reference, tls_verify=None, authfile=None, report=lambda _: None)
    except ImageError as error:
        raise NotFoundError(
            f"the base image `{reference}` is not stored and could not be pulled: {error.message}",
            hint=f"import it: firebuild image import FILE {reference}",
            details=error.details,
        ) from error
