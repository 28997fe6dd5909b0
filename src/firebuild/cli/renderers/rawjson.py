"""Progress as JSON, one event per line, for programs."""

from __future__ import annotations

import threading
from typing import TextIO

import msgspec

from firebuild.events.model import Event


class RawJsonRenderer:
    """Writes each event as one JSON object on a line; bytes are base64. Thread-safe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._held: list[str] | None = None

    def emit(self, event: Event) -> None:
        """Write the event."""
        line = self._encoder.encode(event).decode() + "\n"
        with self._lock:
            if self._held is not None:
                self._held.append(line)
                return
            self._stream.write(line)
            self._stream.flush()

    def pause(self) -> None:
        """Keep events back until `resume`: a program wants all of them."""
        with self._lock:
            if self._held is None:
                self._held = []

    def resume(self) -> None:
        """Write what was kept back, and go on."""
        with self._lock:
            held, self._held = self._held or [], None
            self._stream.write("".join(held))
            self._stream.flush()
