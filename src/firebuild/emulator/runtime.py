"""A running microVM: QEMU without privileges, its sockets, the metadata links; half-started undoes itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from firebuild.emulator import qemu
from firebuild.emulator.console import Console
from firebuild.emulator.http import Response
from firebuild.emulator.log import Log, open_output
from firebuild.emulator.loop import READ, Loop
from firebuild.emulator.memory import Changes, make_ram
from firebuild.emulator.models import BalloonConfig
from firebuild.emulator.qmp import Qmp, QmpError
from firebuild.emulator.resources import Resources
from firebuild.emulator.server import HttpServer
from firebuild.emulator.statefile import SavedChannel, SavedMachine
from firebuild.errors import FirebuildError, HostError
from firebuild.host.deadline import Deadline
from firebuild.host.kvm import HostKind, find_cpu_khz, find_host_mode
from firebuild.host.unprivileged import Child, start_unprivileged

START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 5.0
_STDERR_KEPT = 4096
_MMDS_CONNECTIONS = 64
_MMDS_IDLE_S = 60.0


@dataclass(frozen=True)
class LaunchOptions:
    """How QEMU is started: its user (used where the emulator is root) and whether its seccomp sandbox is on."""

    uid: int = 65534
    gid: int = 65534
    sandbox: bool = True


@dataclass(frozen=True)
class Saved:
    """A saved machine: its header, its devices' state and the descriptor of its memory, which the runtime takes over."""

    header: SavedMachine
    state: bytes
    memory: int


