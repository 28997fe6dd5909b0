"""A disk that fills up during a build: a clear error, nothing left, and once there is room again the same build succeeds. A
machine that runs meanwhile gets an I/O error."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.host.deadline import Deadline
from tests.support.cli import BUILD_TIMEOUT_S, INTERRUPT_TIMEOUT_S, Cli
from tests.support.ledger import Watch, settle, take_snapshot
from tests.vm.conftest import BASE, SharedState

ROOM_MIB = 48
WANTED_MIB = 160


@pytest.fixture
def small_disk(ledger: None, tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, large at first; `shrink` leaves it only a little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g,mode=0711", "tmpfs", folder], check=True)
    for parent in (*folder.parents,):
        if parent != Path("/") and parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o111)  # the unprivileged VMM passes through to its files
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def resize(folder: Path, size_mib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_mib}m", folder], check=True)


def used_mib(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize >> 20


def test_a_disk_that_fills_up_during_a_build(
    small_disk: Path, private_folders: Watch, shared_state: SharedState, context: Path
) -> None:
    cli = Cli(small_disk / "state", private_folders.run)
    watch = Watch(cli.state, cli.run_folder)
    cli.ok("kernel", "pull", timeout_s=BUILD_TIMEOUT_S)
    cli.ok("image", "import", shared_state.base_tarball, BASE, timeout_s=BUILD_TIMEOUT_S)
    # The base's own disk is made first, so that what does not fit is the build itself.
    (context / "Dockerfile").write_text(f"FROM {BASE}\nRUN true\n")
    cli.ok("rootfs", "--dockerfile", context / "Dockerfile", "--tag", "tests/small:1", timeout_s=BUILD_TIMEOUT_S)

    (context / "Dockerfile").write_text(f"FROM {BASE}\nRUN dd if=/dev/urandom of=/big bs=1M count={WANTED_MIB}\n")
    before = take_snapshot(watch)
    resize(small_disk, used_mib(small_disk) + ROOM_MIB)
    used = used_mib(small_disk)
    arguments = ("rootfs", "--dockerfile", context / "Dockerfile", "--tag", "tests/big:1")
    result = cli.refused(*arguments, timeout_s=BUILD_TIMEOUT_S)
    assert "space" in result.stderr, result.describe()
    left = settle(before, watch)
    assert not left, "\n".join(left)
    assert used_mib(small_disk) <= used + 4, "the failed build still takes room"
    cli.refused("image", "inspect", "tests/big:1")
    assert cli.run("fsck").status == 0

    a_machine_is_told_and_lives_on(cli, small_disk)

    cli.ok(*arguments, timeout_s=BUILD_TIMEOUT_S)
    assert cli.run("fsck").status == 0


def a_machine_is_told_and_lives_on(cli: Cli, small_disk: Path) -> None:
    """Where the host has no room the guest's program gets an I/O error; it is not the machine that stops."""
    fill = f"while [ ! -e /go ]; do sleep 0.2; done; dd if=/dev/urandom of=/big bs=1M count={WANTED_MIB} conv=fsync; sleep 1000"
    cli.ok("run", "-d", "--name", "full", "--from", "tests/small:1", "--network", "none", "--", "sh", "-c", fill)
    cli.run("exec", "full", "--", "touch", "/go")
    deadline = Deadline(BUILD_TIMEOUT_S, "waiting for a full disk")
    while os.statvfs(small_disk).f_bfree:
        deadline.check()
        threading.Event().wait(0.2)  # nothing tells that a disk is full
    resize(small_disk, 4096)
    assert cli.ok("exec", "full", "--", "echo", "alive", timeout_s=INTERRUPT_TIMEOUT_S) == "alive\n"
    cli.ok("kill", "full")
    cli.ok("rm", "full")
