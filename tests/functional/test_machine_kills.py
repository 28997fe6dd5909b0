"""kill -9 at over a hundred points of run, start, stop, rm, and of the repair after a lost machine: the next command repairs.

After it nothing is left on the host that no record names, the store is sound, and the machine is there as before the command or
as after it. Several firebuilds, each with a state of its own, are at work at a time.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import IMAGE, Fake, Jails
from tests.support.fake_vmm import Script
from tests.support.kill_points import Victim, count_effects, start
from tests.support.ledger import Watch, settle, take_snapshot

LANES = 4
# Points of each operation: rounds of one in each lane.
ROUNDS = 7
RUN_ROUNDS = 9
NETWORK = "machines"


@dataclass(frozen=True)
class LanesWatch(Watch):
    """The ledger over all lanes; `state` and `run` are the folders that theirs are in."""

    def find_files(self) -> Iterator[str]:
        """As Watch, of each lane."""
        for folder in sorted(self.state.iterdir()):
            yield from Watch(folder, self.run / folder.name, self.folders).find_files()


class Lane:
    """One firebuild, its machine `m`, and the next point of each operation."""

    def __init__(self, number: int, state: Path, run: Path, folder: Path) -> None:
        folder.mkdir()
        for path in (state, run):
            path.mkdir(mode=0o711)
        self.number = number
        self.jailed = number % 2 == 1
        self.fake = (Jails if self.jailed else Fake)(Cli(state, run), folder)
        script = Script(output="up\n", seccomp=self.jailed)
        self.environment = {**self.fake.cli.environment(), **self.fake.environment(script)}
        self.folder = folder

    def begin(self, *argv: str, at: int = 0) -> Victim:
        """Fork a command."""
        return start(argv, self.environment, self.folder / "output", at=at)

    def run(self, at: int = 0) -> Victim:
        """Begin `run` of the machine, with a port."""
        port = f"127.0.0.1:{7100 + self.number}:80"
        return self.begin("run", "-d", "--name", "m", "--from", IMAGE, "--network", NETWORK, "-p", port, at=at)

    def ok(self, *argv: str) -> str:
        """A command that must succeed; what it printed."""
        victim = self.begin(*argv)
        assert victim.wait() == 0, f"{argv}: {victim.output.read_text()}"
        return victim.output.read_text().rpartition("effects: ")[0]

    def state(self) -> str:
        """The machine's state; `gone` where there is none."""
        lines = self.ok("ls", "-a", "--format", "json").splitlines()
        states: list[str] = [json.loads(line)["state"] for line in lines]
        assert len(states) <= 1
        return states[0] if states else "gone"

    def supervisor(self) -> int:
        """The machine's supervisor."""
        database = sqlite3.connect(self.fake.cli.state / "firebuild.db")
        (record,) = database.execute("SELECT record FROM machines").fetchone()
        database.close()
        pid: int = json.loads(record)["supervisor"]["pid"]
        return pid


