"""A machine's supervisor process: started, listened to, told to kill."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import FirebuildError, MachineError
from firebuild.host.deadline import Deadline
from firebuild.host.files import write_atomic
from firebuild.host.identity import ProcessIdentity, find_identity
from firebuild.host.process import end_process, start_detached
from firebuild.layout import MachineLayout, get_bundled
from firebuild.machine.isolation import Kept
from firebuild.machine.spec import MachineSpec
from firebuild.vmm.jailer import JailPlan
from firebuild.vmm.process import VmmLaunch

CONSOLE_LIMIT_BYTES = 4 << 20
OUTPUT_LIMIT_BYTES = 16 << 20
# Where the guest pushes to (protocol/PROTOCOL.md, section 3).
PUSH_PORT = 1025
_LINE_LIMIT = 1 << 20
_START_TIMEOUT_S = 60.0
_UCRED = struct.Struct("3i")  # unix(7): pid, uid, gid


class Owner:
    """The pipe that ties a machine to this process: if the process ends without `release`, the machine is killed."""

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end = read_end
        self._write_end = write_end

    def release(self) -> None:
        """Let the machine outlive this process."""
        os.write(self._write_end, b"r")


@contextmanager
def open_owner() -> Iterator[Owner]:
    """An owner pipe for the block."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        yield Owner(read_end, write_end)
    finally:
        os.close(read_end)
        os.close(write_end)


def start_supervisor(
    spec: MachineSpec,
    paths: MachineLayout,
    launch: VmmLaunch,
    kept: Kept,
    *,
    netns: Path | None,
    on_exit: Sequence[str],
    on_change: Sequence[str],
    environment: Mapping[str, str],
    owner: Owner,
) -> tuple[ProcessIdentity, ProcessIdentity]:
    """Start the supervisor, which starts the VMM; returns both identities. Raises MachineError with what it said.

    Once `owner` is released the supervisor outlives this process. It reports on a pipe when its sockets listen and the
    VMM runs.
    """
    jail = kept.jail
    config = {
        "id": spec.id,
        "vmm": {
            "argv": launch.argv,
            "env": launch.env,
            # A jailed VMM joins it by its jailer.
            "netns": str(netns) if netns and jail is None else None,
            "cwd": str(paths.run),
            "cgroups": kept.cgroup.folders if kept.cgroup is not None else [],
            "jail": _plan_mounts(jail) if jail is not None else None,
        },
        "push_socket": str(paths.push_socket if jail is None else jail.on_host(f"{jail.vsock}_{PUSH_PORT}")),
        "push_socket_owner": None if jail is None else [jail.uid, jail.uid],
        "control_socket": str(paths.control_socket),
        "boot_document": str(paths.boot_document),
        "console_log": {"path": str(paths.console_log), "max_bytes": CONSOLE_LIMIT_BYTES},
        "output_log": {"path": str(paths.output_log), "max_bytes": OUTPUT_LIMIT_BYTES},
        "vmm_pid_file": str(paths.vmm_pid_file),
        "exit_record": str(paths.exit_record),
        "on_exit": list(on_exit),
        "on_change": list(on_change),
        "boot_timeout_ms": int(spec.boot_timeout_s * 1000),
    }
    write_atomic(paths.supervisor_config, msgspec.json.encode(config))
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    numbers = ["--ready-fd", str(write_end), "--owner-fd", str(owner.read_end)]
    try:
        process = start_detached(
            [str(get_bundled("firebuild-supervisor")), "--config", str(paths.supervisor_config), *numbers],
            log=paths.supervisor_log,
            pass_fds=[write_end, owner.read_end],
            environment=environment,
        )
        os.close(write_end)
        write_end = -1
        identity = find_identity(process.pid)
        try:
            started = _read_started(read_end, paths)
        except BaseException:
            end_process(process, grace_s=5)
            raise
        if identity is None:
            raise MachineError(f"the supervisor of {spec.name} ended at once", details=read_tail(paths.supervisor_log))
        # Its end is not ours to wait for: it outlives us. Popen must not warn of it.
        process.returncode = 0
        return identity, started
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


def _plan_mounts(jail: JailPlan) -> dict[str, Any]:
    return {
        "root": str(jail.root),
        "mounts": [
            {"source": file.source, "target": str(jail.on_host(file.inside)), "read_only": file.read_only}
            for file in jail.files.values()
            if not file.device
        ],
        "new_netns": jail.netns is None,
    }


