"""Snapshots through the command line: a machine saved and gone on, clones of it, what has changed, and what is refused."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from tests.support.cli import Cli
from tests.vm.conftest import BASE, SharedState

TIMEOUT_S = 300.0
SCRIPT = "cat /proc/sys/kernel/random/uuid > /root/made; echo begun; while :; do sleep 1; echo alive; done"
RUN = ("--from", BASE, "--", "/bin/sh", "-c")


def start(cli: Cli, name: str, *more: str, script: str = SCRIPT) -> None:
    cli.ok("run", "-d", "--name", name, "--stop-timeout", "1", *more, *RUN, script)
    cli.await_output(name, "begun")


def read(cli: Cli, machine: str, path: str) -> str:
    return cli.ok("exec", machine, "--", "cat", path).strip()


def list_snapshots(cli: Cli, *more: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli.ok("snapshot", "ls", "--format", "json", *more).splitlines()]


def test_a_machine_goes_on_and_its_clones_are_other_machines(cli: Cli) -> None:
    start(cli, "one")
    made = read(cli, "one", "/root/made")
    assert cli.ok("snapshot", "create", "one", "first", "--label", "a=b") == "first\n"
    assert "exists already" in cli.refused("snapshot", "create", "one", "first").stderr
    [shown] = list_snapshots(cli, "--filter", "label=a=b")
    assert (shown["Kind"], shown["Machine"]["Name"], shown["Memory"]) == ("full", "one", 256 << 20)
    assert cli.ok("snapshot", "ls", "-q", "--filter", "kind=diff") == ""

    ids = cli.ok("run", "--from-snapshot", "first", "-n", "2", "--name", "two").split()
    assert len(set(ids)) == 2
    names = ("one", "two-1", "two-2")
    assert {read(cli, name, "/root/made") for name in names} == {made}
    for path in ("/etc/machine-id", "/etc/hostname", "/proc/sys/kernel/random/boot_id"):
        assert len({read(cli, name, path) for name in names}) == 3, path
    assert len({cli.ok("exec", name, "--", "hostname", "-I") for name in names}) == 3
    # Each has its own disk, and its own output from here on.
    cli.ok("exec", "two-1", "--", "sh", "-c", "echo mine > /root/own")
    assert cli.run("exec", "two-2", "--", "test", "-e", "/root/own").status == 1
    cli.await_output("two-2", "alive")

    # What a clone has changed is little, and a clone of that has it.
    assert "was booted" in cli.refused("snapshot", "create", "one", "no", "--diff").stderr
    cli.ok("snapshot", "create", "two-1", "second", "--diff", "--stop")
    assert cli.json("inspect", "two-1")["State"]["Status"] == "stopped"
    views = {view["Name"]: view for view in list_snapshots(cli)}
    assert views["second"]["Parent"] == "first" and views["second"]["Used"] * 2 < views["first"]["Used"]
    assert "second" in cli.refused("snapshot", "rm", "first").stderr
    cli.ok("run", "--from-snapshot", "second", "-d", "--name", "three")
    assert read(cli, "three", "/root/own") == "mine"

    cli.ok("fsck")
    cli.ok("snapshot", "rm", "second", "first")
    # What it was started from is gone, and it goes on.
    forked = cli.ok("machine", "fork", "three", "--name", "four").strip()
    assert read(cli, forked, "/root/own") == "mine" and read(cli, "three", "/etc/hostname") == "three"
    assert cli.ok("snapshot", "ls", "-q") == ""
    # A clone that ended is started again as any machine: it boots.
    cli.ok("stop", "two-2")
    cli.ok("start", "two-2")
    assert cli.ok("exec", "two-2", "--", "true") == ""
    for name in ("one", "two-1", "two-2", "three", "four"):
        cli.ok("rm", "-f", name)


def test_what_cannot_be_right_is_refused(cli: Cli, shared_state: SharedState) -> None:
    cli.ok("volume", "create", "sn-data", "--size", "64m")
    start(cli, "writes", "--network", "none", "-v", "sn-data:/data", script="echo begun; sleep 1000000")
    refused = cli.refused("snapshot", "create", "writes", "x").stderr
    assert "may write to" in refused and ":ro" in refused
    assert cli.ok("exec", "writes", "--", "echo", "on") == "on\n"
    cli.ok("rm", "-f", "writes")
    cli.ok("volume", "rm", "sn-data")
    assert "no snapshot" in cli.refused("run", "--from-snapshot", "nothing").stderr
    assert "--mem does not go" in cli.refused("run", "--from-snapshot", "x", "--memory", "1g").stderr
    assert "--from-snapshot" in cli.refused("run", "-n", "2", BASE).stderr

    start(cli, "good", "--network", "none", script="echo begun; sleep 1000000")
    cli.ok("snapshot", "create", "good", "kept", "--stop")
    folder = shared_state.state / "snapshots" / "kept"
    record = folder / "snapshot.json"
    original = record.read_bytes()

    def try_with(**changes: object) -> str:
        record.write_bytes(json.dumps({**json.loads(original), **changes}).encode())
        text = cli.refused("run", "--from-snapshot", "kept", "-d", "--name", "bad").stderr
        record.write_bytes(original)
        assert cli.run("inspect", "bad").status != 0, "something of it was left"
        return text

    assert "CPU model" in try_with(cpu_model="another")
    assert "host mode" in try_with(host_mode="kvm")
    assert "the VMM that made it was 1.0.0" in try_with(vmm_version="1.0.0")
    shared = json.loads(original)["shared_disks"]
    assert "is gone" in try_with(shared_disks=[{**shared[0], "path": "/nonexistent"}])
    assert "has changed since" in try_with(shared_disks=[{**shared[0], "modified_ns": 1}])
    memory = folder / "memory"
    with open(memory, "r+b") as file:
        file.seek(16 << 20)
        page = file.read(4096)
        file.seek(16 << 20)
        file.write(bytes(byte ^ 1 for byte in page))
    assert "does not hold what was written" in cli.refused("run", "--from-snapshot", "kept").stderr
    assert "does not hold what was written" in cli.run("fsck").stdout
    with open(memory, "r+b") as file:
        file.seek(16 << 20)
        file.write(page)
    # Its bytes are right again, though the time of its change is another: it is read through, and taken.
    cli.ok("run", "--from-snapshot", "kept", "-d", "--name", "again")
    cli.ok("rm", "-f", "again")
    os.truncate(memory, memory.stat().st_size - 1)
    assert "bytes instead of" in cli.refused("run", "--from-snapshot", "kept").stderr
    cli.ok("rm", "good")
    cli.ok("snapshot", "rm", "kept")


def test_a_killed_command_leaves_the_machine_running_and_no_snapshot(cli: Cli, shared_state: SharedState) -> None:
    start(cli, "killed", "--network", "none", script="echo begun; while :; do sleep 1; echo alive; done")
    snapshots = shared_state.state / "snapshots"
    with cli.start("snapshot", "create", "killed", "never") as process:
        end = time.monotonic() + TIMEOUT_S
        while not [*snapshots.glob(".stage-*/memory"), *snapshots.glob(".stage-*/.memory*")]:
            assert time.monotonic() < end and process.poll() is None
        process.kill()
        process.wait(TIMEOUT_S)
    cli.ok("gc", "--dry-run")
    assert cli.json("inspect", "killed")["State"]["Status"] == "running"
    assert cli.ok("exec", "killed", "--", "echo", "on") == "on\n"
    assert cli.ok("snapshot", "ls", "-q") == "" and not list(snapshots.iterdir())
    cli.ok("rm", "-f", "killed")
