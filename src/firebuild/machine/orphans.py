"""Machines that are ending without their owner: finished, or waited for."""

from __future__ import annotations

from firebuild.errors import BusyError, FirebuildError
from firebuild.host.identity import wait_gone
from firebuild.machine.lifecycle import finish_machine
from firebuild.machine.services import MachineServices
from firebuild.machine.state import ENDED, MachineRecord

_CLEANUP_S = 120.0


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
            finish_machine(services, record.spec.id)
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
