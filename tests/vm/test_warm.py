"""Warm starts: made once by whoever is first, used by all others, thrown away when they do not work, never a reason to fail."""

from __future__ import annotations

import os
import time

from tests.support.cli import COMMAND_TIMEOUT_S, Cli
from tests.vm.conftest import BASE

MAKING = "making a snapshot for warm starts"
# Only a guest that was resumed has another boot id over its kernel's.
LOOK = """
grep -c boot_id /proc/self/mountinfo; hostname; id -un; pwd; echo $COLOUR
cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1
"""


def test_warm_starts(cli: Cli) -> None:
    # Two want it at once: one makes it, both start from it.
    words = ("run", "--warm", "--rm", "--from", BASE, "--mem", "192", "--name")
    with (
        cli.start(*words, "warm1", "--", "sh", "-c", LOOK) as one,
        cli.start(*words, "warm2", "--", "sh", "-c", LOOK) as two,
    ):
        said = [process.communicate(timeout=COMMAND_TIMEOUT_S) for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), said
    assert sum(MAKING in error for _, error in said) == 1 and not any("cold" in error for _, error in said), said
    looks = [output.splitlines() for output, _ in said]
    assert [look[:5] for look in looks] == [["1", name, "root", "/", ""] for name in ("warm1", "warm2")]
    assert not set(looks[0][5:]) & set(looks[1][5:])
    [name] = cli.ok("snapshot", "ls", "-q").split()
    assert cli.ok("ls", "-a", "-q") == "", "the machine that was saved is gone"

    # By the settings: what this start asks for is this start's, and its exit status too.
    more = ("-e", "COLOUR=blue", "--user", "nobody", "--workdir", "/tmp", "--hostname", "other")
    result = cli.run(
        "run", "--rm", "--from", BASE, "--mem", "192", "--name", "warm3", *more, "--", "sh", "-c", f"{LOOK}exit 3",
        environment={"FIREBUILD_WARM": "true"},
    )  # fmt: skip
    assert result.status == 3 and MAKING not in result.stderr and "cold" not in result.stderr, result.describe()
    assert result.stdout.splitlines()[:5] == ["1", "other", "nobody", "/tmp", "blue"]
    # A program that is not there is that, warm or cold, and no fault of the snapshot's.
    assert cli.run(*words, "warm4", "--", "/no/such").status == 127
    assert cli.ok("snapshot", "ls", "-q").split() == [name]

    # A volume cannot be added to a guest that is ready.
    result = cli.run(*words, "warm5", "-v", "warmv:/data", "--", "true")
    assert result.status == 0 and "started cold: volumes" in result.stderr, result.describe()
    cli.ok("volume", "rm", "warmv")

    # One that is damaged is thrown away, and the machine starts all the same.
    with open(cli.state / "snapshots" / name / "memory", "r+b") as memory:
        memory.truncate(4096)
    result = cli.run(*words, "warm6", "--", "sh", "-c", LOOK)
    assert result.status == 0 and "started cold: the memory file" in result.stderr, result.describe()
    assert result.stdout.startswith("0\nwarm6\n") and cli.ok("snapshot", "ls", "-q") == ""


def test_gc_removes_what_nobody_uses(cli: Cli) -> None:
    words = ("run", "--warm", "--rm", "--from", BASE, "--mem", "192", "--name")
    assert MAKING in cli.run(*words, "warm7", "--", "true").stderr
    [name] = cli.ok("snapshot", "ls", "-q").split()
    cli.ok("gc")
    assert cli.ok("snapshot", "ls", "-q").split() == [name]
    eight_days_ago = time.time() - 8 * 24 * 3600
    os.utime(cli.state / "snapshots" / name / "snapshot.json", (eight_days_ago, eight_days_ago))
    assert "1 snapshot" in cli.ok("gc", "--dry-run") and cli.ok("snapshot", "ls", "-q").split() == [name]
    assert "1 snapshot" in cli.ok("gc") and cli.ok("snapshot", "ls", "-q") == ""
