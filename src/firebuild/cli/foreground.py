"""A machine in the foreground of a command: its output, its end, its exit status."""

from __future__ import annotations

import contextlib
import signal
import sys

from firebuild.cli.attaching import AttachPlan, Detached, attach, pass_signals
from firebuild.cli.options import START_FAILURES
from firebuild.cli.output import note, write_output
from firebuild.cli.several import note_synced
from firebuild.engine.core import Engine
from firebuild.errors import GuestError
from firebuild.machine.evidence import REQUEST_FAULTS
from firebuild.machine.state import MachineRecord

_NO_STATUS = 125
_STOP_S = 10.0


def follow_machine(
    engine: Engine, machine_id: str, *, remove: bool, plan: AttachPlan | None = None, keep: bool = False
) -> int:
    """Show the machine's output until it has ended; returns the entrypoint's exit status. With `plan`, attached to it: then
    0 when somebody detaches, and the machine goes on.

    SIGINT, SIGTERM and SIGHUP stop the machine in order, a second one kills it, unless they are passed on. Raises GuestError
    for an entrypoint that cannot be started; nothing of the machine is left then, unless `keep` says that it is an old one.
    """
    from firebuild.engine.machines import end_machine
    from firebuild.engine.machines import remove as remove_machine

    record = engine.machines.records.get(machine_id)
    broken: BrokenPipeError | None = None
    failure: GuestError | None = None
    try:
        failure = _show(engine, record, plan)
    except Detached:
        note(f"\r\ndetached from {record.spec.name}, which goes on; again: firebuild attach {record.spec.name}")
        return 0
    except BrokenPipeError as error:
        # Nobody reads any more: nobody is left to stop the machine later either.
        broken = error
        end_machine(engine, machine_id, timeout_s=_STOP_S)
    except KeyboardInterrupt:
        _stop(engine, machine_id, record.spec.name)
    status = _take_end(engine, record, attached=plan is not None)
    if failure is not None and status in START_FAILURES.values():
        if not keep:
            remove_machine(engine, machine_id, force=True)
        raise GuestError(
            f"the guest of {record.spec.name} could not start: {failure.message}", guest_code=failure.guest_code,
            hint=REQUEST_FAULTS.get(failure.guest_code or ""),
        )  # fmt: skip
    if remove:
        remove_machine(engine, machine_id, force=True)
    if broken is not None:
        raise broken
    sys.stdout.flush()
    return status


def _show(engine: Engine, record: MachineRecord, plan: AttachPlan | None) -> GuestError | None:
    """Until the machine ends. Returns what was wrong with an attached stream: why, the machine's end tells."""
    from firebuild.machine.logs import follow_entries

    paths = engine.layout.machine(record.spec.id)
    if plan is None:
        with pass_signals(paths.vsock):
            for entry in follow_entries(paths):
                write_output(entry.stream, entry.data)
        return None
    try:
        attach(paths.vsock, plan, tty=record.spec.tty)
    except GuestError as error:
        return error
    return None


def _take_end(engine: Engine, record: MachineRecord, *, attached: bool) -> int:
    from firebuild.engine.life import wait
    from firebuild.engine.machines import note_end, settle_folders
    from firebuild.machine.supervisor import read_tail

    if attached:
        # The entrypoint's end has come before the machine's.
        wait(engine, record.spec.id)
    note_end(engine, record.spec.id, record.progress.life)
    note_synced(settle_folders(engine, record.spec.id))
    ended = engine.machines.records.get(record.spec.id)
    if ended.progress.exit_code is not None:
        return ended.progress.exit_code
    note(f"{record.spec.name} ended without an exit status: {ended.progress.reason}")
    console = read_tail(engine.layout.machine(record.spec.id).console_log, 15)
    if console:
        note(f"last lines of the console:\n{console}")
    return _NO_STATUS


def _stop(engine: Engine, machine_id: str, name: str) -> None:
    """Stop in order; a second interrupt kills."""
    from firebuild.engine.machines import end_machine

    with contextlib.suppress(OSError):
        # The terminal may be what has gone.
        note(f"stopping {name}; once more to kill it")
    try:
        end_machine(engine, machine_id, timeout_s=_STOP_S)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_machine(engine, machine_id, timeout_s=0)
