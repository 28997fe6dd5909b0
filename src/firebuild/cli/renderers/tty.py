"""Progress as a live view on a terminal: each step's line and time, and the last lines of those that run."""

from __future__ import annotations

import os
import shutil
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

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

_REDRAW_S = 0.15
_DEFAULT_LOG_LINES = 6
_CLEAR_BELOW = "\x1b[J"
_BLUE, _RED, _DIM, _RESET = "\x1b[34m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


class _Step:
    def __init__(self, event: StepStarted, log_lines: int) -> None:
        self.name = neutralise(event.name)
        self.started_ns = event.at_ns
        self.ended_ns: int | None = None
        self.state = "running"
        self.notes: list[str] = []
        self.tail: deque[str] = deque(maxlen=log_lines)
        self.lines = {"stdout": LineSplitter(), "stderr": LineSplitter()}


class TtyRenderer:
    """Redraws the view as events come and time passes. Thread-safe; a context manager that leaves the final view."""

    def __init__(self, stream: TextIO, environment: Mapping[str, str] = os.environ) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._steps: dict[int, _Step] = {}
        self._warnings: list[str] = []
        self._height = 0
        self._drawn_at = 0.0
        self._paused = False
        self._started_ns = time.time_ns()
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._color = not environment.get("NO_COLOR")
        lines = environment.get("FIREBUILD_TTY_LOG_LINES", "")
        self._log_lines = min(int(lines), 100) if lines.isdecimal() else _DEFAULT_LOG_LINES

    def __enter__(self) -> TtyRenderer:
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._ticker.join()
        with self._lock:
            self._draw(time.time_ns(), final=True)

    def emit(self, event: Event) -> None:
        """Take the event into the view."""
        with self._lock:
            self._take(event)
            if time.monotonic() - self._drawn_at >= _REDRAW_S:
                self._draw(time.time_ns())

    def pause(self) -> None:
        """Leave the view on the screen as it is, and draw no more until `resume`."""
        with self._lock:
            if not self._paused:
                self._draw(time.time_ns(), final=True)
                self._paused = True

    def resume(self) -> None:
        """Draw the view anew, below what is on the screen by now."""
        with self._lock:
            self._paused = False
            self._height = 0

    def _tick(self) -> None:
        while not self._stopping.wait(_REDRAW_S):
            with self._lock:
                self._draw(time.time_ns())

    def _take(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._steps[event.step] = _Step(event, self._log_lines)
        elif isinstance(event, WarningRaised):
            self._warnings.append(neutralise(event.text))
        elif not isinstance(event, MachineChanged) and event.step in self._steps:
            self._update(self._steps[event.step], event)

    @staticmethod
    def _update(
        step: _Step, event: StepOutput | StepNote | StepCached | StepFinished | StepFailed | StepCanceled
    ) -> None:
        if isinstance(event, StepOutput):
            step.tail.extend(step.lines[event.stream].feed(event.data))
            return
        if isinstance(event, StepNote):
            step.notes.append(neutralise(event.text))
            return
        step.ended_ns = event.at_ns
        if isinstance(event, StepCached):
            step.state = "cached"
        elif isinstance(event, StepFailed):
            step.state = "failed"
        else:
            step.state = "canceled" if isinstance(event, StepCanceled) else "done"

    def _draw(self, now_ns: int, *, final: bool = False) -> None:
        if self._paused:
            return
        width, height = shutil.get_terminal_size()
        lines = self._view(now_ns, width)
        if not final and len(lines) > height - 1:
            # The top would scroll away and could not be redrawn: the head line and the newest lines stay.
            lines = [lines[0], *lines[len(lines) - height + 2 :]] if height > 2 else lines[:1]
        up = f"\x1b[{self._height}A" if self._height else ""
        self._stream.write(f"{up}\r{_CLEAR_BELOW}" + "".join(line + "\n" for line in lines))
        self._stream.flush()
        self._height = len(lines)
        self._drawn_at = time.monotonic()

    def _view(self, now_ns: int, width: int) -> list[str]:
        ended = sum(step.ended_ns is not None for step in self._steps.values())
        total = (now_ns - self._started_ns) / 1e9
        lines = [_cut(f"[+] Building {total:.1f}s ({ended}/{len(self._steps)})", width)]
        lines += [_cut(f"WARNING: {text}", width) for text in self._warnings]
        for step in self._steps.values():
            lines += self._step_lines(step, now_ns, width)
        return lines

    def _step_lines(self, step: _Step, now_ns: int, width: int) -> list[str]:
        word = {"cached": "CACHED ", "failed": "ERROR ", "canceled": "CANCELED "}.get(step.state, "")
        seconds = f"{((step.ended_ns or now_ns) - step.started_ns) / 1e9:.1f}s"
        room = width - len(seconds) - 1
        head = _pad(_cut(f" => {word}{step.name}", room), room) + f" {seconds}"
        color = {"failed": _RED, "running": ""}.get(step.state, _BLUE)
        lines = [self._paint(head, color)]
        lines += [self._paint(_cut(f" => => {note}", width), _DIM) for note in step.notes]
        if step.state in ("running", "failed"):
            lines += [self._paint(_cut(f" => => # {line}", width), _DIM) for line in step.tail]
        return lines

    def _paint(self, text: str, color: str) -> str:
        return f"{color}{text}{_RESET}" if self._color and color else text


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _cut(text: str, width: int) -> str:
    """`text` in at most `width` columns; tabs become spaces."""
    text = text.expandtabs(4)
    if text.isascii() and len(text) <= width:
        return text
    used = 0
    for index, char in enumerate(text):
        used += _char_width(char)
        if used > width:
            return text[:index]
    return text


def _pad(text: str, width: int) -> str:
    return text + " " * max(0, width - sum(map(_char_width, text)))
