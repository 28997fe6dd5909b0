"""Runs a plan: each stage in a thread of its own, steps from the cache where it can, in the one build machine where not.

The main thread opens the machine and waits; the first failure, or Ctrl-C, ends all: the machine is killed, the threads
end, and nothing of the build is left but the layers of the steps that were done.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

import msgspec

from firebuild.build.debug.model import Attempt, PrepareAgain, Stop
from firebuild.build.explain import compute_key, explain_step
from firebuild.build.mounts import list_origins
from firebuild.build.services import StepOutcome
from firebuild.build.stepmounts import MountSelections, digest_mounts
from firebuild.build.steps import (
    CopyAction,
    ImageSource,
    Origin,
    Plan,
    PlannedStage,
    PlannedStep,
    ResultLayer,
    RunAction,
    StageSource,
)
from firebuild.errors import FirebuildError, GuestError, InternalError
from firebuild.events.progress import Canceled, Reporter, StepReport
from firebuild.names import Digest, parse_reference
from firebuild.store.images import Image, compute_chain_id

if TYPE_CHECKING:
    from firebuild.build.cache import StepCache
    from firebuild.build.copy import Selection
    from firebuild.build.debug.debugger import Debugger, Stops
    from firebuild.build.runner import StepRunner
    from firebuild.build.session import BuildSession

# Steps of more stages than this wait for each other: the guest has a few processors only.
MAX_PARALLEL_STEPS = 8
_INTERRUPT_CHECK_S = 0.5


class StageResult(msgspec.Struct, frozen=True):
    """A finished stage. `layers`: all, the base image's first; `times_ns`: when each layer behind the base image's was made."""

    layers: tuple[ResultLayer, ...]
    times_ns: tuple[int, ...]

    @property
    def chain_id(self) -> Digest:
        """The identity of the stack."""
        return compute_chain_id([layer.diff_id for layer in self.layers])


class _Slot:
    """Where a stage's result appears."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.result: StageResult | None = None