class Sweep:
    """The lanes, the ledger over them, and how many commands were killed at a point, by operation."""

    def __init__(self, lanes: list[Lane], watch: LanesWatch) -> None:
        self.lanes = lanes
        self.watch = watch
        self.killed: dict[str, int] = {}
        # A network's own bridge, and what CNI's plugins keep for good.
        for lane in lanes:
            assert lane.run().wait() == 0
            lane.ok("rm", "-f", "m")
        self.before = take_snapshot(watch)
        # By whether its machines are jailed.
        self.totals = {lane.jailed: self._count(lane) for lane in lanes[:2]}
        self.check()

    def _count(self, lane: Lane) -> dict[str, int]:
        totals = {"run": count_effects(self._finish(lane.run()))}
        totals["stop"] = count_effects(self._finish(lane.begin("stop", "m")))
        totals["start"] = count_effects(self._finish(lane.begin("start", "m")))
        lane.ok("kill", "m")
        totals["rm"] = count_effects(self._finish(lane.begin("rm", "m")))
        lane.run().wait()
        self.lose(lane)
        totals["purge"] = count_effects(self._finish(lane.begin("purge")))
        return totals

    def _finish(self, victim: Victim) -> Victim:
        victim.wait()
        return victim

    def lose(self, lane: Lane) -> None:
        """The machine's supervisor is killed, and its VMM with it: the network stays."""
        descriptor = os.pidfd_open(lane.supervisor())
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)

    def kill_each(self, operation: str, argv: tuple[str, ...], turn: int, rounds: int) -> None:
        """The operation in each lane, killed at points that are spread over all of it."""
        points = rounds * len(self.lanes)
        victims = []
        for index, lane in enumerate(self.lanes):
            at = 1 + self.totals[lane.jailed][operation] * (turn * len(self.lanes) + index) // points
            victims.append(lane.run(at) if operation == "run" else lane.begin(*argv, at=at))
        for victim in victims:
            assert victim.killed or victim.wait() == 0, victim.output.read_text()
            self.killed[operation] = self.killed.get(operation, 0) + victim.killed

    def check(self, stopped: bool = False) -> None:
        """Nothing is left but, of machines that are stopped, their folders; and the stores are sound."""
        allowed = tuple(f"files: {lane.fake.cli.state}/machines/" for lane in self.lanes) if stopped else ()
        left = settle(self.before, self.watch, timeout_s=0 if stopped else 60)
        assert all(line.startswith(allowed) for line in left) if stopped else not left, "\n".join(left)
        for victim in [lane.begin("fsck") for lane in self.lanes]:
            assert victim.wait() == 0, victim.output.read_text()


@pytest.fixture
def sweep(ledger: None, tmp_path: Path) -> Iterator[Sweep]:
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fbs-", dir="/var/tmp")))
        run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fbt-", dir="/run")))
        for path in (state, run):
            path.chmod(0o711)
        lanes = [
            Lane(number, state / str(number), run / str(number), tmp_path / str(number)) for number in range(LANES)
        ]
        for lane in lanes:
            stack.callback(lane.fake.cli.clean)
            lane.fake.cli.started.append("m")
        yield Sweep(lanes, LanesWatch(state, run))


def settled(sweep: Sweep, argv: tuple[str, ...]) -> None:
    for victim in [lane.begin(*argv) for lane in sweep.lanes]:
        assert victim.wait() == 0, victim.output.read_text()


def test_a_run_that_is_killed_is_repaired_by_the_next_command(sweep: Sweep) -> None:
    for turn in range(RUN_ROUNDS):
        sweep.kill_each("run", (), turn, RUN_ROUNDS)
        settled(sweep, ("purge",))
        for lane in sweep.lanes:
            # Killed after its last step, it has started a machine.
            if (state := lane.state()) != "gone":
                assert state == "running"
                lane.ok("rm", "-f", "m")
        sweep.check()
    assert sweep.killed["run"] >= RUN_ROUNDS * LANES * 0.9, sweep.killed


def test_start_stop_rm_and_repairs_that_are_killed_are_made_by_the_next(sweep: Sweep) -> None:
    for turn in range(ROUNDS):
        assert [victim.wait() for victim in [lane.run() for lane in sweep.lanes]] == [0] * LANES
        sweep.kill_each("stop", ("stop", "m"), turn, ROUNDS)
        settled(sweep, ("stop", "m"))
        assert {lane.state() for lane in sweep.lanes} == {"stopped"}
        sweep.check(stopped=True)

        sweep.kill_each("start", ("start", "m"), turn, ROUNDS)
        settled(sweep, ("start", "m"))
        assert {lane.state() for lane in sweep.lanes} == {"running"}
        settled(sweep, ("kill", "m"))

        sweep.kill_each("rm", ("rm", "m"), turn, ROUNDS)
        settled(sweep, ("purge",))
        assert {lane.state() for lane in sweep.lanes} == {"gone"}
        sweep.check()

        assert [victim.wait() for victim in [lane.run() for lane in sweep.lanes]] == [0] * LANES
        for lane in sweep.lanes:
            sweep.lose(lane)
        sweep.kill_each("purge", ("purge",), turn, ROUNDS)
        settled(sweep, ("purge",))
        assert {lane.state() for lane in sweep.lanes} == {"gone"}
        sweep.check()
    assert sum(sweep.killed.values()) >= 4 * ROUNDS * LANES * 0.85, sweep.killed
