"""The emulator with a guest in it, spoken to as the supervisor does, with nothing of firebuild between."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.openapi import ApiClient

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


class Emulator:
    """A started emulator with nothing configured yet, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
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

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)


class Guest(Emulator):
    """A booted guest that waits for requests."""

    def __init__(self, folder: Path, kernel: Path, initrd: Path, *, balloon_mib: int = 0) -> None:
        super().__init__(folder)
        self.api.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 256})
        self.api.put(
            "/boot-source",
            {"kernel_image_path": str(kernel), "initrd_path": str(initrd), "boot_args": "console=ttyS0 panic=1 quiet"},
        )
        if balloon_mib:
            self.api.put("/balloon", {"amount_mib": balloon_mib, "deflate_on_oom": True, "stats_polling_interval_s": 1})
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
