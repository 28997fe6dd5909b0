"""Use case: machines listed, and which of them are wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.machine.state import ENDED, MachineRecord, State

HEALTHS = ("starting", "healthy", "unhealthy", "none")

Test = Callable[[MachineRecord, str], bool]


def list_machines(
    engine: Engine, filters: Mapping[str, Sequence[str]], *, show_all: bool = False, last: int | None = None
) -> list[MachineRecord]:
    """The machines that pass the filters, oldest first; of one key any value may hold, of several keys all must.

    Ended ones only with `show_all`, `last` (the newest that many), or where a filter asks for a state or an exit code.
    Lost ones are always there: somebody has to look at them. Raises UsageError, NotFoundError.
    """
    for text in filters.get("status", ()):
        if text not in {*State, "exited"}:
            raise UsageError(f"`{text}` is not a state", hint=f"the states are {', '.join(State)}")
    for text in filters.get("exited", ()):
        if not text.isdigit():
            raise UsageError(f"`{text}` is not an exit code")
    for text in filters.get("health", ()):
        if text not in HEALTHS:
            raise UsageError(f"`{text}` is not a health", hint=f"choose {', '.join(HEALTHS)}")
    records = engine.machine_records
    times = {key: [records.get(text).created_at_ns for text in filters.get(key, ())] for key in ("before", "since")}
    ended_too = show_all or last is not None or "status" in filters or "exited" in filters
    found = [
        record
        for record in records.list_all(ended_too=ended_too)
        if (ended_too or record.effective_state not in ENDED or record.effective_state is State.LOST)
        and all(any(FILTERS[key](record, text) for text in texts) for key, texts in filters.items() if key in FILTERS)
        and all(record.created_at_ns < moment for moment in times["before"])
        and all(record.created_at_ns > moment for moment in times["since"])
    ]
    return found if last is None else found[max(0, len(found) - last) :]


def _fits_name(record: MachineRecord, text: str) -> bool:
    try:
        return re.search(text, record.spec.name) is not None
    except re.error as error:
        raise UsageError(f"the filter name={text} is not a regular expression: {error}") from error


def _fits_state(record: MachineRecord, text: str) -> bool:
    state = record.effective_state
    return state == text or (text == "exited" and state in ENDED)


def _fits_label(record: MachineRecord, text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in record.spec.labels and (not equals or record.spec.labels[key] == value)


def _fits_image(record: MachineRecord, text: str) -> bool:
    image, digest = record.spec.image, record.spec.image_digest
    return text in (image, image.rpartition(":")[0]) or digest.removeprefix("sha256:").startswith(
        text.removeprefix("sha256:")
    )


def _fits_port(record: MachineRecord, text: str) -> bool:
    number, _, protocol = text.partition("/")
    return any(str(port.host_port) == number and port.protocol == (protocol or port.protocol) for port in record.ports)


FILTERS: Mapping[str, Test] = {
    "id": lambda record, text: record.spec.id.startswith(text),
    "name": _fits_name,
    "status": _fits_state,
    "label": _fits_label,
    "image": _fits_image,
    "ancestor": _fits_image,
    "network": lambda record, text: any(join.network == text for join in record.spec.networks),
    "exited": lambda record, text: record.effective_state in ENDED and record.progress.exit_code == int(text),
    "publish": _fits_port,
    "health": lambda record, text: (record.health or "none") == text,
}
FILTER_KEYS = (*FILTERS, "before", "since")
