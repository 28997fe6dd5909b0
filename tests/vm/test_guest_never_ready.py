"""A guest that never becomes ready: the deadline ends it, the error shows its console's last lines, nothing is left."""

from __future__ import annotations

from tests.support.cli import Cli
from tests.vm.conftest import BASE

SLEEP = ("--", "/bin/sleep", "infinity")
# The kernel finds no program to start. It panics, and with panic=0 stands still for ever; with panic=1 it resets.
NO_INIT = "console=ttyS0 reboot=k rdinit=/nothing"


def test_a_guest_that_stands_still(cli: Cli) -> None:
    result = cli.refused(
        "run",
        "-d",
        "--name",
        "still1",
        "--from",
        BASE,
        "--boot-timeout",
        "25",
        "--kernel-args",
        f"{NO_INIT} panic=0",
        *SLEEP,
    )
    assert "25 s" in result.stderr, result.describe()
    assert "Kernel panic" in result.stderr, result.describe()
    assert "still1" not in cli.ok("ls", "-a")


def test_a_guest_that_dies_is_noticed_before_the_deadline(cli: Cli) -> None:
    result = cli.refused(
        "run",
        "-d",
        "--name",
        "dead1",
        "--from",
        BASE,
        "--boot-timeout",
        "3600",
        "--kernel-args",
        f"{NO_INIT} panic=1",
        *SLEEP,
    )
    assert "Kernel panic" in result.stderr, result.describe()
    assert "dead1" not in cli.ok("ls", "-a")