def _read_started(read_end: int, paths: MachineLayout) -> ProcessIdentity:
    deadline = Deadline(_START_TIMEOUT_S, "starting the supervisor")
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([read_end], [], [], deadline.check())
        chunk = os.read(read_end, 65536) if ready else b""
        if ready and not chunk:
            break
        line += chunk
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError:
        raise MachineError("the supervisor did not start", details=read_tail(paths.supervisor_log)) from None
    if value.get("event") != "started":
        raise MachineError(f"the VMM did not start: {value.get('message', 'no reason given')}")
    return ProcessIdentity(int(value["vmm_pid"]), int(value["vmm_start_time"]))


class SupervisorLink:
    """A connection to a supervisor's control socket: what has happened so far, then what happens."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self._promised = False

    def fileno(self) -> int:
        """The socket's descriptor, for select."""
        return self._socket.fileno()

    def find_event(self, deadline: Deadline | None = None) -> dict[str, Any] | None:
        """The next event; None when the supervisor is gone. Raises DeadlineError, MachineError."""
        while b"\n" not in self._buffer:
            if deadline is not None:
                ready, _, _ = select.select([self._socket], [], [], deadline.check())
                if not ready:
                    raise deadline.error()
            try:
                chunk = self._socket.recv(65536)
            except OSError:
                return None
            if not chunk:
                return None
            self._buffer += chunk
            if len(self._buffer) > _LINE_LIMIT:
                raise MachineError("the supervisor sent an event that is too long")
        line, _, self._buffer = self._buffer.partition(b"\n")
        value = msgspec.json.decode(line)
        if not isinstance(value, dict):
            raise MachineError("the supervisor sent an event that is not an object")
        return value

    def await_jailed(self, jailer: ProcessIdentity, deadline: Deadline) -> ProcessIdentity:
        """The VMM that a jailer started and left: it is in a PID namespace of its own. Raises MachineError, DeadlineError."""
        while (event := self.find_event(deadline)) is not None:
            if event.get("event") == "started" and event.get("vmm_pid") != jailer.pid:
                return ProcessIdentity(int(event["vmm_pid"]), int(event["vmm_start_time"]))
            if event.get("event") == "vmm-exit":
                raise MachineError(f"the jailer ended with status {event.get('status')} before it had started the VMM")
        raise MachineError("the supervisor ended while the jailer was at work")

    def find_status(self, deadline: Deadline) -> dict[str, Any] | None:
        """What the supervisor says of its machine now; None when it is gone. Raises DeadlineError, MachineError."""
        try:
            self._socket.sendall(b'{"op":"status"}\n')
        except OSError:
            return None
        # What has happened so far comes first.
        while (event := self.find_event(deadline)) is not None and event.get("event") != "status":
            continue
        return event

    def kill_vmm(self) -> None:
        """Have the VMM killed. A supervisor that is gone has already seen to that."""
        self._say("kill")

    def await_vmm_end(self, deadline: Deadline | None) -> int | None:
        """Wait until the VMM has ended, or the supervisor; the entrypoint's exit code, None where it told none.
        Raises DeadlineError, MachineError."""
        code = None
        while (event := self.find_event(deadline)) is not None and event.get("event") != "vmm-exit":
            if event.get("event") == "exit" and isinstance(event.get("code"), int):
                code = event["code"]
        return code

    def promise_cleanup(self, supervisor: ProcessIdentity) -> None:
        """From here on this process cleans up when the VMM has ended, within `cleaning`; a command of the supervisor's own then
        need not. If this connection is closed before that, the supervisor starts that command after all.

        Nothing is promised to another one than `supervisor`: the machine has been started again since.
        """
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(credentials)[0] == supervisor.pid:
            self._promised = True
            self._say("clean")

    @contextmanager
    def cleaning(self) -> Iterator[None]:
        """The block is the clean-up that was promised, if it was."""
        try:
            yield
        except FirebuildError:
            # Another try at once would fail as this one did; the record tells that something is left to do.
            self._settle()
            raise
        self._settle()

    def _settle(self) -> None:
        if self._promised:
            self._say("cleaned")

    def _say(self, op: str) -> None:
        # One that is gone has nothing left to do.
        with suppress(OSError):
            self._socket.sendall(msgspec.json.encode({"op": op}) + b"\n")


@contextmanager
def open_supervisor(paths: MachineLayout) -> Iterator[SupervisorLink | None]:
    """Connect to the machine's supervisor; None where it is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.connect(str(paths.control_socket))
        except OSError:
            yield None
            return
        yield SupervisorLink(connection)


def read_tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, control characters made visible; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 32768))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    kept = [line.rstrip("\r") for line in text.split("\n") if line.strip()][-lines:]
    return "\n".join("".join(c if c >= " " or c == "\t" else "?" for c in line) for line in kept)
