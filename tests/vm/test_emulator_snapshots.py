"""Snapshots of a real guest over the emulator's API: saved, gone on, restored twice, restored from what changed, refused."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.emulator_guest import TIMEOUT_S, Emulator, Guest
from tests.vm.conftest import SharedState

PAUSED, RESUMED = {"state": "Paused"}, {"state": "Resumed"}


class Bench:
    """A booted guest with a snapshot of it, and a place for what is restored from it."""

    def __init__(self, folder: Path, shared: SharedState, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._count = 0
        [kernel] = (shared.state / "kernels").glob("*/vmlinux")
        initrd = max((shared.state / "initramfs").iterdir(), key=os.path.getmtime)
        (folder / "first").mkdir()
        self.guest = Guest(folder / "first", kernel, initrd)
        stack.callback(self.guest.end)
        stack.callback(self.guest.push.socket.close)

    def fresh(self) -> Emulator:
        """An emulator with nothing in it."""
        self._count += 1
        folder = self.folder / f"clone{self._count}"
        folder.mkdir()
        emulator = Emulator(folder)
        self._stack.callback(emulator.end)
        return emulator

    def files(self, name: str) -> dict[str, str]:
        """Where a snapshot of that name is."""
        return {"snapshot_path": str(self.folder / name), "mem_file_path": str(self.folder / f"{name}-memory")}

    def load(self, name: str, **more: Any) -> dict[str, Any]:
        """The body of a request that loads it."""
        files = self.files(name)
        backend = {"backend_path": files["mem_file_path"], "backend_type": "File"}
        return {"snapshot_path": files["snapshot_path"], "mem_backend": backend, **more}


@pytest.fixture(scope="module")
def bench(shared_state: SharedState) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="fbs-", dir="/var/tmp") as folder, ExitStack() as stack:
        Path(folder).chmod(0o711)
        subject = Bench(Path(folder), shared_state, stack)
        subject.guest.api.patch("/vm", PAUSED)
        subject.guest.api.put("/snapshot/create", subject.files("one"))
        yield subject


def test_a_saved_machine_goes_on_and_can_be_saved_again(bench: Bench) -> None:
    guest = bench.guest
    guest.api.put("/snapshot/create", {**bench.files("again"), "snapshot_type": "Full"})
    guest.api.patch("/vm", RESUMED)
    assert guest.ask({"op": "hello"})["protocol"] == 1
    fault = guest.api.fault("PUT", "/snapshot/create", bench.files("running"))
    assert fault.endswith("Operation not allowed: save/restore unavailable while running")
    assert guest.api.fault("PUT", "/snapshot/load", bench.load("one")).startswith("The requested operation is not")


def test_streams_that_were_open_are_reset_on_the_saved_machine(bench: Bench) -> None:
    guest = bench.guest
    guest.push.socket.settimeout(TIMEOUT_S)
    assert guest.push.socket.recv(1) == b"", "the push stream was closed by the snapshot"


def test_two_clones_answer_at_once_with_the_memory_shared(bench: Bench) -> None:
    clones = [bench.fresh() for _ in range(2)]
    asked: list[Any] = []

    def restore(clone: Emulator) -> None:
        path = clone.folder / "other.sock"
        clone.api.put("/snapshot/load", bench.load("one", resume_vm=True, vsock_override={"uds_path": str(path)}))
        path.rename(clone.folder / "v.sock")
        asked.append(clone.ask({"op": "hello"}))

    threads = [threading.Thread(target=restore, args=(clone,)) for clone in clones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(asked) == 2
    for clone in clones:
        assert clone.api.get("/")["state"] == "Running"
        assert clone.api.get("/vm/config")["machine-config"]["mem_size_mib"] == 256
        (clone.folder / "v.sock").rename(clone.folder / "other.sock")
        clone.end()


def test_what_a_clone_has_changed_makes_a_small_file_that_completes_the_first(bench: Bench) -> None:
    clone = bench.fresh()
    clone.api.put("/snapshot/load", bench.load("one"))
    assert clone.api.get("/")["state"] == "Paused"
    clone.api.patch("/vm", RESUMED)
    clone.ask({"op": "hello"})
    clone.api.patch("/vm", PAUSED)
    clone.api.put("/snapshot/create", {**bench.files("diff"), "snapshot_type": "Diff"})
    clone.api.put("/snapshot/create", bench.files("full"))
    clone.end()
    changed, whole = (os.stat(bench.files(name)["mem_file_path"]) for name in ("diff", "full"))
    assert changed.st_size == whole.st_size and changed.st_blocks * 2 < whole.st_blocks
    fault = bench.fresh().api.fault("PUT", "/snapshot/load", bench.load("diff"))
    assert fault.endswith("the memory file holds changes alone: lay it over the one that they were made to")
    merged = Path(bench.files("merged")["mem_file_path"])
    shutil.copyfile(bench.files("one")["mem_file_path"], merged)
    with open(bench.files("diff")["mem_file_path"], "rb") as source, open(merged, "r+b") as target:
        end = 0
        while end < changed.st_size:
            start = os.lseek(source.fileno(), end, os.SEEK_DATA)
            end = os.lseek(source.fileno(), start, os.SEEK_HOLE)
            os.pwrite(target.fileno(), os.pread(source.fileno(), end - start, start), start)
    shutil.copyfile(bench.files("diff")["snapshot_path"], bench.files("merged")["snapshot_path"])
    for name in ("full", "merged"):
        # The merged file is this test's own, so QEMU gets a copy of it.
        again = bench.fresh()
        again.api.put("/snapshot/load", bench.load(name, resume_vm=True))
        assert again.ask({"op": "hello"})["protocol"] == 1
        again.end()


def test_what_cannot_be_right_is_refused_and_the_emulator_can_be_asked_again(bench: Bench) -> None:
    emulator = bench.fresh()

    def refused(**change: Any) -> str:
        return emulator.api.fault("PUT", "/snapshot/load", {**bench.load("one"), **change})

    def backend(name: str, kind: str = "File") -> dict[str, str]:
        return {"backend_path": str(bench.folder / name), "backend_type": kind}

    state, memory = (Path(path) for path in bench.files("one").values())
    damaged = bytearray(state.read_bytes())
    damaged[-1000] ^= 1
    (bench.folder / "damaged").write_bytes(damaged)
    (bench.folder / "cut").write_bytes(state.read_bytes()[:-9])
    (bench.folder / "foreign").write_bytes(b"x" * 5000)
    with open(bench.folder / "short-memory", "wb") as file:
        file.truncate(memory.stat().st_size - 1)
    for name in ("damaged", "cut"):
        assert refused(snapshot_path=str(bench.folder / name)).endswith("the file is cut or damaged")
    assert "Magic value does not match" in refused(snapshot_path=str(bench.folder / "foreign"))
    assert "No such file or directory (os error 2)" in refused(snapshot_path=str(bench.folder / "none"))
    assert "bytes instead of" in refused(mem_backend=backend("short-memory"))
    assert "belongs to another snapshot" in refused(mem_backend=backend("again-memory"))
    assert "No such file or directory (os error 2)" in refused(mem_backend=backend("none"))
    assert "does not serve the memory backend Uffd" in refused(mem_backend=backend("one-memory", "Uffd"))
    assert "does not serve the field `clock_realtime`" in refused(clock_realtime=True)
    assert refused(network_overrides=[{"iface_id": "eth0", "host_dev_name": "t"}]).endswith("Unknown Network Device.")
    assert "too many fields" in refused(mem_file_path="x")
    emulator.api.put("/snapshot/load", bench.load("one", resume_vm=True))
    assert emulator.ask({"op": "hello"})["protocol"] == 1
    emulator.end()
    configured = bench.fresh()
    configured.api.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 256})
    fault = configured.api.fault("PUT", "/snapshot/load", bench.load("one"))
    assert fault.endswith("not allowed after configuring boot-specific resources.")
    configured.end()
