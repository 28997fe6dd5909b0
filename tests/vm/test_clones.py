"""Two clones of one snapshot, compared with each other and with the machine that it was made of (docs/reference/clones.md)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from firebuild.guest.control import (
    request_continue,
    request_pause_for_snapshot,
    request_processes,
    request_resume,
)
from firebuild.guest.exec import ExecSpec, open_exec
from firebuild.host.deadline import Deadline
from tests.support.cli import COMMAND_TIMEOUT_S
from tests.support.emulator_guest import REPLY, REQUEST, Emulator, Stream
from tests.vm.conftest import BASE, SharedState

# It draws random bytes all the time, and keeps them in the order of its life.
DRAW = "while :; do head -c 16 /dev/urandom | od -An -tx1 >>/drawn; done"
HOOK = "#!/bin/sh\nhead -c 16 /dev/urandom | od -An -tx1 >/hooked; cat /proc/sys/kernel/random/uuid >>/hooked\n"
FIRST = "a" * 20


class Machine:
    """A microVM of the emulator's, and whoever takes its guest's pushes."""

    def __init__(self, folder: Path, machine_id: str) -> None:
        folder.mkdir()
        self.folder, self.id = folder, machine_id
        self.vsock = folder / "v.sock"
        self.events: list[str] = []
        self.ready = threading.Event()
        self.emulator = Emulator(folder)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "v.sock_1025"))
        self.listener.listen()
        threading.Thread(target=self._take_pushes, daemon=True).start()

    def document(self) -> dict[str, Any]:
        """What its guest is to become."""
        entrypoint = json.dumps({"EntryPoint": ["/bin/sh", "-c", DRAW]})
        return {
            "id": self.id, "kind": "run", "init": "direct", "root": {"mode": "overlay", "lower": "vda", "upper": "vdb"},
            "metadata": {"LocalHostname": f"host-{self.id[0]}", "EntrypointJSON": entrypoint, "Env": {"WHO": self.id}},
        }  # fmt: skip

    def _take_pushes(self) -> None:
        while True:
            try:
                connected, _ = self.listener.accept()
            except OSError:
                return
            stream = Stream(connected)
            try:
                self._take(stream)
            except (AssertionError, OSError, ValueError):
                # The guest has closed it for a snapshot, and opens another.
                connected.close()

    def _take(self, stream: Stream) -> None:
        kind, request = stream.receive()
        assert (kind, request["op"]) == (REQUEST, "boot")
        stream.send(REPLY, {"protocol": 1, "clock_ns": time.time_ns(), "boot": self.document()})
        while True:
            _, event = stream.receive()
            self.events.append(event["event"])
            if event["event"] == "ready":
                self.ready.set()

    def sh(self, script: str) -> str:
        """What a script prints in it."""
        printed = bytearray()
        with open_exec(self.vsock, ExecSpec(["/bin/sh", "-c", script]), deadline()) as session:
            assert session.wait(lambda _, data: printed.extend(data), deadline()) == 0
        return printed.decode()

    def pids(self) -> list[int]:
        """All its processes but PID 1."""
        return [process.pid for process in request_processes(self.vsock, deadline()).processes[1:]]

    def end(self) -> None:
        """Kill it."""
        self.emulator.end()
        self.listener.close()


def deadline() -> Deadline:
    return Deadline(COMMAND_TIMEOUT_S, "the guest's answer")


class Trio:
    """A machine, and two clones of its snapshot that have not been resumed yet."""

    def __init__(self, folder: Path, shared: SharedState, stack: ExitStack) -> None:
        self.folder = folder
        self.first = self.start("first", FIRST, stack)
        [kernel] = (shared.state / "kernels").glob("*/vmlinux")
        upper = self.first.folder / "upper.ext4"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", str(upper), "256M"], check=True, timeout=COMMAND_TIMEOUT_S)
        root = find_root(shared)
        initrd = max((shared.state / "initramfs").iterdir(), key=os.path.getmtime)
        api = self.first.emulator.api
        api.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 256})
        api.put(
            "/boot-source",
            {"kernel_image_path": str(kernel), "initrd_path": str(initrd), "boot_args": "console=ttyS0 panic=1 quiet"},
        )
        for name, path, read_only in (("root", root, True), ("upper", Path("upper.ext4"), False)):
            drive = {"drive_id": name, "path_on_host": str(path), "is_root_device": False, "is_read_only": read_only}
            api.put(f"/drives/{name}", drive)
        api.put("/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
        api.put("/actions", {"action_type": "InstanceStart"})
        assert self.first.ready.wait(COMMAND_TIMEOUT_S)
        self.first.sh(
            f"mkdir -p /etc/firebuild/resume.d; printf '{HOOK}' >/etc/firebuild/resume.d/10; chmod 755 /etc/firebuild/resume.d/10"
        )
        self.identity = self.first.sh("cat /etc/machine-id /proc/sys/kernel/random/boot_id").split()
        assert request_pause_for_snapshot(self.first.vsock, deadline()).held_by == "groups"
        api.patch("/vm", {"state": "Paused"})
        self.files = {"snapshot_path": str(folder / "state"), "mem_file_path": str(folder / "memory")}
        api.put("/snapshot/create", self.files)
        self.clones = [self.start(name, name * 20, stack) for name in "bc"]
        for clone in self.clones:
            copy = ["cp", "--sparse=always", str(upper), str(clone.folder / "upper.ext4")]
            subprocess.run(copy, check=True, timeout=COMMAND_TIMEOUT_S)
            backend = {"backend_path": self.files["mem_file_path"], "backend_type": "File"}
            body = {"snapshot_path": self.files["snapshot_path"], "mem_backend": backend, "resume_vm": True}
            clone.emulator.api.put("/snapshot/load", body)
        api.patch("/vm", {"state": "Resumed"})

    def start(self, name: str, machine_id: str, stack: ExitStack) -> Machine:
        machine = Machine(self.folder / name, machine_id)
        stack.callback(machine.end)
        return machine


def find_root(shared: SharedState) -> Path:
    """The base image's disk."""
    cli = shared.cli()
    # A disk is derived when it is wanted for the first time.
    cli.ok("run", "--rm", "--name", "clones0", "--from", BASE, "--", "true")
    return Path(cli.json("image", "inspect", BASE)[0]["Disk"]["Path"])


