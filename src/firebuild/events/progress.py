"""How work reports what it does: a sink for events, and a reporter that numbers the steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from firebuild.errors import FirebuildError
from firebuild.events.model import (
    Event,
    StepCached,
    StepCanceled,
    StepFailed,
    StepFinished,
    StepNote,
    StepOutput,
    StepStarted,
    WarningRaised,
)


class ProgressSink(Protocol):
    """Takes events. `emit` may be called from several threads at once, is quick, and raises nothing of its own."""

    def emit(self, event: Event) -> None:
        """Take one event."""


class NullSink:
    """Takes events and shows nothing."""

    def emit(self, event: Event) -> None:
        """Forget the event."""


class Canceled(Exception):
    """Raised in a thread whose work is no longer wanted. It never leaves the package that raised it."""


class StepReport:
    """One numbered piece of work that is being reported. Made by Reporter.step."""

    def __init__(self, sink: ProgressSink, clock: Callable[[], int], number: int) -> None:
        self._sink = sink
        self._clock = clock
        self.number = number
        self._cached = False

    def output(self, stream: str, data: bytes) -> None:
        """Bytes of the step's command."""
        if data:
            self._sink.emit(StepOutput(self.number, stream, data, self._clock()))

    def note(self, text: str) -> None:
        """A sentence about the step."""
        self._sink.emit(StepNote(self.number, text, self._clock()))

    def cached(self) -> None:
        """The step's result was there already; this ends the report."""
        self._cached = True
        self._sink.emit(StepCached(self.number, self._clock()))

    def end(self, error: BaseException | None) -> None:
        """The step ended, well or with `error`."""
        if error is None:
            if not self._cached:
                self._sink.emit(StepFinished(self.number, self._clock()))
        elif isinstance(error, FirebuildError):
            self._sink.emit(StepFailed(self.number, error.message, error.code, self._clock()))
        elif isinstance(error, Exception) and not isinstance(error, Canceled):
            self._sink.emit(StepFailed(self.number, f"{type(error).__name__}: {error}", "internal", self._clock()))
        else:
            self._sink.emit(StepCanceled(self.number, self._clock()))


class Reporter:
    """Numbers the steps of one build and sends what they report to a sink. Thread-safe."""

    def __init__(self, sink: ProgressSink, clock: Callable[[], int] = time.time_ns) -> None:
        self._sink = sink
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0

    def start(self, name: str) -> StepReport:
        """Begin a step; the caller calls `end` on the report. Prefer `step`."""
        # Numbered and sent under one lock, so that numbers appear in their order.
        with self._lock:
            self._count += 1
            report = StepReport(self._sink, self._clock, self._count)
            self._sink.emit(StepStarted(report.number, name, self._clock()))
        return report

    @contextmanager
    def step(self, name: str) -> Iterator[StepReport]:
        """Report the block as one step; how it ends is reported too, and errors pass through."""
        report = self.start(name)
        try:
            yield report
        except BaseException as error:
            report.end(error)
            raise
        report.end(None)

    def warn(self, text: str) -> None:
        """Something that the user should know."""
        self._sink.emit(WarningRaised(text, self._clock()))
