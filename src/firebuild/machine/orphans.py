"""Machines that somebody else is starting or that are ending without their owner: waited for, or finished."""

from __future__ import annotations

from firebuild.errors import BusyError, FirebuildError
from firebuild.host.identity import wait_gone
from firebuild.machine.lifecycle import finish_machine, settle_start
from firebuild.machine.services import MachineServices, hold_machine
from firebuild.machine.state import ENDED, MachineRecord, State
from firebuild.names import MachineId

_CLEANUP_S = 120.0


def await_start(services: MachineServices, machine_id: MachineId) -> None:
    """Wait until a start has come to its end; one whose command has died is settled. Raises BusyError."""
    with hold_machine(services, machine_id) as paths:
        record = services.records.find(machine_id)
        if record is not None and record.state in (State.CREATED, State.STARTING):
            settle_start(services, record, paths, reason="its start was cut short")


def finish_orphans(services: MachineServices) -> tuple[list[str], list[FirebuildError]]:
    """Finish, or wait for, each machine that is ending without its owner; sentences of those finished, errors of the others.

    Its supervisor, or that one's clean-up command, is at work on it and holds its lock; `reconcile` passes over those.
    """
    finished: list[str] = []
    failures: list[FirebuildError] = []
    for record in services.records.list_all(kind=None):
        if record.state in ENDED or not _ends_alone(services, record):
            continue
        try:
            finish_machine(services, record.spec.id, record.progress.life)
            supervisor = record.progress.supervisor
            if supervisor is not None and not wait_gone(supervisor, _CLEANUP_S):
                raise BusyError(
                    f"the supervisor {supervisor.pid} of the machine {record.spec.name} is still at work",
                    hint="see its last lines in the machine's folder; run `firebuild purge` again when it has ended",
                )
            finished.append(f"machine {record.spec.name}: its {record.state} was cut short; cleaned up")
        except FirebuildError as error:
            failures.append(error)
    return finished, failures


def _ends_alone(services: MachineServices, record: MachineRecord) -> bool:
    if record.progress.owner is not None:
        return record.orphaned
    return services.layout.machine(record.spec.id).exit_record.exists()