@pytest.fixture(scope="module")
def trio(shared_state: SharedState) -> Iterator[Trio]:
    with tempfile.TemporaryDirectory(prefix="fbc-", dir="/var/tmp") as folder, ExitStack() as stack:
        Path(folder).chmod(0o711)
        yield Trio(Path(folder), shared_state, stack)


def test_two_clones(trio: Trio) -> None:
    first, clones = trio.first, trio.clones
    # Nobody goes on by himself: neither the clones nor the machine itself.
    for machine in (first, *clones):
        seen = machine.pids()
        assert seen and all(machine.pids() == seen for _ in range(5))
    pushes = [list(machine.events) for machine in clones]
    assert pushes == [[], []]

    # The machine goes on as it was.
    request_continue(first.vsock, deadline())
    assert first.sh("cat /etc/machine-id /proc/sys/kernel/random/boot_id").split() == trio.identity
    assert first.sh("ls /hooked 2>/dev/null || echo none") == "none\n"

    for clone in clones:
        steps = request_resume(clone.vsock, clone.document(), deadline())
        assert steps[0].name == "random-pool" and steps[-1].name == "go-on"
        assert clone.ready.wait(COMMAND_TIMEOUT_S)
    whole = [first, *clones]

    # Who it is: nothing of that is the same in two of them.
    identities = [trio.identity] + [
        machine.sh("cat /etc/machine-id /proc/sys/kernel/random/boot_id").split() for machine in clones
    ]
    assert all(len({identity[number] for identity in identities}) == 3 for number in range(2))
    assert [machine.sh("hostname; cat /etc/hostname") for machine in whole] == [
        f"host-{name}\nhost-{name}\n" for name in "abc"
    ]
    assert [machine.sh(". /etc/profile.d/run-env.sh; echo $WHO") for machine in whole] == [f"{m.id}\n" for m in whole]
    assert all(abs(int(machine.sh("date +%s")) - time.time()) < 600 for machine in whole)

    # The hooks were the first to draw random bytes after the restore, with everything else the same.
    hooked = [machine.sh("cat /hooked").splitlines() for machine in clones]
    assert len(hooked[0]) == 2 and not set(hooked[0]) & set(hooked[1])
    # The entrypoint's life is one until the snapshot, and then there are three.
    for machine in whole:
        machine.sh("n=$(wc -l </drawn); until [ $(wc -l </drawn) -gt $((n + 5)) ]; do :; done")
    drawn = [machine.sh("cat /drawn").splitlines() for machine in whole]
    same = next(number for number, lines in enumerate(zip(*drawn, strict=False)) if len(set(lines)) > 1)
    assert same > 0
    later = [line for lines in drawn for line in lines[same:]]
    assert len(set(later)) == len(later) > 10

    # Memory and disk are each one's own.
    clones[0].sh("echo mine >/own; echo mine >/dev/shm/own")
    assert [machine.sh("cat /own /dev/shm/own 2>/dev/null || echo none") for machine in (first, clones[1])] == [
        "none\n"
    ] * 2
