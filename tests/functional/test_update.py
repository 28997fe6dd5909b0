"""What is changed of a machine that exists, and its processes: through the real CLI, with a scripted guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import Fake


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def config(fake: Fake, name: str, part: str = "RunConfig") -> Any:
    return fake.cli.json("inspect", name)["Configs"][part]


def test_what_a_running_machine_takes_and_what_only_an_ended_one(fake: Fake) -> None:
    fake.run("-d", "--name", "one", "--label", "a=1", "--label", "b=2")
    fake.cli.ok(
        "update", "one", "--restart", "on-failure:3", "--stop-timeout", "3", "--label", "c=3", "--label-rm", "a"
    )
    shown = config(fake, "one")
    assert shown["Labels"] == {"b": "2", "c": "3"}
    assert shown["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    # The guest was told.
    fake.cli.await_output("one", "on-failure 3")
    refused = fake.cli.refused("update", "one", "--cpus", "2", "--health-cmd", "true", "--label", "d=4")
    assert "--cpus, --health-… can only be changed of one that has ended" in refused.stderr
    assert config(fake, "one")["Labels"] == {"b": "2", "c": "3"}
    fake.cli.ok("pause", "one")
    assert "cannot be told of another restart policy" in fake.cli.refused("update", "one", "--restart", "no").stderr
    fake.cli.ok("kill", "one")

    fake.cli.ok(
        "update",
        "one",
        "--cpus",
        "2",
        "--memory",
        "1g",
        "--disk-size",
        "10g",
        "--health-cmd",
        "true",
        "--restart",
        "no",
    )
    machine = config(fake, "one", "Machine")
    assert (machine["CPU"], machine["Mem"], machine["DiskSize"]) == (2, 1024, 10 << 30)
    shown = config(fake, "one")
    assert (shown["Healthcheck"]["Test"], shown["RestartPolicy"]["Name"]) == (["CMD-SHELL", "true"], "no")
    fake.cli.ok("update", "one", "--no-healthcheck")
    assert config(fake, "one")["Healthcheck"] is None
    told = fake.cli.ok(
        "events", "--since", "1h", "--until", "0s", "--filter", "event=updated", "--format", "{{.Action}}"
    )
    assert told == "updated\n" * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to change"),
        (("--publish-all",), "No such option"),
        (("--port", "80:80"), "--port of a machine that exists cannot be changed"),
        (("-e", "A=1"), "--env of a machine that exists cannot be changed"),
        (("--no-mmds",), "--no-mmds of a machine that exists cannot be changed"),
        (("--restart", "always"), "is removed when it has ended (--rm)"),
        (("--memory", "1"), "1 MiB is not a machine's memory"),
        (("--label-rm", "none"), "has no label `none`"),
        (("--health-retries", "2"), "no health check to change"),
    ],
)
def test_what_is_refused(fake: Fake, arguments: tuple[str, ...], message: str) -> None:
    fake.run("-d", "--rm", "--name", "m")
    if "--memory" in arguments or "--health-retries" in arguments:
        fake.run("-d", "--name", "ended")
        fake.cli.ok("kill", "ended")
    name = "ended" if "--memory" in arguments or "--health-retries" in arguments else "m"
    assert message in fake.cli.refused("update", name, *arguments).stderr


def test_processes_are_shown_fit_for_a_terminal(fake: Fake) -> None:
    fake.run("-d", "--name", "busy")
    result = fake.cli.run("top", "busy")
    heading, row = (line.split() for line in result.stdout.splitlines())
    assert heading == ["PID", "PPID", "USER", "STATE", "TIME", "MEMORY", "ELAPSED", "COMMAND"]
    assert [row[0], row[2], row[4], row[-1]] == ["1", "ro?ot", "00:01:01", "app?[2J"]
    assert "there are more" in result.stderr
    assert json.loads(fake.cli.ok("top", "busy", "--format", "json"))["elapsed_ms"] == 3600000
    assert fake.cli.ok("top", "busy", "--format", "{{.PID}} {{.Elapsed}}") == "1 01:00:00\n"
    fake.cli.ok("pause", "busy")
    assert "is paused" in fake.cli.refused("top", "busy").stderr


def test_a_command_is_started_and_left_alone(fake: Fake) -> None:
    fake.run("-d", "--name", "busy")
    result = fake.cli.run("exec", "-d", "busy", "--", "anything")
    assert (result.status, result.stdout) == (0, ""), result.describe()
    assert "-d does not go with -i or -t" in fake.cli.refused("exec", "-dt", "busy", "--", "anything").stderr
