"""The one way in: a request and services to an image and its disk."""

from __future__ import annotations

from contextlib import ExitStack

from firebuild.build.cache import StepCache
from firebuild.build.commit import commit_result, plan_config
from firebuild.build.context import BuildContext
from firebuild.build.copy import Selection, looks_like_archive, select_sources
from firebuild.build.executor import Execution, StageResult
from firebuild.build.place import located
from firebuild.build.plan import PlanOptions, plan_build
from firebuild.build.runner import StepRunner
from firebuild.build.services import BuildRequest, BuildResult, BuildServices
from firebuild.build.session import BuildSession
from firebuild.build.steps import CopyAction, Plan
from firebuild.dockerfile.ignore import IgnoreRules, ignore_file_names, parse_ignore
from firebuild.dockerfile.stages import Dockerfile, parse_dockerfile
from firebuild.errors import ContextError, DockerfileError
from firebuild.events.progress import Reporter
from firebuild.events.text import neutralise
from firebuild.names import Reference
from firebuild.store.disks import Disk
from firebuild.store.images import Image

_IGNORE_FILE_LIMIT = 1 << 20


def build_image(request: BuildRequest, services: BuildServices) -> BuildResult:
    """Build what the request asks for; the image and its names are there when this returns.

    A build whose steps are all in the cache boots no machine. Everything that is wrong with the Dockerfile or the
    context is raised before one boots: DockerfileError, ContextError, BuildError, NotFoundError. A command that fails
    raises StepFailedError. After any error, and after KeyboardInterrupt, no machine, disk or name is left.
    """
    reporter = Reporter(request.progress, services.clock)
    with ExitStack() as resources:
        with reporter.step(f"[internal] load build definition from {neutralise(request.name)}"):
            dockerfile = parse_dockerfile(request.dockerfile, request.name)
        plan = plan_request(request, dockerfile, services, reporter)
        for warning in plan.warnings:
            reporter.warn(warning)
        context = _open_context(request, resources) if _needs_context(plan) else None
        selections = _select_all(plan, dockerfile, context, reporter)
        cache = StepCache(services.database, services.blobs, use_cache=not request.no_cache, clock=services.clock)
        return _execute(request, services, dockerfile, plan, context, selections, cache, reporter)


def plan_request(request: BuildRequest, dockerfile: Dockerfile, services: BuildServices, reporter: Reporter) -> Plan:
    """The plan of a request; base images are resolved on the way, each reported. Nothing else is done."""

    def get_image(reference: Reference) -> Image:
        with reporter.step(f"[internal] load metadata for {reference.full}"):
            return services.resolve_base(reference)

    options = PlanOptions(
        name=request.identity or request.name,
        platform=request.platform,
        build_args=request.build_args,
        labels=request.labels,
        target=request.target,
        network=request.network,
    )
    return plan_build(dockerfile, options, get_image)


def _execute(
    request: BuildRequest, services: BuildServices, dockerfile: Dockerfile, plan: Plan, context: BuildContext | None,
    selections: dict[str, Selection], cache: StepCache, reporter: Reporter,
) -> BuildResult:  # fmt: skip
    disk: Disk | None = None
    session = BuildSession(services, plan, reporter, make_disk=request.make_disk)
    runner = StepRunner(dockerfile, session, services.blobs, context, services.clock)
    execution = Execution(plan, cache, session, runner, reporter, selections, platform=str(request.platform))
    # Left in this order: the machine is killed first, so that no thread waits for it.
    with execution, session:
        try:
            result = execution.run()
            if session.booted:
                disk = session.finish(result.layers, result.chain_id)
        except BaseException:
            execution.stop()
            raise
    image = _commit(request, services, plan, result, reporter)
    cache.save_uses()
    if disk is None and request.make_disk and result.layers:
        disk = _find_or_make_disk(services, image, reporter)
    return BuildResult(image, disk, execution.steps, execution.cached, session.booted)


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


def _needs_context(plan: Plan) -> bool:
    return any(
        isinstance(step.action, CopyAction) and step.action.origin is None and bool(step.action.sources)
        for stage in plan.stages
        for step in stage.steps
    )


def _open_context(request: BuildRequest, resources: ExitStack) -> BuildContext | None:
    if request.context is None:
        return None
    bare = resources.enter_context(BuildContext(request.context))
    rules = load_ignore_rules(bare, request.ignore_name)
    return bare if rules is None else resources.enter_context(BuildContext(request.context, rules))


def load_ignore_rules(context: BuildContext, dockerfile_path: str) -> IgnoreRules | None:
    """The rules of the context's ignore file: `<Dockerfile>.dockerignore` before `.dockerignore`. Raises DockerfileError."""
    names = ignore_file_names(dockerfile_path) if dockerfile_path else (".dockerignore",)
    for name in names:
        entry = context.find_resolved(name)
        if entry is not None and entry.kind == "file":
            if entry.size > _IGNORE_FILE_LIMIT:
                raise ContextError(f"`{neutralise(name)}` is larger than {_IGNORE_FILE_LIMIT >> 20} MiB")
            return parse_ignore(b"".join(context.read_chunks(entry)), name)
    return None


def _select_all(
    plan: Plan, dockerfile: Dockerfile, context: BuildContext | None, reporter: Reporter
) -> dict[str, Selection]:
    """What every COPY and ADD takes from the host, by the step's id: found and hashed before any machine boots."""
    copies = [
        (step, step.action)
        for stage in plan.stages
        for step in stage.steps
        if isinstance(step.action, CopyAction) and step.action.origin is None
    ]
    if not copies:
        return {}
    selections: dict[str, Selection] = {}
    with reporter.step("[internal] load build context"):
        for step, action in copies:
            with located(dockerfile, step.location):
                selection = select_sources(context, action.sources, action.inline)
                if action.unpack:
                    _refuse_archives(context, selection)
                selections[step.id] = selection
            for source in selection.unmatched:
                reporter.warn(
                    f"line {step.location.start_line}: `{neutralise(source)}` matches nothing in the build context"
                )
    return selections


def _refuse_archives(context: BuildContext | None, selection: Selection) -> None:
    tops = {str(number) for number, item in enumerate(selection.items) if item.kind == "file"}
    for selected in selection.entries:
        if context is not None and selected.name in tops and looks_like_archive(context, selected.entry):
            raise DockerfileError(
                f"ADD of the local archive `{neutralise(selected.entry.path)}` is not supported yet",
                hint="use COPY to copy it as it is, and unpack it in a RUN",
            )
