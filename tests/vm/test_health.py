"""Health checks in a real guest: who runs them and where, what they amount to, what ends them and begins them anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.support.cli import Cli
from tests.vm.conftest import BASE

CHECK = """
echo "checking as $(id -un) in $PWD: $COLOUR"
test ! -e ill || { echo "something is ill" >&2; exit 3; }
test ! -e slow || { sleep 1000 & sleep 1000; }
"""


def look(cli: Cli, machine: str) -> dict[str, Any]:
    health: dict[str, Any] = cli.json("inspect", machine)["State"]["Health"]
    return health


def await_look(cli: Cli, machine: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Look until what is seen is so."""
    end = time.monotonic() + 120
    while not holds(seen := look(cli, machine)):
        assert time.monotonic() < end, seen


def test_a_life_with_checks(cli: Cli) -> None:
    cli.ok(
        "run", "-d", "--name", "health1", "--restart", "on-failure", "--user", "nobody", "--workdir", "/var/tmp", "-e", "COLOUR=green",
        "--health-cmd", CHECK, "--health-interval", "100ms", "--health-timeout", "2s", "--health-retries", "2",
        "--health-start-period", "1h", "--health-start-interval", "100ms", "--from", BASE, "--", "tail", "-f", "/dev/null",
    )  # fmt: skip
    cli.ok("wait", "--for", "healthy", "health1")
    assert look(cli, "health1")["Log"][-1]["Output"] == "checking as nobody in /var/tmp: green\n"

    cli.ok("exec", "health1", "--", "touch", "ill")
    cli.ok("wait", "--for", "unhealthy", "health1")
    ill = look(cli, "health1")
    assert (ill["Status"], ill["Log"][-1]["ExitCode"], len(ill["Log"]) <= 5) == ("unhealthy", 3, True)
    assert ill["FailingStreak"] >= 2 and "something is ill\n" in ill["Log"][-1]["Output"]

    # Another life of the entrypoint knows nothing of it, and its start period has only begun.
    cli.ok("kill", "--signal", "HUP", "health1")
    await_look(cli, "health1", lambda health: health["FailingStreak"] == 0 and bool(health["Log"]))
    assert cli.json("inspect", "health1")["RestartCount"] == 1
    assert look(cli, "health1")["Status"] == "starting"
    # In this order no check is well in between: it is not healthy before the first that begins without `slow`.
    cli.ok("exec", "health1", "--", "sh", "-c", "touch slow; rm ill")

    # One that takes too long is killed with all that it has started.
    await_look(cli, "health1", lambda health: any(each["ExitCode"] == -1 for each in health["Log"]))
    cli.ok("exec", "health1", "--", "rm", "slow")
    cli.ok("wait", "--for", "healthy", "health1")
    # A process that ends meanwhile makes grep complain.
    assert cli.run("exec", "-u", "root", "health1", "--", "sh", "-c", "grep -lsx sleep /proc/[0-9]*/comm").stdout == ""

    # Nothing is checked while the processors stand still.
    cli.ok("pause", "health1")
    seen: list[Any] = []
    await_look(cli, "health1", lambda health: _is_still(seen, health["Log"]))
    cli.ok("resume", "health1")
    await_look(cli, "health1", lambda health: health["Log"] != seen[-1])
    cli.ok("stop", "health1", "--time", "5")


def _is_still(seen: list[Any], log: Any) -> bool:
    """Whether three looks in a row, half a second apart, see the same."""
    seen.append(log)
    time.sleep(0.5)
    return len(seen) >= 3 and all(each == log for each in seen[-3:])


def test_a_check_that_cannot_be_run(cli: Cli) -> None:
    cli.ok(
        "run", "-d", "--name", "health2", "--health-cmd", "true", "--health-interval", "100ms", "--health-retries", "1",
        "--workdir", "/var/tmp/here", "--from", BASE, "--", "sh", "-c", "rmdir /var/tmp/here; exec sleep 1000",
    )  # fmt: skip
    cli.ok("wait", "--for", "unhealthy", "health2")
    last = look(cli, "health2")["Log"][-1]
    assert (last["ExitCode"], last["Output"]) == (-1, "no-such-directory: no such directory: /var/tmp/here")
    cli.ok("kill", "health2")
