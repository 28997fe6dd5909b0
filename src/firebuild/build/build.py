"""The one way in: a request and services to an image and its disk."""

from __future__ import annotations

from contextlib import ExitStack

from firebuild.build.cache import StepCache
from firebuild.build.check import CheckReport, check_image, lint_plan, make_options
from firebuild.build.commit import commit_result, plan_config
from firebuild.build.copy import Selection
from firebuild.build.executor import Execution, StageResult
from firebuild.build.graph import GetImage
from firebuild.build.plan import plan_build
from firebuild.build.runner import StepRunner
from firebuild.build.select import ContextTrees, select_all
from firebuild.build.services import BuildRequest, BuildResult, BuildServices
from firebuild.build.session import BuildSession
from firebuild.build.sources.remote import RemoteSources
from firebuild.build.sources.scratch import Scratch
from firebuild.build.stepmounts import MountSelections, select_mounts
from firebuild.build.steps import Plan
from firebuild.dockerfile.ignore import IgnoreRules
from firebuild.dockerfile.stages import Dockerfile, parse_dockerfile
from firebuild.events.progress import Reporter
from firebuild.events.text import neutralise
from firebuild.names import Reference
from firebuild.store.disks import Disk
from firebuild.store.images import Image


def build_image(request: BuildRequest, services: BuildServices, reporter: Reporter | None = None) -> BuildResult:
    """Build what the request asks for; the image and its names are there when this returns.

    A build whose steps are all in the cache boots no machine. Everything that is wrong with the Dockerfile or the
    context is raised before one boots: DockerfileError, ContextError, BuildError, NotFoundError; but for what shows only
    while it is sent: a file that changes, an archive that is damaged, a pinned source that is fetched. A command that fails
    raises StepFailedError. After any error, and after KeyboardInterrupt, no machine, disk or name is left. `reporter`: if
    something was reported already, so that its steps' numbers go on.
    """
    reporter = reporter or Reporter(request.progress, services.clock)
    with ExitStack() as resources:
        with reporter.step(f"[internal] load build definition from {neutralise(request.name)}"):
            dockerfile = parse_dockerfile(request.dockerfile, request.name)
        plan = plan_request(request, dockerfile, services, reporter)
        for name in request.no_cache_filter:
            dockerfile.get_target(name)  # it must exist
        for warning in plan.warnings:
            reporter.warn(warning)
        trees = resources.enter_context(ContextTrees(request, plan))
        for found in lint_plan(dockerfile, plan, request, trees.ignore):
            reporter.warn(str(found))
        remote = request.remote or _make_remote(services, resources)
        selections = select_all(plan, dockerfile, trees, remote, reporter)
        mounts = select_mounts(plan, dockerfile, trees, reporter)
        cache = StepCache(services.database, services.blobs, use_cache=not request.no_cache, clock=services.clock)
        return _execute(request, services, dockerfile, plan, trees, remote, selections, mounts, cache, reporter)


def _make_remote(services: BuildServices, resources: ExitStack) -> RemoteSources:
    return resources.enter_context(RemoteSources(resources.enter_context(Scratch(services.scratch))))


def check_request(request: BuildRequest, find_image: GetImage) -> CheckReport:
    """Lint and plan what the request asks for, and build nothing: see `check_image`."""

    def load_ignore() -> IgnoreRules | None:
        with ContextTrees(request, None) as trees:
            return trees.ignore

    return check_image(request, find_image, load_ignore)


def plan_request(request: BuildRequest, dockerfile: Dockerfile, services: BuildServices, reporter: Reporter) -> Plan:
    """The plan of a request; base images are resolved on the way, each reported. Nothing else is done."""

    def get_image(reference: Reference) -> Image:
        with reporter.step(f"[internal] load metadata for {reference.full}"):
            return services.resolve_base(reference)

    return plan_build(dockerfile, make_options(request, request.target), get_image)


def _execute(
    request: BuildRequest, services: BuildServices, dockerfile: Dockerfile, plan: Plan, trees: ContextTrees,
    remote: RemoteSources, selections: dict[str, Selection], mounts: MountSelections, cache: StepCache,
    reporter: Reporter,
) -> BuildResult:  # fmt: skip
    disk: Disk | None = None
    session = BuildSession(services, plan, reporter, make_disk=request.make_disk)
    runner = StepRunner(
        dockerfile, session, services.blobs, trees, services.clock, request.lent, mounts, epoch_s=plan.epoch_s,
        ca_bundle=request.ca_bundle,
    )  # fmt: skip
    execution = Execution(
        plan, cache, session, runner, reporter, selections, mounts, platform=str(request.platform),
        fresh_stages={dockerfile.get_target(name).index for name in request.no_cache_filter},
    )  # fmt: skip
    # Left in this order: the machine is killed first, so that no thread waits for it.
    with execution, session:
        try:
            result = execution.run()
            if session.booted:
                disk = session.finish(result.layers, result.chain_id)
        except BaseException:
            remote.cancel()
            execution.stop()
            raise
    image = _commit(request, services, plan, result, reporter)
    cache.save_uses()
    if disk is None and request.make_disk and result.layers:
        disk = _find_or_make_disk(services, image, reporter)
    bases = [(base.reference or base.manifest_digest, base.manifest_digest) for base in plan.images]
    return BuildResult(image, disk, execution.steps, execution.cached, session.booted, bases, execution.outcomes)


def _commit(
    request: BuildRequest, services: BuildServices, plan: Plan, result: StageResult, reporter: Reporter
) -> Image:
    names = ", ".join(neutralise(reference.familiar) for reference in request.tags)
    with reporter.step(f"exporting the image{f' {names}' if names else ''}") as report:
        config = plan_config(plan.target, result, epoch_s=plan.epoch_s)
        image = commit_result(services.images, config, result, request.tags)
        report.note(f"image {image.id}")
    return image


def _find_or_make_disk(services: BuildServices, image: Image, reporter: Reporter) -> Disk:
    disk = services.disks.find_disk(services.disk_key(image.chain_id)[0])
    if disk is None:
        with reporter.step("exporting the disk"):
            disk = services.ensure_disk(image)
    return disk
