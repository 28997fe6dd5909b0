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

    def emit(self, event: Event) -> None:
        """Write the event."""
        line = self._encoder.encode(event).decode() + "\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()
