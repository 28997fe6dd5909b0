"""The rounds of a build: prepared, run, and for as long as somebody who debugs it wants so, prepared and run again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from firebuild.build.cache import StepCache
from firebuild.build.check import lint_plan, make_options
from firebuild.build.debug.model import Retry
from firebuild.build.executor import Execution, StageResult
from firebuild.build.plan import plan_build
from firebuild.build.runner import StepRunner
from firebuild.build.select import ContextTrees, select_all
from firebuild.build.session import BuildSession
from firebuild.build.stepmounts import MountSelections, select_mounts
from firebuild.dockerfile.stages import Dockerfile, parse_dockerfile
from firebuild.errors import InternalError
from firebuild.events.text import neutralise
from firebuild.names import Reference, is_baseos, parse_reference

if TYPE_CHECKING:
    from firebuild.build.copy import Selection
    from firebuild.build.debug.debugger import Debugger, Stops
    from firebuild.build.services import BuildRequest, BuildServices, StepOutcome
    from firebuild.build.sources.remote import RemoteSources
    from firebuild.build.steps import Plan, PlannedStep
    from firebuild.events.progress import Reporter
    from firebuild.store.disks import Disk
    from firebuild.store.images import Image


class Prepared(msgspec.Struct, frozen=True):
    """Everything of a round that is known before a machine boots."""

    request: BuildRequest
    dockerfile: Dockerfile
    plan: Plan
    trees: ContextTrees
    selections: dict[str, Selection]
    mounts: MountSelections
    stops: Stops

    def list_contents(self) -> dict[str, object]:
        """What steps take from contexts, by the step's id: digests."""
        contents: dict[str, list[object]] = {}
        for step_id, selection in self.selections.items():
            contents.setdefault(step_id, []).append(selection.digest)
        for (step_id, number), selection in self.mounts.items():
            contents.setdefault(step_id, []).append((number, selection.digest))
        return dict(contents)


class Outcome(msgspec.Struct, frozen=True):
    """The last round's. `steps`, `cached`: as BuildResult has them; `disk`: None if the machine wrote none."""

    prepared: Prepared
    result: StageResult
    disk: Disk | None
    steps: int
    cached: int
    booted: bool
    outcomes: Sequence[StepOutcome]


