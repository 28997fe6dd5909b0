"""What a machine's guest has told of itself, as its supervisor holds it: how often its entrypoint was restarted, its health."""

from __future__ import annotations

from typing import Any

import msgspec

from firebuild.guest.stream import printable
from firebuild.host.deadline import Deadline
from firebuild.machine.lifecycle import load_exit_record
from firebuild.machine.services import MachineServices
from firebuild.machine.state import ENDED, MachineRecord
from firebuild.machine.supervisor import open_supervisor

_STATUS_S = 10.0


class CheckResult(msgspec.Struct, frozen=True):
    """One health check. `start`, `end`: RFC 3339; `code`: -1 where it could not be started or took too long."""

    start: str
    end: str
    code: int
    output: str


class Health(msgspec.Struct, frozen=True):
    """`status`: starting, healthy or unhealthy. `results`: the last ones, oldest first."""

    status: str = "starting"
    failing_streak: int = 0
    results: list[CheckResult] = []


class Told(msgspec.Struct, frozen=True):
    """`restarts`: of the entrypoint, in this machine's present or last life."""

    restarts: int = 0
    health: Health | None = None


def find_told(services: MachineServices, record: MachineRecord) -> Told:
    """What is known; of an ended machine what was known at its end. Raises DeadlineError, MachineError."""
    paths = services.layout.machine(record.spec.id)
    if record.state in ENDED or not record.alive:
        told = load_exit_record(paths)
        return Told(record.progress.restarts, _health(record, told))
    with open_supervisor(paths) as link:
        status = None if link is None else link.find_status(Deadline(_STATUS_S, "asking the supervisor"))
    count = None if status is None else status.get("restarts")
    return Told(count if isinstance(count, int) else 0, _health(record, status))


def _health(record: MachineRecord, told: dict[str, Any] | None) -> Health | None:
    if record.spec.health is None:
        return None
    try:
        health = msgspec.convert(told.get("health") or {}, Health) if told is not None else Health()
    except msgspec.ValidationError:
        # A supervisor of another version.
        return Health()
    results = [msgspec.structs.replace(each, output=printable(each.output)) for each in health.results]
    return msgspec.structs.replace(health, results=results)
