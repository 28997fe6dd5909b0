"""The output of one step: handed on up to a cap, its last lines kept for the error."""

from __future__ import annotations

import threading
from collections import deque

from firebuild.events.progress import StepReport
from firebuild.events.text import LineSplitter

# Shown as lines with a number and a time each, that is a multiple of it in a log.
OUTPUT_CAP = 4 << 20
TAIL_LINES = 50
_TAIL_BYTES = 256 << 10
_PIECE_BYTES = 4 << 10
_LINE_CHARS = 500


class OutputLog:
    """Takes a command's output as the guest sends it. A step that writes more than the cap goes on, unseen but for its end.

    However much comes, at most 256 KiB of it are held, and no more is made of it than that until somebody asks.
    """

    def __init__(self, report: StepReport, *, cap: int = OUTPUT_CAP) -> None:
        self._report = report
        self._left = cap
        self._cap = cap
        self._lock = threading.Lock()
        self._recent: deque[tuple[str, bytes]] = deque()
        self._recent_bytes = 0

    def take(self, stream: str, data: bytes) -> None:
        """Bytes of "stdout" or "stderr"."""
        with self._lock:
            self._keep(stream, data[-_TAIL_BYTES:])
            if self._left <= 0:
                return
            shown = data[: self._left]
            self._left -= len(shown)
            self._report.output(stream, shown)
            if self._left <= 0:
                marker = f"\n[the output is longer than {self._cap >> 20} MiB; the rest is not shown]\n"
                self._report.output(stream, marker.encode())

    def _keep(self, stream: str, data: bytes) -> None:
        self._recent_bytes += len(data)
        if self._recent and self._recent[-1][0] == stream and len(self._recent[-1][1]) < _PIECE_BYTES:
            # A program that writes single bytes must not cost a piece for each.
            data = self._recent.pop()[1] + data
        self._recent.append((stream, data))
        while self._recent_bytes - len(self._recent[0][1]) >= _TAIL_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[1])

    def last_lines(self) -> list[str]:
        """The last lines, fit to be shown, long ones cut."""
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        splitters = {"stdout": LineSplitter(4096), "stderr": LineSplitter(4096)}
        with self._lock:
            for stream, data in self._recent:
                tail.extend(splitters[stream].feed(data))
        for splitter in splitters.values():
            tail.extend(splitter.flush())
        return [line if len(line) <= _LINE_CHARS else line[: _LINE_CHARS - 1] + "…" for line in tail]
