"""What can be done with a machine that runs but end it: paused, resumed, renamed, waited for."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import msgspec

from firebuild.errors import DeadlineError, GuestError, MachineError
from firebuild.guest.control import request_clock
from firebuild.host.deadline import Deadline
from firebuild.host.identity import wait_gone
from firebuild.host.watch import FileWatch
from firebuild.machine.lifecycle import finish_machine, plan_names
from firebuild.machine.services import MachineServices, hold_machine, try_hold_machine
from firebuild.machine.state import ENDED, MachineRecord, State
from firebuild.machine.supervisor import open_supervisor
from firebuild.names import MachineId
from firebuild.network import attach as network
from firebuild.vmm.api import open_api

logger = logging.getLogger(__name__)

_API_S = 30.0
_CLOCK_S = 5.0
# For a supervisor whose VMM has ended: its clean-up command may take two minutes.
_END_S = 150.0
# A supervisor that is killed writes nothing.
_LOOK_S = 5.0


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
        if record.progress.holder is not None:
            from firebuild.machine.snapshotting import go_on

            # Its command died in the middle of a snapshot, and its guest is held.
            go_on(services, record, paths)
            return
        with open_api(paths.api_socket, Deadline(_API_S, f"{'pausing' if pause else 'resuming'} the machine")) as api:
            if pause:
                api.pause()
            else:
                api.resume()
        services.records.update(machine_id, after, record.progress)
        if not pause:
            _set_clock(paths.vsock, record.spec.name)


def _set_clock(vsock: Path, name: str) -> None:
    # It stood still. A guest that does not answer goes on all the same.
    try:
        request_clock(vsock, Deadline(_CLOCK_S, "setting the guest's clock"))
    except (GuestError, DeadlineError) as error:
        logger.warning("the clock of the machine %s stays behind: %s", name, error)


def await_start(services: MachineServices, record: MachineRecord) -> MachineRecord | None:
    """Wait until a machine that is being started runs, or has come to nothing; its record then, None where none is left."""
    deadline = Deadline(record.spec.boot_timeout_s + _END_S, f"waiting for the start of {record.spec.name}")
    # Whoever starts it holds its lock.
    with try_hold_machine(services, record.spec.id, deadline):
        return services.records.find(record.spec.id)


def rename_machine(services: MachineServices, machine_id: MachineId, name: str) -> None:
    """Give a machine another name, by which the others in its networks find it at once; its host name stays.

    Raises ConflictError where the name is taken."""
    with hold_machine(services, machine_id):
        record = services.records.get(machine_id)
        renamed = msgspec.structs.replace(record.spec, name=name)
        services.records.change_spec(renamed)
        names = [plan_names(renamed, join.aliases) for join in renamed.networks]
        network.rename_machine(services.networks, machine_id, names)


def wait_until(services: MachineServices, machine_id: MachineId, wanted: str, deadline: Deadline | None = None) -> None:
    """Wait until a machine is `running`, `healthy` or `unhealthy`. Raises MachineError where its health can never be that:
    it has ended, was removed or checks no health; DeadlineError."""
    # Every change of a record writes to the database, which lies in this folder.
    with FileWatch(services.layout.state) as watch:
        while True:
            record = services.records.find(machine_id)
            if record is None:
                raise MachineError(f"the machine {machine_id} was removed before it was {wanted}")
            state = record.effective_state
            if wanted == "running":
                if state is State.RUNNING:
                    return
            else:
                _check_can_be(record, wanted)
                if state in (State.RUNNING, State.PAUSED) and _await_health(services, record, wanted, deadline):
                    return
            watch.wait(timeout_s=_LOOK_S if deadline is None else min(_LOOK_S, deadline.check()))


def _check_can_be(record: MachineRecord, wanted: str) -> None:
    if record.spec.health is None:
        raise MachineError(
            f"the machine {record.spec.name} checks no health, so it is never {wanted}",
            hint="give it a check with `firebuild run --health-cmd`",
        )
    if record.effective_state in ENDED:
        raise MachineError(
            f"the machine {record.spec.name} is {record.effective_state}, not {wanted}",
            hint=f"see `firebuild inspect {record.spec.name}` and `firebuild logs {record.spec.name}`",
        )


def _await_health(services: MachineServices, record: MachineRecord, wanted: str, deadline: Deadline | None) -> bool:
    """False if its supervisor has ended, or is not there."""
    with open_supervisor(services.layout.machine(record.spec.id)) as link:
        while link is not None and (event := link.find_event(deadline)) is not None:
            if event.get("event") == "health" and event.get("status") == wanted:
                return True
    if not record.alive:
        finish_machine(services, record.spec.id, record.progress.life)
    return False


def wait_machine(services: MachineServices, record: MachineRecord, deadline: Deadline | None = None) -> int | None:
    """Wait until a machine has ended; its exit code, None where it ended without one. Also of one that is removed by its end.
    Raises DeadlineError."""
    machine_id = record.spec.id
    if record.state in (State.CREATED, State.STARTING):
        found = await_start(services, record)
        if found is None:
            return None
        record = found
    code = record.progress.exit_code
    supervisor = record.progress.supervisor if record.alive else None
    with open_supervisor(services.layout.machine(machine_id)) if supervisor is not None else nullcontext() as link:
        if link is not None and supervisor is not None:
            link.promise_cleanup(supervisor)
            told = link.await_vmm_end(deadline)
            code = code if told is None else told
        elif supervisor is not None:
            wait_gone(supervisor, _END_S if deadline is None else min(_END_S, deadline.check()))
        with nullcontext() if link is None else link.cleaning():
            finish_machine(services, machine_id, record.progress.life)
    if supervisor is not None:
        wait_gone(supervisor, _END_S if deadline is None else min(_END_S, deadline.remaining_s()))
    ended = services.records.find(machine_id)
    return code if ended is None else ended.progress.exit_code
