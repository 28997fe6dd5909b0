"""Two hundred runs at the same time: every one succeeds, none shares a name, an address or a port, and none leaves anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script
from tests.support.kill_points import Victim, start

CROWD = 200
# Before the first has begun they are all there; the last waits for its turn at the network.
PATIENCE = ("--boot-timeout", "1200")


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def all_at_once(begin: Callable[[int], Victim]) -> list[str]:
    """Two hundred commands, all begun before the first is waited for; what each printed."""
    victims = [begin(number) for number in range(CROWD)]
    for victim in victims:
        assert victim.wait() == 0, victim.output.read_text()
    return [victim.output.read_text() for victim in victims]


def test_two_hundred_runs_share_nothing_and_leave_nothing(fake: Fake, tmp_path: Path) -> None:
    environment = {**fake.cli.environment(), **fake.environment(Script())}
    command = ("run", "-d", "--from", IMAGE, "-p", "127.0.0.1::80", *PATIENCE)
    ids = all_at_once(lambda number: start(command, environment, tmp_path / f"run{number}"))
    assert len(set(ids)) == CROWD
    shown = [fake.cli.json("inspect", text.splitlines()[0]) for text in ids[:2]]
    assert shown[0]["VMMID"] != shown[1]["VMMID"]
    listed = [json.loads(line) for line in fake.cli.ok("ls", "--format", "json").splitlines()]
    assert len(listed) == CROWD
    for key in ("id", "name", "ip-address"):
        assert len({item[key] for item in listed}) == CROWD, key
    ports = fake.cli.ok("port", listed[0]["name"])
    assert ports.startswith("80/tcp -> 127.0.0.1:")
    names = [item["name"] for item in listed]
    all_at_once(lambda number: start(("rm", "-f", names[number]), environment, tmp_path / f"rm{number}"))
    assert fake.cli.ok("ls", "-a", "-q") == ""
