"""The entrypoint's own input and output: `attach` (protocol/PROTOCOL.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from firebuild.errors import GuestError
from firebuild.guest.exec import Output, wait_exit
from firebuild.guest.frames import FrameType, violation
from firebuild.guest.stream import GuestStream, open_stream
from firebuild.host.deadline import Deadline


class AttachSession:
    """A client of the entrypoint. `tty`: it has a terminal; `stdin`: what is sent reaches it."""

    def __init__(self, stream: GuestStream, *, tty: bool, stdin: bool) -> None:
        self._stream = stream
        self.tty = tty
        self.stdin = stdin

    def send_input(self, data: bytes) -> None:
        """Bytes for its input; empty: the end of it."""
        self._stream.send(FrameType.STDIN, data)

    def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal its size."""
        self._stream.send_json(FrameType.RESIZE, {"rows": rows, "cols": cols})

    def wait(self, output: Output) -> int:
        """Hand on its output until it has ended for good; returns its exit code. Raises GuestError, also after `leave`."""
        return wait_exit(self._stream, output)

    def leave(self) -> None:
        """Detach: who waits is woken. The entrypoint goes on."""
        with suppress(GuestError):  # the guest may be gone this moment
            self._stream.abort()


@contextmanager
def open_attach(vsock: Path, size: tuple[int, int] | None, deadline: Deadline | None = None) -> Iterator[AttachSession]:
    """Attach to the entrypoint for the block; one that waits for somebody to attach is started.

    `size`: rows and columns of the caller's terminal, if there is one. Raises GuestError: `not-found` where none runs.
    """
    rows, cols = size or (0, 0)
    with open_stream(vsock, {"op": "attach", "rows": rows, "cols": cols}, deadline) as stream:
        reply = stream.expect(FrameType.REPLY, deadline).json()
        tty, stdin = reply.get("tty"), reply.get("stdin")
        if not isinstance(tty, bool) or not isinstance(stdin, bool):
            raise violation("a REPLY to attach that says nothing of terminal and input")
        yield AttachSession(stream, tty=tty, stdin=stdin)