class BuildRounds:
    """One build. What rounds open belongs to `resources`; what their steps have made counts in the later ones."""

    def __init__(
        self, request: BuildRequest, services: BuildServices, remote: RemoteSources, reporter: Reporter,
        resources: ExitStack,
    ) -> None:  # fmt: skip
        self._services = services
        self._remote = remote
        self._reporter = reporter
        self._resources = resources
        self._warned: set[str] = set()
        self._debugger = _make_debugger(request, reporter)
        self.cache = StepCache(
            services.database, services.blobs, use_cache=not request.no_cache, clock=services.clock
        )  # fmt: skip

    def prepare(self, request: BuildRequest) -> Prepared:
        """Read, plan and lint; find and hash what steps copy. Raises what is wrong with the inputs; nothing has happened
        then."""
        reporter = self._reporter
        with reporter.step(f"[internal] load build definition from {neutralise(request.name)}"):
            dockerfile = parse_dockerfile(request.dockerfile, request.name)
        plan = plan_request(request, dockerfile, self._services, reporter)
        for name in request.no_cache_filter:
            dockerfile.get_target(name)  # it must exist
        self._warn(plan.warnings)
        stops = self._debugger.find_stops(plan, dockerfile) if self._debugger is not None else {}
        with ExitStack() as opened:
            trees = opened.enter_context(ContextTrees(request, plan))
            self._warn(str(found) for found in lint_plan(dockerfile, plan, request, trees.ignore))
            selections = select_all(plan, dockerfile, trees, self._remote, reporter)
            mounts = select_mounts(plan, dockerfile, trees, reporter)
            self._resources.push(opened.pop_all())
        return Prepared(request, dockerfile, plan, trees, selections, mounts, stops)

    def run(self, prepared: Prepared) -> Outcome:
        """Run rounds until one ends well. Raises the failure of one that does not; no machine is left then."""
        with ExitStack() as executions:
            while True:
                session = BuildSession(
                    self._services, prepared.plan, self._reporter, make_disk=prepared.request.make_disk,
                    all_caches=self._debugger is not None,
                )  # fmt: skip
                try:
                    # Left before the executions: the machine is killed first, so that no thread waits for it.
                    with session:
                        return self._run_on(session, prepared, executions)
                except Retry as retry:
                    # It came out of the block: that round's machine lacks what the new one needs.
                    prepared = _prepared_of(retry)

    def _run_on(self, session: BuildSession, prepared: Prepared, executions: ExitStack) -> Outcome:
        while True:
            execution = executions.enter_context(self._make_execution(session, prepared))
            try:
                result = execution.run()
                disk = session.finish(result.layers, result.chain_id) if session.booted else None
                return Outcome(
                    prepared, result, disk, execution.steps, execution.cached, session.booted, execution.outcomes
                )
            except Retry as retry:
                execution.retire()
                prepared = _prepared_of(retry)
                if not session.serves(prepared.plan):
                    self._reporter.warn("the build machine is started anew: it lacks a disk that is needed now")
                    raise
            except BaseException:
                self._remote.cancel()
                execution.stop()
                raise

    def _make_execution(self, session: BuildSession, prepared: Prepared) -> Execution:
        request, services = prepared.request, self._services
        runner = StepRunner(
            prepared.dockerfile, session, services.blobs, prepared.trees, services.clock, request.lent,
            prepared.mounts, epoch_s=prepared.plan.epoch_s, ca_bundle=request.ca_bundle,
        )  # fmt: skip
        return Execution(
            prepared.plan, self.cache, session, runner, self._reporter, prepared.selections, prepared.mounts,
            platform=str(request.platform),
            fresh_stages={prepared.dockerfile.get_target(name).index for name in request.no_cache_filter},
            debugger=self._debugger, prepare=lambda step: self._prepare_again(prepared, step),
            stops=prepared.stops,
        )  # fmt: skip

    def _prepare_again(self, before: Prepared, step: PlannedStep) -> tuple[Prepared, list[str]]:
        from firebuild.build.debug.lines import list_changes

        request = before.request
        if request.reread is not None:
            request = request.reread()
        prepared = self.prepare(request)
        changes = list_changes(before.plan, prepared.plan, step, before.list_contents(), prepared.list_contents())
        if before.request.reread is None:
            changes.insert(0, "the Dockerfile is no file of this host: it is taken as it was")
        return prepared, changes

    def _warn(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text not in self._warned:
                self._warned.add(text)
                self._reporter.warn(text)


def _make_debugger(request: BuildRequest, reporter: Reporter) -> Debugger | None:
    if request.debug is None:
        return None
    from firebuild.build.debug.debugger import Debugger

    return Debugger(request.debug, reporter)


def _prepared_of(retry: Retry) -> Prepared:
    if not isinstance(retry.prepared, Prepared):
        raise InternalError("a new round without its preparation")
    return retry.prepared


def plan_request(request: BuildRequest, dockerfile: Dockerfile, services: BuildServices, reporter: Reporter) -> Plan:
    """The plan of a request; base images are resolved on the way, each reported. Nothing else is done."""

    def get_image(reference: Reference) -> Image:
        with reporter.step(f"[internal] load metadata for {reference.full}") as report:
            image = services.resolve_base(reference)
            if image.reference and not is_baseos(reference) and is_baseos(parse_reference(image.reference)):
                report.note(
                    f"the stored base operating system {parse_reference(image.reference)}; "
                    "--pull or --base-policy registry takes the registry's image instead"
                )
            return image

    return plan_build(dockerfile, make_options(request, request.target), get_image)
