"""Events through the real CLI and supervisor: what happens, in its order, while it happens and afterwards."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def past(fake: Fake, *filters: str) -> list[dict[str, Any]]:
    wanted = [word for text in filters for word in ("--filter", text)]
    lines = fake.cli.ok("events", "--since", "1h", "--until", "0s", "--format", "json", *wanted).splitlines()
    return [json.loads(line) for line in lines]


def actions(fake: Fake, *filters: str) -> list[str]:
    return [event["action"] for event in past(fake, *filters)]


def await_line(output: IO[str], wanted: str) -> None:
    for line in output:
        if line == wanted:
            return
    raise AssertionError(f"it ended before it said {wanted}")


def await_healthy(fake: Fake, machine: str) -> None:
    """Until the supervisor has told it: the scripted guest cannot be paused."""
    end = time.monotonic() + 60
    while "healthy" not in [event["attributes"].get("health") for event in past(fake, "event=health")]:
        assert time.monotonic() < end, f"{machine} is not healthy"


def test_a_machines_life_is_told(fake: Fake) -> None:
    script = Script(health=[("unhealthy", 1, ""), ("healthy", 0, "")])
    fake.run("-d", "--name", "one", "--label", "tier=front", "--health-cmd", "x", script=script)
    with fake.cli.start("events", "--since", "1h", "--filter", "machine=one", "--format", "{{.Action}}") as process:
        assert process.stdout is not None
        killer = threading.Timer(120, process.kill)
        killer.start()
        # It knows the past, and goes on.
        await_line(process.stdout, "ready\n")
        fake.cli.ok("pause", "one")
        await_line(process.stdout, "paused\n")
        await_healthy(fake, "one")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        killer.cancel()
        assert process.returncode == 130
    fake.cli.ok("resume", "one")
    fake.cli.ok("rename", "one", "uno")
    fake.cli.ok("kill", "uno")
    fake.cli.ok("start", "uno", environment=fake.environment(Script()))
    fake.cli.ok("rm", "-f", "uno")
    told = [action for action in actions(fake, "type=machine") if action != "health"]
    life = [
        "created",
        "started",
        "ready",
        "paused",
        "resumed",
        "renamed",
        "exited",
        "started",
        "ready",
        "exited",
        "removed",
    ]
    assert told == life
    (exited, _) = past(fake, "event=exited", "label=tier=front")
    assert (exited["attributes"]["name"], exited["attributes"]["exit_code"], exited["labels"]) == (
        "uno", "143", {"tier": "front"},
    )  # fmt: skip
    # What came to nothing is told too.
    fake.run("-d", "--name", "two", script=Script(die_at_start=True))
    assert actions(fake, "machine=two") == ["created", "started", "removed"]


def test_images_are_told(fake: Fake) -> None:
    fake.cli.ok("image", "tag", IMAGE, "test/other:2")
    fake.cli.ok("image", "rm", "test/other:2")
    assert actions(fake, "image=test/other:2") == ["tagged", "untagged"]
    line = fake.cli.ok("events", "--since", "1h", "--until", "0s", "--filter", "type=image").splitlines()[-1]
    assert " image untagged test/other:2 (image=test/other:2)" in line or line.endswith("(image=test/other:2)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--since", "yesterday"), "is not a time for --since"),
        (("--filter", "colour=red"), "is not a key of --filter"),
        (("--format", "{{.Colour}}"), "names the field `Colour`"),
        (("--format", "xml"), "is not an output format"),
    ],
)
def test_what_is_refused(fake: Fake, arguments: tuple[str, ...], message: str) -> None:
    assert message in fake.cli.refused("events", *arguments).stderr
