"""Machines that end without their owner: purge waits for the one at work on them, and says so when it gives up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from firebuild.errors import BusyError
from firebuild.host.identity import ProcessIdentity, find_identity
from firebuild.layout import Layout
from firebuild.machine import orphans
from firebuild.machine.services import MachineServices
from firebuild.machine.spec import MachineSpec
from firebuild.machine.state import MachineRecord, Progress, State
from firebuild.names import MachineId

ID = MachineId("wcabty1922gloailwrce")
# No process has this start time.
DEAD = ProcessIdentity(1, 1)


@dataclass
class Bench:
    """One machine in the database, and what was asked to be finished."""

    layout: Layout
    record: MachineRecord
    finished: list[str]

    def list_all(self, kind: str | None = "run") -> list[MachineRecord]:
        """The one record, of whatever kind."""
        return [self.record]

    def finish(self, state: State, progress: Progress) -> tuple[list[str], list[Any]]:
        """What becomes of the machine in that state."""
        self.record = msgspec.structs.replace(self.record, state=state, progress=progress)
        return orphans.finish_orphans(MachineServices(self.layout, cast(Any, self), cast(Any, None), cast(Any, None)))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    spec = MachineSpec(
        id=ID, name="one", kind="build", hostname="one", kernel="k", cpus=1, memory_mib=128, network=None
    )
    bench = Bench(Layout(tmp_path / "s", tmp_path / "r"), MachineRecord(spec, State.CREATED, Progress(), 0), [])
    monkeypatch.setattr(orphans, "finish_machine", lambda services, machine_id, life: bench.finished.append(machine_id))
    monkeypatch.setattr(orphans, "_CLEANUP_S", 0.01)
    return bench


def own() -> ProcessIdentity:
    identity = find_identity(os.getpid())
    assert identity is not None
    return identity


@pytest.mark.parametrize("state", [State.CREATED, State.STARTING, State.RUNNING])
def test_an_orphan_is_finished(bench: Bench, state: State) -> None:
    done, failures = bench.finish(state, Progress(owner=DEAD, supervisor=DEAD))
    assert bench.finished == [ID] and not failures
    assert "machine one" in done[0] and str(state) in done[0]


def test_a_machine_with_a_living_owner_is_left_alone(bench: Bench) -> None:
    paths = bench.layout.machine(ID)
    paths.state.mkdir(parents=True)
    paths.exit_record.write_text("{}")
    assert bench.finish(State.STARTING, Progress(owner=own(), supervisor=DEAD)) == ([], [])
    assert not bench.finished


def test_a_released_machine_is_waited_for_once_its_vmm_has_ended(bench: Bench) -> None:
    assert bench.finish(State.RUNNING, Progress(supervisor=DEAD)) == ([], [])
    paths = bench.layout.machine(ID)
    paths.state.mkdir(parents=True)
    paths.exit_record.write_text("{}")
    bench.finish(State.RUNNING, Progress(supervisor=DEAD))
    assert bench.finished == [ID]
    bench.finish(State.STOPPED, Progress())
    assert bench.finished == [ID], "it has been finished"


def test_a_supervisor_that_does_not_end_is_named(bench: Bench) -> None:
    done, failures = bench.finish(State.RUNNING, Progress(owner=DEAD, supervisor=own()))
    assert not done and isinstance(failures[0], BusyError)
    assert str(os.getpid()) in str(failures[0]) and "purge" in (failures[0].hint or "")
