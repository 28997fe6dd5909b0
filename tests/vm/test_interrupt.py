"""Ctrl-C at any moment of `rootfs` and `run`: the command ends with 130, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import BUILD_TIMEOUT_S, COMMAND_TIMEOUT_S, Cli, find_free_port
from tests.support.ledger import Snapshot, Watch, settle, take_snapshot
from tests.vm.conftest import BASE

# Parts of the time that the command takes when it is left alone.
MOMENTS = (0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
INTERRUPTED = 130
PORT = find_free_port()


def run_arguments(name: str) -> list[str]:
    return ["run", "-d", "--name", name, "--from", BASE, "-p", f"127.0.0.1:{PORT}:80", "--", "/bin/sleep", "infinity"]


def catches_signals(process: subprocess.Popen[str]) -> bool:
    """Whether a command has its own handlers: until then the interpreter starts, and a signal ends it as it ends any Python."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught & 1 << signal.SIGTERM - 1)


def wait_part(process: subprocess.Popen[str], seconds: float) -> None:
    """Let a command that handles signals run for a while, or to its end if that comes first."""
    while process.poll() is None and not catches_signals(process):
        time.sleep(0.001)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def assert_nothing_left(before: Snapshot, watch: Watch, moment: str) -> None:
    left = settle(before, watch)
    assert not left, f"interrupted {moment}, left behind:\n" + "\n".join(left)


@pytest.fixture
def run_seconds(cli: Cli) -> float:
    """How long a `run` takes here and now."""
    begin = time.monotonic()
    cli.ok(*run_arguments("measure"))
    seconds = time.monotonic() - begin
    cli.ok("kill", "measure")
    cli.ok("purge")
    return seconds


def test_run_interrupted(cli: Cli, run_seconds: float, shared_folders: Watch) -> None:
    before = take_snapshot(shared_folders)
    ends = []
    for moment in MOMENTS:
        with cli.start(*run_arguments("broken")) as process:
            wait_part(process, run_seconds * moment)
            result = cli.interrupt(process)
        ends.append(result.status)
        assert result.status in (0, INTERRUPTED), result.describe()
        assert "Traceback" not in result.stderr, result.describe()
        if result.status == 0:  # it was done before the signal came
            cli.ok("kill", "broken")
            cli.ok("purge")
        else:
            assert "broken" not in cli.ok("ls", "-a")
        assert_nothing_left(before, shared_folders, f"after {moment:.0%} of a run")
    assert INTERRUPTED in ends


def test_run_interrupted_twice(cli: Cli, run_seconds: float, shared_folders: Watch) -> None:
    before = take_snapshot(shared_folders)
    with cli.start(*run_arguments("broken")) as process:
        wait_part(process, run_seconds * 0.6)
        os.killpg(process.pid, signal.SIGINT)
        wait_part(process, 0.05)
        result = cli.interrupt(process)
    assert result.status in (0, INTERRUPTED), result.describe()
    if result.status == 0:
        cli.ok("kill", "broken")
        cli.ok("purge")
    assert_nothing_left(before, shared_folders, "twice")


def test_rootfs_interrupted(cli: Cli, context: Path, shared_folders: Watch) -> None:
    (context / "file.txt").write_text("content")
    (context / "Dockerfile").write_text(
        f"FROM {BASE}\nARG NONCE\nRUN echo $NONCE >/nonce && sleep 1\nCOPY file.txt /\nRUN cat /file.txt /nonce\n"
    )

    def arguments(nonce: str) -> list[str]:
        build_arg = f"NONCE={nonce}-{time.monotonic_ns()}"
        return ["rootfs", "--dockerfile", str(context / "Dockerfile"), "--build-arg", build_arg, "--tag", "tests/cut:1"]

    begin = time.monotonic()
    cli.ok(*arguments("whole"), timeout_s=BUILD_TIMEOUT_S)
    seconds = time.monotonic() - begin
    cli.ok("image", "rm", "tests/cut:1")

    before = take_snapshot(shared_folders)
    ends = []
    for moment in MOMENTS:
        with cli.start(*arguments(str(moment))) as process:
            wait_part(process, seconds * moment)
            result = cli.interrupt(process)
        ends.append(result.status)
        assert result.status in (0, INTERRUPTED), result.describe()
        assert "Traceback" not in result.stderr, result.describe()
        if result.status == 0:
            cli.ok("image", "rm", "tests/cut:1")
        else:
            cli.refused("image", "inspect", "tests/cut:1")
        assert_nothing_left(before, shared_folders, f"after {moment:.0%} of a build")
    assert INTERRUPTED in ends
    assert cli.run("fsck").status == 0


def test_a_killed_run_is_repaired_by_the_next_command(cli: Cli, run_seconds: float, shared_folders: Watch) -> None:
    before = take_snapshot(shared_folders)
    for moment in (0.3, 0.6, 0.9):
        with cli.start(*run_arguments("killed")) as process:
            wait_part(process, run_seconds * moment)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=COMMAND_TIMEOUT_S)
        cli.run("kill", "killed")
        cli.ok("purge")
        assert "killed" not in cli.ok("ls", "-a")
        assert_nothing_left(before, shared_folders, f"kill -9 after {moment:.0%} of a run")
