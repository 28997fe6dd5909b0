"""Snapshots when the VMM fails at each of their calls, when their files are not what was written, and when their commands are killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import Fake
from tests.support.fake_vmm import MEMORY_BYTES, Script
from tests.support.kill_points import Victim, count_effects, start

ANSWERS = (
    ("die", "the VMM closed its API's connection instead of answering"),
    ("close", "the VMM closed its API's connection instead of answering"),
    ("garbage", "its answer is not HTTP"),
    ("503", "with status 503: Too many?[2J open connections."),
)
POINTS = 6


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def begin(fake: Fake, name: str, **script: object) -> None:
    started = fake.run("-d", "--name", name, script=Script(**script))  # type: ignore[arg-type]
    assert started.status == 0, started.describe()


def stages(fake: Fake) -> list[str]:
    folder = fake.cli.state / "snapshots"
    return [name for name in os.listdir(folder) if name.startswith(".")] if folder.exists() else []


def names(fake: Fake) -> list[str]:
    return fake.cli.ok("ls", "-a", "--format", "{{.Names}}").split()


@pytest.mark.parametrize(("how", "words"), ANSWERS)
def test_a_save_that_the_vmm_fails_leaves_no_snapshot_and_the_machine_runs_on(fake: Fake, how: str, words: str) -> None:
    begin(fake, "m", answers={"PUT /snapshot/create": how})
    refused = fake.cli.refused("snapshot", "create", "m", "s")
    assert words in refused.stderr and "PUT /snapshot/create" in refused.stderr, refused.describe()
    assert "Traceback" not in refused.stderr and "\x1b" not in refused.stderr
    assert fake.cli.ok("snapshot", "ls", "-q") == "" and not stages(fake)
    if how == "die":
        fake.cli.run("wait", "m")
        return
    assert fake.state("m") == "running"
    assert fake.cli.run("exec", "m", "--", "x").stdout == "fake output\n"
    fake.cli.ok("kill", "m")


def test_a_vmm_that_dies_when_it_is_to_pause(fake: Fake) -> None:
    begin(fake, "m", answers={"PATCH /vm": "die"})
    refused = fake.cli.refused("snapshot", "create", "m", "s")
    assert "instead of answering PATCH /vm" in refused.stderr and "Traceback" not in refused.stderr, refused.describe()
    fake.cli.run("wait", "m")
    assert fake.cli.ok("snapshot", "ls", "-q") == "" and not stages(fake)


def test_restores_that_cannot_be_are_refused_with_nothing_left(fake: Fake) -> None:
    begin(fake, "m")
    fake.cli.ok("snapshot", "create", "m", "s", "--label", "a=b", "--stop")

    def refuse(words: str, **script: object) -> None:
        environment = fake.environment(Script(**script))  # type: ignore[arg-type]
        result = fake.cli.run(
            "run", "--from-snapshot", "s", "-d", "--name", "c", "--boot-timeout", "4", environment=environment
        )
        assert result.status == 125 and words in result.stderr, result.describe()
        assert "Traceback" not in result.stderr and "\x1b" not in result.stderr, result.describe()
        assert names(fake) == ["m"]

    for how, words in ANSWERS:
        refuse(words, answers={"PUT /snapshot/load": how})
    refuse("did not answer PUT /snapshot/load in time", answers={"PUT /snapshot/load": "hang"})
    refuse("instead of answering PATCH /vm", answers={"PATCH /vm": "die"})
    refuse("bad memory file", refuse={"PUT /snapshot/load": "bad memory file"})
    refuse("the VMM that made it was 1.17.0, this one is 1.16.0", version="Firecracker v1.16.0")

    folder = fake.cli.state / "snapshots" / "s"
    memory, record = folder / "memory", folder / "snapshot.json"
    original = json.loads(record.read_bytes())
    record.write_text(json.dumps({**original, "cpu_model": "another"}))
    refuse("was made with the CPU model `another`")
    record.write_text("{")
    refuse("the record of the snapshot `s` is damaged")
    record.write_text(json.dumps(original))
    os.truncate(memory, MEMORY_BYTES - 1)
    refuse(f"it has {MEMORY_BYTES - 1} bytes instead of {MEMORY_BYTES}")
    memory.write_bytes(b"another".ljust(MEMORY_BYTES, b"\0"))
    refuse("it does not hold what was written")
    memory.unlink()
    refuse("cannot be read: No such file or directory")

    # What has happened is told, and shown as everything is.
    [shown] = [json.loads(line) for line in fake.cli.ok("snapshot", "ls", "--format", "json").splitlines()]
    assert (shown["Name"], shown["Kind"], shown["Labels"]) == ("s", "full", {"a": "b"})
    fake.cli.ok("snapshot", "rm", "s")
    told = [
        json.loads(line)
        for line in fake.cli.ok(
            "events", "--since", "1h", "--until", "0s", "--filter", "type=snapshot", "--filter", "machine=m",
            "--filter", "label=a=b", "--format", "json",
        ).splitlines()
    ]  # fmt: skip
    assert [(each["action"], each["id"]) for each in told] == [("created", original["id"]), ("removed", original["id"])]
    assert told[0]["attributes"] == {"name": "s", "image": "test/app:1", "machine": "m", "kind": "full"}


def test_commands_that_are_killed_leave_the_machine_running_and_nothing_half(fake: Fake) -> None:
    begin(fake, "m")
    environment = {**fake.cli.environment(), **fake.environment(Script())}

    def victim(*argv: str, at: int = 0) -> Victim:
        return start(argv, environment, fake.folder / "output", at=at)

    def sweep(argv: tuple[str, ...], check: Callable[[], None]) -> None:
        whole = victim(*argv)
        assert whole.wait() == 0, whole.output.read_text()
        total = count_effects(whole)
        check()
        killed = 0
        for turn in range(POINTS):
            killed += victim(*argv, at=1 + total * turn // POINTS).killed
            fake.cli.ok("purge")
            assert fake.state("m") == "running" and not stages(fake)
            check()
        assert killed >= POINTS - 1
        assert fake.cli.run("exec", "m", "--", "x").stdout == "fake output\n"

    def no_snapshot() -> None:
        for name in fake.cli.ok("snapshot", "ls", "-q").split():
            # Killed after its last step it has made a whole one.
            assert name == "s" and set(os.listdir(fake.cli.state / "snapshots" / "s")) >= {"state", "memory"}
            fake.cli.ok("snapshot", "rm", name)

    def no_clone() -> None:
        for name in set(names(fake)) - {"m"}:
            assert name == "c" and fake.state("c") == "running"
            fake.cli.ok("rm", "-f", "c")

    def no_fork() -> None:
        no_clone()
        assert fake.cli.ok("snapshot", "ls", "-q") == ""

    sweep(("snapshot", "create", "m", "s"), no_snapshot)
    sweep(("machine", "fork", "m", "--name", "c"), no_fork)
    fake.cli.ok("snapshot", "create", "m", "s")
    sweep(("run", "--from-snapshot", "s", "-d", "--name", "c"), no_clone)
    fake.cli.ok("fsck")
    fake.cli.ok("snapshot", "rm", "s")
    fake.cli.ok("kill", "m")
