"""A program that serves Firecracker's API, started for one conversation or for many: the emulator, or FIREBUILD_CONFORMANCE_BINARY."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.openapi import Answer, ApiClient

VARIABLE = "FIREBUILD_CONFORMANCE_BINARY"
TIMEOUT_S = 120.0
DESERIALIZING = "An error occurred when deserializing the json body of a request: "
_PLACE = re.compile(r" at line \d+ column \d+(?=\.$)")
_BASE, _ENTRY = 0x100000, 0x1000


def find_binary() -> Path | None:
    """The program that the variable names; None: the emulator is asked."""
    named = os.environ.get(VARIABLE)
    return Path(named).resolve() if named else None


def halting_kernel() -> bytes:
    """A 64-bit ELF kernel with a PVH entry (note 18 of Xen, Documentation/arch/x86/boot.rst) that halts for ever."""
    code = b"\xf4\xeb\xfd"
    note = struct.pack("<III", 4, 4, 18) + b"Xen\0" + struct.pack("<I", _BASE + _ENTRY)
    header = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _ENTRY, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 7, _ENTRY, _BASE + _ENTRY, _BASE + _ENTRY, len(code), len(code), 4096)
    header += struct.pack("<IIQQQQQQ", 4, 4, 0x200, _BASE, _BASE, len(note), len(note), 4)
    return (header.ljust(0x200, b"\0") + note).ljust(_ENTRY, b"\0") + code


@dataclass
class Vmm:
    """A running one, in a folder of its own in which its paths are relative."""

    folder: Path
    process: subprocess.Popen[bytes]
    api: ApiClient

    @property
    def is_emulator(self) -> bool:
        """Whether this is firebuild's own."""
        return find_binary() is None

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """One request, which may be wrong by intention."""
        return self.api.request(method, path, body, check_request=False)

    def fault(self, method: str, path: str, body: Any = None, *, status: int = 400) -> str:
        """A request that must be refused; its message without the place in the body's text, which the emulator does not tell."""
        answer = self.ask(method, path, body)
        assert answer.status_code == status, (method, path, str(body)[:150], answer)
        assert isinstance(answer.json, dict) and set(answer.json) == {"fault_message"}, answer
        return _PLACE.sub("", str(answer.json["fault_message"]))

    def config(self) -> dict[str, Any]:
        """GET /vm/config, without what is not set: Firecracker shows it as null, the emulator does not show it."""
        pruned = _prune(self.api.get("/vm/config"))
        assert isinstance(pruned, dict)
        return pruned


def _prune(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: _prune(item) for name, item in value.items() if item is not None}
        return {name: item for name, item in kept.items() if not (name == "pmem" and item == [])}
    return [_prune(item) for item in value] if isinstance(value, list) else value


@contextmanager
def start_vmm(*arguments: str) -> Iterator[Vmm]:
    """Start one with these arguments; it is ended with the block."""
    binary = find_binary()
    program = [str(binary)] if binary else [sys.executable, "-m", "firebuild.emulator.main"]
    with tempfile.TemporaryDirectory(prefix="fbc-", dir="/run") as name:
        folder = Path(name)
        (folder / "halting").write_bytes(halting_kernel())
        for file in ("kernel", "initrd", "disk", "other"):
            (folder / file).write_bytes(bytes(4096))
        with open(folder / "output", "wb") as output:
            process = subprocess.Popen(
                [*program, "--api-sock", "api.sock", "--id", "conformance", *arguments],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            _await_socket(folder, process)
            # Firecracker's own answers are not always what its document says: null stands in them.
            yield Vmm(folder, process, ApiClient(folder / "api.sock", unchecked=binary is not None))
        finally:
            process.kill()
            process.wait(TIMEOUT_S)


def _await_socket(folder: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + TIMEOUT_S
    client = ApiClient(folder / "api.sock", timeout_s=TIMEOUT_S)
    while True:
        try:
            client.get("/version")
            return
        except (FileNotFoundError, ConnectionRefusedError):
            assert process.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < end, "the program opened no socket"
            time.sleep(0.01)
