"""QEMU's machine protocol (QMP) over a connected socket: one command at a time, events in between."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from firebuild.errors import VmmError
from firebuild.host.deadline import Deadline


class QmpError(VmmError):
    """QEMU refused a command, or is gone."""

    code = "emulator-qmp"


class Qmp:
    """A client. `alive` says whether QEMU still runs; `on_event` gets (name, data) of each event."""

    def __init__(
        self, connected: socket.socket, alive: Callable[[], bool], on_event: Callable[[str, Any], None]
    ) -> None:
        self.socket = connected
        # QEMU's version, once it has greeted.
        self._alive = alive
        self._on_event = on_event
        self._data = b""
        self.version = ""
        connected.setblocking(False)

    def greet(self, deadline: Deadline) -> None:
        """Take QEMU's greeting and enter command mode. Raises QmpError, DeadlineError."""
        while "QMP" not in (greeting := self._next(deadline)):
            continue
        version = greeting["QMP"]["version"]
        number = version["qemu"]
        self.version = (
            f"{number['major']}.{number['minor']}.{number['micro']}{version['package'] and ' '}{version['package']}"
        )
        self.execute("qmp_capabilities", deadline=deadline)

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        deadline: Deadline,
        descriptors: Sequence[int] = (),
    ) -> Any:
        """Run one command and return its result. Raises QmpError with QEMU's own text, DeadlineError."""
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        data = msgspec.json.encode(message) + b"\n"
        try:
            if descriptors:
                socket.send_fds(self.socket, [data], list(descriptors))
            else:
                self.socket.send(data)
        except OSError as error:
            raise QmpError(f"QEMU does not listen any more: {error.strerror}") from error
        while True:
            answer = self._next(deadline)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(f"QEMU refused `{command}`: {answer['error'].get('desc')}")

    def await_event(self, seen: Callable[[], bool], deadline: Deadline) -> None:
        """Take events until `seen` says that the one that was waited for has come. Raises QmpError, DeadlineError."""
        while True:
            while b"\n" in self._data:
                self._take_line()
            if seen():
                return
            select.select([self.socket], [], [], min(1.0, deadline.check()))
            if not self._receive() and not self._alive():
                raise QmpError("QEMU has ended")

    def poll(self) -> None:
        """Take the events that have arrived. Raises QmpError when QEMU has closed the connection."""
        while self._receive():
            while b"\n" in self._data:
                self._take_line()

    def _next(self, deadline: Deadline) -> dict[str, Any]:
        while True:
            while b"\n" in self._data:
                message = self._take_line()
                if message is not None:
                    return message
            # Looked at every second: QEMU that dies before it has the socket open closes nothing.
            select.select([self.socket], [], [], min(1.0, deadline.check()))
            if not self._receive() and not self._alive():
                raise QmpError("QEMU has ended")

    def _receive(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            raise QmpError("QEMU has ended")
        self._data += data
        return True

    def _take_line(self) -> dict[str, Any] | None:
        line, _, self._data = self._data.partition(b"\n")
        if not line.strip():
            return None
        message = msgspec.json.decode(line, type=dict[str, Any])
        if "event" in message:
            self._on_event(str(message["event"]), message.get("data"))
            return None
        return message
