"""The vsock's Unix sockets over a port whose guest is played here: both directions, many streams, faults."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firebuild.emulator import mux
from firebuild.emulator.channel import Channel
from firebuild.emulator.log import Log
from firebuild.emulator.loop import Loop
from firebuild.emulator.mux import Kind, encode, encode_value

TIMEOUT_S = 60.0
ECHO, SINK, SILENT = 7, 8, 10


class Guest(threading.Thread):
    """Plays the guest's end: echoes on port 7, counts on port 8, says nothing on port 10, refuses the others."""

    def __init__(self, port: socket.socket, *, hello: bool = True) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.lock = threading.Lock()
        self.modes: dict[int, int] = {}
        self.windows: dict[int, int] = {}
        self.waiting: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.records: list[tuple[Kind, int]] = []
        if hello:
            port.sendall(encode_value(Kind.HELLO, 0, 1))

    def run(self) -> None:
        # The port is closed under the guest's hands when a test is over.
        with contextlib.suppress(OSError):
            self.serve()

    def serve(self) -> None:
        data = bytearray()
        while chunk := self.port.recv(1 << 18):
            data += chunk
            done = 0
            for record, end in mux.scan(memoryview(bytes(data))):
                done = end
                with self.lock:
                    self.take(record)
            del data[:done]

    def take(self, record: mux.Record) -> None:
        number = record.stream
        self.records.append((record.kind, number))
        if record.kind is Kind.OPEN:
            if record.value not in (ECHO, SINK, SILENT):
                self.port.sendall(encode(Kind.RESET, number))
                return
            self.join_stream(number, record.value)
            self.port.sendall(encode(Kind.ACCEPT, number))
        elif record.kind is Kind.DATA:
            self.waiting[number] += record.payload
            if self.modes[number] == SINK:
                self.port.sendall(encode_value(Kind.WINDOW, number, len(record.payload)))
            self.pump(number)
        elif record.kind is Kind.WINDOW:
            self.windows[number] += record.value
            self.pump(number)
        elif record.kind is Kind.FIN:
            self.ended.add(number)
            self.pump(number)

    def join_stream(self, number: int, mode: int) -> None:
        self.modes[number], self.windows[number], self.waiting[number] = mode, mux.WINDOW, bytearray()

    def pump(self, number: int) -> None:
        waiting = self.waiting[number]
        if self.modes[number] == SINK and number in self.ended:
            self.port.sendall(encode(Kind.DATA, number, str(len(waiting)).encode()) + encode(Kind.FIN, number))
        if self.modes[number] != ECHO:
            return
        while size := min(len(waiting), self.windows[number], mux.PAYLOAD_MAX):
            self.port.sendall(encode(Kind.DATA, number, bytes(waiting[:size])))
            if number not in self.ended:
                self.port.sendall(encode_value(Kind.WINDOW, number, size))
            del waiting[:size]
            self.windows[number] -= size
        if number in self.ended and not waiting:
            self.port.sendall(encode(Kind.FIN, number))
            self.modes[number] = 0


class Bench:
    """A channel with its loop in a thread, and the other end of its port."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "v.sock"
        self.loop = Loop()
        self.channel = Channel(self.loop, Log("test"), str(self.path))
        ours, self.port = socket.socketpair()
        self.port.settimeout(TIMEOUT_S)
        self.channel.attach(ours)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Let the loop run until `stop`."""
        self._wake, waker = socket.socketpair()
        self.loop.watch(waker.fileno(), 1, lambda _: self.loop.stop())
        self._waker = waker
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the loop: the test may now look inside."""
        if self._thread is not None:
            self._wake.send(b"x")
            self._thread.join(TIMEOUT_S)
            assert not self._thread.is_alive()
            self.loop.forget(self._waker.fileno())
            self._waker.close()
            self._wake.close()
            self._thread = None

    def close(self) -> None:
        """Stop and close all."""
        self.stop()
        self.channel.close()
        self.port.close()
        self.loop.close()

    def connect(self, line: bytes) -> socket.socket:
        """A host's connection, its first line sent."""
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(TIMEOUT_S)
        connected.connect(str(self.path))
        connected.sendall(line)
        return connected

    def open(self, port: int) -> socket.socket:
        """A host's connection that the guest has accepted."""
        connected = self.connect(b"CONNECT %d\n" % port)
        line = b""
        while not line.endswith(b"\n"):
            byte = connected.recv(1)
            assert byte, "closed instead of OK"
            line += byte
        assert line.startswith(b"OK ") and line[3:-1].isdigit()
        return connected


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fbc-") as folder:
        subject = Bench(Path(folder))
        yield subject
        subject.close()


@pytest.fixture
def guest(bench: Bench) -> Guest:
    subject = Guest(bench.port)
    subject.start()
    bench.run()
    return subject


def read_all(connected: socket.socket) -> bytes:
    data = bytearray()
    while chunk := connected.recv(1 << 18):
        data += chunk
    return bytes(data)


def test_a_stream_echoes_and_ends_both_ways(bench: Bench, guest: Guest) -> None:
    with bench.open(ECHO) as connected:
        connected.sendall(b"hello")
        assert connected.recv(100) == b"hello"
        connected.shutdown(socket.SHUT_WR)
        assert connected.recv(100) == b""
    bench.stop()
    assert bench.channel._streams == {} and bench.channel._mux.streams == {}


def test_bytes_behind_the_first_line_are_data(bench: Bench, guest: Guest) -> None:
    with bench.connect(b"connect 7\nearly") as connected:
        assert connected.recv(3) == b"OK "
        connected.shutdown(socket.SHUT_WR)
        assert read_all(connected).endswith(b"\nearly")


