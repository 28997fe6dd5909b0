"""Use cases of builds: a Dockerfile becomes an image, its disk, and its place in the rootfs view."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from firebuild.build.build import build_image
from firebuild.build.materials import Materials
from firebuild.build.secrets import Lent
from firebuild.build.services import BuildRequest, BuildResult, BuildServices
from firebuild.build.sources.gitaccess import caller_ssh_access
from firebuild.build.sources.inputs import InputOpener, can_reopen
from firebuild.build.sources.remote import RemoteSources
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.spec import (
    ImageContext,
    Source,
    parse_context,
    parse_dockerfile_source,
    parse_named_context,
)
from firebuild.build.sources.url import redact_urls
from firebuild.dockerfile.lint.flow import looks_secret
from firebuild.dockerfile.scope import PROXY_NAMES, Platform
from firebuild.engine.architecture import host_architecture
from firebuild.engine.bases import list_layouts, resolve_base
from firebuild.engine.disk_keys import MachineWish, root_disk_key
from firebuild.engine.happenings import noted_build
from firebuild.engine.space import require_room
from firebuild.engine.views import sync_views
from firebuild.events.progress import NullSink, ProgressSink, Reporter
from firebuild.names import Reference
from firebuild.store.facts import Facts, FactStore
from firebuild.store.view import BuildConfig, StepFact

if TYPE_CHECKING:
    from firebuild.build.debug.model import Debugging
    from firebuild.build.services import OpenMachine
    from firebuild.engine.core import Engine
    from firebuild.store.disks import Disk
    from firebuild.store.images import Image


class RootfsRequest(msgspec.Struct, frozen=True):
    """What `rootfs` is asked for. `dockerfile`, `context`: as firebuild.build.sources.spec reads them, a path, a URL, `-`
    or a Dockerfile's text; None: the other's. `build_contexts`: `name=source`; `lent`: secrets and SSH agents; `pull`: base
    images anew; `base_policy`: stored (base operating systems first) or registry;
    `machine`: how large the build machine is; `trust_host_ca`: None as the settings say; `defaults`: build
    arguments that the caller's host gives. The others as BuildRequest."""

    dockerfile: str | None
    context: str | None
    tags: Sequence[Reference]
    build_args: Mapping[str, str] = {}
    target: str | None = None
    no_cache: bool = False
    labels: Mapping[str, str] = {}
    network: str = "default"
    build_contexts: Sequence[str] = ()
    lent: Lent = Lent()
    no_cache_filter: Sequence[str] = ()
    pull: bool = False
    base_policy: str = "stored"
    machine: MachineWish = MachineWish()
    pre_commands: Sequence[str] = ()
    post_commands: Sequence[str] = ()
    trust_host_ca: bool | None = None
    defaults: Mapping[str, str] = {}


def build_rootfs(
    engine: Engine,
    request: RootfsRequest,
    progress: ProgressSink | None = None,
    *,
    stdin: BinaryIO | None = None,
    debug: Debugging | None = None,
) -> BuildResult:
    """Build a Dockerfile. `stdin`: what `-` means; `debug`: who looks into the build. Raises UsageError,
    ContextError, DockerfileError, BuildError and what machines raise."""
    request.lent.check()
    require_room(engine, 0, "a build")
    with engine.use_store(), noted_build(engine, request.tags) as results:
        engine.repair(quick=True)
        reporter = Reporter(progress or NullSink())
        with open_build_request(engine, request, reporter, stdin=stdin) as wanted:
            services = make_build_services(engine, request, wanted.contexts)
            result = build_image(msgspec.structs.replace(wanted, debug=debug), services, reporter)
            results.append(result)
            facts = plan_facts(engine, request, wanted, result)
            if FactStore(engine.database).save(result.image.manifest_digest, facts) or result.booted:
                sync_views(engine, [f"{tag.name}:{tag.tag}" for tag in request.tags if tag.tag is not None])
        return result


