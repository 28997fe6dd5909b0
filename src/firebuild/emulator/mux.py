"""The records that carry many streams over one virtio-serial port (protocol/PROTOCOL.md, 1.2), host end. No I/O.

A record is `u8 kind · u8 zero · u16 zero · u32 stream · u32 length · payload`, big-endian.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct(">BBHII")
_U32 = struct.Struct(">I")
VERSION = 1
PAYLOAD_MAX = 65536
WINDOW = 262144
_GRANT_AT = WINDOW // 2
# More than a socket between two processes holds: of what was written longer ago, all has been read.
_UNREAD_MAX = 1 << 20


class Kind(IntEnum):
    """The kinds of record."""

    OPEN = 1
    ACCEPT = 2
    RESET = 3
    DATA = 4
    FIN = 5
    WINDOW = 6
    HELLO = 7


class MuxError(Exception):
    """The other side broke the protocol. `code`: which rule; `stream`: the stream to reset, or None where framing is lost."""

    def __init__(self, code: str, stream: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.stream = stream


class Record(NamedTuple):
    """A record as it was read: `value` is the port, window or version; `payload` is a view that the reader may reuse.

    `fault`: the code of a fault in a record that was read whole, so that only its stream is at fault.
    """

    kind: Kind
    stream: int
    value: int
    payload: memoryview
    fault: str | None


_EMPTY = memoryview(b"")
_LENGTHS = {Kind.OPEN: 4, Kind.ACCEPT: 0, Kind.RESET: 0, Kind.FIN: 0, Kind.WINDOW: 4, Kind.HELLO: 4}


def encode(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    """One record."""
    return HEADER.pack(kind, 0, 0, stream, len(payload)) + payload


def encode_value(kind: Kind, stream: int, value: int) -> bytes:
    """One OPEN, WINDOW or HELLO record."""
    return encode(kind, stream, _U32.pack(value))


def scan(view: memoryview) -> Iterator[tuple[Record, int]]:
    """The whole records at the start of `view`, each with the offset behind it. Raises MuxError where framing is lost."""
    offset, size = 0, len(view)
    while size - offset >= 12:
        kind, zero, zeros, stream, length = HEADER.unpack_from(view, offset)
        if not 1 <= kind <= 7:
            raise MuxError("unknown-kind")
        if zero or zeros:
            raise MuxError("reserved")
        if length > PAYLOAD_MAX:
            raise MuxError("too-long")
        if kind == Kind.HELLO and length != 4:
            raise MuxError("bad-length")
        if (stream == 0) != (kind == Kind.HELLO):
            raise MuxError("bad-stream")
        end = offset + 12 + length
        if end > size:
            return
        if kind == Kind.DATA:
            yield Record(Kind.DATA, stream, 0, view[offset + 12 : end], None if length else "bad-length"), end
        elif length != _LENGTHS[Kind(kind)]:
            yield Record(Kind(kind), stream, 0, _EMPTY, "bad-length"), end
        else:
            value = _U32.unpack_from(view, offset + 12)[0] if length else 0
            fault = "bad-window" if kind == Kind.WINDOW and not 1 <= value <= WINDOW else None
            yield Record(Kind(kind), stream, value, _EMPTY, fault), end
        offset = end


class Stream:
    """One stream's flow control: bytes that may be sent, bytes that may come, bytes consumed and not yet granted."""

    __slots__ = ("accepted", "consumed", "fin_received", "fin_sent", "incoming", "outgoing")

    def __init__(self) -> None:
        self.outgoing = WINDOW
        self.incoming = WINDOW
        self.consumed = 0
        self.accepted = False
        self.fin_sent = False
        self.fin_received = False


