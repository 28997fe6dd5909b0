"""What has happened, kept: events in the database, each written in the transaction of what it tells; the oldest are dropped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

KEPT_EVENTS = 10_000
# Between two droppings of the oldest.
_DROP_EVERY = 100


class Statements(Protocol):
    """What the journal needs of a database."""

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement."""

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
        """All rows of a query."""


class Event(msgspec.Struct, frozen=True):
    """One thing that has happened. `id`: ascending; `at_ns`: Unix time; `type`: machine, image, snapshot or build; `object`: an id."""

    id: int
    at_ns: int
    type: str
    action: str
    object: str
    attributes: dict[str, str] = {}
    labels: dict[str, str] = {}


class _Data(msgspec.Struct, omit_defaults=True):
    attributes: dict[str, str] = {}
    labels: dict[str, str] = {}


def note_event(
    database: Statements,
    type_: str,
    action: str,
    object_: str,
    attributes: Mapping[str, object],
    labels: Mapping[str, str] | None = None,
) -> None:
    """Note an event. In a transaction it is noted with what is changed there, or not at all; None among the attributes is
    left out. Raises what the database raises."""
    shown = {key: str(value) for key, value in attributes.items() if value is not None}
    data = msgspec.json.encode(_Data(shown, dict(labels or {}))).decode()
    database.execute(
        "INSERT INTO events (at_ns, type, object, data) VALUES (?, ?, ?, ?)",
        (time.time_ns(), f"{type_}.{action}", object_, data),
    )
    last = find_last_event(database)
    if last % _DROP_EVERY == 0:
        database.execute("DELETE FROM events WHERE id <= ?", (last - KEPT_EVENTS,))


def find_last_event(database: Statements) -> int:
    """The number of the newest event, 0 where there is none."""
    return int(database.query("SELECT coalesce(max(id), 0) FROM events")[0][0])


def list_events(
    database: Statements, *, after: int = 0, since_ns: int | None = None, until_ns: int | None = None
) -> list[Event]:
    """The events with a higher number than `after`, in the order in which they happened, `since_ns` and `until_ns` included."""
    rows = database.query(
        "SELECT id, at_ns, type, object, data FROM events WHERE id > ? AND at_ns >= ? AND at_ns <= ? ORDER BY id",
        (after, since_ns or 0, 2**63 - 1 if until_ns is None else until_ns),
    )
    return [_decode(row) for row in rows]


def _decode(row: Sequence[Any]) -> Event:
    number, at_ns, name, object_, text = tuple(row)
    type_, _, action = str(name).partition(".")
    data = msgspec.json.decode(text, type=_Data)
    return Event(int(number), int(at_ns), type_, action, str(object_), data.attributes, data.labels)
