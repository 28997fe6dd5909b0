"""The emulator as a program, with the real QEMU: a kernel of a few instructions stands in for a guest."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from firebuild.emulator.faults import NOT_POSTBOOT
from tests.support.openapi import ApiClient

TIMEOUT_S = 120.0
BASE = 0x100000
CODE = 0x1000


def tiny_kernel(text: bytes, *, end: str) -> bytes:
    """An ELF kernel with a PVH entry that writes `text` to the serial port, and then resets the machine or halts.

    The note XEN_ELFNOTE_PHYS32_ENTRY (18) names the entry, in 32-bit protected mode: Linux, Documentation/x86/boot.rst.
    """
    # esi: the text; ecx: its length; each byte waits until the port's transmitter is empty.
    write = b"\xba\xfd\x03\0\0\xec\xa8\x20\x74\xfb\xba\xf8\x03\0\0\xac\xee\x49\x75\xec"
    finish = {"reset": b"\xb0\xfe\xe6\x64\xf4\xeb\xfd", "halt": b"\xf4\xeb\xfd"}[end]
    start = 10 + len(write) + len(finish)
    code = b"\xbe" + struct.pack("<I", BASE + CODE + start) + b"\xb9" + struct.pack("<I", len(text))
    code += write + finish + text
    note = struct.pack("<III", 4, 4, 18) + b"Xen\0" + struct.pack("<I", BASE + CODE)
    header = b"\x7fELF\1\1\1".ljust(16, b"\0")
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, BASE + CODE, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    header += struct.pack("<8I", 1, CODE, BASE + CODE, BASE + CODE, len(code), len(code), 7, 4096)
    header += struct.pack("<8I", 4, 0x200, BASE, BASE, len(note), len(note), 4, 4)
    return (header.ljust(0x200, b"\0") + note).ljust(CODE, b"\0") + code


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.01)


class Emulator:
    """A running emulator in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api = ApiClient(folder / "api.sock")
        self.console = folder / "console"
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, *arguments: str, environment: dict[str, str] | None = None, stdin: int = subprocess.DEVNULL
    ) -> None:
        """Start it, and wait for its socket unless it has none."""
        argv = [sys.executable, "-m", "firebuild.emulator.main", "--id", "test-1", "--log-path", "log", *arguments]
        if "--no-api" not in arguments:
            argv += ["--api-sock", "api.sock"]
        with open(self.console, "wb") as out:
            self.process = subprocess.Popen(
                argv, cwd=self.folder, stdin=stdin, stdout=out, stderr=subprocess.PIPE,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        if "--no-api" not in arguments:
            process = self.process
            wait_for(lambda: (self.folder / "api.sock").exists() or process.poll() is not None)

    def wait(self) -> tuple[int, str]:
        """Wait for its end; its exit status and what it said on standard error."""
        assert self.process is not None
        _, said = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, said.decode()

    def qemu(self) -> int:
        """The process number of its QEMU."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        [child] = path.read_text().split()
        return int(child)

    def files(self) -> set[str]:
        """The names in its folder."""
        return {path.name for path in self.folder.iterdir()}

    def configure(self, *, end: str, text: bytes = b"hello\n") -> None:
        """Give it the small kernel."""
        (self.folder / "kernel").write_bytes(tiny_kernel(text, end=end))
        self.api.put("/boot-source", {"kernel_image_path": "kernel", "boot_args": "x"})

    def boot(self, *, end: str, text: bytes = b"hello\n") -> None:
        """Boot the small kernel, and wait for its words."""
        self.configure(end=end, text=text)
        self.api.put("/actions", {"action_type": "InstanceStart"})
        wait_for(lambda: self.console.read_bytes() == text)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with tempfile.TemporaryDirectory(prefix="fbe-", dir="/run") as folder:
        subject = Emulator(Path(folder))
        yield subject
        if subject.process is not None and subject.process.poll() is None:
            subject.process.kill()
            subject.process.wait(TIMEOUT_S)
        if subject.process is not None and subject.process.stderr is not None:
            subject.process.stderr.close()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_guest_that_resets_ends_the_emulator_and_leaves_nothing(emulator: Emulator) -> None:
    emulator.start()
    emulator.configure(end="reset", text=b"x" * 10_000)
    emulator.api.put("/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
    emulator.api.put("/actions", {"action_type": "InstanceStart"})
    assert emulator.wait() == (0, "")
    assert emulator.console.read_bytes() == b"x" * 10_000
    assert emulator.files() == {"console", "log", "kernel"}


def test_qemu_has_no_privileges_and_no_path(emulator: Emulator) -> None:
    """Files that only root may read: QEMU gets descriptors and copies."""
    emulator.start()
    emulator.folder.chmod(0o700)
    for name in ("disk", "data", "initrd"):
        (emulator.folder / name).write_bytes(bytes(4096))
        (emulator.folder / name).chmod(0o600)
    (emulator.folder / "kernel").write_bytes(tiny_kernel(b"up\n", end="halt"))
    (emulator.folder / "kernel").chmod(0o600)
    api = emulator.api
    api.put("/boot-source", {"kernel_image_path": "kernel", "initrd_path": "initrd"})
    api.put("/machine-config", {"vcpu_count": 2, "mem_size_mib": 64})
    api.put("/drives/data", {"drive_id": "data", "is_root_device": False, "path_on_host": "data"})
    api.put(
        "/drives/root",
        {"drive_id": "root", "is_root_device": True, "path_on_host": "disk", "is_read_only": True, "cache_type": "Writeback",
         "rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}}},
    )  # fmt: skip
    api.put("/entropy", {"rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}}})
    api.put("/actions", {"action_type": "InstanceStart"})
    wait_for(lambda: emulator.console.read_bytes() == b"up\n")
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{emulator.qemu()}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == ["65534"] * 4 and status["Gid"].split() == ["65534"] * 4
    assert int(status["CapEff"], 16) == 0 and int(status["CapPrm"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert not status.get("Groups", "").split()


def test_pause_resume_and_what_a_running_machine_refuses(emulator: Emulator) -> None:
    emulator.start("--metrics-path", "metrics")
    (emulator.folder / "disk").write_bytes(bytes(4096))
    (emulator.folder / "bigger").write_bytes(bytes(8192))
    drive = {"drive_id": "d", "is_root_device": False, "path_on_host": "disk"}
    emulator.api.put("/drives/d", drive)
    emulator.api.put("/drives/r", {**drive, "drive_id": "r", "is_read_only": True})
    emulator.boot(end="halt")
    api = emulator.api
    assert api.get("/")["state"] == "Running"
    api.patch("/vm", {"state": "Paused"})
    assert api.get("/")["state"] == "Paused"
    api.patch("/vm", {"state": "Resumed"})
    assert api.get("/")["state"] == "Running"
    for path, body in {
        "/boot-source": {"kernel_image_path": "kernel"},
        "/machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "/vsock": {"guest_cid": 3, "uds_path": "v.sock"},
        "/mmds/config": {"network_interfaces": ["e"]},
        "/entropy": {},
        "/serial": {},
        "/logger": {},
        "/metrics": {"metrics_path": "m"},
        "/actions": {"action_type": "InstanceStart"},
    }.items():
        assert api.fault("PUT", path, body) == NOT_POSTBOOT
    assert api.fault("PATCH", "/machine-config", {"vcpu_count": 2}) == NOT_POSTBOOT
    assert api.fault("PUT", "/drives/e", {**drive, "drive_id": "e"}) == "PCI is not enabled"
    assert api.fault("DELETE", "/drives/d") == "PCI is not enabled"
    assert "not initialized" in api.fault("PUT", "/mmds", {"a": "b"})
    api.patch("/drives/d", {"drive_id": "d", "path_on_host": "bigger"})
    api.patch("/drives/d", {"drive_id": "d", "rate_limiter": {"ops": {"size": 10, "refill_time": 100}}})
    shown = {drive["drive_id"]: drive for drive in api.get("/vm/config")["drives"]}
    assert shown["d"]["path_on_host"] == "bigger"
    assert shown["d"]["rate_limiter"] == {"ops": {"size": 10, "refill_time": 100}}
    assert "of another size" in api.fault("PATCH", "/drives/r", {"drive_id": "r", "path_on_host": "bigger"})
    assert "(os error 2) nope" in api.fault("PATCH", "/drives/d", {"drive_id": "d", "path_on_host": "nope"})
    assert "Device not found" in api.fault("PATCH", "/drives/z", {"drive_id": "z", "path_on_host": "disk"})
    assert "different backend" in api.fault("PATCH", "/drives/d", {"drive_id": "d"})
    assert "Device not found" in api.fault("PATCH", "/network-interfaces/e", {"iface_id": "e"})
    api.put("/actions", {"action_type": "SendCtrlAltDel"})
    api.put("/actions", {"action_type": "FlushMetrics"})
    line = json.loads((emulator.folder / "metrics").read_text().splitlines()[-1])
    assert line["api_server"]["patch_fails"] >= 5


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, -2), (signal.SIGHUP, 156)], ids=str
)
def test_a_signal_ends_it_all(emulator: Emulator, number: signal.Signals, status: int) -> None:
    emulator.start()
    emulator.api.put("/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
    emulator.boot(end="halt")
    qemu = emulator.qemu()
    assert emulator.process is not None
    emulator.process.send_signal(number)
    assert emulator.wait() == (status, "")
    assert gone(qemu)
    assert emulator.files() == {"console", "log", "kernel"}


def test_a_signal_before_boot(emulator: Emulator) -> None:
    emulator.start()
    emulator.api.put("/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
    assert emulator.process is not None
    emulator.process.terminate()
    assert emulator.wait() == (-15, "")
    assert emulator.files() == {"console", "log"}


def test_qemu_dies_with_a_killed_emulator(emulator: Emulator) -> None:
    emulator.start()
    emulator.boot(end="halt")
    qemu = emulator.qemu()
    assert emulator.process is not None
    emulator.process.kill()
    emulator.wait()
    wait_for(lambda: gone(qemu))


def test_an_emulator_whose_qemu_dies_ends_with_an_error(emulator: Emulator) -> None:
    emulator.start()
    emulator.boot(end="halt")
    os.kill(emulator.qemu(), signal.SIGKILL)
    assert emulator.wait()[0] == 1
    assert "QEMU ended with status -9" in (emulator.folder / "log").read_text()
    assert emulator.files() == {"console", "log", "kernel"}


def test_a_kernel_that_is_none_is_a_fault_and_can_be_replaced(emulator: Emulator) -> None:
    emulator.start()
    (emulator.folder / "junk").write_bytes(b"junk" * 1000)
    emulator.api.put("/boot-source", {"kernel_image_path": "junk"})
    fault = emulator.api.fault("PUT", "/actions", {"action_type": "InstanceStart"})
    assert fault.endswith("Invalid bzImage")
    (emulator.folder / "elf").write_bytes(b"\x7fELF" + b"junk" * 1000)
    emulator.api.put("/boot-source", {"kernel_image_path": "elf"})
    fault = emulator.api.fault("PUT", "/actions", {"action_type": "InstanceStart"})
    assert fault.startswith("Start microvm error: QEMU ended with status 1: ")
    assert emulator.api.get("/")["state"] == "Not started"
    emulator.boot(end="halt")


def test_without_qemu_the_fault_says_what_to_install(emulator: Emulator) -> None:
    """PATH alone does not hide a system's programs from the emulator, so a stand-in hides it: one that cannot be executed."""
    programs = emulator.folder / "bin"
    programs.mkdir()
    (programs / "qemu-system-x86_64").write_text("#!/nonexistent\n")
    (programs / "qemu-system-x86_64").chmod(0o755)
    emulator.start(environment={"PATH": f"{programs}:{os.environ['PATH']}"})
    emulator.configure(end="halt")
    assert "cannot start" in emulator.api.fault("PUT", "/actions", {"action_type": "InstanceStart"})
    assert emulator.api.get("/")["state"] == "Not started"


def test_qemu_that_fails_at_the_start_is_quoted(emulator: Emulator) -> None:
    programs = emulator.folder / "bin"
    programs.mkdir()
    (programs / "qemu-system-x86_64").write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    (programs / "qemu-system-x86_64").chmod(0o755)
    emulator.folder.chmod(0o711)
    emulator.start(environment={"PATH": f"{programs}:{os.environ['PATH']}"})
    emulator.configure(end="halt")
    fault = emulator.api.fault("PUT", "/actions", {"action_type": "InstanceStart"})
    assert fault == "Start microvm error: QEMU ended with status 3: no such luck"


def write_config(emulator: Emulator, *, end: str) -> None:
    (emulator.folder / "kernel").write_bytes(tiny_kernel(b"hello\n", end=end))
    config = {
        "boot-source": {"kernel_image_path": "kernel"}, "drives": [], "vsock": {"guest_cid": 3, "uds_path": "v.sock"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 64}, "logger": {"level": "Debug"}, "entropy": {},
    }  # fmt: skip
    (emulator.folder / "config").write_text(json.dumps(config))


def test_a_configuration_file_without_api(emulator: Emulator) -> None:
    write_config(emulator, end="reset")
    emulator.start("--config-file", "config", "--no-api")
    assert emulator.wait() == (0, "")
    assert emulator.console.read_bytes() == b"hello\n"
    assert emulator.files() == {"console", "log", "kernel", "config"}


def test_a_configuration_file_with_api_and_metadata(emulator: Emulator) -> None:
    write_config(emulator, end="halt")
    (emulator.folder / "metadata").write_text('{"a": "b"}')
    emulator.start("--config-file", "config", "--metadata", "metadata")
    wait_for(lambda: emulator.console.read_bytes() == b"hello\n")
    assert emulator.api.get("/")["state"] == "Running"
    assert emulator.api.get("/vm/config")["machine-config"]["mem_size_mib"] == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "deserializing"),
        ('{"drives": []}', "missing field `boot-source`"),
        ('{"boot-source": {"kernel_image_path": "nope"}, "drives": []}', "kernel file cannot be opened"),
        (
            '{"boot-source": {"kernel_image_path": "k"}, "drives": [], "pmem": [{"id": "p"}]}',
            "does not serve the section `pmem`",
        ),
    ],
)
def test_a_bad_configuration_file(emulator: Emulator, text: str, words: str) -> None:
    (emulator.folder / "config").write_text(text)
    emulator.start("--config-file", "config")
    status, said = emulator.wait()
    assert status == 1 and words in said
    assert emulator.files() == {"console", "log", "config"}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--version"], 0, "Firecracker v1."),
        (["--help"], 0, "--config-file"),
        (["--nonsense"], 153, "wasn't expected"),
        (["--config-file", "nope"], 1, "Unable to open or read from the configuration file"),
        (["--log-path", "/nope/log"], 1, "Failed to open target file"),
        (["--api-sock", "taken"], 1, "Check that it is not already used"),
        (["--api-sock", "x" * 120], 1, "too long"),
    ],
)
def test_command_lines(tmp_path: Path, arguments: Sequence[str], status: int, words: str) -> None:
    (tmp_path / "taken").touch()
    done = subprocess.run(
        [sys.executable, "-m", "firebuild.emulator.main", *arguments],
        cwd=tmp_path,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == status
    assert words in (done.stdout + done.stderr).decode()
    assert {path.name for path in tmp_path.iterdir()} <= {"taken"}


def test_the_console_can_go_to_a_file(emulator: Emulator) -> None:
    emulator.start()
    emulator.configure(end="reset")
    emulator.api.put("/serial", {"serial_out_path": "serial"})
    emulator.api.put("/actions", {"action_type": "InstanceStart"})
    assert emulator.wait() == (0, "")
    assert (emulator.folder / "serial").read_bytes() == b"hello\n"
    assert emulator.console.read_bytes() == b""


def test_a_reader_of_the_console_that_goes_away_does_not_end_the_guest(emulator: Emulator) -> None:
    (emulator.folder / "kernel").write_bytes(tiny_kernel(b"y" * 20_000, end="reset"))
    (emulator.folder / "config").write_text('{"boot-source": {"kernel_image_path": "kernel"}, "drives": []}')
    argv = [sys.executable, "-m", "firebuild.emulator.main", "--no-api", "--config-file", "config", "--log-path", "log"]
    reader, writer = os.pipe()
    with open(writer, "wb") as out:
        process = subprocess.Popen(argv, cwd=emulator.folder, stdin=subprocess.DEVNULL, stdout=out)
    os.read(reader, 10)
    os.close(reader)
    assert process.wait(TIMEOUT_S) == 0


def test_a_terminal_is_raw_while_the_guest_runs_and_restored(emulator: Emulator) -> None:
    import termios

    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        emulator.start(stdin=theirs)
        emulator.boot(end="halt")
        assert not termios.tcgetattr(theirs)[3] & (termios.ECHO | termios.ICANON)
        assert emulator.process is not None
        emulator.process.terminate()
        emulator.wait()
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_broken_requests_never_end_it(emulator: Emulator) -> None:
    emulator.start()
    for data in (
        b"nonsense\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"\0" * 20000,
        b"GET / HT",
    ):
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(TIMEOUT_S)
            connected.connect(str(emulator.folder / "api.sock"))
            # The answer may come, and the connection close, before all has been sent.
            with contextlib.suppress(BrokenPipeError):
                connected.sendall(data)
                connected.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                answer = connected.recv(65536)
                assert not answer or re.match(rb"HTTP/1\.1 400 .*fault_message", answer, re.DOTALL)
    assert emulator.api.get("/")["state"] == "Not started"


def test_connections_beyond_the_limit_are_answered(emulator: Emulator) -> None:
    emulator.start()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(10)]
        for connected in idle:
            connected.connect(str(emulator.folder / "api.sock"))
        assert emulator.api.request("GET", "/", check_request=False).status_code == 503
    wait_for(lambda: emulator.api.request("GET", "/").status_code == 200)
