"""A running machine is stopped: asked, then forced."""

from __future__ import annotations

from contextlib import nullcontext

import msgspec

from firebuild.errors import DeadlineError, GuestError
from firebuild.guest.control import request_stop
from firebuild.host.deadline import Deadline
from firebuild.host.identity import ProcessIdentity, kill_and_wait, wait_gone
from firebuild.machine.lifecycle import finish_machine
from firebuild.machine.metadata import parse_signal
from firebuild.machine.services import MachineServices, hold_machine
from firebuild.machine.state import ENDED, MachineRecord, State
from firebuild.machine.supervisor import SupervisorLink, open_supervisor
from firebuild.names import MachineId

# For an image's own init to take its services down.
_INIT_STOP_S = 90.0
# For a supervisor that has nothing left to do.
_SUPERVISOR_S = 15.0
# The exit code of a machine that was lost, 128 + SIGKILL.
_KILLED_CODE = 137


def stop_machine(services: MachineServices, record: MachineRecord, *, timeout_s: float) -> None:
    """End a running machine: its stop signal, after `timeout_s` force; with 0 at once by force. Returns when it has ended."""
    spec = record.spec
    paths = services.layout.machine(spec.id)
    supervisor = record.progress.supervisor
    if record.effective_state in ENDED or supervisor is None:
        finish_machine(services, spec.id, record.progress.life)
        _settle_lost(services, spec.id)
        return
    with open_supervisor(paths) as link:
        if link is not None:
            link.promise_cleanup(supervisor)
        forced = timeout_s <= 0
        if not forced:
            try:
                number = parse_signal(spec.entrypoint.stop_signal)
                request_stop(
                    paths.vsock, number, timeout_s, Deadline(min(timeout_s, 10) + 5, "asking the guest to stop")
                )
                # The guest gets its own timeout to end the entrypoint, and as long again to sync and power off; an init
                # of its own has services to end.
                time_s = timeout_s * 2 + (_INIT_STOP_S if spec.init == "system" else 10)
                forced = not _await_end(link, supervisor, time_s)
            except (GuestError, DeadlineError):
                forced = True
        if forced:
            if link is not None:
                link.kill_vmm()
            if not _await_end(link, supervisor, 30):
                kill_and_wait(supervisor, grace_s=5)
        with nullcontext() if link is None else link.cleaning():
            why = "stopped by the user" if not forced else "killed"
            finish_machine(services, spec.id, record.progress.life, reason=why)
    wait_gone(supervisor, _SUPERVISOR_S)


def _await_end(link: SupervisorLink | None, supervisor: ProcessIdentity, timeout_s: float) -> bool:
    """Wait until a machine's VMM has ended and that is recorded; False if `timeout_s` passes first."""
    deadline = Deadline(timeout_s, "waiting for the VMM's end")
    try:
        if link is not None:
            link.await_vmm_end(deadline)
            return True
        return wait_gone(supervisor, timeout_s)
    except DeadlineError:
        return False


def _settle_lost(services: MachineServices, machine_id: MachineId) -> None:
    """Whoever stops a lost machine wants it stopped, and knows now that it was lost."""
    with hold_machine(services, machine_id):
        record = services.records.find(machine_id)
        if record is None or record.state is not State.LOST:
            return
        why = f"stopped by the user after it was lost: {record.progress.reason}"
        progress = msgspec.structs.replace(record.progress, exit_code=_KILLED_CODE, reason=why)
        services.records.update(machine_id, State.STOPPED, progress)
