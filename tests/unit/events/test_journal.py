"""The journal of events: what is noted with what it tells, what is found again, what is dropped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.events import journal
from firebuild.events.journal import find_last_event, list_events, note_event
from firebuild.machine.happenings import note_transition
from firebuild.machine.spec import MachineSpec
from firebuild.machine.state import Progress, State
from firebuild.names import MachineId
from firebuild.store.database import Database

SPEC = MachineSpec(
    id=MachineId("abcdefghijklmnopqrst"), name="web", kind="run", hostname="web", kernel="k", cpus=1, memory_mib=256,
    network=None, image="app:1", labels={"tier": "front"},
)  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "firebuild.db") as database:
        yield database


def test_events_are_found_by_number_and_time(database: Database) -> None:
    for action in ("one", "two", "three"):
        note_event(database, "image", action, "sha256:1", {"image": "app:1", "nothing": None}, {"a": "b"})
    events = list_events(database)
    assert [event.action for event in events] == ["one", "two", "three"]
    assert (events[0].type, events[0].attributes, events[0].labels) == ("image", {"image": "app:1"}, {"a": "b"})
    assert [event.action for event in list_events(database, after=events[0].id)] == ["two", "three"]
    assert [event.action for event in list_events(database, since_ns=events[1].at_ns, until_ns=events[1].at_ns)] == [
        "two"
    ]


def test_what_is_rolled_back_has_not_happened(database: Database) -> None:
    with pytest.raises(ValueError, match="no"), database.transaction():
        note_event(database, "image", "tagged", "x", {})
        raise ValueError("no")
    assert (find_last_event(database), list_events(database)) == (0, [])


def test_the_oldest_are_dropped(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT_EVENTS", 150)
    with database.transaction():
        for number in range(450):
            note_event(database, "image", str(number), "x", {})
    kept = list_events(database)
    assert (kept[-1].action, kept[-1].id) == ("449", 450)
    assert 150 <= len(kept) < 150 + 100


def test_a_machines_states_as_events(database: Database) -> None:
    states = [
        State.CREATED, State.STARTING, State.STARTING, State.RUNNING, State.PAUSED, State.RUNNING, State.STOPPED, State.STARTING,
        State.FAILED, State.FAILED, State.LOST,
    ]  # fmt: skip
    ended = Progress(exit_code=3, reason="exit")
    for before, after in itertools.pairwise(states):
        note_transition(database, SPEC, before, after, ended)
    seen = list_events(database)
    assert [event.action for event in seen] == ["started", "ready", "paused", "resumed", "exited", "started", "exited"]
    assert seen[4].attributes == {
        "name": "web", "image": "app:1", "state": "stopped", "exit_code": "3", "reason": "exit",
    }  # fmt: skip
    assert seen[4].labels == {"tier": "front"}
