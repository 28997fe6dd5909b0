"""A client of Firecracker's API over its Unix socket: one kept connection, its `fault_message` in every error."""

from __future__ import annotations

import http.client
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import ApiError, DeadlineError, VmmError
from firebuild.host.deadline import Deadline
from firebuild.host.sockets import connect_unix
from firebuild.host.watch import FileWatch
from firebuild.vmm.models import SnapshotCreate, SnapshotLoad, VmmSetup

calls = logging.getLogger("firebuild.vmm.calls")
"""Each call with its answer, at INFO: `--log-firecracker-http-calls` shows them."""

_ANSWER_LIMIT = 1 << 20
# A fault quotes what was asked, which may be long.
_FAULT_LIMIT = 2000
_LISTEN_WAIT_S = 0.005


class _Socket(socket.socket):
    """Gives up at a deadline, however many bytes still come one by one."""

    deadline: Deadline

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        """As a socket's own, by the deadline. Raises TimeoutError."""
        left_s = self.deadline.remaining_s()
        if not left_s:
            raise TimeoutError
        self.settimeout(left_s)
        return super().recv_into(*arguments, **named)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket. All that is read over it is read by `deadline`."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        super().__init__("localhost", timeout=deadline.check())
        self._path = path
        self._deadline = deadline

    def connect(self) -> None:
        """Connect to the socket's path."""
        deadline = Deadline(min(10.0, float(self.timeout or 0)), "connecting to the VMM's API")
        with FileWatch(self._path.parent) as watch:
            while True:
                self.sock = _Socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                self.sock.deadline = self._deadline
                self.sock.settimeout(self.timeout)
                try:
                    connect_unix(self.sock, self._path)
                    return
                except ConnectionRefusedError:
                    # bind(2) makes the file, listen(2) comes a moment later, and no event tells of it.
                    self.sock.close()
                    watch.wait(timeout_s=min(_LISTEN_WAIT_S, deadline.check()))


class VmmApi:
    """One VMM's API. Methods raise ApiError with the VMM's `fault_message`, VmmError if it does not answer, DeadlineError."""

    def __init__(self, connection: http.client.HTTPConnection, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def request(self, method: str, path: str, body: object = None) -> Any:
        """Send one request; returns the decoded JSON answer, None for an empty one."""
        data = None if body is None else msgspec.json.encode(body)
        left_s = self._deadline.check()
        asked = time.monotonic()
        try:
            self._connection.timeout = left_s
            if self._connection.sock is not None:
                self._connection.sock.settimeout(left_s)
            headers = {"Accept": "application/json", "Content-Type": "application/json"}
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
            answer = response.read(_ANSWER_LIMIT + 1)
        except TimeoutError:
            raise DeadlineError(f"the VMM's API did not answer {method} {path} in time") from None
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            raise VmmError(f"the VMM closed its API's connection instead of answering {method} {path}") from error
        except (OSError, http.client.HTTPException) as error:
            raise VmmError(f"the VMM's API failed at {method} {path}: {_reason(error)}") from error
        if len(answer) > _ANSWER_LIMIT:
            raise VmmError(f"the VMM's API answered {method} {path} with more than {_ANSWER_LIMIT} bytes")
        if calls.isEnabledFor(logging.INFO):
            # Metadata is the user's own, and may hold what is nobody else's business.
            body_shown = "" if data is None else " …" if path == "/mmds" else " " + data.decode()
            took_ms = (time.monotonic() - asked) * 1000
            answered = answer[:_FAULT_LIMIT].decode("utf-8", "replace") if path != "/mmds" else ""
            calls.info("%s %s%s: %d %s (%.1f ms)", method, path, body_shown, response.status, answered, took_ms)
        if response.status >= 300:
            raise _api_error(method, path, response.status, answer)
        try:
            return msgspec.json.decode(answer) if answer else None
        except msgspec.DecodeError as error:
            raise VmmError(f"the VMM's API answered {method} {path} with something that is not JSON") from error

    def get_version(self) -> str:
        """The VMM's version, `1.12.0`."""
        answer = self.request("GET", "/version")
        return str(answer.get("firecracker_version", "")) if isinstance(answer, dict) else ""

    def configure(self, setup: VmmSetup) -> None:
        """Put everything that a machine needs before it starts."""
        self.request("PUT", "/machine-config", setup.machine)
        if setup.cpu_config is not None:
            self.request("PUT", "/cpu-config", setup.cpu_config)
        if setup.balloon is not None:
            self.request("PUT", "/balloon", setup.balloon)
        self.request("PUT", "/boot-source", setup.boot)
        for drive in setup.drives:
            self.request("PUT", f"/drives/{drive.drive_id}", drive)
        for interface in setup.interfaces:
            self.request("PUT", f"/network-interfaces/{interface.iface_id}", interface)
        self.request("PUT", "/vsock", setup.vsock)
        self.request("PUT", "/entropy", {})
        if setup.mmds_config is not None:
            self.request("PUT", "/mmds/config", setup.mmds_config)
            self.request("PUT", "/mmds", setup.mmds or {})

    def start_instance(self) -> None:
        """Boot the guest."""
        self.request("PUT", "/actions", {"action_type": "InstanceStart"})

    def pause(self) -> None:
        """Stop the guest's processors."""
        self.request("PATCH", "/vm", {"state": "Paused"})

    def create_snapshot(self, request: SnapshotCreate) -> None:
        """Save the paused machine."""
        self.request("PUT", "/snapshot/create", request)

    def load_snapshot(self, request: SnapshotLoad) -> None:
        """Become a saved machine, paused."""
        self.request("PUT", "/snapshot/load", request)

    def put_metadata(self, document: dict[str, Any]) -> None:
        """Fill the metadata service, which a snapshot leaves empty."""
        self.request("PUT", "/mmds", document)

    def resume(self) -> None:
        """Let the guest's processors go on."""
        self.request("PATCH", "/vm", {"state": "Resumed"})


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.BadStatusLine):
        return "its answer is not HTTP"
    return f"{type(error).__name__}: {error}"[:200]


def _api_error(method: str, path: str, status: int, answer: bytes) -> ApiError:
    try:
        fault = str(msgspec.json.decode(answer)["fault_message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        fault = answer.decode("utf-8", "replace") or "no reason given"
    shown = "".join(char if char.isprintable() else "?" for char in fault[:_FAULT_LIMIT])
    return ApiError(f"the VMM refused {method} {path} with status {status}: {shown}", status=status)


@contextmanager
def open_api(socket_path: Path, deadline: Deadline) -> Iterator[VmmApi]:
    """A connection to the API behind `socket_path`, which must exist; all its calls together end by `deadline`."""
    connection = _UnixConnection(socket_path, deadline)
    try:
        yield VmmApi(connection, deadline)
    finally:
        connection.close()
