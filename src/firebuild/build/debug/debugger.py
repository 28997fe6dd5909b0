"""One debugged build: where it stops, and what is prepared for a new round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from firebuild.build.debug.lines import get_step_at
from firebuild.build.debug.talk import Talk
from firebuild.errors import UsageError

if TYPE_CHECKING:
    from firebuild.build.debug.model import Debugging, PrepareAgain, Stop
    from firebuild.build.debug.shells import StepShells
    from firebuild.build.steps import Plan, PlannedStep
    from firebuild.dockerfile.stages import Dockerfile
    from firebuild.events.progress import Reporter

# Lines at which the build stops, by the step's id: of one plan.
Stops = Mapping[str, Sequence[int]]


class Debugger:
    """Stages' threads ask, the main thread talks. A line stops the build once: in a new round it does not again."""

    def __init__(self, wish: Debugging, reporter: Reporter) -> None:
        self._wish = wish
        self._reporter = reporter
        self._pending = list(dict.fromkeys(wish.lines))
        self._is_first = True

    @property
    def stops_on_failure(self) -> bool:
        """Whether a failed step opens a shell."""
        return self._wish.on_failure

    def find_stops(self, plan: Plan, dockerfile: Dockerfile) -> Stops:
        """The steps of the lines in a round's plan. Raises UsageError for a line without one; in a later round, when the
        file was edited, such a line is only warned of."""
        stops: dict[str, list[int]] = {}
        for line in self._pending:
            try:
                step = get_step_at(plan, dockerfile, line)
            except UsageError as error:
                if self._is_first:
                    raise
                self._reporter.warn(f"{error.message}; it is left out")
                continue
            stops.setdefault(step.id, []).append(line)
        self._is_first = False
        return stops

    def stops_before(self, step: PlannedStep, stops: Stops) -> bool:
        """Whether the build stops before this step."""
        return any(line in self._pending for line in stops.get(step.id, ()))

    def talk(self, stop: Stop, stops: Stops, shells: StepShells, prepare: PrepareAgain) -> None:
        """Hold the conversation, in the main thread: see Talk.run."""
        if stop.error is None:
            done = stops.get(stop.step.id, ())
            self._pending = [line for line in self._pending if line not in done]
        Talk(self._wish, stop, shells, prepare).run()
