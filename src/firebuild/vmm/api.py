"""A client of Firecracker's API over its Unix socket: one kept connection, its `fault_message` in every error."""

from __future__ import annotations

import http.client
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import ApiError, DeadlineError, VmmError
from firebuild.host.deadline import Deadline
from firebuild.host.sockets import connect_unix
from firebuild.host.watch import FileWatch
from firebuild.vmm.models import VmmSetup

logger = logging.getLogger(__name__)

_ANSWER_LIMIT = 1 << 20
_LISTEN_WAIT_S = 0.005


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        deadline = Deadline(min(10.0, float(self.timeout or 0)), "connecting to the VMM's API")
        with FileWatch(self._path.parent) as watch:
            while True:
                self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
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
        logger.debug("vmm api: %s %s", method, path)
        try:
            self._connection.timeout = left_s
            if self._connection.sock is not None:
                self._connection.sock.settimeout(left_s)
            headers = {"Accept": "application/json", "Content-Type": "application/json"}
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
            answer = response.read(_ANSWER_LIMIT)
        except TimeoutError:
            raise DeadlineError(f"the VMM's API did not answer {method} {path} in time") from None
        except (OSError, http.client.HTTPException) as error:
            raise VmmError(f"the VMM's API failed at {method} {path}: {error}") from error
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

    def resume(self) -> None:
        """Let the guest's processors go on."""
        self.request("PATCH", "/vm", {"state": "Resumed"})


def _api_error(method: str, path: str, status: int, answer: bytes) -> ApiError:
    try:
        fault = str(msgspec.json.decode(answer)["fault_message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        fault = answer[:500].decode("utf-8", "replace") or "no reason given"
    return ApiError(f"the VMM refused {method} {path}: {fault}", status=status)


@contextmanager
def open_api(socket_path: Path, deadline: Deadline) -> Iterator[VmmApi]:
    """A connection to the API behind `socket_path`, which must exist; all its calls together end by `deadline`."""
    connection = _UnixConnection(socket_path, deadline.check())
    try:
        yield VmmApi(connection, deadline)
    finally:
        connection.close()
