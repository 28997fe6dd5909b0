"""One stream to the guest's control port: opened through the vsock device's Unix socket, closed with its block."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import DeadlineError, GuestError
from firebuild.guest.frames import Frame, FrameType, check_frame, encode_header, parse_header, violation
from firebuild.host.deadline import Deadline
from firebuild.host.sockets import connect_unix

CONTROL_PORT = 1024
_CONNECT_TIMEOUT_S = 30.0
_ANSWER_LIMIT = 32


class GuestStream:
    """A stream of frames. One thread may read while another writes; neither side may be shared further."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._write_lock = threading.Lock()

    def fileno(self) -> int:
        """The socket's descriptor, for select."""
        return self._socket.fileno()

    def send(self, frame_type: FrameType, payload: bytes | memoryview = b"") -> None:
        """Send one frame. Raises GuestError if the guest is gone."""
        with self._write_lock:
            try:
                self._socket.sendall(encode_header(frame_type, len(payload)))
                if payload:
                    self._socket.sendall(payload)
            except TimeoutError:
                raise DeadlineError("the guest did not take what was sent to it") from None
            except OSError as error:
                raise _lost(error) from error

    def send_json(self, frame_type: FrameType, value: object) -> None:
        """Send one frame with a JSON payload."""
        self.send(frame_type, msgspec.json.encode(value))

    def find_frame(self, deadline: Deadline | None = None) -> Frame | None:
        """The next frame, or None where the guest has closed the stream between two frames. Raises GuestError, DeadlineError."""
        header = self._read(5, deadline, first=True)
        if header is None:
            return None
        frame_type, length = parse_header(header)
        payload = self._read(length, deadline, first=False) if length else b""
        return check_frame(Frame(frame_type, payload or b""))

    def get_frame(self, deadline: Deadline | None = None) -> Frame:
        """The next frame; an ERROR frame and the end of the stream are raised as GuestError."""
        frame = self.find_frame(deadline)
        if frame is None:
            raise _lost(None)
        if frame.type is FrameType.ERROR:
            value = frame.json()
            code = str(value.get("code", "internal"))[:64]
            raise GuestError(printable(str(value.get("message", "the guest gave no reason"))), guest_code=code)
        return frame

    def expect(self, frame_type: FrameType, deadline: Deadline | None = None) -> Frame:
        """The next frame, which must be of that type. Raises GuestError, DeadlineError."""
        frame = self.get_frame(deadline)
        if frame.type is not frame_type:
            raise violation(f"{frame.type.name} where {frame_type.name} was due")
        return frame

    def half_close(self) -> None:
        """Send no more; the other direction stays open."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise _lost(error) from error

    def abort(self) -> None:
        """End both directions: a thread that reads or writes is woken. Raises GuestError if the guest is gone."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            raise _lost(error) from error

    def _read(self, size: int, deadline: Deadline | None, *, first: bool) -> bytes | None:
        buffer = bytearray(size)
        view = memoryview(buffer)
        filled = 0
        while filled < size:
            if deadline is not None:
                ready, _, _ = select.select([self._socket], [], [], deadline.check())
                if not ready:
                    raise deadline.error()
            try:
                count = self._socket.recv_into(view[filled:])
            except OSError as error:
                raise _lost(error) from error
            if count == 0:
                if first and filled == 0:
                    return None
                raise violation("a frame that is cut short")
            filled += count
        return bytes(buffer)


def printable(text: str) -> str:
    """Guest text made safe for a terminal: control characters other than newline and tab become `?`; at most 4 KiB."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "?" for c in text[:4096])


def _lost(error: OSError | None) -> GuestError:
    reason = f" ({error.strerror})" if error is not None and error.strerror else ""
    return GuestError(
        f"the connection to the guest was lost{reason}", guest_code="lost",
        hint="see the machine's state with `firebuild ls -a` and its console with `firebuild logs --console`",
    )  # fmt: skip


@contextmanager
def open_stream(vsock: Path, request: dict[str, Any], deadline: Deadline | None = None) -> Iterator[GuestStream]:
    """Open a stream to the guest behind `vsock`, send `request` as its first frame, and close it with the block.

    The handshake is Firecracker's: `CONNECT <port>`, answered by `OK <number>` (docs/vsock.md of Firecracker).
    Raises GuestError where no guest answers, DeadlineError.
    """
    timeout_s = _CONNECT_TIMEOUT_S if deadline is None else min(_CONNECT_TIMEOUT_S, deadline.check())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        try:
            connect_unix(connection, vsock)
            connection.sendall(b"CONNECT %d\n" % CONTROL_PORT)
            _expect_ok(connection, Deadline(timeout_s, "the guest's answer"))
        except TimeoutError:
            raise DeadlineError(f"the guest behind `{vsock}` did not answer within {timeout_s:g} s") from None
        except OSError as error:
            raise GuestError(f"no guest answers at `{vsock}`: {error.strerror}", guest_code="lost") from error
        connection.settimeout(None)
        stream = GuestStream(connection)
        stream.send_json(FrameType.REQUEST, request)
        yield stream


def _expect_ok(connection: socket.socket, deadline: Deadline) -> None:
    answer = b""
    while not answer.endswith(b"\n"):
        # However slowly it comes, all of it has that time.
        connection.settimeout(max(deadline.remaining_s(), 0.001))
        # One byte at a time: what follows the newline belongs to the stream.
        byte = connection.recv(1)
        if not byte:
            raise GuestError("the guest refused the connection: vminit is not listening yet", guest_code="lost")
        answer += byte
        if len(answer) > _ANSWER_LIMIT:
            raise violation("a CONNECT answer that is too long")
    if not (answer.startswith(b"OK ") and answer[3:-1].isdigit()):
        raise violation("a CONNECT answer that is not `OK <number>`")
