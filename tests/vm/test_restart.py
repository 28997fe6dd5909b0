"""Restart policies: the entrypoint's further lives in one machine, and what ends them."""

from __future__ import annotations

import json

from tests.support.cli import Cli
from tests.vm.conftest import BASE


def test_after_so_many_failures_the_last_one_is_the_machines_end(cli: Cli) -> None:
    # What an earlier life leaves behind is ended: the next one would wait for ever for it.
    script = "while grep -qsx sleep /proc/[0-9]*/comm; do true; done; echo begun; sleep 1000 & exit 3"
    result = cli.run("run", "--name", "again1", "--restart", "on-failure:2", "--from", BASE, "--", "sh", "-c", script)
    assert (result.status, result.stdout) == (3, "begun\n" * 3), result.describe()
    machine = cli.json("inspect", "again1")
    assert (machine["RestartCount"], machine["State"]["ExitCode"]) == (2, 3)
    assert machine["Configs"]["RunConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 2}


def test_a_users_stop_is_the_end(cli: Cli) -> None:
    script = "test -e /once && echo again && exec sleep 1000; touch /once"
    cli.ok("run", "-d", "--name", "again2", "--restart", "always", "--from", BASE, "--", "sh", "-c", script)
    cli.await_output("again2", "again")
    assert cli.json("inspect", "again2")["RestartCount"] == 1

    # Detached, it lives on; the machine's own kernel tells of it.
    cli.ok("exec", "-d", "again2", "--", "sh", "-c", "echo lost; exec sleep 2000")
    rows = [json.loads(line) for line in cli.ok("top", "again2", "--format", "json").splitlines()]
    found = {row["command"]: row for row in rows}
    assert found["sleep 2000"]["user"] == found["sleep 1000"]["user"] == "root"
    assert found["sleep 1000"]["ppid"] == found["sleep 2000"]["ppid"] == 1 and found["sleep 1000"]["memory_kib"] > 0
    assert not any(row["ppid"] == 2 for row in rows)
    assert cli.run("exec", "-d", "again2", "--", "no-such-program").status == 127
    cli.ok("stop", "again2", "--time", "1")
    machine = cli.json("inspect", "again2")
    assert (machine["RestartCount"], machine["State"]["ExitCode"], machine["State"]["Status"]) == (1, 143, "stopped")


def test_another_policy_counts_at_the_next_end(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "again3", "--restart", "always", "--from", BASE, "--", "sleep", "1000")
    cli.ok("update", "again3", "--restart", "no")
    cli.ok("kill", "--signal", "USR1", "again3")
    assert cli.ok("wait", "again3") == "138\n"
    assert cli.json("inspect", "again3")["RestartCount"] == 0


def test_what_cannot_be_restarted_is_refused(cli: Cli) -> None:
    assert "--rm" in cli.refused("run", "--rm", "--restart", "always", "--from", BASE, "--", "true").stderr
    refused = cli.refused("run", "--restart", "sometimes", "--from", BASE, "--", "true")
    assert "on-failure:N" in refused.stderr
