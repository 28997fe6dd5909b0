"""An SSH agent that is lent to a step: what passes, what is refused, and that nothing waits when the step has ended."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from firebuild.build.agents import AgentLoan
from firebuild.errors import GuestError
from firebuild.guest.frames import FrameType
from firebuild.guest.stream import GuestStream

IDENTITIES = b"\x00\x00\x00\x01\x0b"
ADD_KEY = b"\x00\x00\x00\x02\x11x"
ANSWER = b"\x00\x00\x00\x05\x0c\x00\x00\x00\x00"
FAILURE = b"\x00\x00\x00\x01\x05"


class FakeGuest:
    """Hands out streams; the test has their other ends, which stay open when the streams are closed, as a guest's do."""

    def __init__(self) -> None:
        self.peers: list[GuestStream] = []
        self.sockets: list[socket.socket] = []
        self.opened = threading.Semaphore(0)

    @contextmanager
    def accept_agent(self, name: str) -> Iterator[GuestStream]:
        ours, theirs = socket.socketpair()
        with ours:
            self.sockets.append(theirs)
            self.peers.append(GuestStream(theirs))
            self.opened.release()
            yield GuestStream(ours)


@pytest.fixture
def guest() -> Iterator[Any]:
    """A guest whose ends are closed with the test."""
    fake = FakeGuest()
    yield fake
    for end in fake.sockets:
        end.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """An agent that answers everything with an empty list of keys."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "agent"))
    listener.listen()
    threads: list[threading.Thread] = []

    def answer(client: socket.socket) -> None:
        with client:
            while client.recv(4096):
                client.sendall(ANSWER)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(client,)))
            threads[-1].start()

    threads.append(threading.Thread(target=serve))
    threads[0].start()
    yield tmp_path / "agent"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join()


def connect(guest: FakeGuest) -> GuestStream:
    """The next stream that waits, with a connection at its guest's end."""
    guest.opened.acquire()
    stream = guest.peers[-1]
    stream.send_json(FrameType.REPLY, {})
    return stream


def ask(stream: GuestStream, *pieces: bytes) -> bytes:
    for piece in pieces:
        stream.send(FrameType.DATA, piece)
    return stream.expect(FrameType.DATA).payload


def test_keys_may_be_listed_and_nothing_changed(guest: Any, agent: Path) -> None:
    with AgentLoan(guest, "a1", agent) as loan:
        loan.start()
        stream = connect(guest)
        assert ask(stream, IDENTITIES) == ANSWER
        assert ask(stream, ADD_KEY) == FAILURE
        assert ask(stream, IDENTITIES[:2], IDENTITIES[2:]) == ANSWER
        stream.send(FrameType.DATA)
        assert stream.expect(FrameType.DATA).payload == b""


def test_a_second_connection_is_served_beside_the_first(guest: Any, agent: Path) -> None:
    with AgentLoan(guest, "a1", agent) as loan:
        loan.start()
        first = connect(guest)
        second = connect(guest)
        assert ask(second, IDENTITIES) == ANSWER
        assert ask(first, IDENTITIES) == ANSWER


def test_what_is_too_long_ends_its_connection_alone(guest: Any, agent: Path) -> None:
    with AgentLoan(guest, "a1", agent) as loan:
        loan.start()
        first = connect(guest)
        second = connect(guest)
        first.send(FrameType.DATA, b"\xff\xff\xff\xff\x0b")
        with pytest.raises(GuestError):
            first.expect(FrameType.DATA)
        assert ask(second, IDENTITIES) == ANSWER


def test_an_agent_that_has_gone_ends_the_connection(guest: Any, tmp_path: Path) -> None:
    with AgentLoan(guest, "a1", tmp_path / "gone") as loan:
        loan.start()
        with pytest.raises(GuestError):
            ask(connect(guest), IDENTITIES)


def test_one_that_was_never_started_ends_too(guest: Any, tmp_path: Path) -> None:
    with AgentLoan(guest, "a1", tmp_path / "gone"):
        pass
    assert guest.peers == []
