"""Use cases of machines that exist: started again, paused, signalled, waited for, renamed."""

from __future__ import annotations

from pathlib import Path

from firebuild.engine.core import Engine
from firebuild.engine.kernels import get_boot
from firebuild.engine.machines import end_machine, get_running
from firebuild.engine.space import require_room
from firebuild.errors import MachineError, NotFoundError
from firebuild.guest.control import GuestProcesses, request_processes, request_signal
from firebuild.host.deadline import Deadline
from firebuild.machine.lifecycle import start_again
from firebuild.machine.living import pause_machine, rename_machine, resume_machine, wait_machine, wait_until
from firebuild.machine.metadata import parse_signal
from firebuild.machine.orphans import await_start
from firebuild.machine.state import ENDED, MachineRecord, State
from firebuild.names import PortMapping, parse_machine_name

_SIGNAL_S = 15.0
_SIGKILL = 9


def start_ended(engine: Engine, name: str, *, await_attach: bool = False) -> MachineRecord:
    """Start an ended machine with its own disks, ports and logs, and return when its guest is ready; one that runs is fine.

    Without an address of its own it takes a free one of its network. `await_attach`: the first who attaches starts the
    entrypoint. Raises NotFoundError where what it boots from is gone.
    """
    engine.repair()
    record = engine.machines.records.get(name)
    if record.state in (State.CREATED, State.STARTING):
        # Another command starts it, or has died while it did, and its supervisor is at work on that.
        await_start(engine.machines, record.spec.id)
        record = engine.machines.records.get(name)
    if record.effective_state not in ENDED:
        if record.state is State.PAUSED:
            raise MachineError(
                f"the machine {record.spec.name} is paused", hint=f"let it go on: firebuild resume {record.spec.name}"
            )
        return record
    require_room(engine, 0, f"starting the machine {record.spec.name}")
    with engine.use_store(adds=False):
        for drive in record.spec.drives:
            if not Path(drive.path).exists():
                raise NotFoundError(
                    f"the disk `{drive.path}` of the machine {record.spec.name} is gone",
                    hint=f"it cannot start without it; remove it: firebuild rm {record.spec.name}",
                )
        _, boot = get_boot(engine, record.spec.kernel)
        return start_again(engine.machines, record.spec.id, boot, await_attach=await_attach)


def restart(engine: Engine, name: str, *, timeout_s: float | None) -> MachineRecord:
    """Stop a machine, if it runs, and start it again."""
    record = engine.machines.records.get(name)
    if record.effective_state not in ENDED:
        end_machine(engine, record.spec.id, timeout_s=timeout_s)
    return start_ended(engine, record.spec.id)


def pause(engine: Engine, name: str) -> None:
    """Stop a machine's processors. Raises MachineError for one that does not run."""
    pause_machine(engine.machines, engine.machines.records.get(name).spec.id)


def resume(engine: Engine, name: str) -> None:
    """Let a paused machine go on. Raises MachineError for one that is not paused."""
    resume_machine(engine.machines, engine.machines.records.get(name).spec.id)


def wait(engine: Engine, name: str, deadline: Deadline | None = None) -> int | None:
    """Wait until a machine has ended; its exit code, None where it ended without one. Raises DeadlineError."""
    return wait_machine(engine.machines, engine.machines.records.get(name), deadline)


def wait_for(engine: Engine, name: str, wanted: str, deadline: Deadline | None = None) -> None:
    """Wait until a machine is running, healthy or unhealthy. Raises MachineError where that cannot be any more, DeadlineError."""
    wait_until(engine.machines, engine.machines.records.get(name).spec.id, wanted, deadline)


def rename(engine: Engine, name: str, new_name: str) -> None:
    """Give a machine another name; its host name stays. Raises UsageError, ConflictError."""
    rename_machine(engine.machines, engine.machines.records.get(name).spec.id, parse_machine_name(new_name))


def send_signal(engine: Engine, name: str, text: str) -> None:
    """Send the entrypoint a signal, `USR1`, `SIGUSR1` or `10`; KILL ends the machine by force. Raises UsageError, MachineError."""
    number = parse_signal(text)
    record = get_running(engine, name)
    if number == _SIGKILL:
        end_machine(engine, record.spec.id, timeout_s=0)
        return
    vsock = engine.layout.machine(record.spec.id).vsock
    request_signal(vsock, number, Deadline(_SIGNAL_S, f"signalling {record.spec.name}"))


def list_processes(engine: Engine, name: str) -> GuestProcesses:
    """The processes in a running machine. Raises MachineError, GuestError."""
    record = get_running(engine, name)
    vsock = engine.layout.machine(record.spec.id).vsock
    return request_processes(vsock, Deadline(_SIGNAL_S, f"asking {record.spec.name} for its processes"))


def list_ports(engine: Engine, name: str) -> list[PortMapping]:
    """The ports that a machine publishes while it runs."""
    record = engine.machines.records.get(name)
    return [] if record.effective_state in ENDED else list(record.ports)
