"""The use case of `baseos`: a Dockerfile becomes a base operating system, stored beside the image that it is built from."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from firebuild.build.build import build_image
from firebuild.build.check import make_options
from firebuild.build.plan import find_base_name
from firebuild.build.services import BuildRequest, BuildResult
from firebuild.dockerfile.stages import SCRATCH, parse_dockerfile
from firebuild.engine.builds import RootfsRequest, make_build_services, open_build_request, plan_facts
from firebuild.engine.core import Engine
from firebuild.engine.happenings import noted_build
from firebuild.engine.image_list import find_sources
from firebuild.engine.machines import INIT_LABEL
from firebuild.engine.space import require_room
from firebuild.engine.views import sync_views
from firebuild.errors import BuildError, UsageError
from firebuild.events.progress import NullSink, ProgressSink, Reporter
from firebuild.images.inits import has_init
from firebuild.names import Reference, baseos_reference, parse_reference
from firebuild.store.disks import Disk
from firebuild.store.facts import FactStore
from firebuild.store.images import TYPE_ANNOTATION, ImageConfig


class BaseosRequest(msgspec.Struct, frozen=True):
    """What `baseos` is asked for. `build`: as for `rootfs`, without tags. `tag`: whose base operating system it becomes; None:
    of the image that its FROM names. `filesystem_mib`: refused if its files take more; None for no limit."""

    build: RootfsRequest
    tag: Reference | None = None
    filesystem_mib: int | None = None


class Baseos(msgspec.Struct, frozen=True):
    """A base operating system that was built. `stands_for`: the name that FROM and `run` now take it for. `own_init`: whether
    it brings one; without, machines of it start in direct mode."""

    result: BuildResult
    reference: Reference
    stands_for: Reference
    own_init: bool


def build_baseos(
    engine: Engine, request: BaseosRequest, progress: ProgressSink | None = None, *, stdin: BinaryIO | None = None
) -> Baseos:
    """Build a base operating system and store it. Its own FROM is always an image: of a base operating system no other is made
    by building it again. Raises what `build_rootfs` raises."""
    labels = {INIT_LABEL: "system", **request.build.labels}
    wish = msgspec.structs.replace(request.build, tags=[], labels=labels, base_policy="registry")
    wish.lent.check()
    require_room(engine, 0, "a build")
    with engine.use_store(), noted_build(engine, [request.tag] if request.tag else []) as results:
        engine.repair(quick=True)
        reporter = Reporter(progress or NullSink())
        with open_build_request(engine, wish, reporter, stdin=stdin) as wanted:
            stands_for = request.tag or _find_name(wanted)
            reference = baseos_reference(stands_for)
            result = build_image(wanted, make_build_services(engine, wish, wanted.contexts), reporter)
            results.append(result)
        _check_size(result.disk, request.filesystem_mib)
        config, own_init = result.image.config, has_init(find_sources(engine, result.image))
        if not own_init and INIT_LABEL not in request.build.labels:
            # It could not start as what it would be called.
            config = _without_label(config)
        image = engine.images.commit_image(
            config, result.image.layers, [reference], annotations={TYPE_ANNOTATION: "baseos"}
        )
        facts = plan_facts(engine, wish, wanted, result, kind="baseos")
        FactStore(engine.database).save(image.manifest_digest, facts)
        sync_views(engine, [reference.full])
        return Baseos(msgspec.structs.replace(result, image=image), reference, stands_for, own_init)


def _without_label(config: ImageConfig) -> ImageConfig:
    labels = {name: value for name, value in config.config.labels.items() if name != INIT_LABEL}
    return msgspec.structs.replace(config, config=msgspec.structs.replace(config.config, labels=labels))


def _find_name(wanted: BuildRequest) -> Reference:
    """The image that the Dockerfile's FROM names."""
    name = find_base_name(parse_dockerfile(wanted.dockerfile, wanted.name), make_options(wanted, wanted.target))
    if name == SCRATCH:
        raise UsageError("a base operating system FROM scratch has no name", hint="give it one: --tag org/name:version")
    return parse_reference(name)


def _check_size(disk: Disk | None, limit_mib: int | None) -> None:
    if disk is None or limit_mib is None:
        return
    taken_mib = disk.path.stat().st_blocks * 512 / 2**20
    if taken_mib > limit_mib:
        raise BuildError(
            f"the base operating system takes {taken_mib:.0f} MiB; --filesystem-size-mbs allows {limit_mib}",
            hint="allow more, or install less; the steps are cached",
        )
