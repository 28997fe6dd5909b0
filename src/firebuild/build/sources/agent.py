"""The caller's ssh agent, lent to an unprivileged program: it may list keys and have things signed, and nothing else.

Protocol: draft-ietf-sshm-ssh-agent. A message is a length of four bytes, big-endian, a type byte and a body.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from firebuild.errors import HostError
from firebuild.host.confined import give_folder

_ALLOWED = (11, 13)  # SSH_AGENTC_REQUEST_IDENTITIES, SSH_AGENTC_SIGN_REQUEST
_FAILURE = b"\x00\x00\x00\x01\x05"
_MESSAGE_MAX = 256 * 1024
_TIMEOUT_S = 120.0


@contextmanager
def lend_agent(agent: Path, folder: Path, user: tuple[int, int] | None) -> Iterator[Path]:
    """A socket in `folder` that `user` may connect to and that leads to the agent at `agent`. Raises HostError."""
    path = folder / "agent"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    relay = _Relay(listener, agent)
    try:
        try:
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            give_folder(path, user)
            listener.listen(8)
        except OSError as error:
            raise HostError(f"cannot lend the ssh agent `{agent}`: {error.strerror or error}") from error
        relay.start()
        yield path
    finally:
        relay.stop()
        path.unlink(missing_ok=True)


class _Relay:
    """Serves connections, each in a thread, until it is stopped."""

    def __init__(self, listener: socket.socket, agent: Path) -> None:
        self._listener = listener
        self._agent = agent
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def start(self) -> None:
        self._spawn(self._accept)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for each in (self._listener, *self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="ssh agent", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            with self._lock:
                if self._stopped:
                    return
                self._open |= {client, agent}
            try:
                agent.settimeout(_TIMEOUT_S)
                agent.connect(os.fspath(self._agent))
                while message := _receive(client):
                    if message[4] in _ALLOWED:
                        agent.sendall(message)
                        client.sendall(_receive(agent) or _FAILURE)
                    else:
                        client.sendall(_FAILURE)
            except OSError:
                return  # one of both has gone; ssh says what that means for it
            finally:
                with self._lock:
                    self._open -= {client, agent}


def _receive(connection: socket.socket) -> bytes:
    """One whole message, or nothing at the end of the stream."""
    head = _exactly(connection, 4)
    length = int.from_bytes(head, "big")
    if len(head) < 4 or not 1 <= length <= _MESSAGE_MAX:
        return b""
    body = _exactly(connection, length)
    return head + body if len(body) == length else b""


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return bytes(data)
