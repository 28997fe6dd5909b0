"""Many runs at the same time, in rounds: every one succeeds, none shares a name, an address or a port, and none leaves anything.

FIREBUILD_TEST_CROWD says how many machines a round has and FIREBUILD_TEST_ROUNDS how many rounds: 200 and 10 are the whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firebuild.config.settings import load_settings
from firebuild.engine.core import Engine
from firebuild.network.attach import find_attachments
from tests.support.cli import Cli
from tests.support.fake_machines import IMAGE, Fake
from tests.support.fake_vmm import Script
from tests.support.kill_points import Victim, start

CROWD = int(os.environ.get("FIREBUILD_TEST_CROWD", "20"))
ROUNDS = int(os.environ.get("FIREBUILD_TEST_ROUNDS", "3"))
# Before the first has begun they are all there; the last waits for its turn at the network.
PATIENCE = ("--boot-timeout", "1200")


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Iterator[Fake]:
    yield Fake(firebuild_cli, tmp_path)
    # Of a round that failed, hundreds of machines: the next test shall have its addresses.
    if left := firebuild_cli.run("ls", "-a", "-q").stdout.split():
        firebuild_cli.run("rm", "-f", *left, timeout_s=1200)


def all_at_once(begin: Callable[[int], Victim]) -> list[str]:
    """As many commands, all begun before the first is waited for; what each printed."""
    victims = [begin(number) for number in range(CROWD)]
    failed = [victim for victim in victims if victim.wait()]
    assert not failed, "\n".join(victim.output.read_text() for victim in failed)
    return [victim.output.read_text() for victim in victims]


def test_runs_at_once_share_nothing_and_leave_nothing(fake: Fake, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        run_round(fake, folder)


def run_round(fake: Fake, folder: Path) -> None:
    """All machines of a round: started, compared, removed."""
    environment = {**fake.cli.environment(), **fake.environment(Script())}
    command = ("run", "-d", "--from", IMAGE, "-p", "127.0.0.1::80", *PATIENCE)
    ids = {
        text.splitlines()[0]
        for text in all_at_once(lambda number: start(command, environment, folder / f"run{number}"))
    }
    assert len(ids) == CROWD
    listed = [json.loads(line) for line in fake.cli.ok("ls", "--format", "json").splitlines()]
    assert {item["id"] for item in listed} == ids
    with Engine(load_settings(fake.cli.environment())[0]) as engine:
        given = [find_attachments(engine.networks, record.spec.id) for record in engine.machines.records.list_all()]
    (attachments,) = zip(*given, strict=True)
    for kind, values in (
        ("name", {item["name"] for item in listed}),
        ("address", {attachment.addresses[0] for attachment in attachments}),
        ("MAC address", {attachment.mac for attachment in attachments}),
        ("port", {(port.host_address, port.host_port) for attachment in attachments for port in attachment.ports}),
    ):
        assert len(values) == CROWD, f"a {kind} was given twice"
    assert {item["ip-address"] for item in listed} == {each.addresses[0].partition("/")[0] for each in attachments}
    names = [item["name"] for item in listed]
    all_at_once(lambda number: start(("rm", "-f", names[number]), environment, folder / f"rm{number}"))
    assert fake.cli.ok("ls", "-a", "-q") == ""