class Mux:
    """The host end. What is to be sent collects in `output`; what came is told by `receive`.

    A stream is known by its id until both ends have sent FIN or either RESET; afterwards every call about it does nothing.
    """

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.output: deque[bytes] = deque()
        self.output_bytes = 0
        self.greeted = False
        # Our HELLO, after a restore, is still to be answered: the guest's other records are of streams that are void.
        self.awaiting = False
        self._last_host = -1
        self._last_guest = 0
        self._put_bytes = 0
        self._written = 0
        self._ends: deque[int] = deque()

    def receive(self, record: Record) -> bool:
        """Apply one record. True if the owner of its stream must be told of it (for HELLO: of every stream).

        Raises MuxError: with a stream, that stream has been reset; without, the port cannot go on.
        """
        kind, number = record.kind, record.stream
        if kind is Kind.HELLO:
            return self._hello(record.value)
        if self.awaiting:
            return False
        if not self.greeted:
            raise MuxError("no-hello")
        if record.fault is not None:
            self._violate(record.fault, number)
        if kind is Kind.OPEN:
            if number % 2 or number <= self._last_guest:
                self._violate("bad-stream", number)
            self._last_guest = number
            self.streams[number] = Stream()
            return True
        stream = self.streams.get(number)
        if stream is None:
            known = number <= (self._last_host if number % 2 else self._last_guest)
            if not known and kind is not Kind.RESET:
                self._violate("never-opened", number)
            return False
        return self._apply(record, stream)

    def _apply(self, record: Record, stream: Stream) -> bool:
        kind, number = record.kind, record.stream
        if kind is Kind.RESET:
            del self.streams[number]
            return True
        if kind is Kind.ACCEPT:
            if stream.accepted or number % 2 == 0:
                self._violate("bad-accept", number)
            stream.accepted = True
            return True
        if not stream.accepted:
            self._violate("not-accepted", number)
        if kind is Kind.WINDOW:
            if stream.outgoing + record.value > WINDOW:
                self._violate("bad-window", number)
            stream.outgoing += record.value
            return True
        if stream.fin_received:
            self._violate("after-fin", number)
        if kind is Kind.DATA:
            size = len(record.payload)
            if size > stream.incoming:
                self._violate("beyond-window", number)
            stream.incoming -= size
            return True
        stream.fin_received = True
        self._forget_if_done(number, stream)
        return True

    def _hello(self, version: int) -> bool:
        if version != VERSION:
            raise MuxError("version")
        self.streams.clear()
        # What is still queued for the void streams goes out ahead of our HELLO, where the guest ignores it: a record that
        # is half written must stay whole.
        self._last_host, self._last_guest = -1, 0
        self.greeted = True
        if not self.awaiting:
            self._put(encode_value(Kind.HELLO, 0, VERSION))
        self.awaiting = False
        return True

    def void(self, unfinished: bytes = b"", *, said: bool = False) -> None:
        """Void all streams and say HELLO, as after a restore; first comes the rest of a record that the guest has begun to read.

        With `said` a HELLO is among `unfinished`, or with the guest already. One that is still to be answered is not said
        again: two answers would come, and the second would be taken for the guest's own HELLO, which is answered.
        """
        said = said or self.awaiting
        self.streams.clear()
        self._last_host, self._last_guest = -1, 0
        self.greeted, self.awaiting = False, True
        if unfinished:
            self._put(unfinished)
        if not said:
            self._put(encode_value(Kind.HELLO, 0, VERSION))

    def unfinished(self, unread: int) -> int:
        """How many bytes are left of the record that the guest is in the middle of, `unread` bytes of what was written being unread."""
        position = self._written - unread
        return next((end - position for end in self._ends if end >= position), 0) if position else 0

    def open(self, port: int) -> int:
        """Open a stream to a guest's port; its id. Only after the guest's HELLO."""
        self._last_host += 2
        self.streams[self._last_host] = Stream()
        self._put(encode_value(Kind.OPEN, self._last_host, port))
        return self._last_host

    def accept(self, number: int) -> None:
        """Accept a stream that the guest opened."""
        stream = self.streams.get(number)
        if stream is not None:
            stream.accepted = True
            self._put(encode(Kind.ACCEPT, number))

    def reset(self, number: int) -> None:
        """Refuse or abort a stream."""
        if self.streams.pop(number, None) is not None:
            self._put(encode(Kind.RESET, number))

    def sendable(self, number: int) -> int:
        """How many bytes one `send` may carry now."""
        stream = self.streams.get(number)
        if stream is None or not stream.accepted or stream.fin_sent:
            return 0
        return min(stream.outgoing, PAYLOAD_MAX)

    def send(self, number: int, payload: bytes) -> None:
        """Send at most `sendable` bytes, not none."""
        self.streams[number].outgoing -= len(payload)
        self._put(HEADER.pack(Kind.DATA, 0, 0, number, len(payload)), whole=False)
        self._put(payload)

    def finish(self, number: int) -> None:
        """Send FIN: no more data from this side."""
        stream = self.streams.get(number)
        if stream is not None and not stream.fin_sent:
            stream.fin_sent = True
            self._put(encode(Kind.FIN, number))
            self._forget_if_done(number, stream)

    def consume(self, number: int, size: int) -> None:
        """The consumer has taken that many bytes: they are granted to the sender again, half a window at a time."""
        stream = self.streams.get(number)
        if stream is None or stream.fin_received:
            return
        stream.consumed += size
        if stream.consumed >= _GRANT_AT:
            self._put(encode_value(Kind.WINDOW, number, stream.consumed))
            stream.incoming += stream.consumed
            stream.consumed = 0

    def taken(self, size: int) -> None:
        """`size` bytes from the front of `output` have been written."""
        self.output_bytes -= size
        self._written += size
        while self._ends and self._ends[0] < self._written - _UNREAD_MAX:
            self._ends.popleft()
        while size:
            head = self.output[0]
            if size < len(head):
                self.output[0] = head[size:]
                return
            size -= len(head)
            self.output.popleft()

    def _put(self, data: bytes, *, whole: bool = True) -> None:
        self.output.append(data)
        self.output_bytes += len(data)
        self._put_bytes += len(data)
        if whole:
            self._ends.append(self._put_bytes)

    def _forget_if_done(self, number: int, stream: Stream) -> None:
        if stream.fin_sent and stream.fin_received:
            self.streams.pop(number, None)

    def _violate(self, code: str, number: int) -> None:
        self.streams.pop(number, None)
        self._put(encode(Kind.RESET, number))
        raise MuxError(code, number)