def test_many_streams_at_once_full_duplex(bench: Bench, guest: Guest) -> None:
    results: dict[int, bool] = {}

    def work(number: int) -> None:
        data = os.urandom(700_000)
        with bench.open(ECHO) as connected:

            def write() -> None:
                connected.sendall(data)
                connected.shutdown(socket.SHUT_WR)

            writer = threading.Thread(target=write)
            writer.start()
            results[number] = hashlib.sha256(read_all(connected)).digest() == hashlib.sha256(data).digest()
            writer.join(TIMEOUT_S)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT_S)
    assert results == dict.fromkeys(range(12), True)


def test_a_slow_reader_holds_its_own_stream_only(bench: Bench, guest: Guest) -> None:
    slow = bench.open(ECHO)
    slow.setblocking(False)
    sent = 0
    # Until the way through the guest and back is full.
    for _ in range(200):
        try:
            sent += slow.send(bytes(65536))
        except BlockingIOError:
            with bench.open(ECHO) as other:
                other.sendall(b"x")
                assert other.recv(1) == b"x"
            break
    else:
        pytest.fail("no back pressure")
    slow.settimeout(TIMEOUT_S)
    slow.shutdown(socket.SHUT_WR)
    assert len(read_all(slow)) == sent
    slow.close()


def test_the_guest_connects_out(bench: Bench, guest: Guest) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(TIMEOUT_S)
        listener.bind(f"{bench.path}_2000")
        listener.listen()
        with guest.lock:
            guest.join_stream(2, ECHO)
            bench.port.sendall(encode_value(Kind.OPEN, 2, 2000))
        connected, _ = listener.accept()
        with connected:
            connected.settimeout(TIMEOUT_S)
            connected.sendall(b"from the host")
            assert connected.recv(100) == b"from the host"


def wait_for(condition: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(int(TIMEOUT_S * 100)):
        if condition():
            return
        done.wait(0.01)
    pytest.fail("did not come true")


def test_a_port_that_nobody_listens_on_is_refused_to_the_guest(bench: Bench, guest: Guest) -> None:
    bench.port.sendall(encode_value(Kind.OPEN, 2, 2001))
    wait_for(lambda: (Kind.RESET, 2) in guest.records)


def test_a_port_that_the_guest_refuses_closes(bench: Bench, guest: Guest) -> None:
    with bench.connect(b"CONNECT 99\n") as connected:
        assert connected.recv(10) == b""


@pytest.mark.parametrize(
    "line", [b"CONNECT x\n", b"CONNECT 4294967296\n", b"HELLO 7\n", b"\n", b"CONNECT -1\n", b"C" * 40, b"CONNECT 7 7\n"]
)
def test_a_bad_first_line_closes(bench: Bench, guest: Guest, line: bytes) -> None:
    with bench.connect(line) as connected:
        try:
            assert connected.recv(10) == b""
        except ConnectionResetError:
            return


def test_before_the_guests_hello_connections_are_closed(bench: Bench) -> None:
    bench.run()
    with bench.connect(b"CONNECT 7\n") as connected:
        assert connected.recv(10) == b""
    guest = Guest(bench.port)
    guest.start()
    wait_for(lambda: (Kind.HELLO, 0) in guest.records)
    bench.open(ECHO).close()


def test_a_host_that_vanishes_with_data_in_flight_resets_the_stream(bench: Bench, guest: Guest) -> None:
    connected = bench.open(SILENT)
    number = next(number for number, mode in guest.modes.items() if mode == SILENT)
    connected.close()
    wait_for(lambda: (Kind.FIN, number) in guest.records)
    bench.port.sendall(encode(Kind.DATA, number, b"x") * 3)
    wait_for(lambda: (Kind.RESET, number) in guest.records)
    bench.open(ECHO).close()


def test_all_that_was_sent_arrives_when_the_host_closes_at_once(bench: Bench, guest: Guest) -> None:
    with bench.open(SINK) as connected:
        connected.sendall(bytes(3_000_000))
        connected.shutdown(socket.SHUT_WR)
        assert read_all(connected) == b"3000000"


def test_what_the_guest_sent_before_it_ended_is_passed_on(bench: Bench) -> None:
    """A guest's last words: its port closes with data still on the way to a slow reader."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(TIMEOUT_S)
        listener.bind(f"{bench.path}_1025")
        listener.listen()
        bench.run()
        bench.port.sendall(encode_value(Kind.HELLO, 0, 1) + encode_value(Kind.OPEN, 2, 1025))
        connected, _ = listener.accept()
        for _ in range(4):
            bench.port.sendall(encode(Kind.DATA, 2, bytes(65536)))
        bench.stop()
        bench.port.close()
        reader = threading.Thread(target=lambda: sizes.append(len(read_all(connected))))
        sizes: list[int] = []
        reader.start()
        bench.channel.drain(TIMEOUT_S)
        reader.join(TIMEOUT_S)
        assert sizes == [262144]
        connected.close()


def test_broken_framing_closes_the_port_and_every_stream(bench: Bench, guest: Guest) -> None:
    connected = bench.open(ECHO)
    bench.port.sendall(b"\xff" * 12)
    assert connected.recv(10) == b""
    connected.close()
    with bench.connect(b"CONNECT 7\n") as late:
        assert late.recv(10) == b""


def test_a_guest_that_reopens_its_port_voids_the_streams(bench: Bench, guest: Guest) -> None:
    connected = bench.open(ECHO)
    bench.port.sendall(encode_value(Kind.HELLO, 0, 1))
    assert connected.recv(10) == b""
    connected.close()
    bench.open(ECHO).close()


def test_the_socket_is_removed_and_a_path_in_use_is_refused(bench: Bench) -> None:
    with pytest.raises(OSError, match="in use"):
        Channel(bench.loop, Log("test"), str(bench.path))
    bench.channel.close()
    assert not bench.path.exists()