class Execution:
    """One run of a plan. A context manager: when the block ends no thread is left."""

    def __init__(
        self, plan: Plan, cache: StepCache, session: BuildSession, runner: StepRunner, reporter: Reporter,
        selections: Mapping[str, Selection], mounts: MountSelections, *, platform: str,
        fresh_stages: Collection[int] = (), debugger: Debugger | None = None, prepare: PrepareAgain | None = None,
        stops: Stops = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """`fresh_stages`: their steps run, whatever is cached."""
        self._plan = plan
        self._cache = cache
        self._session = session
        self._runner = runner
        self._reporter = reporter
        self._selections = selections
        self._mounts = mounts
        self._platform = platform
        self._fresh_stages = frozenset(fresh_stages)
        self._debugger = debugger
        self._prepare_again = prepare
        self._lines = stops
        self._slots = {stage.index: _Slot() for stage in plan.stages}
        self._inbox: queue.SimpleQueue[PlannedStage | Stop | BaseException | None] = queue.SimpleQueue()
        self._stops: list[Stop] = []
        # Closed while somebody looks into the build: no other step begins then.
        self._gate = threading.Event()
        self._gate.set()
        self._stopping = threading.Event()
        self._turns = threading.Semaphore(MAX_PARALLEL_STEPS)
        self._threads: list[threading.Thread] = []
        self._count = threading.Lock()
        self.steps = 0
        self.cached = 0
        self.outcomes: list[StepOutcome] = []

    def __enter__(self) -> Execution:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Let every thread end at its next chance."""
        self.retire()
        self._session.cancel()

    def retire(self) -> None:
        """As `stop`, but the machine stays: steps that run end in their own time, and their results are kept."""
        self._stopping.set()
        self._gate.set()
        for slot in self._slots.values():
            slot.done.set()
        with self._count:
            stops = list(self._stops)
        for stop in stops:
            stop.decide(go_on=False)

    def run(self) -> StageResult:
        """Run all stages; the target's result. Raises the first failure of any, KeyboardInterrupt at once, and Retry
        where somebody who looked into the build wants a new round."""
        self._session.on_request(lambda: self._inbox.put(None))
        for stage in self._plan.stages:
            thread = threading.Thread(target=self._run_thread, args=(stage,), name=f"stage {stage.label}", daemon=True)
            self._threads.append(thread)
            thread.start()
        left = len(self._plan.stages)
        while left:
            message = self._next_message()
            if message is None:
                self._session.open()
            elif isinstance(message, BaseException):
                raise message
            elif isinstance(message, Stop):
                self._talk(message)
            else:
                left -= 1
        result = self._slots[self._plan.target.index].result
        if result is None:
            raise InternalError("the target stage ended without a result")
        return result

    def _talk(self, stop: Stop) -> None:
        if self._debugger is None or self._prepare_again is None:
            raise InternalError("a stop in a build that nobody debugs")
        from firebuild.build.debug.shells import StepShells

        shells = StepShells(self._session, self._runner.mounts, stop, ca_bundle=self._runner.ca_bundle)
        self._debugger.talk(stop, self._lines, shells, self._prepare_again)
        with self._count:
            self._stops.remove(stop)
            if not self._stops:
                self._gate.set()
        stop.decide(go_on=True)

    def _next_message(self) -> PlannedStage | Stop | BaseException | None:
        while True:
            try:
                # A signal that comes just before the wait does not end it: without a timeout Ctrl-C could be lost.
                return self._inbox.get(timeout=_INTERRUPT_CHECK_S)
            except queue.Empty:
                continue

    # -- in the stages' threads ------------------------------------------------------------------------------------

    def _run_thread(self, stage: PlannedStage) -> None:
        try:
            slot = self._slots[stage.index]
            slot.result = self._run_stage(stage)
            slot.done.set()
            self._inbox.put(stage)
        except Canceled:
            return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            self._inbox.put(error)

    def _wait_for(self, index: int) -> StageResult:
        slot = self._slots[index]
        slot.done.wait()
        if slot.result is None or self._stopping.is_set():
            raise Canceled
        return slot.result

    def _run_stage(self, stage: PlannedStage) -> StageResult:
        layers, times = self._start(stage)
        for step in stage.steps:
            if self._stopping.is_set():
                raise Canceled
            fresh = stage.index in self._fresh_stages
            layer, created_at_ns = self._run_step(stage, step, layers, on_base=step is stage.steps[0], fresh=fresh)
            layers.append(layer)
            times.append(created_at_ns)
        return StageResult(tuple(layers), tuple(times))

    def _start(self, stage: PlannedStage) -> tuple[list[ResultLayer], list[int]]:
        if isinstance(stage.base, int):
            result = self._wait_for(stage.base)
            return list(result.layers), list(result.times_ns)
        if stage.base is None:
            return [], []
        with self._reporter.step(stage.from_title) as report:
            report.cached()
        return list_layers(stage.base), []

    def _run_step(
        self, stage: PlannedStage, step: PlannedStep, below: list[ResultLayer], *, on_base: bool, fresh: bool
    ) -> tuple[ResultLayer, int]:
        self._gate.wait()
        selection = self._selections.get(step.id)
        source = self._find_source(step)
        mounted = self._find_mounted(step)
        linked = isinstance(step.action, CopyAction) and step.action.link
        explanation = explain_step(
            step,
            below="" if linked else _chain_id(below),
            on_base=on_base,
            platform=self._platform,
            sources=selection.digest if selection else "",
            files=self._list_files(step),
            origin_chain="" if source is None else _chain_id(source),
            mounts=digest_mounts(step, mounted, self._mounts, _chain_id),
            base=self._name_base(stage),
        )
        key = compute_key(step, explanation)
        with self._cache.hold_key(key), self._turns:
            if self._stopping.is_set():
                raise Canceled
            stops = self._debugger is not None and self._debugger.stops_before(step, self._lines)
            # Who wants to look at a step wants to see it run.
            record = None if stops else self._cache.find_step(key, fresh_only=fresh)
            self._count_step(cached=record is not None)
            if record is not None:
                with self._reporter.step(step.title) as report:
                    self._session.note_done(step.id)
                    report.cached()
                self.outcomes.append(StepOutcome(step.text, record.layer.digest, True, 0))
                return record.layer, record.created_at_ns
            self._prepare(step, below)
            if stops:
                self._stop_at(Stop(step, below, mounted))

            def make(report: StepReport, attempt: Attempt | None) -> ResultLayer:
                among = {each.text for each in stage.steps}
                reason = None if fresh or stops else self._cache.explain(key, explanation, among)
                if reason:
                    report.note(f"rebuilt: {reason}")
                return self._runner.run(
                    step, report, below, selection=selection, source=source, mounted=mounted, attempt=attempt
                )

            began = time.monotonic_ns()
            layer = self._make(step, below, mounted, make)
            record = self._cache.save_step(key, explanation, layer)
            self.outcomes.append(StepOutcome(step.text, layer.digest, False, time.monotonic_ns() - began))
            return layer, record.created_at_ns

    def _make(
        self,
        step: PlannedStep,
        below: list[ResultLayer],
        mounted: dict[int, list[ResultLayer]],
        make: Callable[[StepReport, Attempt | None], ResultLayer],
    ) -> ResultLayer:
        """Make a step's layer; where it fails somebody may look at what is left."""
        attempt = Attempt() if self._debugger is not None and self._debugger.stops_on_failure else None
        try:
            with self._reporter.step(step.title) as report:
                try:
                    return make(report, attempt)
                except FirebuildError as error:
                    if self._stopping.is_set():
                        # The machine was killed under it: that is no fault of the step.
                        raise Canceled from error
                    raise
        except FirebuildError as error:
            if attempt is None or attempt.stack is None or _is_lost(error):
                raise
            try:
                self._stop_at(Stop(step, below, mounted, attempt, error))
            finally:
                self._runner.discard(attempt)
            raise InternalError("a step that failed was gone on with") from error

    def _stop_at(self, stop: Stop) -> None:
        """Wait until somebody has looked. Raises Canceled unless the stage is to go on."""
        _ = self._session.guest  # the machine is open when the main thread takes the stop
        with self._count:
            if self._stopping.is_set():
                raise Canceled
            self._stops.append(stop)
            self._gate.clear()
        self._inbox.put(stop)
        stop.wait()

    def _name_base(self, stage: PlannedStage) -> str:
        if isinstance(stage.base, int):
            return f"the stage {self._plan.get_stage(stage.base).label}"
        return "scratch" if stage.base is None else f"the base image {_name_image(stage.base)}"

    def _prepare(self, step: PlannedStep, below: Sequence[ResultLayer]) -> None:
        """What must be there before the step, each reported on its own: the machine, and the layers that it lies on."""
        try:
            self._runner.check_lent(self._plan, step)
        except FirebuildError:
            with self._reporter.step(step.title):
                raise
        linked = isinstance(step.action, CopyAction) and step.action.link
        try:
            self._session.ensure_stack([] if linked else below)
        except FirebuildError as error:
            if self._stopping.is_set():
                raise Canceled from error
            raise

    def _count_step(self, *, cached: bool) -> None:
        with self._count:
            self.steps += 1
            self.cached += cached

    def _find_source(self, step: PlannedStep) -> list[ResultLayer] | None:
        return self._find_layers(step.action.origin) if isinstance(step.action, CopyAction) else None

    def _find_mounted(self, step: PlannedStep) -> dict[int, list[ResultLayer]]:
        """The stacks that a step's mounts read, by their numbers."""
        found: dict[int, list[ResultLayer]] = {}
        if isinstance(step.action, RunAction):
            for number, origin, _ in list_origins(step.action):
                layers = self._find_layers(origin)
                if layers is not None:
                    found[number] = layers
        return found

    def _find_layers(self, origin: Origin | None) -> list[ResultLayer] | None:
        if isinstance(origin, StageSource):
            return list(self._wait_for(origin.index).layers)
        return list_layers(origin.image) if isinstance(origin, ImageSource) else None

    def _list_files(self, step: PlannedStep) -> dict[str, str]:
        """All files that the step takes from contexts, with their short digests."""
        found = [self._selections[step.id]] if step.id in self._selections else []
        found += [selection for (owner, _), selection in self._mounts.items() if owner == step.id]
        return {path: digest for selection in found for path, digest in selection.files.items()}


def _is_lost(error: FirebuildError) -> bool:
    """Whether the machine itself has failed, so that there is nothing to look at."""
    return isinstance(error, GuestError) and error.guest_code in ("lost", "protocol")


def _chain_id(layers: Sequence[ResultLayer]) -> str:
    return compute_chain_id([layer.diff_id for layer in layers])


def _name_image(image: Image) -> str:
    return parse_reference(image.reference).familiar if image.reference else image.manifest_digest[:19]


def list_layers(image: Image) -> list[ResultLayer]:
    """An image's layers, lowest first."""
    pairs = zip(image.config.rootfs.diff_ids, image.layers, strict=True)
    return [ResultLayer(diff_id, each.digest, each.size, each.media_type) for diff_id, each in pairs]
