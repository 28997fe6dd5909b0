"""The output of one step: handed on up to a cap, its last lines kept for the error."""

from __future__ import annotations

import threading
from collections import deque

from firebuild.events.progress import StepReport
from firebuild.events.text import LineSplitter

OUTPUT_CAP = 64 << 20
TAIL_LINES = 50


class OutputLog:
    """Takes a command's output as the guest sends it. A step that writes more than the cap goes on, unseen but for its end."""

    def __init__(self, report: StepReport, *, cap: int = OUTPUT_CAP) -> None:
        self._report = report
        self._left = cap
        self._cap = cap
        self._lock = threading.Lock()
        self._splitters = {"stdout": LineSplitter(4096), "stderr": LineSplitter(4096)}
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    def take(self, stream: str, data: bytes) -> None:
        """Bytes of "stdout" or "stderr"."""
        with self._lock:
            self._tail.extend(self._splitters[stream].feed(data))
            if self._left <= 0:
                return
            shown = data[: self._left]
            self._left -= len(shown)
            self._report.output(stream, shown)
            if self._left <= 0:
                marker = f"\n[the output is longer than {self._cap >> 20} MiB; the rest is not shown]\n"
                self._report.output(stream, marker.encode())

    def last_lines(self) -> list[str]:
        """The last lines, fit to be shown."""
        with self._lock:
            for splitter in self._splitters.values():
                self._tail.extend(splitter.flush())
            return list(self._tail)
