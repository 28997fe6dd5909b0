"""The emulator's log and metrics, in the form of Firecracker's: lines to a file or named pipe, JSON lines to another."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping

import msgspec

from firebuild.emulator.faults import Fault, os_text

LEVELS = {"off": 0, "error": 1, "warn": 2, "warning": 2, "info": 3, "debug": 4, "trace": 5}
DEFAULT_LEVEL = 3
_NAMES = {1: "ERROR", 2: "WARN", 3: "INFO", 4: "DEBUG", 5: "TRACE"}


def open_output(path: str) -> int:
    """A descriptor that appends to a file or named pipe; a pipe without a reader does not block. Raises OSError."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    return os.open(path, flags, 0o644)


def _standard_error() -> int:
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else -1


class Log:
    """Log lines `<time> [<id>:main] message`. A line that cannot be written is dropped and counted, never an error."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self.missed = 0
        self._level = DEFAULT_LEVEL
        self._show_level = False
        self._show_origin = False
        self._module: str | None = None
        self._descriptor = _standard_error()
        self._own = False

    def configure(
        self, *, path: str | None, level: str | None, show_level: bool | None, show_origin: bool | None,
        module: str | None,
    ) -> None:  # fmt: skip
        """As `PUT /logger`: what is None stays as it is, except the level, which returns to Info. Raises Fault."""
        if path is not None:
            try:
                descriptor = open_output(path)
            except OSError as error:
                raise Fault(f"Logger error: Failed to open target file: {os_text(error)}") from error
            if self._own:
                os.close(self._descriptor)
            self._descriptor, self._own = descriptor, True
        self._level = LEVELS[level.lower()] if level is not None else DEFAULT_LEVEL
        self._show_level = self._show_level if show_level is None else show_level
        self._show_origin = self._show_origin if show_origin is None else show_origin
        self._module = self._module if module is None else module

    def close(self) -> None:
        """Write no more to a file of its own; later lines go to standard error."""
        if self._own:
            os.close(self._descriptor)
            self._descriptor, self._own = _standard_error(), False

    def error(self, message: str) -> None:
        """What failed."""
        self._write(1, message)

    def warning(self, message: str) -> None:
        """What is odd."""
        self._write(2, message)

    def info(self, message: str) -> None:
        """What happened."""
        self._write(3, message)

    def debug(self, message: str) -> None:
        """What helps to find faults."""
        self._write(4, message)

    def _write(self, level: int, message: str) -> None:
        if level > self._level or (self._module is not None and not "emulator".startswith(self._module)):
            return
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now // 1_000_000_000))
        marks = (f":{_NAMES[level]}" if self._show_level else "") + (":emulator" if self._show_origin else "")
        text = message.replace("\r", "\\r").replace("\n", "\\n")
        line = f"{stamp}.{now % 1_000_000_000:09d} [{self.instance_id}:main{marks}] {text}\n"
        try:
            os.write(self._descriptor, line.encode("utf-8", "backslashreplace"))
        except OSError:
            self.missed += 1


class Metrics:
    """Counters, written as one JSON object a line. `add` registers a group; nothing is written before `configure`."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._groups: dict[str, Callable[[], Mapping[str, int]]] = {}
        self._descriptor: int | None = None
        self._extra: dict[str, object] = {}

    def add(self, name: str, group: Callable[[], Mapping[str, int]]) -> None:
        """A group of counters, asked at each writing."""
        self._groups[name] = group

    def configure(self, path: str, *, emit_id: bool, properties: Mapping[str, str] | None) -> None:
        """Where to write; once. Raises Fault."""
        prefix = "Cannot initialize the metrics system due to bad user input: "
        if self._descriptor is not None:
            raise Fault(f"Metrics error: {prefix}Reinitialization of metrics not allowed.")
        try:
            self._descriptor = open_output(path)
        except OSError as error:
            raise Fault(f"Metrics error: {prefix}{os_text(error)}") from error
        if emit_id:
            self._extra["id"] = self._log.instance_id
        if properties is not None:
            self._extra["properties"] = dict(properties)

    def write(self) -> None:
        """Write a line now; nothing before `configure`. Raises Fault."""
        if self._descriptor is None:
            return
        document: dict[str, object] = {"utc_timestamp_ms": time.time_ns() // 1_000_000, **self._extra}
        document.update((name, dict(group())) for name, group in self._groups.items())
        document["logger"] = {"missed_log_count": self._log.missed}
        try:
            os.write(self._descriptor, msgspec.json.encode(document) + b"\n")
        except OSError as error:
            raise Fault(f"Internal VMM error: Metrics error: {os_text(error)}") from error

    def close(self) -> None:
        """Write no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
