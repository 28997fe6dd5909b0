"""Firecracker and its jailer themselves, where FIREBUILD_FIRECRACKER_BINARY and FIREBUILD_JAILER_BINARY name them.

On a host that runs stock guest kernels the guest comes up; on others everything up to its boot is seen.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.vm.conftest import BASE

FIRECRACKER = os.environ.get("FIREBUILD_FIRECRACKER_BINARY", "")
JAILER = os.environ.get("FIREBUILD_JAILER_BINARY", "")
pytestmark = pytest.mark.skipif(not FIRECRACKER or not JAILER, reason="no Firecracker and jailer are named")

REAL = {"FIREBUILD_BINARY_FIRECRACKER": FIRECRACKER, "FIREBUILD_BINARY_JAILER": JAILER}
BOOT_S = 20


@pytest.fixture
def prepared(cli: Cli) -> Cli:
    """The image's disk is made on the emulator, which runs everywhere."""
    cli.ok("run", "--rm", "--from", BASE, "--network", "none", "--", "true", timeout_s=600)
    return cli


def _await_jailed(cli: Cli) -> dict[str, str]:
    """/proc/PID/status of the VMM, once it is another user's and all its threads are there."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for file in (cli.run_folder / "m").glob("*/vmm.pid"):
            folder = Path("/proc", file.read_text().strip())
            try:
                names = {(thread / "comm").read_text().strip() for thread in (folder / "task").iterdir()}
                status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            except OSError:
                continue
            if "fc_vcpu 0" in names and status["Seccomp"].strip() == "2":
                return {name: " ".join(value.split()) for name, value in status.items()}
        time.sleep(0.05)
    raise AssertionError("no jailed VMM was seen")


def test_a_jailed_guest(prepared: Cli) -> None:
    command = ("run", "-d", "--name", "fc", "--from", BASE, "--boot-timeout", str(BOOT_S), "--", "sleep", "600")
    process = subprocess.Popen(
        prepared._argv(command), env={**prepared.environment(), **REAL}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    prepared.started.append("fc")
    try:
        status = _await_jailed(prepared)
        assert status["Uid"] == status["Gid"] and len(set(status["Uid"].split())) == 1
        assert int(status["Uid"].split()[0]) > 1000
        assert (status["Groups"], status["NoNewPrivs"], status["NSpid"].split()[-1]) == ("", "1", "1")
    finally:
        _, errors = process.communicate(timeout=180)
    if process.returncode != 0:
        # Its log tells that everything up to the guest's own work was done.
        assert "was not ready within" in errors or "ended while its guest was starting" in errors, errors
        assert "InstanceStart" in errors and "204 No Content" in errors, errors
        assert prepared.ok("ls", "-a", "-q") == ""
        return
    assert prepared.run("exec", "fc", "--", "sh", "-c", "exit 7").status == 7
    prepared.ok("stop", "fc")
    prepared.ok("rm", "fc")


def test_programs_in_each_others_place_are_refused(prepared: Cli) -> None:
    for changes, words in (
        ({"FIREBUILD_BINARY_JAILER": FIRECRACKER}, "is not the Jailer that works"),
        ({"FIREBUILD_BINARY_FIRECRACKER": JAILER}, "is not a Firecracker that works"),
        ({"FIREBUILD_BINARY_JAILER": ""}, "is Firecracker, and no jailer is given to start it in"),
    ):
        result = prepared.run("run", "-d", "--from", BASE, environment={**REAL, **changes})
        assert result.status != 0 and words in result.stderr, result.describe()
