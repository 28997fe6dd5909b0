"""The use case of `rootfs --docker-image`: an image becomes a root file system as it is, or moved onto a base operating system."""

from __future__ import annotations

import copy

import msgspec

from firebuild.build.services import BuildResult
from firebuild.engine.bases import find_stored, resolve_base
from firebuild.engine.core import Engine
from firebuild.engine.disk_keys import MachineWish, find_root_disk
from firebuild.engine.disks import ensure_root_disk
from firebuild.engine.machines import INIT_LABEL, USER_LABEL
from firebuild.engine.space import require_room
from firebuild.engine.views import sync_views
from firebuild.errors import BuildError
from firebuild.events.progress import NullSink, ProgressSink, Reporter
from firebuild.names import Reference
from firebuild.store.blobs import Descriptor
from firebuild.store.facts import Facts, FactStore
from firebuild.store.images import History, Image, ImageConfig
from firebuild.store.view import BuildConfig


class DockerImageRequest(msgspec.Struct, frozen=True):
    """What is asked for. `image`: taken as it is, never as the base operating system of its name; `base`: the name of the base
    operating system that it is moved onto, None for none."""

    image: Reference
    base: Reference | None
    tags: list[Reference]
    labels: dict[str, str] = {}
    pull: bool = False
    machine: MachineWish = MachineWish()


def build_from_image(engine: Engine, request: DockerImageRequest, progress: ProgressSink | None = None) -> BuildResult:
    """Make a root file system of an image. Raises NotFoundError, BuildError and what machines raise."""
    require_room(engine, 0, "a build")
    with engine.use_store():
        engine.repair(quick=True)
        reporter = Reporter(progress or NullSink())
        with reporter.step(f"[internal] load metadata for {request.image.full}"):
            image = resolve_base(engine, request.image, pull=request.pull, policy="registry")
        layers, config, bases = list(image.layers), copy.deepcopy(image.config), [image]
        if request.base is not None:
            with reporter.step(f"[internal] load metadata for {request.base.full}") as report:
                base = _get_base(engine, request.base)
                shared = count_shared(base, image)
                if not shared:
                    report.note("the image shares no layer with it: where both have a file, the image's counts")
            layers, config = plan_move(base, image, shared)
            bases.append(base)
        config.config.labels = {**config.config.labels, **request.labels}
        with reporter.step(f"exporting the image {', '.join(tag.familiar for tag in request.tags)}"):
            made = engine.images.commit_image(config, layers, request.tags)
        booted = find_root_disk(engine, made.chain_id) is None
        with reporter.step("exporting the disk"):
            disk = ensure_root_disk(engine, made, wish=request.machine)
        build = BuildConfig(
            docker_image=request.image.familiar, docker_image_base=request.base.familiar if request.base else ""
        )
        below = bases[-1]
        facts = Facts(build=build, parent=below.manifest_digest, parent_name=below.reference or "")
        if made.manifest_digest != image.manifest_digest:
            FactStore(engine.database).save(made.manifest_digest, facts)
        sync_views(engine, [f"{tag.name}:{tag.tag}" for tag in request.tags if tag.tag is not None])
        names = [(each.reference or each.manifest_digest, each.manifest_digest) for each in bases]
        return BuildResult(made, disk, 0, 0, booted, names)


def _get_base(engine: Engine, name: Reference) -> Image:
    base = find_stored(engine, name)
    if base is None or base.config.config.labels.get(INIT_LABEL) != "system":
        raise BuildError(
            f"there is no base operating system `{name}`",
            hint="build one: firebuild baseos --dockerfile FILE; `firebuild image ls --filter kind=baseos` lists them",
        )
    return base


def count_shared(base: Image, image: Image) -> int:
    """How many of the lowest layers the two have in common: those of the distribution, where the image was built upon the
    image that the base operating system stands for."""
    count = 0
    for ours, theirs in zip(base.config.rootfs.diff_ids, image.config.rootfs.diff_ids, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def plan_move(base: Image, image: Image, shared: int) -> tuple[list[Descriptor], ImageConfig]:
    """The image's own layers over all of the base's, with the image's configuration. `shared`: see count_shared."""
    config = copy.deepcopy(image.config)
    config.rootfs.diff_ids = [*base.config.rootfs.diff_ids, *image.config.rootfs.diff_ids[shared:]]
    config.history = [*base.config.history, *_own_history(image, shared)]
    own = base.config.config.labels
    labels = {name: own[name] for name in (INIT_LABEL, USER_LABEL) if name in own}
    config.config.labels = {**labels, **config.config.labels}
    return [*base.layers, *image.layers[shared:]], config


def _own_history(image: Image, shared: int) -> list[History]:
    """The history after that of the shared layers; a history that does not fit the layers is not told at all."""
    history = image.config.history
    if sum(not entry.empty_layer for entry in history) != len(image.layers):
        return [
            History(created=image.created, created_by="firebuild rootfs --docker-image") for _ in image.layers[shared:]
        ]
    seen = 0
    for index, entry in enumerate(history):
        if seen == shared and not entry.empty_layer:
            return list(history[index:])
        seen += not entry.empty_layer
    return []