class Runtime:
    """A started QEMU, still paused after `start`. `on_exit(status)` is called once when it has ended; 0 is orderly."""

    def __init__(self, loop: Loop, log: Log, resources: Resources, on_exit: Callable[[int], None]) -> None:
        self._loop = loop
        self._log = log
        self._resources = resources
        self._on_exit = on_exit
        self._undo = contextlib.ExitStack()
        self._stderr = b""
        self._stderr_end: int | None = None
        self._process: Child | None = None
        self._console: Console | None = None
        self._qmp: Qmp | None = None
        self._replacements = 0
        self._drive_nodes: dict[int, str] = {}
        self._migration = ""
        self._saved = False
        self.accelerator = ""
        # The file that holds the guest's memory, and the user whose QEMU opens it (None: this process's).
        self.memory = -1
        self.owner: int | None = None

    @property
    def qemu_version(self) -> str:
        """The version that QEMU has greeted with."""
        return self._qmp.version if self._qmp is not None else ""

    def start(self, instance_id: str, options: LaunchOptions, saved: Saved | None = None) -> None:
        """Start QEMU with the guest's first instruction still to come, or as it was `saved`, paused.

        Raises FirebuildError, OSError; then all is undone.
        """
        try:
            self._start(instance_id, options, saved)
            if saved is not None:
                self._load_devices(saved)
        except BaseException:
            self.kill()
            raise

    def _start(self, instance_id: str, options: LaunchOptions, saved: Saved | None) -> None:
        resources, loop = self._resources, self._loop
        root = os.geteuid() == 0
        self.owner = options.uid if root else None
        self.memory = saved.memory if saved is not None else make_ram(resources.machine.mem_size_mib << 20, self.owner)
        self._undo.callback(os.close, self.memory)
        self._saved = saved is not None
        for net in resources.mmds_nets():
            self._serve_mmds(net.config.host_dev_name)
        output = self._console_output()
        with contextlib.ExitStack() as passed:
            # QEMU's ends of the sockets are ours only until it runs.
            ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
            for end in theirs:
                passed.callback(end.close)
            qmp_socket, console_socket, port = ours
            for end in ours:
                self._undo.callback(end.close)
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            passed.callback(os.close, write_end)
            self._undo.callback(os.close, read_end)
            plan, groups = self._plan(instance_id, options, passed, [end.fileno() for end in theirs])
            # Kept, to see what QEMU has not read yet when a snapshot is made.
            self._peer = theirs[2].dup()
            self._undo.callback(self._peer.close)
            argv = qemu.plan_command(plan)
            self._log.info("Starting " + " ".join(argv))
            process = start_unprivileged(
                argv, uid=options.uid if root else None, gid=options.gid if root else None, groups=groups,
                pass_fds=plan.descriptors(), output_fd=write_end,
            )  # fmt: skip
            self._process = process
        os.set_blocking(read_end, False)
        self._stderr_end = read_end
        loop.watch(read_end, READ, lambda _: self._read_stderr(read_end))
        self._undo.callback(loop.forget, read_end)
        self._qmp = Qmp(qmp_socket, lambda: process.running, self._on_event)
        try:
            self._qmp.greet(Deadline(START_TIMEOUT_S, "the start of QEMU"))
        except QmpError as error:
            status = process.wait(COMMAND_TIMEOUT_S)
            self._read_stderr(read_end)
            said = self._stderr.decode("utf-8", "replace").strip().replace("\n", "; ")
            raise HostError(f"QEMU ended with status {status}: {said or error}") from error
        self._console = Console(loop, console_socket, output, self._keyboard())
        self._undo.callback(self._console.close)
        if resources.channel is not None:
            if saved is not None and saved.header.channel is not None:
                resources.channel.thaw(saved.header.channel)
            resources.channel.attach(port)
            self._undo.callback(resources.channel.detach)
        loop.watch(qmp_socket.fileno(), READ, lambda _: self._poll_qmp())
        self._undo.callback(loop.forget, qmp_socket.fileno())
        ended = os.pidfd_open(process.pid)
        self._undo.callback(os.close, ended)
        loop.watch(ended, READ, lambda _: self._end())
        self._undo.callback(loop.forget, ended)

    def _plan(
        self, instance_id: str, options: LaunchOptions, passed: contextlib.ExitStack, sockets: list[int]
    ) -> tuple[qemu.MachinePlan, list[int]]:
        resources = self._resources
        boot = resources.boot
        if boot is None and not self._saved:
            raise HostError("there is no boot source")
        kvm, groups = self._choose_accelerator()
        self.accelerator = "kvm" if kvm else "tcg"
        khz = None if kvm else find_cpu_khz()
        kernel = _readable(boot.kernel, passed) if boot is not None else None
        initrd = _readable(boot.initrd, passed) if boot is not None and boot.initrd is not None else None
        bucket = resources.entropy.rate_limiter if resources.entropy is not None else None
        limit = bucket.bandwidth if bucket is not None and bucket.bandwidth and bucket.bandwidth.per_second() else None
        plan = qemu.MachinePlan(
            name=instance_id,
            kvm=kvm,
            vcpu_count=resources.machine.vcpu_count,
            smt=resources.machine.smt,
            mem_size_mib=resources.machine.mem_size_mib,
            kernel=f"/dev/fd/{kernel}" if kernel is not None else None,
            initrd=f"/dev/fd/{initrd}" if initrd is not None else None,
            boot_args=qemu.plan_boot_args(
                boot.config.boot_args if boot is not None else None, root=resources.root(), tsc_khz=khz
            ),
            ram=self.memory,
            ram_shared=not self._saved,
            incoming=self._saved,
            qmp=sockets[0],
            console=sockets[1],
            channel=sockets[2] if resources.channel is not None else None,
            drives=[drive.plan(index) for index, drive in enumerate(resources.drives)],
            nets=[
                qemu.NetPlan(index, net.descriptor, net.mac, net.config.mtu) for index, net in enumerate(resources.nets)
            ],
            entropy=resources.entropy is not None,
            entropy_bytes=limit.size if limit is not None else 0,
            entropy_period_ms=limit.refill_time if limit is not None else 0,
            balloon=_plan_balloon(resources.balloon),
            sandbox=options.sandbox,
            extra_fds=[number for number in (kernel, initrd) if number is not None],
        )
        return plan, groups

    def _choose_accelerator(self) -> tuple[bool, list[int]]:
        """Whether KVM is real and QEMU's user can be let in, and the groups that this takes."""
        mode = find_host_mode()
        if mode.kind is not HostKind.KVM:
            self._log.info(f"The guest runs on QEMU's software CPU: {mode.reason}.")
            return False, []
        status = os.stat("/dev/kvm")
        groups: list[int] = []
        if os.geteuid() != 0:
            usable = mode.usable
        elif status.st_mode & 0o006 == 0o006:
            usable = True
        else:
            usable, groups = status.st_mode & 0o060 == 0o060 and status.st_gid != 0, [status.st_gid]
        if not usable:
            self._log.warning("The guest runs on QEMU's software CPU: QEMU's user may not open /dev/kvm.")
            return False, []
        self._log.info(f"The guest runs on KVM: {mode.reason}.")
        return True, groups

    def _console_output(self) -> int:
        serial = self._resources.serial
        if serial is None or serial.serial_out_path is None:
            return sys.__stdout__.fileno() if sys.__stdout__ is not None else 1
        descriptor = open_output(serial.serial_out_path)
        self._undo.callback(os.close, descriptor)
        return descriptor

    def _keyboard(self) -> int | None:
        return sys.__stdin__.fileno() if sys.__stdin__ is not None and not sys.__stdin__.closed else None

    def _serve_mmds(self, tap: str) -> None:
        from firebuild.emulator.mmds_links import close_link, open_link

        config = self._resources.mmds_config
        assert config is not None and config.ipv4_address is not None
        link = open_link(tap, config.ipv4_address)
        self._undo.callback(close_link, link)
        server = HttpServer(
            self._loop, link.listener, name="Firecracker API", body_limit=0, connection_limit=_MMDS_CONNECTIONS,
            idle_s=_MMDS_IDLE_S, answer=self._resources.mmds.answer,
            refuse=lambda status, message: Response(status, message.encode(), "text/plain"),
        )  # fmt: skip
        self._undo.callback(server.close)

    # A running machine.

    def execute(self, command: str, arguments: dict[str, Any] | None = None, descriptors: tuple[int, ...] = ()) -> Any:
        """Run one QMP command. Raises QmpError, DeadlineError."""
        assert self._qmp is not None
        deadline = Deadline(COMMAND_TIMEOUT_S, f"QEMU's command `{command}`")
        return self._qmp.execute(command, arguments, deadline=deadline, descriptors=descriptors)

    def replace_drive_file(self, drive: qemu.DrivePlan, new_bytes: int | None) -> None:
        """Swap the file under a drive and tell the guest of its new size, None if that is the old one. Raises FirebuildError.

        A size can only be told of a drive that the guest may write: QEMU resizes no read-only node.
        """
        self._replacements += 1
        node, previous = f"{drive.node}-file{self._replacements}", self._drive_nodes.get(drive.index)
        fd_set = self.execute("add-fd", None, (drive.descriptor,))["fdset-id"]
        try:
            self.execute("blockdev-add", qemu.plan_drive_file(drive, fd_set, node))
        except FirebuildError:
            self.execute("remove-fd", {"fdset-id": fd_set})
            raise
        try:
            self.execute("blockdev-reopen", {"options": [qemu.plan_drive_raw(drive, node)]})
        except FirebuildError:
            self.execute("blockdev-del", {"node-name": node})
            raise
        self._drive_nodes[drive.index] = node
        self.execute("blockdev-del", {"node-name": previous or f"{drive.node}-file0"})
        if new_bytes is not None:
            self.execute("block_resize", {"node-name": drive.node, "size": new_bytes - new_bytes % 512})

    def limit_drive(self, drive: qemu.DrivePlan) -> None:
        """Set a drive's rate limits. Raises FirebuildError."""
        limits = qemu.plan_limits(drive.bytes_per_s, drive.ops_per_s)
        self.execute("qom-set", {"path": f"/objects/{drive.node}-limits", "property": "limits", "value": limits})

    # Snapshots.

    def save(self, save_memory: Callable[[Changes | None], None]) -> tuple[bytes, SavedChannel | None]:
        """The paused machine's devices and channel; `save_memory` is called when all that QEMU had under way is done.

        The machine can go on afterwards, and be saved again. Raises FirebuildError, OSError.
        """
        assert self._process is not None
        channel = self._resources.channel
        if channel is not None:
            channel.settle(self._peer, lambda: self.execute("query-status"))
        state = self._save_devices()
        size = self._resources.machine.mem_size_mib << 20
        save_memory(Changes(self._process.pid, self.memory, size) if self._saved else None)
        return state, channel.freeze(self._peer) if channel is not None else None

    def _save_devices(self) -> bytes:
        with contextlib.ExitStack() as stack:
            result = make_ram(0, self.owner)
            stack.callback(os.close, result)
            # QEMU takes one that is open exactly as it would open it itself.
            passed = os.open(f"/dev/fd/{result}", os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, passed)
            fd_set = self.execute("add-fd", None, (passed,))["fdset-id"]
            stack.callback(self.execute, "remove-fd", {"fdset-id": fd_set})
            # Of the two ways that QEMU has, the one that leaves memory alone and the machine as it is: after a migration
            # to a file a paused machine could neither be saved again nor have its drives changed.
            self.execute("xen-save-devices-state", {"filename": f"/dev/fdset/{fd_set}", "live": False})
            return os.pread(result, os.fstat(result).st_size, 0)

    def _load_devices(self, saved: Saved) -> None:
        assert self._qmp is not None
        if self._qmp.version != saved.header.qemu_version or self.accelerator != saved.header.accelerator:
            raise HostError(
                f"the snapshot was made by QEMU {saved.header.qemu_version} on {saved.header.accelerator}, and this is QEMU "
                f"{self._qmp.version} on {self.accelerator}"
            )
        self.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
        with contextlib.ExitStack() as stack:
            state = make_ram(0, self.owner)
            stack.callback(os.close, state)
            os.write(state, saved.state)
            os.lseek(state, 0, os.SEEK_SET)
            self.execute("getfd", {"fdname": "state"}, (state,))
            self.execute("migrate-incoming", {"uri": "fd:state"})
            deadline = Deadline(COMMAND_TIMEOUT_S, "QEMU's loading of the devices' state")
            self._qmp.await_event(lambda: self._migration in ("completed", "failed"), deadline)
        if self._migration != "completed":
            raise HostError("QEMU refused the devices' state")

    def _poll_qmp(self) -> None:
        assert self._qmp is not None
        try:
            self._qmp.poll()
        except QmpError:
            # The pidfd tells what became of QEMU.
            self._loop.forget(self._qmp.socket.fileno())

    def _on_event(self, name: str, data: Any) -> None:
        self._log.info(f"QEMU: {name} {data or ''}".rstrip())
        if name == "MIGRATION":
            self._migration = str(data["status"])

    def _read_stderr(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.forget(descriptor)
            return
        self._stderr = (self._stderr + data)[-_STDERR_KEPT:]
        for line in data.decode("utf-8", "replace").splitlines():
            self._log.warning(f"QEMU: {line}")

    def _end(self) -> None:
        """QEMU has ended by itself: what it had still sent is passed on before all is closed."""
        assert self._process is not None
        status = self._process.wait()
        assert status is not None
        if self._stderr_end is not None:
            self._read_stderr(self._stderr_end)
        if self._console is not None:
            self._console.drain(DRAIN_TIMEOUT_S)
        if self._resources.channel is not None:
            self._resources.channel.drain(DRAIN_TIMEOUT_S)
        self.kill()
        self._on_exit(status)

    def kill(self) -> None:
        """End QEMU if it runs, and take everything down; twice is fine."""
        if self._process is not None:
            self._process.kill()
        try:
            self._undo.close()
        except FirebuildError as error:
            self._log.error(f"Cleaning up: {error}")


def _plan_balloon(config: BalloonConfig | None) -> qemu.BalloonPlan | None:
    if config is None:
        return None
    return qemu.BalloonPlan(deflate_on_oom=config.deflate_on_oom, page_reporting=config.free_page_reporting)


def _readable(descriptor: int, passed: contextlib.ExitStack) -> int:
    """A descriptor that QEMU's user may open again by /dev/fd: of the file itself if anybody may read it, else of a copy."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        return descriptor
    copy = os.memfd_create("firecracker-emulator", os.MFD_CLOEXEC)
    passed.callback(os.close, copy)
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as source, os.fdopen(os.dup(copy), "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    os.fchmod(copy, 0o444)
    return copy
