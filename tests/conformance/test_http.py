"""The connection itself: what is kept open, what is no HTTP, what is too much, and pieces that come one by one."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.conformance.vmm import TIMEOUT_S, Vmm

CONNECTIONS_MAX = 10


class Wire:
    """One connection, byte by byte."""

    def __init__(self, vmm: Vmm) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(vmm.folder / "api.sock"))
        self._data = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next whole answer: status, headers, body."""
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        return int(first.split(" ")[1]), headers, self._exactly(int(headers.get("content-length", "0")))

    def ended(self) -> bool:
        """Whether the other side has closed, now or in time."""
        try:
            return not self._data and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._data:
            self._more()
        head, _, self._data = self._data.partition(mark)
        return head

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self._more()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, "closed before the whole answer"
        self._data += data

    def close(self) -> None:
        self.socket.close()


def test_one_connection_for_many_requests(vmm: Vmm) -> None:
    with contextlib.closing(Wire(vmm)) as wire:
        for _ in range(20):
            wire.send(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            status, headers, body = wire.answer()
            assert (status, headers["connection"]) == (200, "keep-alive") and b"firecracker_version" in body


def test_requests_that_are_refused_keep_the_connection(vmm: Vmm) -> None:
    with contextlib.closing(Wire(vmm)) as wire:
        wire.send(b"GET /nope HTTP/1.1\r\n\r\n")
        assert wire.answer()[0] == 400
        wire.send(b"GET /version HTTP/1.1\r\n\r\n")
        assert wire.answer()[0] == 200


def test_a_request_byte_by_byte(vmm: Vmm) -> None:
    body = b'{"vcpu_count": 2, "mem_size_mib": 64}'
    head = b"PUT /machine-config HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with contextlib.closing(Wire(vmm)) as wire:
        for byte in head + body:
            wire.send(bytes((byte,)))
        assert wire.answer()[0] == 204
    assert vmm.api.get("/machine-config")["vcpu_count"] == 2


def test_a_body_that_is_waited_for(vmm: Vmm) -> None:
    body = b'{"vcpu_count": 2, "mem_size_mib": 64}'
    head = b"PUT /machine-config HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    with contextlib.closing(Wire(vmm)) as wire:
        wire.send(head)
        assert wire.answer()[0] == 100
        wire.send(body)
        assert wire.answer()[0] == 204


def test_what_is_no_request(vmm: Vmm) -> None:
    for data in (
        b"POST / HTTP/1.1\r\n\r\n", b"GET / HTTP/3.0\r\n\r\n", b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT /mmds HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
    ):  # fmt: skip
        with contextlib.closing(Wire(vmm)) as wire:
            wire.send(data)
            assert wire.answer()[0] in (400, 413), data
    assert vmm.api.get("/version")


def test_a_connection_too_many(vmm: Vmm) -> None:
    with contextlib.ExitStack() as stack:
        wires = []
        for _ in range(CONNECTIONS_MAX):
            wire = stack.enter_context(contextlib.closing(Wire(vmm)))
            wire.send(b"GET /version HTTP/1.1\r\n\r\n")
            assert wire.answer()[0] == 200
            wires.append(wire)
        late = stack.enter_context(contextlib.closing(Wire(vmm)))
        assert late.answer()[0] == 503 and late.ended()
        wires[0].send(b"GET /version HTTP/1.1\r\n\r\n")
        assert wires[0].answer()[0] == 200
    # Who has closed is noticed in its own time.
    end = time.monotonic() + TIMEOUT_S
    while vmm.ask("GET", "/version").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.01)
