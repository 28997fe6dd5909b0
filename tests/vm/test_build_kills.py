"""kill -9 of a build's command, supervisor, VMM and QEMU, at points that the build's own events and files mark.

After each the store is sound, nothing is left once the next command has run, and the same build goes on: a later point is
reached on what earlier attempts have stored, and at last it succeeds.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import BUILD_TIMEOUT_S, COMMAND_TIMEOUT_S, Cli
from tests.support.ledger import Watch, find_processes, settle, take_snapshot
from tests.vm.conftest import BASE

TAG = "tests/killed:1"
POLL_S = 0.005
Reached = Callable[["Attempt"], bool]

SUPERVISOR = "firebuild-supervisor"
VMM = "firebuild.emulator.main"
QEMU = "qemu-system-"


class Attempt:
    """One running build: what its events said so far, read by a thread."""

    def __init__(self, process: subprocess.Popen[str], watch: Watch) -> None:
        self.process = process
        self.watch = watch
        self.names: dict[int, str] = {}
        self.seen: set[tuple[str, str]] = set()
        self.output = b""
        self.text: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.text.append(line)
            if line.startswith("{"):
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"].removeprefix("step-")
        if kind == "started":
            self.names[event["step"]] = event["name"]
        if kind == "output":
            self.output += base64.b64decode(event["data"])
        self.seen.add((kind, self.names.get(event.get("step", 0), "")))

    def saw(self, kind: str, name: str) -> bool:
        """Whether such an event came of a step whose name holds `name`."""
        return any(event == kind and name in step for event, step in list(self.seen))

    def find_pid(self, program: str) -> int | None:
        """The process of this state that runs `program`, or None."""
        for line in find_processes(self.watch):
            pid, command = line.split(" ", 1)
            if program in command.split(" --config ")[0] or program in command.split(" --api-sock ")[0]:
                return int(pid)
        return None

    def await_pid(self, program: str) -> int | None:
        """As find_pid, waiting until it runs; None if the build ended before."""
        return self.find_pid(program) if self.wait(lambda attempt: attempt.find_pid(program) is not None) else None

    def has_file(self, pattern: str) -> bool:
        """Whether the build's machine has such a file with something in it (sockets have nothing)."""
        for root in (self.watch.state / "machines", self.watch.run / "m"):
            if any(not path.is_file() or path.stat().st_size for path in root.glob(f"*/{pattern}")):
                return True
        return False

    def wait(self, reached: Reached) -> bool:
        """Wait until the build is there; False if it ended before."""
        end = time.monotonic() + BUILD_TIMEOUT_S
        while not reached(self):
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, "".join(self.text)
            time.sleep(POLL_S)
        return True

    def finish(self) -> str:
        """Wait for its end; all that it wrote."""
        self.process.wait(timeout=COMMAND_TIMEOUT_S)
        self._reader.join(timeout=COMMAND_TIMEOUT_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return "".join(self.text)


def event(kind: str, name: str) -> Reached:
    return lambda attempt: attempt.saw(kind, name)


def file(pattern: str) -> Reached:
    return lambda attempt: attempt.has_file(pattern)


def said(text: bytes) -> Reached:
    return lambda attempt: text in attempt.output


# In the order in which a build reaches them: what an attempt has stored is not done again by the next.
POINTS: list[tuple[str, Reached]] = [
    ("the Dockerfile is read", event("started", "load build definition")),
    ("the base is resolved", event("started", "load metadata")),
    ("the machine is recorded", event("started", "boot the build machine")),
    ("its disk is made", file("work.ext4")),
    ("its network is there", file("boot.json")),
    ("its supervisor is configured", file("supervisor.json")),
    ("its VMM runs", file("vmm.pid")),
    ("its kernel speaks", file("console.log")),
    ("it is booted", event("finished", "boot the build machine")),
    ("the first step runs", said(b"one begins")),
    ("the first step is done", event("finished", "RUN echo one")),
    ("a file is copied", event("started", "COPY file")),
    ("the copy is stored", event("finished", "COPY file")),
    ("the second step runs", said(b"two begins")),
    ("the second step is done", event("finished", "RUN echo two")),
    ("the disk is written", event("started", "exporting the disk")),
    ("the image is written", event("started", "exporting the image")),
]
# What holds the machine, and when it is killed: each of them early, in a step, and late.
MACHINE_POINTS: list[tuple[str, str]] = [
    (QEMU, "its VMM runs"),
    (VMM, "its kernel speaks"),
    (SUPERVISOR, "its kernel speaks"),
    (QEMU, "it is booted"),
    (VMM, "the first step runs"),
    (SUPERVISOR, "the first step runs"),
    (QEMU, "the second step runs"),
    (SUPERVISOR, "the second step is done"),
    (VMM, "the disk is written"),
]


@pytest.fixture
def arguments(cli: Cli, context: Path) -> list[str]:
    """The build of one test; another's results do not serve it. Its base's disk is there."""
    (context / "Dockerfile").write_text(f"FROM {BASE}\nRUN true\n")
    cli.ok("rootfs", "--dockerfile", context / "Dockerfile", "--tag", TAG, timeout_s=BUILD_TIMEOUT_S)
    cli.ok("image", "rm", TAG)
    (context / "file").write_bytes(os.urandom(1 << 20))
    (context / "Dockerfile").write_text(
        f"FROM {BASE}\nENV TEST={os.urandom(8).hex()}\nRUN echo one begins && head -c 2000000 /dev/urandom >/one && sleep 0.5\n"
        "COPY file /file\nRUN echo two begins && cp /one /two && sleep 0.5\n"
    )
    return ["rootfs", "--dockerfile", str(context / "Dockerfile"), "--tag", TAG, "--progress", "rawjson"]


@pytest.fixture
def attempts(cli: Cli, arguments: list[str], shared_folders: Watch) -> Iterator[Callable[[], Attempt]]:
    """Starts attempts; the test ends each."""

    def start() -> Attempt:
        argv = cli._argv(arguments)
        process = subprocess.Popen(
            argv, env=cli.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return Attempt(process, shared_folders)

    started: list[subprocess.Popen[str]] = []
    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def assert_whole(cli: Cli, point: str) -> None:
    """The store is as before or as after: every blob is what its name says, and the image is there whole or not at all."""
    assert cli.run("fsck").status == 0, f"killed when {point}"


def assert_succeeds(cli: Cli, arguments: list[str]) -> None:
    cli.ok(*arguments, timeout_s=BUILD_TIMEOUT_S)
    cli.ok("image", "inspect", TAG)
    cli.ok("image", "rm", TAG)
    assert cli.run("fsck").status == 0


def test_kill_of_the_command(
    cli: Cli, attempts: Callable[[], Attempt], arguments: list[str], shared_folders: Watch
) -> None:
    before = take_snapshot(shared_folders)
    killed = 0
    for point, reached in POINTS:
        attempt = attempts()
        if attempt.wait(reached):
            os.killpg(attempt.process.pid, signal.SIGKILL)
            killed += 1
        attempt.finish()
        # The supervisor may be cleaning up at this very moment: one purge waits for it.
        cli.ok("purge")
        left = settle(before, shared_folders)
        assert not left, f"killed when {point}, left behind:\n" + "\n".join(left)
        assert_whole(cli, point)
    assert killed >= len(POINTS) - 2
    assert_succeeds(cli, arguments)


def test_kill_of_what_holds_the_machine(
    cli: Cli, attempts: Callable[[], Attempt], arguments: list[str], shared_folders: Watch
) -> None:
    before = take_snapshot(shared_folders)
    points = dict(POINTS)
    killed = 0
    for program, point in MACHINE_POINTS:
        attempt = attempts()
        if attempt.wait(points[point]) and (pid := attempt.await_pid(program)) is not None:
            os.kill(pid, signal.SIGKILL)
            killed += 1
            text = attempt.finish()
            assert attempt.process.returncode in (0, 1), text
            assert "Traceback" not in text
            if attempt.process.returncode:
                assert "error: " in text and "machine" in text, text
        else:
            attempt.finish()
        # The command itself has cleaned up.
        left = settle(before, shared_folders)
        assert not left, f"{program} killed when {point}, left behind:\n" + "\n".join(left)
        assert_whole(cli, f"{program}, {point}")
    assert killed >= len(MACHINE_POINTS) - 1
    assert_succeeds(cli, arguments)
