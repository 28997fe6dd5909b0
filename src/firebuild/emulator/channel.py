"""The vsock device's host side: Firecracker's hybrid Unix sockets on one end, the multiplexed port on the other."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import select
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import Callable

from firebuild.emulator import mux
from firebuild.emulator.log import Log
from firebuild.emulator.loop import READ, WRITE, Loop
from firebuild.emulator.statefile import SavedChannel

_READ_SIZE = 262144
# Enough for what is left of a record, and one big read behind it.
_BUFFER_SIZE = mux.PAYLOAD_MAX + 12 + _READ_SIZE
# Streams are not read from while this many bytes wait for the guest.
_BACKLOG_HIGH = 1 << 20
_BACKLOG_LOW = 1 << 18
_OUTPUT_LIMIT = 4 << 20
_PREAMBLE = re.compile(rb"connect ([0-9]{1,10})[ \t\r]*\n", re.IGNORECASE)
_PREAMBLE_LIMIT = 32
_STREAM_LIMIT = 1023
_FIRST_HOST_PORT = 1 << 30
_PEEK_SIZE = 4 << 20


class _Connection:
    """One Unix socket and the stream that it is joined to (`number` None: its preamble is still being read)."""

    __slots__ = ("early", "eof", "finish", "guest_port", "number", "pending", "socket")

    def __init__(self, connected: socket.socket, number: int | None) -> None:
        self.socket = connected
        self.number = number
        self.guest_port = 0
        self.early = b""
        self.pending: deque[memoryview] = deque()
        # The host's end will send no more; the guest will send no more.
        self.eof = False
        self.finish = False


class Channel:
    """Binds `uds_path` at once; serves it from `attach` on. Raises OSError where the path cannot be bound."""

    def __init__(self, loop: Loop, log: Log, uds_path: str) -> None:
        self._loop = loop
        self._log = log
        self.uds_path = uds_path
        self._mux = mux.Mux()
        self._streams: dict[int, _Connection] = {}
        self._greeting: set[_Connection] = set()
        # Those that ask for a stream between a restore and the guest's answer to our HELLO.
        self._held: list[_Connection] = []
        self._stalled: set[_Connection] = set()
        self._port: socket.socket | None = None
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._received = 0
        self._host_ports = itertools.count(_FIRST_HOST_PORT)
        self.counters = {"rx_bytes_count": 0, "tx_bytes_count": 0, "conns_added": 0, "conns_killed": 0}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(uds_path)
            self._listener.listen(128)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)

    def attach(self, port: socket.socket) -> None:
        """Take over the connected socket of the guest's port and serve."""
        port.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            port.setsockopt(socket.SOL_SOCKET, option, _READ_SIZE)
        self._port = port
        self._watch_port()
        self._loop.watch(self._listener.fileno(), READ, self._accept)

    def settle(self, peer: socket.socket, turn: Callable[[], object]) -> None:
        """Read all that QEMU has, until nothing moves any more. The guest is paused; `turn` lets QEMU's main loop go round.

        `peer` is QEMU's end of the port. When this returns QEMU has written all that the guest had sent in whole, and has
        passed on all that the guest has room for: until the guest goes on, its memory is changed by nothing here.
        """
        unread, still = -1, 0
        while still < 2 and self._port is not None:
            turn()
            before = self._received
            self._read_port(READ)
            now = _unread_bytes(peer)
            still = still + 1 if now == unread and before == self._received else 0
            unread = now

    def freeze(self, peer: socket.socket) -> SavedChannel:
        """Where the two ends stand, after `settle`; and this side's streams are reset, as the guest's will be when it goes on."""
        waiting = peer.recv(_PEEK_SIZE, socket.MSG_PEEK | socket.MSG_DONTWAIT) if _unread_bytes(peer) else b""
        to_guest = waiting + b"".join(self._mux.output)
        if not self._mux.awaiting:
            to_guest = to_guest[: self._mux.unfinished(len(waiting))]
        saved = SavedChannel(self._mux.greeted, self._mux.awaiting, to_guest, bytes(self._view[: self._filled]))
        self._reset_streams()
        if saved.greeted:
            self._mux.void()
            self._watch_port()
        return saved

    def thaw(self, saved: SavedChannel) -> None:
        """Go on, before `attach`, where another process's channel stood: all streams are void, and the guest is told so."""
        self._filled = len(saved.from_guest)
        self._view[: self._filled] = saved.from_guest
        if saved.greeted or saved.awaiting:
            self._mux.void(saved.to_guest, said=saved.awaiting)

    def drain(self, timeout_s: float) -> None:
        """The guest is gone: pass on all that it had sent, for at most `timeout_s`, then close every stream."""
        end = time.monotonic() + timeout_s
        while self._port is not None:
            self._read_port(READ)
            if self._port is not None and not select.select([self._port], [], [], 0)[0]:
                break
        self._lose_port()
        waiting = list(self._streams.values())
        while waiting and time.monotonic() < end:
            ready = select.select([], [connection.socket for connection in waiting], [], end - time.monotonic())[1]
            for connection in waiting:
                if connection.socket in ready:
                    self._write_pending(connection)
            waiting = [connection for connection in waiting if connection.pending and connection.socket.fileno() >= 0]
        self._void_streams()

    def detach(self) -> None:
        """Close the guest's port and every stream; twice is fine."""
        self._lose_port()
        self._void_streams()

    def close(self) -> None:
        """Close everything and remove the socket's file."""
        self.detach()
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        try:
            os.unlink(self.uds_path)
        except FileNotFoundError:
            return

    # Host side: new connections.

    def _accept(self, _: int) -> None:
        try:
            connected, _address = self._listener.accept()
        except OSError as error:
            self._log.warning(f"vsock: accepting a connection failed: {error.strerror}")
            return
        if len(self._streams) + len(self._greeting) >= _STREAM_LIMIT:
            connected.close()
            return
        connected.setblocking(False)
        connection = _Connection(connected, None)
        self._greeting.add(connection)
        self._loop.watch(connected.fileno(), READ, lambda _: self._read_preamble(connection))

    def _read_preamble(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.early += data
        line, newline, _ = connection.early.partition(b"\n")
        if data and not newline and len(line) < _PREAMBLE_LIMIT:
            return
        match = _PREAMBLE.fullmatch(line + newline)
        if not data or match is None or int(match[1]) > 0xFFFFFFFF or not (self._mux.greeted or self._mux.awaiting):
            self._drop(connection)
            return
        connection.early = connection.early[len(line) + 1 :]
        connection.guest_port = int(match[1])
        # Nothing more is read until the guest has accepted.
        self._loop.forget(connection.socket.fileno())
        if self._mux.awaiting:
            self._held.append(connection)
            return
        self._open_stream(connection)
        self._flush_port()

    def _open_stream(self, connection: _Connection) -> None:
        self._greeting.discard(connection)
        connection.number = self._mux.open(connection.guest_port)
        self._streams[connection.number] = connection

    # Host side: data of a stream.

    def _watch(self, connection: _Connection) -> None:
        """Watch a joined connection for exactly what can go on now."""
        number = connection.number
        if connection.socket.fileno() < 0 or number is None:
            return
        readable = not connection.eof and connection not in self._stalled and self._mux.sendable(number) > 0
        events = (READ if readable else 0) | (WRITE if connection.pending else 0)
        self._loop.watch(connection.socket.fileno(), events, lambda ready: self._serve(connection, ready))

    def _serve(self, connection: _Connection, ready: int) -> None:
        if ready & WRITE:
            self._write_pending(connection)
        if ready & READ and connection.socket.fileno() >= 0:
            self._read_stream(connection)
        self._watch(connection)
        self._flush_port()

    def _read_stream(self, connection: _Connection) -> None:
        assert connection.number is not None
        for _ in range(4):
            room = self._mux.sendable(connection.number)
            if room == 0:
                return
            try:
                data = connection.socket.recv(room)
            except BlockingIOError:
                return
            except OSError:
                self._abort(connection)
                return
            if not data:
                connection.eof = True
                self._mux.finish(connection.number)
                self._close_if_done(connection)
                return
            self.counters["rx_bytes_count"] += len(data)
            self._mux.send(connection.number, data)
            if self._mux.output_bytes > _BACKLOG_HIGH:
                self._stalled.add(connection)
                return

    def _deliver(self, connection: _Connection, payload: memoryview) -> None:
        """Pass the guest's bytes on; what the socket does not take now is copied and waits."""
        self.counters["tx_bytes_count"] += len(payload)
        if not connection.pending:
            try:
                sent = connection.socket.send(payload)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._abort(connection)
                return
            if sent and connection.number is not None:
                self._mux.consume(connection.number, sent)
            if sent == len(payload):
                return
            payload = payload[sent:]
        connection.pending.append(memoryview(bytes(payload)))
        self._watch(connection)

    def _write_pending(self, connection: _Connection) -> None:
        while connection.pending:
            head = connection.pending[0]
            try:
                sent = connection.socket.send(head)
            except BlockingIOError:
                return
            except OSError:
                self._abort(connection)
                return
            if connection.number is not None:
                self._mux.consume(connection.number, sent)
            if sent < len(head):
                connection.pending[0] = head[sent:]
                return
            connection.pending.popleft()
        if connection.finish:
            self._shut_down(connection)

    def _shut_down(self, connection: _Connection) -> None:
        """The guest has sent all: tell the host's end, once all has been passed on."""
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._abort(connection)
            return
        self._close_if_done(connection)

    def _close_if_done(self, connection: _Connection) -> None:
        if connection.eof and connection.finish and not connection.pending:
            self._drop(connection)

    def _abort(self, connection: _Connection) -> None:
        """The host's end is gone: the guest gets a RESET."""
        if connection.number is not None:
            self._mux.reset(connection.number)
        self.counters["conns_killed"] += 1
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if connection.socket.fileno() >= 0:
            self._loop.forget(connection.socket.fileno())
            connection.socket.close()
        connection.pending.clear()
        self._greeting.discard(connection)
        self._stalled.discard(connection)
        if connection.number is not None and self._streams.get(connection.number) is connection:
            del self._streams[connection.number]

    # Guest side.

    def _watch_port(self) -> None:
        if self._port is not None:
            # A guest that provokes answers and does not read them is not read from either.
            readable = READ if self._mux.output_bytes < _OUTPUT_LIMIT else 0
            self._loop.watch(self._port.fileno(), readable | (WRITE if self._mux.output else 0), self._serve_port)

    def _serve_port(self, ready: int) -> None:
        if ready & WRITE:
            self._flush_port()
        if ready & READ:
            self._read_port(ready)
        self._flush_port()

    def _flush_port(self) -> None:
        output = self._mux.output
        while output and self._port is not None:
            try:
                sent = self._port.sendmsg(list(itertools.islice(output, 32)))
            except BlockingIOError:
                break
            except OSError:
                self._lose_port()
                return
            self._mux.taken(sent)
        if self._stalled and self._mux.output_bytes < _BACKLOG_LOW:
            resumed, self._stalled = self._stalled, set()
            for connection in resumed:
                self._watch(connection)
        self._watch_port()

    def _read_port(self, _: int) -> None:
        if self._port is None:
            return
        try:
            size = self._port.recv_into(self._view[self._filled :])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size == 0:
            self._lose_port()
            return
        self._filled += size
        self._received += size
        done = 0
        try:
            for record, end in mux.scan(self._view[: self._filled]):
                done = end
                self._take(record)
        except mux.MuxError as error:
            self._log.error(f"vsock: the guest broke the channel's protocol ({error.code}); the port is closed")
            self._lose_port()
            return
        left = self._filled - done
        if left and done:
            self._view[:left] = bytes(self._view[done : self._filled])
        self._filled = left

    def _take(self, record: mux.Record) -> None:
        try:
            told = self._mux.receive(record)
        except mux.MuxError as error:
            if error.stream is None:
                raise
            self._log.warning(f"vsock: stream {error.stream} was reset: {error.code}")
            connection = self._streams.get(error.stream)
            if connection is not None:
                self._drop(connection)
            return
        if told:
            self._handlers[record.kind](self, record)

    def _on_hello(self, _: mux.Record) -> None:
        self._log.debug("vsock: the guest has opened its port")
        self._reset_streams()
        held, self._held = self._held, []
        for connection in held:
            if connection.socket.fileno() >= 0:
                self._open_stream(connection)

    def _on_open(self, record: mux.Record) -> None:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if len(self._streams) >= _STREAM_LIMIT:
                raise OSError("too many streams")
            connected.connect(f"{self.uds_path}_{record.value}")
        except OSError as error:
            self._log.debug(f"vsock: the guest's connection to port {record.value} was refused: {error}")
            connected.close()
            self._mux.reset(record.stream)
            return
        connection = _Connection(connected, record.stream)
        self._streams[record.stream] = connection
        self.counters["conns_added"] += 1
        self._mux.accept(record.stream)
        self._watch(connection)

    def _on_accept(self, record: mux.Record) -> None:
        connection = self._streams[record.stream]
        self.counters["conns_added"] += 1
        try:
            connection.socket.sendall(b"OK %d\n" % next(self._host_ports))
        except OSError:
            self._abort(connection)
            return
        early, connection.early = connection.early, b""
        if early:
            self._mux.send(record.stream, early)
        self._watch(connection)

    def _on_reset(self, record: mux.Record) -> None:
        connection = self._streams.get(record.stream)
        if connection is not None:
            self.counters["conns_killed"] += 1
            self._drop(connection)

    def _on_data(self, record: mux.Record) -> None:
        self._deliver(self._streams[record.stream], record.payload)

    def _on_fin(self, record: mux.Record) -> None:
        connection = self._streams[record.stream]
        connection.finish = True
        if not connection.pending:
            self._shut_down(connection)

    def _on_window(self, record: mux.Record) -> None:
        self._watch(self._streams[record.stream])

    _handlers: dict[mux.Kind, Callable[[Channel, mux.Record], None]] = {  # noqa: RUF012 - a constant table
        mux.Kind.HELLO: _on_hello,
        mux.Kind.OPEN: _on_open,
        mux.Kind.ACCEPT: _on_accept,
        mux.Kind.RESET: _on_reset,
        mux.Kind.DATA: _on_data,
        mux.Kind.FIN: _on_fin,
        mux.Kind.WINDOW: _on_window,
    }

    def _reset_streams(self) -> None:
        for connection in list(self._streams.values()):
            self._drop(connection)

    def _void_streams(self) -> None:
        for connection in [*self._streams.values(), *self._greeting]:
            self._drop(connection)

    def _lose_port(self) -> None:
        """The port is closed: streams end when what the guest had sent has been passed on; new connections are closed."""
        if self._port is not None:
            self._loop.forget(self._port.fileno())
            self._port.close()
            self._port = None
        self._mux = mux.Mux()
        for connection in [*self._greeting, *self._streams.values()]:
            if connection.number is None or not connection.pending:
                self._drop(connection)
                continue
            connection.eof = connection.finish = True
            self._watch(connection)


def _unread_bytes(end: socket.socket) -> int:
    """How many bytes wait to be read from one end of a socket pair (unix(7), SIOCINQ)."""
    (size,) = struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, b"\0\0\0\0"))
    return int(size)
