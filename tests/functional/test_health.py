"""Health checks through the real CLI and supervisor, with a scripted guest that says how it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import Fake
from tests.support.fake_vmm import Script

CHECK = ("--health-cmd", "probe it", "--health-interval", "1s", "--health-retries", "2")


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def test_health_is_shown_and_waited_for(fake: Fake) -> None:
    script = Script(health=[("starting", 1, "no\x1b[2J"), ("healthy", 0, "ok\n")])
    assert fake.run("-d", "--name", "well", *CHECK, script=script).status == 0
    fake.cli.ok("wait", "--for", "running", "well")
    assert fake.cli.ok("wait", "--for", "healthy", "--timeout", "60", "well") == ""
    shown = fake.cli.json("inspect", "well")
    health = shown["State"]["Health"]
    assert (health["Status"], [each["ExitCode"] for each in health["Log"]]) == ("healthy", [1, 0])
    # What a guest says must not drive the terminal.
    assert [each["Output"] for each in health["Log"]] == ["no?[2J", "ok\n"]
    check = shown["Configs"]["RunConfig"]["Healthcheck"]
    assert (check["Test"], check["Interval"], check["Retries"]) == (["CMD-SHELL", "probe it"], 10**9, 2)
    _await_listed(fake, "running (healthy)")
    assert fake.cli.ok("ls", "-q", "--filter", "health=unhealthy") == ""
    assert fake.cli.ok("ls", "--filter", "health=healthy", "--format", "{{.Name}}") == "well\n"
    fake.cli.ok("pause", "well")
    assert fake.cli.ok("ls", "--format", "{{.Status}}") == "paused\n"
    fake.cli.ok("kill", "well")
    ended = fake.cli.json("inspect", "well")["State"]
    assert (ended["Status"], ended["Health"]["Status"]) == ("stopped", "healthy")
    assert "is stopped, not healthy" in fake.cli.refused("wait", "--for", "healthy", "well").stderr
    # Another start knows nothing of an earlier one's health.
    environment = fake.environment(Script())
    fake.cli.ok("start", "well", environment=environment)
    assert fake.cli.ok("ls", "--format", "{{.Status}}") == "running (starting)\n"
    assert fake.cli.json("inspect", "well")["State"]["Health"] == {"Status": "starting", "FailingStreak": 0, "Log": []}
    late = fake.cli.refused("wait", "--for", "unhealthy", "--timeout", "0.5", "well")
    assert "waiting until well is unhealthy took longer than 0.5 s" in late.stderr


def test_a_machine_that_ends_will_not_be_healthy(fake: Fake) -> None:
    script = Script(health=[("unhealthy", 1, "")], exit_after_s=0)
    fake.run("-d", "--name", "ill", *CHECK, script=script)
    refused = fake.cli.refused("wait", "--for", "healthy", "ill")
    assert "the machine ill is stopped, not healthy" in refused.stderr
    fake.run("-d", "--name", "none")
    assert fake.cli.json("inspect", "none")["State"]["Health"] is None
    assert "checks no health" in fake.cli.refused("wait", "--for", "healthy", "none").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--health-retries", "2"), "no health check to change"),
        (("--no-healthcheck", "--health-cmd", "x"), "choose one"),
        (("--health-cmd", "x", "--health-interval", "5"), "--health-interval: `5` is not a duration"),
    ],
)
def test_what_is_refused(fake: Fake, arguments: tuple[str, ...], message: str) -> None:
    result = fake.run("-d", "--name", "m", *arguments)
    assert result.status == 125 and message in result.stderr, result.describe()


def _await_listed(fake: Fake, status: str) -> None:
    """The list learns it from the supervisor a moment after `wait`."""
    end = time.monotonic() + 60
    while (seen := fake.cli.ok("ls", "--format", "{{.Status}}").strip()) != status:
        assert time.monotonic() < end, seen
