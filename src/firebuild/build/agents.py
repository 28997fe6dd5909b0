"""The caller's SSH agent, lent to a step: its connections are taken one by one, and it may sign, nothing else.

Protocol: draft-ietf-sshm-ssh-agent. A message is a length of four bytes, big-endian, a type byte and a body.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from firebuild.errors import FirebuildError, GuestError
from firebuild.guest.build import BuildGuest
from firebuild.guest.frames import FrameType, violation
from firebuild.guest.stream import GuestStream

_ALLOWED = (11, 13)  # SSH_AGENTC_REQUEST_IDENTITIES, SSH_AGENTC_SIGN_REQUEST
_FAILURE = b"\x00\x00\x00\x01\x05"
_MESSAGE_MAX = 256 * 1024
_TIMEOUT_S = 120.0
_MAX_CONNECTIONS = 8


class AgentLoan:
    """Serves one socket of a step from `start` to the end of the block. `name`: the socket's in the guest."""

    def __init__(self, guest: BuildGuest, name: str, agent: Path) -> None:
        self._guest = guest
        self._name = name
        self._agent = agent
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._streams: set[GuestStream] = set()
        self._ended = False

    def __enter__(self) -> AgentLoan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended = True
            streams, threads = list(self._streams), list(self._threads)
        for stream in streams:
            # Whoever waits in it wakes up; that it is gone already is as good.
            with suppress(GuestError):
                stream.abort()
        for thread in threads:
            thread.join()

    def start(self) -> None:
        """Begin: the step runs, and its socket is there."""
        self._spawn()

    def _spawn(self) -> None:
        with self._lock:
            if self._ended or len(self._threads) >= _MAX_CONNECTIONS:
                return
            thread = threading.Thread(target=self._serve, name=f"ssh agent {self._name}", daemon=True)
            self._threads.append(thread)
            # Under the lock: whoever joins the threads must find each one started.
            thread.start()

    def _serve(self) -> None:
        """Take one connection after another; while the first is being served, another thread waits for the next."""
        if self._take(self._spawn):
            while self._take(lambda: None):
                pass

    def _take(self, connected: Callable[[], None]) -> bool:
        """Wait for a connection and serve it. False: there will be no more, for the step has ended, or the guest."""
        try:
            with self._guest.accept_agent(self._name) as stream:
                with self._lock:
                    if self._ended:
                        return False
                    self._streams.add(stream)
                try:
                    stream.expect(FrameType.REPLY)
                    connected()
                    # A client that breaks off, or an agent that has gone: the client sees what that means for it.
                    with suppress(FirebuildError, OSError):
                        self._relay(stream)
                finally:
                    with self._lock:
                        self._streams.discard(stream)
        except (FirebuildError, OSError):
            return False
        return True

    def _relay(self, stream: GuestStream) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as agent:
            agent.settimeout(_TIMEOUT_S)
            agent.connect(os.fspath(self._agent))
            for message in _read_messages(stream):
                answer = _FAILURE
                if message[4] in _ALLOWED:
                    agent.sendall(message)
                    answer = _receive(agent) or _FAILURE
                stream.send(FrameType.DATA, answer)
        stream.send(FrameType.DATA)


def _read_messages(stream: GuestStream) -> Iterator[bytes]:
    """The client's messages until its end of data. Raises GuestError for one that is too long."""
    data = bytearray()
    while payload := stream.expect(FrameType.DATA).payload:
        data += payload
        while len(data) >= 5:
            length = 4 + int.from_bytes(data[:4], "big")
            if not 5 <= length <= _MESSAGE_MAX:
                raise violation("an SSH agent's message that is too long")
            if len(data) < length:
                break
            yield bytes(data[:length])
            del data[:length]


def _receive(agent: socket.socket) -> bytes:
    """One whole answer, or nothing if the agent has closed."""
    data = bytearray()
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        wanted = 4 if len(data) < 4 else 4 + int.from_bytes(data[:4], "big")
        if wanted > _MESSAGE_MAX:
            return b""
        piece = agent.recv(wanted - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)
