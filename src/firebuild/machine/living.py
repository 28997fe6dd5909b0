"""What can be done with a machine that runs but end it: paused, resumed, renamed, waited for."""

from __future__ import annotations

import msgspec

from firebuild.errors import MachineError
from firebuild.host.deadline import Deadline
from firebuild.host.identity import wait_gone
from firebuild.machine.lifecycle import MachineServices, finish_machine, hold_machine
from firebuild.machine.state import MachineRecord, State
from firebuild.machine.supervisor import open_supervisor
from firebuild.names import MachineId
from firebuild.vmm.api import open_api

_API_S = 30.0
# For a supervisor whose VMM has ended: its clean-up command may take two minutes.
_END_S = 150.0


def pause_machine(services: MachineServices, machine_id: MachineId) -> None:
    """Stop the processors of a running machine. Raises MachineError for one that does not run, ApiError, DeadlineError."""
    _set_paused(services, machine_id, pause=True)


def resume_machine(services: MachineServices, machine_id: MachineId) -> None:
    """Let the processors of a paused machine go on. Raises MachineError for one that is not paused, ApiError, DeadlineError."""
    _set_paused(services, machine_id, pause=False)


def _set_paused(services: MachineServices, machine_id: MachineId, *, pause: bool) -> None:
    before, after = (State.RUNNING, State.PAUSED) if pause else (State.PAUSED, State.RUNNING)
    with hold_machine(services, machine_id) as paths:
        record = services.records.get(machine_id)
        if record.effective_state is not before:
            raise MachineError(
                f"the machine {record.spec.name} is {record.effective_state}, not {before}",
                hint="list machines with `firebuild ls -a`",
            )
        with open_api(paths.api_socket, Deadline(_API_S, f"{'pausing' if pause else 'resuming'} the machine")) as api:
            if pause:
                api.pause()
            else:
                api.resume()
        services.records.update(machine_id, after, record.progress)


def rename_machine(services: MachineServices, machine_id: MachineId, name: str) -> None:
    """Give a machine another name; its host name stays. Raises ConflictError where the name is taken."""
    with hold_machine(services, machine_id):
        record = services.records.get(machine_id)
        services.records.rename(msgspec.structs.replace(record.spec, name=name))


def wait_machine(services: MachineServices, record: MachineRecord) -> int | None:
    """Wait until a machine has ended; its exit code, None where it ended without one. Also of one that is removed by its end."""
    machine_id = record.spec.id
    if record.state in (State.CREATED, State.STARTING):
        # Whoever starts it holds its lock.
        with hold_machine(services, machine_id):
            found = services.records.find(machine_id)
        if found is None:
            return None
        record = found
    code = record.progress.exit_code
    if record.alive:
        with open_supervisor(services.layout.machine(machine_id)) as link:
            while link is not None and (event := link.find_event()) is not None:
                if event.get("event") == "exit" and isinstance(event.get("code"), int):
                    code = event["code"]
        if record.progress.supervisor is not None:
            wait_gone(record.progress.supervisor, _END_S)
    finish_machine(services, machine_id)
    ended = services.records.find(machine_id)
    return code if ended is None else ended.progress.exit_code