def plan_facts(
    engine: Engine, request: RootfsRequest, wanted: BuildRequest, result: BuildResult, kind: str = "rootfs"
) -> Facts:
    """What is kept of how it was built. Build arguments that are a host's business, or look like secrets, are not."""
    parent_name, parent = _find_parent(engine, result)
    return Facts(
        kind=kind,
        build=BuildConfig(
            build_args=select_public_args(request.build_args),
            dockerfile=wanted.name,
            pre_build_commands=list(request.pre_commands),
            post_build_commands=list(request.post_commands),
        ),
        steps=[StepFact(step.text, step.digest, step.cached, step.duration_ns // 10**6) for step in result.outcomes],
        parent=parent,
        parent_name=parent_name,
    )


def select_public_args(build_args: Mapping[str, str]) -> dict[str, str]:
    """The build arguments that may be written down: not those that are a host's business or look like secrets, and no
    credentials in URLs."""
    return {
        name: redact_urls(value)
        for name, value in build_args.items()
        if name.upper() not in PROXY_NAMES and not looks_secret(name)
    }


def _find_parent(engine: Engine, result: BuildResult) -> tuple[str, str]:
    """Name and manifest of the base whose layers the result stands on, the highest of several; empty for none."""
    layers = result.image.config.rootfs.diff_ids
    best, found = 0, ("", "")
    for name, digest in result.bases:
        below = engine.images.load_image(digest).config.rootfs.diff_ids
        if len(below) > best and layers[: len(below)] == below:
            best, found = len(below), (name, digest)
    return found


def make_build_services(
    engine: Engine, request: RootfsRequest, contexts: Mapping[str, Source | ImageContext] | None = None
) -> BuildServices:
    """What a build of `request` is given of this installation; `contexts`: its named ones. The caller holds the store
    (`Engine.use_store`)."""

    # A build whose steps all hit needs none of these, nor what they import.
    def open_build_machine(
        *, bases: Sequence[Path], results: Sequence[Path], purpose: str, caches: Sequence[Path] = ()
    ) -> AbstractContextManager[OpenMachine]:
        from firebuild.engine.disks import open_machine

        return open_machine(
            engine, bases=bases, results=results, purpose=purpose, caches=caches, network=True, wish=request.machine
        )

    def ensure_disk(image: Image) -> Disk:
        from firebuild.engine.disks import ensure_root_disk

        return ensure_root_disk(engine, image, wish=request.machine)

    def check_disk(path: Path) -> None:
        from firebuild.store.disk_check import check_disk

        check_disk(path)

    return BuildServices(
        blobs=engine.blobs,
        images=engine.images,
        disks=engine.disks,
        database=engine.database,
        open_build_machine=open_build_machine,
        resolve_base=partial(
            resolve_base, engine, pull=request.pull, policy=request.base_policy, layouts=list_layouts(contexts or {})
        ),
        ensure_disk=ensure_disk,
        disk_key=lambda chain_id: root_disk_key(engine, chain_id),
        disk_size_bytes=engine.settings.root_disk_bytes,
        check_disk=check_disk,
        caches=engine.caches,
        scratch=engine.layout.scratch,
    )


def _load_trust() -> str:
    from firebuild.host.trust import load_ca_bundle

    return load_ca_bundle()


@contextmanager
def open_build_request(
    engine: Engine, request: RootfsRequest, reporter: Reporter, *, stdin: BinaryIO | None = None
) -> Iterator[BuildRequest]:
    """What is asked for in the words of the build, its Dockerfile read and its context open; nothing of it is left after.

    Raises UsageError before anything is touched, then ContextError, DeadlineError.
    """
    dockerfile = None if request.dockerfile is None else parse_dockerfile_source(request.dockerfile, os.path.exists)
    context = None if request.context is None else parse_context(request.context, os.path.exists)
    contexts = dict(parse_named_context(text, os.path.exists) for text in request.build_contexts)
    ssh = caller_ssh_access(os.environ)
    trust = engine.settings.trust_host_ca if request.trust_host_ca is None else request.trust_host_ca
    with ExitStack() as resources:
        scratch = resources.enter_context(Scratch(engine.layout.scratch))
        materials = Materials()
        own = resources.enter_context(RemoteSources(scratch, ssh, materials=materials))
        opener = InputOpener(
            resources, scratch, own, reporter, stdin=stdin,
            digests=None if request.no_cache else engine.layout.file_digests,
        )  # fmt: skip
        inputs = opener.open(dockerfile, context)

        def reread() -> BuildRequest:
            again = opener.open(dockerfile, context)
            return msgspec.structs.replace(wanted, dockerfile=again.dockerfile, context=again.tree)

        wanted = BuildRequest(
            dockerfile=inputs.dockerfile,
            name=inputs.name,
            context=inputs.tree,
            contexts=contexts,
            open_tree=opener.open_tree,
            remote=resources.enter_context(
                RemoteSources(scratch, ssh, rank=inputs.rank, cache=engine.http_cache, materials=materials)
            ),
            materials=materials,
            build_args={**request.defaults, **request.build_args},
            target=request.target,
            tags=request.tags,
            no_cache=request.no_cache,
            labels=request.labels,
            network=request.network,
            platform=Platform("linux", host_architecture()),
            identity=inputs.identity,
            lent=request.lent,
            no_cache_filter=request.no_cache_filter,
            pre_commands=request.pre_commands,
            post_commands=request.post_commands,
            ca_bundle=_load_trust() if trust else None,
            reread=reread if can_reopen(dockerfile, context) else None,
        )
        yield wanted
