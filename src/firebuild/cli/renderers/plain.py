"""Progress as numbered lines, for logs and pipes, in the shape of BuildKit's plain output."""

from __future__ import annotations

import threading
from typing import TextIO

from firebuild.cli.renderers.held import HeldText
from firebuild.events.model import (
    Event,
    MachineChanged,
    StepCached,
    StepCanceled,
    StepFailed,
    StepFinished,
    StepNote,
    StepOutput,
    StepStarted,
    WarningRaised,
)
from firebuild.events.text import LineSplitter, neutralise


class _Step:
    def __init__(self, name: str, started_ns: int) -> None:
        self.name = name
        self.started_ns = started_ns
        self.output_ns = started_ns
        self.lines = {"stdout": LineSplitter(), "stderr": LineSplitter()}

    def seconds(self, at_ns: int) -> float:
        return max(0, at_ns - self.started_ns) / 1e9


class PlainRenderer:
    """Writes each event as lines that begin with the step's number. Thread-safe.

    A step whose lines are interrupted by another's gets its name again when it goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._steps: dict[int, _Step] = {}
        self._current: int | None = None
        self._held: HeldText | None = None

    def emit(self, event: Event) -> None:
        """Write the event's lines."""
        with self._lock:
            text = self._render(event)
            if self._held is not None:
                self._held.add(text)
            elif text:
                self._stream.write(text)
                self._stream.flush()

    def pause(self) -> None:
        """Keep lines back, up to a limit, until `resume`."""
        with self._lock:
            if self._held is None:
                self._held = HeldText()

    def resume(self) -> None:
        """Write what was kept back, and go on."""
        with self._lock:
            held, self._held = self._held, None
            self._stream.write(held.take() if held is not None else "")
            self._stream.flush()

    def close(self) -> None:
        """Write what unfinished steps still hold."""
        self.resume()
        with self._lock:
            for number in list(self._steps):
                self._stream.write(self._flush(number))
            self._stream.flush()

    def _render(self, event: Event) -> str:
        if isinstance(event, WarningRaised):
            return self._leave() + f"WARNING: {neutralise(event.text)}\n"
        if isinstance(event, MachineChanged):
            return ""
        if isinstance(event, StepStarted):
            self._steps[event.step] = _Step(neutralise(event.name), event.at_ns)
            return self._enter(event.step)
        step = self._steps.get(event.step)
        if step is None:
            return ""
        if isinstance(event, StepOutput):
            step.output_ns = event.at_ns
            lines = step.lines[event.stream].feed(event.data)
            return self._enter(event.step) + self._output(event.step, step, lines) if lines else ""
        if isinstance(event, StepNote):
            return self._enter(event.step) + f"#{event.step} {neutralise(event.text)}\n"
        return self._finish(event, step)

    def _finish(self, event: StepCached | StepFinished | StepFailed | StepCanceled, step: _Step) -> str:
        text = self._flush(event.step) or self._enter(event.step)
        if isinstance(event, StepCached):
            text += f"#{event.step} CACHED\n\n"
        elif isinstance(event, StepFinished):
            text += f"#{event.step} DONE {step.seconds(event.at_ns):.1f}s\n\n"
        elif isinstance(event, StepFailed):
            text += f"#{event.step} ERROR: {neutralise(event.message)}\n\n"
        else:
            text += f"#{event.step} CANCELED\n\n"
        del self._steps[event.step]
        self._current = None
        return text

    def _flush(self, number: int) -> str:
        step = self._steps[number]
        lines = [line for splitter in step.lines.values() for line in splitter.flush()]
        return self._enter(number) + self._output(number, step, lines) if lines else ""

    @staticmethod
    def _output(number: int, step: _Step, lines: list[str]) -> str:
        return "".join(f"#{number} {step.seconds(step.output_ns):.3f} {line}".rstrip() + "\n" for line in lines)

    def _enter(self, number: int) -> str:
        if self._current == number:
            return ""
        text = self._leave()
        self._current = number
        return text + f"#{number} {self._steps[number].name}\n"

    def _leave(self) -> str:
        if self._current is None:
            return ""
        text = f"#{self._current} ...\n\n"
        self._current = None
        return text
