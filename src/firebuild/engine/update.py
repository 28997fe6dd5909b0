"""Use case: what can be changed of a machine that exists."""

from __future__ import annotations

from typing import Any

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.growth import grow_machine
from firebuild.engine.health import HealthOptions, change_health
from firebuild.engine.machines import check_size
from firebuild.errors import MachineError, UsageError
from firebuild.guest.control import request_restart_policy
from firebuild.host.deadline import Deadline
from firebuild.machine.metadata import plan_restart
from firebuild.machine.services import hold_machine
from firebuild.machine.spec import RestartPolicy
from firebuild.machine.state import ENDED, MachineRecord, State

_GUEST_S = 15.0


class Changes(msgspec.Struct, frozen=True):
    """What is to be other than it was; None, and what is empty, stays. `labels` are added, `forget_labels` removed.

    Processors, memory (MiB), health and disk count from the next start on, and only an ended machine takes them.
    """

    restart: RestartPolicy | None = None
    stop_timeout_s: float | None = None
    labels: dict[str, str] = {}
    forget_labels: list[str] = []
    health: HealthOptions = HealthOptions()
    cpus: int | None = None
    memory_mib: int | None = None
    disk_size_bytes: int | None = None

    @property
    def for_ended(self) -> list[str]:
        """The flags among them that only an ended machine takes."""
        given = {
            "--cpus": self.cpus is not None,
            "--memory": self.memory_mib is not None,
            "--disk-size": self.disk_size_bytes is not None,
            "--health-…": self.health.given,
        }
        return [flag for flag, is_given in given.items() if is_given]


def update_machine(engine: Engine, name: str, changes: Changes) -> MachineRecord:
    """Change a machine: all that is asked, or nothing where it is refused. Raises UsageError, MachineError, GuestError."""
    if changes == Changes():
        raise UsageError(
            "nothing to change", hint="say what, for example --restart always; see `firebuild update --help`"
        )
    machine_id = engine.machines.records.get(name).spec.id
    with hold_machine(engine.machines, machine_id) as paths:
        record = engine.machines.records.get(machine_id)
        fields = _plan(record, changes)
        running = record.effective_state is State.RUNNING
        if changes.restart is not None and not running and record.effective_state not in ENDED:
            raise MachineError(
                f"the machine {record.spec.name} is {record.effective_state}, and cannot be told of another restart policy",
                hint=f"let it go on first: firebuild resume {record.spec.name}",
            )
        if changes.restart is not None and running:
            deadline = Deadline(_GUEST_S, f"telling {record.spec.name} of its restart policy")
            request_restart_policy(paths.vsock, plan_restart(changes.restart), deadline)
        if changes.disk_size_bytes is None and fields:
            engine.machines.records.change_spec(msgspec.structs.replace(record.spec, **fields))
    if changes.disk_size_bytes is not None:
        grow_machine(engine, machine_id, changes.disk_size_bytes, fields)
    return engine.machines.records.get(machine_id)


def _plan(record: MachineRecord, changes: Changes) -> dict[str, Any]:
    """The fields of its spec that become other. Raises UsageError, MachineError."""
    spec = record.spec
    if changes.for_ended and record.state not in ENDED:
        raise MachineError(
            f"the machine {spec.name} is {record.effective_state}; {', '.join(changes.for_ended)} can only be changed of one that"
            " has ended",
            hint=f"stop it first: firebuild stop {spec.name}",
        )
    if changes.restart is not None and changes.restart.name != "no" and (spec.auto_remove or spec.remover is not None):
        raise UsageError(f"the machine {spec.name} is removed when it has ended (--rm), and cannot be restarted")
    for key in changes.forget_labels:
        if key not in spec.labels:
            raise UsageError(f"the machine {spec.name} has no label `{key}`")
    check_size(changes.cpus or spec.cpus, spec.memory_mib if changes.memory_mib is None else changes.memory_mib)
    fields: dict[str, Any] = {
        "restart": changes.restart, "stop_timeout_s": changes.stop_timeout_s, "cpus": changes.cpus, "memory_mib": changes.memory_mib,
    }  # fmt: skip
    fields = {key: value for key, value in fields.items() if value is not None}
    if changes.labels or changes.forget_labels:
        kept = {key: value for key, value in spec.labels.items() if key not in changes.forget_labels}
        fields["labels"] = {**kept, **changes.labels}
    if changes.health.given:
        fields["health"] = change_health(spec.health, spec.entrypoint.shell, changes.health)
    return fields
