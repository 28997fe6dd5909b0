"""The emulator with a real guest, spoken to as the supervisor does, with nothing of firebuild between."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.openapi import ApiClient
from tests.vm.conftest import SharedState

TIMEOUT_S = 300.0
REQUEST, REPLY, EVENT = 1, 2, 4
BOOT: dict[str, Any] = {
    "id": "a" * 20, "kind": "build", "init": "direct", "root": None, "interfaces": [], "mmds": None, "metadata": None,
    "dns": {"nameservers": [], "search": [], "options": []}, "stop_signal": 15, "start_entrypoint": False, "tty": False,
}  # fmt: skip


class Stream:
    """Frames over one socket (protocol/PROTOCOL.md, section 2)."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(TIMEOUT_S)
        self.socket = connected

    def send(self, kind: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.socket.sendall(struct.pack(">IB", len(data) + 1, kind) + data)

    def receive(self) -> tuple[int, Any]:
        (length,) = struct.unpack(">I", self._exactly(4))
        data = self._exactly(length)
        return data[0], json.loads(data[1:])

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            assert piece, "the guest closed the stream"
            data += piece
        return data


class Guest:
    """A booted guest that waits for requests."""

    def __init__(self, folder: Path, kernel: Path, initrd: Path) -> None:
        self.folder = folder
        self.api = ApiClient(folder / "api.sock")
        argv = [
            sys.executable,
            "-m",
            "firebuild.emulator.main",
            "--api-sock",
            "api.sock",
            "--id",
            "t",
            "--log-path",
            "log",
        ]
        with open(folder / "console", "wb") as out:
            self.process = subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=out)
        end = time.monotonic() + TIMEOUT_S
        while not (folder / "api.sock").exists():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.01)
        self.api.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 256})
        self.api.put(
            "/boot-source",
            {"kernel_image_path": str(kernel), "initrd_path": str(initrd), "boot_args": "console=ttyS0 panic=1 quiet"},
        )
        self.api.put("/balloon", {"amount_mib": 8, "deflate_on_oom": True, "stats_polling_interval_s": 1})
        self.api.put("/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(TIMEOUT_S)
            listener.bind(str(folder / "v.sock_1025"))
            listener.listen()
            self.api.put("/actions", {"action_type": "InstanceStart"})
            self.push = Stream(listener.accept()[0])
        kind, request = self.push.receive()
        assert (kind, request["op"]) == (REQUEST, "boot")
        self.push.send(REPLY, {"protocol": 1, "clock_ns": time.time_ns(), "boot": BOOT})
        while True:
            kind, event = self.push.receive()
            assert kind == EVENT and event["event"] in ("step", "ready"), event
            if event["event"] == "ready":
                return

    def ask(self, request: dict[str, Any]) -> Any:
        """One request on a stream of its own; the reply."""
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(TIMEOUT_S)
            connected.connect(str(self.folder / "v.sock"))
            connected.sendall(b"CONNECT 1024\n")
            line = b""
            while not line.endswith(b"\n"):
                line += connected.recv(1)
                assert line
            assert line.startswith(b"OK ")
            stream = Stream(connected)
            stream.send(REQUEST, request)
            kind, reply = stream.receive()
            assert kind == REPLY, reply
            return reply


@pytest.fixture
def guest(shared_state: SharedState) -> Iterator[Guest]:
    [kernel] = (shared_state.state / "kernels").glob("*/vmlinux")
    initrd = max((shared_state.state / "initramfs").iterdir(), key=os.path.getmtime)
    with tempfile.TemporaryDirectory(prefix="fbe-", dir="/run") as folder:
        subject = Guest(Path(folder), kernel, initrd)
        try:
            yield subject
        finally:
            subject.push.socket.close()
            subject.process.kill()
            subject.process.wait(TIMEOUT_S)


def test_both_directions_pause_and_an_orderly_end(guest: Guest) -> None:
    assert guest.ask({"op": "hello"})["protocol"] == 1
    guest.api.patch("/vm", {"state": "Paused"})
    answers: list[Any] = []
    asker = threading.Thread(target=lambda: answers.append(guest.ask({"op": "hello"})))
    asker.start()
    guest.api.patch("/vm", {"state": "Resumed"})
    asker.join(TIMEOUT_S)
    assert answers and answers[0]["protocol"] == 1
    guest.ask({"op": "poweroff"})
    assert guest.process.wait(TIMEOUT_S) == 0
    assert not {"api.sock", "v.sock"} & {path.name for path in guest.folder.iterdir()}


def test_the_balloon_takes_memory_and_gives_it_back(guest: Guest) -> None:
    """The guest's driver is one of the modules that the initramfs loads; it tells what the guest has left."""

    def statistics_at(amount_mib: int) -> dict[str, int]:
        end = time.monotonic() + TIMEOUT_S
        while True:
            told: dict[str, int] = guest.api.get("/balloon/statistics")
            if told["actual_mib"] == amount_mib and "free_memory" in told:
                return told
            assert time.monotonic() < end, told
            time.sleep(0.1)

    told = statistics_at(8)
    assert (told["target_mib"], told["target_pages"], told["actual_pages"]) == (8, 2048, 2048)
    assert told["free_memory"] < told["total_memory"] <= 256 << 20
    guest.api.patch("/balloon", {"amount_mib": 96})
    assert guest.api.get("/balloon")["amount_mib"] == 96
    # What was told before the balloon grew is told until the next second has passed.
    end = time.monotonic() + TIMEOUT_S
    while statistics_at(96)["free_memory"] > told["free_memory"] - (80 << 20):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "less than 257MiB" in guest.api.fault("PATCH", "/balloon", {"amount_mib": 257})
    assert "cannot be enabled/disabled" in guest.api.fault(
        "PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0}
    )
    guest.api.patch("/balloon/statistics", {"stats_polling_interval_s": 2})
    guest.api.patch("/balloon", {"amount_mib": 0})
    assert statistics_at(0)["target_mib"] == 0


def test_many_requests_at_once(guest: Guest) -> None:
    answers: list[Any] = []
    askers = [threading.Thread(target=lambda: answers.append(guest.ask({"op": "hello"}))) for _ in range(32)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(TIMEOUT_S)
    assert len(answers) == 32 and all(answer == answers[0] for answer in answers)
