"""The one way in: a request and services to an image and its disk."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from firebuild.build.check import CheckReport, check_image
from firebuild.build.commit import commit_result, plan_config
from firebuild.build.rounds import BuildRounds
from firebuild.build.select import ContextTrees
from firebuild.build.services import BuildRequest, BuildResult, BuildServices
from firebuild.build.sources.remote import RemoteSources
from firebuild.build.sources.scratch import Scratch
from firebuild.events.progress import Reporter
from firebuild.events.text import neutralise

if TYPE_CHECKING:
    from firebuild.build.executor import StageResult
    from firebuild.build.graph import GetImage
    from firebuild.build.steps import Plan
    from firebuild.dockerfile.ignore import IgnoreRules
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
        remote = request.remote or _make_remote(request, services, resources)
        rounds = BuildRounds(request, services, remote, reporter, resources)
        outcome = rounds.run(rounds.prepare(request))
        request, plan, result, disk = outcome.prepared.request, outcome.prepared.plan, outcome.result, outcome.disk
        image = _commit(request, services, plan, result, reporter)
        rounds.cache.save_uses()
        if disk is None and request.make_disk and result.layers:
            disk = _find_or_make_disk(services, image, reporter)
        bases = [(base.reference or base.manifest_digest, base.manifest_digest) for base in plan.images]
        return BuildResult(
            image, disk, outcome.steps, outcome.cached, outcome.booted, bases, outcome.outcomes,
            request.materials.list_all(),
        )  # fmt: skip


def _make_remote(request: BuildRequest, services: BuildServices, resources: ExitStack) -> RemoteSources:
    scratch = resources.enter_context(Scratch(services.scratch))
    return resources.enter_context(RemoteSources(scratch, materials=request.materials))


def check_request(request: BuildRequest, find_image: GetImage) -> CheckReport:
    """Lint and plan what the request asks for, and build nothing: see `check_image`."""

    def load_ignore() -> IgnoreRules | None:
        with ContextTrees(request, None) as trees:
            return trees.ignore

    return check_image(request, find_image, load_ignore)


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
