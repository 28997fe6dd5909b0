"""A machine's life: created, started, waited for, stopped, ended, removed. The only place where the drivers meet.

Order: the record is written before the first side effect and removed after the last one; between them each step
can be repeated. Whoever changes a machine holds its lock (`locks/machines/<id>`, which goes with the record).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from firebuild.errors import DeadlineError, FirebuildError, GuestError, HostError, MachineError
from firebuild.host.cgroups import has_starved
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, remove_tree, write_atomic
from firebuild.host.identity import (
    ProcessIdentity,
    find_identity,
    get_boot_id,
    is_alive,
    kill_and_wait,
    send_signal,
    wait_gone,
)
from firebuild.host.interrupts import hold_interrupts
from firebuild.host.watch import wait_for_path
from firebuild.layout import MachineLayout
from firebuild.machine.booting import begin_guest, check_unjailed, link_drives
from firebuild.machine.claims import claim_disks
from firebuild.machine.console import find_crash, find_killed
from firebuild.machine.evidence import REQUEST_FAULTS, collect_evidence, wants_evidence
from firebuild.machine.extras import check_extras
from firebuild.machine.isolation import (
    apply_kept,
    note_kept,
    plan_group,
    plan_kept,
    plan_limits,
    release,
)
from firebuild.machine.metadata import plan_boot_document
from firebuild.machine.services import MachineServices, hold_machine
from firebuild.machine.spec import Boot, MachineSpec, Restore, VmmExtras
from firebuild.machine.state import ENDED, HOST_REBOOT, MachineRecord, Progress, State
from firebuild.machine.supervisor import Owner, SupervisorLink, open_owner, open_supervisor, read_tail, start_supervisor
from firebuild.names import MachineId
from firebuild.network.attach import Attachment, attach_network, detach_network
from firebuild.vmm.process import plan_emulator

if TYPE_CHECKING:
    from firebuild.vmm.programs import VmmChoice

_CLEANUP_S = 120.0
# For a supervisor to kill its VMM, read what that left, and write the exit record.
_SUPERVISOR_S = 15.0
_GUEST_CID = 3
# 128 + SIGKILL.
_KILLED_CODE = 137
# What the supervisor calls.
_SELF = (sys.executable, "-I", "-m", "firebuild")


def start_machine(
    services: MachineServices,
    spec: MachineSpec,
    boot: Boot | Restore,
    *,
    prepare: Callable[[MachineLayout], None],
    owner: Owner | None = None,
    await_attach: bool = False,
) -> MachineRecord:
    """Record a machine, start it, and wait until its guest is ready.

    `prepare` makes the machine's own disks below its folder. `await_attach`: the first who attaches starts the entrypoint.
    With `owner` the machine stays tied to it (a build machine does not outlive its build); without, it is released once it
    is ready. On any failure, an interrupt included, everything is undone and the record removed; the error carries the
    console's last lines.
    Raises ConflictError, PathTooLongError, UsageError before anything exists; then any FirebuildError.
    """
    services.layout.machine(spec.id).check_lengths()
    plan_boot_document(spec, [])
    spec = msgspec.structs.replace(spec, limits=plan_limits(services.vmm, spec))
    choice = _choose(services, spec)
    if isinstance(boot, Restore):
        check_unjailed(spec.name, choice.jailed is not None)
    try:
        return _start_recorded(services, spec, boot, choice, prepare, owner, await_attach)
    except BaseException:
        # An interrupt can hit anywhere, also before the lock was held: whatever is recorded is undone.
        with hold_interrupts():
            if services.records.find(spec.id) is not None:
                with hold_machine(services, spec.id) as paths:
                    undo_start(services, spec.id, paths)
        raise


def _start_recorded(
    services: MachineServices,
    spec: MachineSpec,
    boot: Boot | Restore,
    choice: VmmChoice,
    prepare: Callable[[MachineLayout], None],
    owner: Owner | None,
    await_attach: bool,
) -> MachineRecord:
    # The lock comes before the record: a record whose lock is free has lost its owner.
    with hold_machine(services, spec.id) as paths, ExitStack() as stack:
        with claim_disks(services.layout, services.records, spec):
            services.records.insert(spec, Progress(owner=find_identity(os.getpid())))
        tie = owner or stack.enter_context(open_owner())
        try:
            _make_folder(paths.state)
            prepare(paths)
            return _start(
                services, spec, boot, choice, paths, tie, stays_tied=owner is not None, await_attach=await_attach
            )
        except BaseException as error:
            evidence = collect_evidence(paths) if wants_evidence(error) else None
            # A second Ctrl-C must not stop the undoing half-way.
            with hold_interrupts():
                undo_start(services, spec.id, paths)
            if evidence and isinstance(error, FirebuildError):
                error.details = f"{error.details}\n{evidence}" if error.details else evidence
            raise


def start_again(
    services: MachineServices, machine_id: MachineId, boot: Boot, *, await_attach: bool = False
) -> MachineRecord:
    """Start an ended machine with its own disks and logs, and wait until its guest is ready. `await_attach` as for a new one.

    On any failure, an interrupt included, it is an ended machine again, with all that it had. Raises MachineError for one
    that has not ended; then any FirebuildError, with the console's last lines.
    """
    services.layout.machine(machine_id).check_lengths()
    with hold_machine(services, machine_id) as paths, open_owner() as owner:
        record = services.records.get(machine_id)
        if record.state not in ENDED:
            raise MachineError(f"the machine {record.spec.name} is {record.effective_state}")
        choice = _choose(services, record.spec)
        # What its last end could not take down.
        release(record.progress, paths)
        detach_network(services.networks, machine_id, deadline=Deadline(_CLEANUP_S, "taking down the network"))
        remove_tree(paths.run)
        try:
            return _start(
                services, record.spec, boot, choice, paths, owner, stays_tied=False, life=record.progress.life + 1,
                await_attach=await_attach,
            )  # fmt: skip
        except BaseException as error:
            evidence = collect_evidence(paths) if wants_evidence(error) else None
            with hold_interrupts():
                settle_start(services, services.records.get(machine_id), paths, reason=f"not started: {error}"[:500])
            if evidence and isinstance(error, FirebuildError):
                error.details = f"{error.details}\n{evidence}" if error.details else evidence
            raise


def _choose(services: MachineServices, spec: MachineSpec) -> VmmChoice:
    """The VMM, with all that can be known to be wrong with it and with the machine's limits before anything exists."""
    choice = services.vmm.choose()
    plan_group(services.vmm, services.layout, spec, jailed=choice.jailed is not None)
    if spec.extras != VmmExtras():
        from firebuild.vmm.programs import find_version

        check_extras(spec.extras, find_version(choice))
    return choice


def _forget_end(paths: MachineLayout) -> None:
    """What told of an earlier life's end must not tell of the next one's: its logs are kept beside."""
    try:
        paths.exit_record.unlink(missing_ok=True)
        for log in (paths.console_log, paths.vmm_log):
            if log.exists():
                log.replace(log.with_name(log.name + ".1"))
    except OSError as error:
        raise map_os_error(error, f"preparing `{paths.state}`") from error


def _start(
    services: MachineServices,
    spec: MachineSpec,
    boot: Boot | Restore,
    choice: VmmChoice,
    paths: MachineLayout,
    owner: Owner,
    *,
    stays_tied: bool,
    life: int = 0,
    await_attach: bool = False,
) -> MachineRecord:
    records = services.records
    progress = Progress(
        owner=find_identity(os.getpid()), started_at_ns=time.time_ns(), boot_id=get_boot_id(), life=life
    )
    with claim_disks(services.layout, records, spec):
        records.update(spec.id, State.STARTING, progress)
    _forget_end(paths)
    _make_folder(paths.run)
    link_drives(spec, paths)
    deadline = Deadline(spec.boot_timeout_s, f"starting {spec.name}")
    attachments = _attach_networks(services, spec, deadline)
    if attachments:
        progress = msgspec.structs.replace(
            progress, addresses=[address for each in attachments for address in each.addresses],
            mac=attachments[0].mac, ports=attachments[0].ports,
        )  # fmt: skip
        records.update(spec.id, State.STARTING, progress)
    document = plan_boot_document(spec, attachments, await_attach=await_attach)
    write_atomic(paths.boot_document, msgspec.json.encode(document))
    netns = Path(attachments[0].netns_path) if attachments else None
    booted = boot.boot if isinstance(boot, Restore) else boot
    kept = plan_kept(services.vmm, services.layout, spec, booted, paths, choice, netns=str(netns) if netns else None)
    progress = note_kept(kept, progress)
    records.update(spec.id, State.STARTING, progress)
    apply_kept(kept, spec, paths)
    supervisor, vmm = start_supervisor(
        spec, paths,
        kept.jail.launch if kept.jail is not None
        else plan_emulator(vmm_id=spec.id, api_socket=paths.api_socket, log=paths.vmm_log, binary=choice.program),
        kept,
        netns=netns,
        on_exit=[*_SELF, "machine-ended", spec.id, "--life", str(life)],
        on_change=[*_SELF, "machine-changed", spec.id],
        owner=owner,
        environment={
            "FIREBUILD_STATE": str(services.layout.state), "FIREBUILD_RUN": str(services.layout.run),
            "FIREBUILD_CNI_BIN_DIR": ":".join(map(str, services.networks.bin_dirs)),
            "FIREBUILD_CNI_CACHE_DIR": str(services.networks.cache_dir),
        },
    )  # fmt: skip
    progress = msgspec.structs.replace(progress, supervisor=supervisor, vmm=vmm)
    records.update(spec.id, State.STARTING, progress)
    with open_supervisor(paths) as link:
        if link is None:
            raise MachineError(f"the supervisor of {spec.name} ended at once", details=read_tail(paths.supervisor_log))
        if kept.jail is not None:
            vmm = link.await_jailed(vmm, deadline)
            progress = msgspec.structs.replace(progress, vmm=vmm)
            records.update(spec.id, State.STARTING, progress)
        begin_guest(services, spec, boot, paths, kept, vmm, attachments, document, deadline)
        _await_ready(spec, link, deadline)
    progress = msgspec.structs.replace(progress, ready_at_ns=time.time_ns())
    if not stays_tied:
        # Before it is recorded: what is recorded as running does not end with this command, if that is killed now. A
        # machine that is released, and still recorded as starting, is undone by whoever finds it without its owner.
        owner.release()
        progress = msgspec.structs.replace(progress, owner=None)
    records.update(spec.id, State.RUNNING, progress)
    return services.records.get(spec.id)


def _attach_networks(services: MachineServices, spec: MachineSpec, deadline: Deadline) -> list[Attachment]:
    """The machine in all its networks. Its ports are published on the first."""
    return [
        attach_network(
            services.networks, machine_id=spec.id, network=join.network, number=number, addresses=join.addresses,
            ports=spec.ports if number == 0 else (), names=plan_names(spec, join.aliases), allow=spec.allow,
            strict=spec.kind == "build", bytes_per_s=spec.net_bytes_per_s, deadline=deadline,
        )
        for number, join in enumerate(spec.networks)
    ]  # fmt: skip


def plan_names(spec: MachineSpec, aliases: Sequence[str]) -> list[str]:
    """What the others in a network know a machine by; a build machine is nobody's."""
    return list(dict.fromkeys([spec.name, spec.hostname, *aliases])) if spec.kind == "run" else []


def _make_folder(folder: Path) -> None:
    # What an earlier life of this id left is not reused: ids are not, so nothing may be there.
    try:
        folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.mkdir(mode=0o711)
    except FileExistsError:
        raise HostError(f"`{folder}` exists already", hint="run `firebuild purge`") from None
    except OSError as error:
        raise map_os_error(error, f"making `{folder}`") from error


def _await_ready(spec: MachineSpec, link: SupervisorLink, deadline: Deadline) -> None:
    step = "the kernel"
    while True:
        try:
            event = link.find_event(deadline)
        except DeadlineError:
            raise DeadlineError(
                f"the guest of {spec.name} was not ready within {spec.boot_timeout_s:g} s; it was last seen at: {step}",
                hint="give it more time with --boot-timeout, or look at its console below",
            ) from None
        if event is None:
            raise MachineError(f"the supervisor of {spec.name} ended while its guest was starting")
        name = event.get("event")
        if name == "ready":
            return
        if name == "step":
            step = str(event.get("name", ""))[:80]
        elif name == "failed":
            code, message = str(event.get("code", ""))[:64], str(event.get("message", ""))[:2000]
            raise GuestError(
                f"the guest of {spec.name} could not start: {message}", guest_code=code, hint=REQUEST_FAULTS.get(code)
            )
        elif name == "vmm-exit":
            raise MachineError(f"the VMM of {spec.name} ended while its guest was starting (last step: {step})")


def undo_start(services: MachineServices, machine_id: MachineId, paths: MachineLayout) -> None:
    """End what runs, take down the network, remove files, and the record last. The lock is held."""
    end_processes(services, machine_id)
    record = services.records.find(machine_id)
    if record is not None:
        release(record.progress, paths)
    detach_network(services.networks, machine_id, deadline=Deadline(_CLEANUP_S, "taking down the network"))
    remove_tree(paths.run)
    remove_tree(paths.state)
    services.records.delete(machine_id)


def settle_start(services: MachineServices, record: MachineRecord, paths: MachineLayout, *, reason: str) -> None:
    """A start came to nothing: a new machine is undone; one that had lived before has failed, and keeps its disks and logs."""
    if record.state in ENDED:
        return
    if record.progress.life == 0:
        undo_start(services, record.spec.id, paths)
        return
    end_processes(services, record.spec.id)
    release(record.progress, paths)
    detach_network(services.networks, record.spec.id, deadline=Deadline(_CLEANUP_S, "taking down the network"))
    remove_tree(paths.run)
    ended = msgspec.structs.replace(
        record.progress, owner=None, supervisor=None, vmm=None, reason=reason, ended_at_ns=time.time_ns(),
        cgroups=[], uid=None, owners={},
    )  # fmt: skip
    services.records.update(record.spec.id, State.FAILED, ended)


def end_processes(services: MachineServices, machine_id: MachineId) -> None:
    """Kill a machine's supervisor and VMM, if they run; identity is checked, so no other process is hit. Raises MachineError."""
    record = services.records.find(machine_id)
    if record is None or record.rebooted:
        return
    supervisor, vmm = record.progress.supervisor, record.progress.vmm
    if supervisor is not None and not _end_supervisor(services, record, supervisor):
        raise MachineError(f"the supervisor {supervisor.pid} of the machine {record.spec.name} cannot be killed")
    if vmm is not None and not kill_and_wait(vmm, grace_s=0):
        raise MachineError(f"the VMM {vmm.pid} of the machine {record.spec.name} cannot be killed")


def _end_supervisor(services: MachineServices, record: MachineRecord, supervisor: ProcessIdentity) -> bool:
    """Have it end its VMM; False if it cannot be killed. One without an owner may live on for its clean-up command."""
    if supervisor.pid == os.getppid():
        # This is its clean-up command: it has ended the VMM, and waits for this very process.
        return True
    if not send_signal(supervisor, signal.SIGTERM):
        return True
    exit_record = services.layout.machine(record.spec.id).exit_record
    if record.progress.owner == find_identity(os.getpid()) or not exit_record.parent.is_dir():
        ended = wait_gone(supervisor, _SUPERVISOR_S)
    else:
        # Its clean-up command waits for the lock that is held here, and it for that command: not its own end is waited
        # for, but what it writes before.
        deadline = Deadline(_SUPERVISOR_S, "ending the supervisor")
        try:
            ended = wait_for_path(exit_record, deadline, alive=lambda: is_alive(supervisor)) or not is_alive(supervisor)
        except DeadlineError:
            ended = False
    return ended or kill_and_wait(supervisor, grace_s=0)


def finish_machine(
    services: MachineServices, machine_id: MachineId, life: int | None, *, reason: str | None = None
) -> None:
    """What follows a machine's end: the network is taken down, its sockets removed, its end recorded. Idempotent.

    Called by the supervisor through `firebuild machine-ended`, and by whoever finds a machine that ended unseen. Only that
    `life` is finished (None: whichever it is): it may have been started again while the lock was waited for.
    """
    if services.records.find(machine_id) is None:
        return
    with hold_machine(services, machine_id) as paths:
        record = services.records.find(machine_id)
        if record is None:
            # Removed while we waited for its lock.
            return
        if record.state in ENDED or life not in (None, record.progress.life):
            return
        if record.state in (State.CREATED, State.STARTING):
            # Its command died while starting it: nobody ever had this machine.
            settle_start(services, record, paths, reason="its start was cut short")
            return
        finish_held(services, record, paths, reason=reason)


def finish_held(
    services: MachineServices, record: MachineRecord, paths: MachineLayout, *, reason: str | None = None
) -> None:
    """As finish_machine, the lock being held."""
    spec = record.spec
    exit_record = load_exit_record(paths)
    if exit_record is None:
        # No exit record: the supervisor did not live to write one. It kills its VMM with it; be sure of both.
        end_processes(services, spec.id)
    elif record.progress.vmm is not None and not record.rebooted:
        kill_and_wait(record.progress.vmm, grace_s=0)
    starved = has_starved(record.progress.cgroups)
    release(record.progress, paths)
    detach_network(services.networks, spec.id, deadline=Deadline(_CLEANUP_S, "taking down the network"))
    remove_tree(paths.run)
    if record.removable or spec.kind != "run":
        remove_tree(paths.state)
        services.records.delete(spec.id)
        return
    if exit_record is None and record.rebooted:
        state, code, why = State.STOPPED, None, HOST_REBOOT
    else:
        state, code, why = _ending(exit_record, reason, paths.console_log, starved=starved)
    progress = msgspec.structs.replace(
        record.progress, supervisor=None, vmm=None, exit_code=code, reason=why, ended_at_ns=time.time_ns(),
        restarts=_restarts(exit_record), cgroups=[], uid=None, owners={},
    )  # fmt: skip
    services.records.update(spec.id, state, progress)


def _ending(
    exit_record: dict[str, Any] | None, reason: str | None, console: Path, *, starved: bool
) -> tuple[State, int | None, str]:
    if exit_record is None:
        return State.LOST, None, reason or "the supervisor was lost"
    guest_exit = exit_record.get("guest_exit")
    code = guest_exit.get("code") if isinstance(guest_exit, dict) else None
    # Not the caller's: whoever is first at the clean-up finds the same.
    why = str(exit_record.get("reason", "exit"))
    if isinstance(code, int):
        killed = find_killed(console) if code == _KILLED_CODE and why == "exit" else None
        return State.STOPPED, code, why if killed is None else f"out of memory: {killed} was killed"
    if why == "killed":
        return State.STOPPED, _KILLED_CODE, why
    if why == "exit" and starved:
        why = "out of memory: the VMM wanted more than --vmm-memory-max"
    elif why == "exit":
        why = find_crash(console) or "the VMM ended without an exit status of the guest"
    return State.FAILED, None, why


def _restarts(told: dict[str, Any] | None) -> int:
    count = told.get("restarts") if told is not None else None
    return count if isinstance(count, int) else 0


def load_exit_record(paths: MachineLayout) -> dict[str, Any] | None:
    """The supervisor's exit record, or None. Raises MachineError where it does not parse."""
    try:
        value = msgspec.json.decode(paths.exit_record.read_bytes())
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise MachineError(f"the exit record `{paths.exit_record}` does not parse: {error}") from error
    return value if isinstance(value, dict) else None


def remove_machine(services: MachineServices, record: MachineRecord) -> None:
    """Remove an ended machine with its files; the record last. Raises MachineError if it still runs."""
    spec = record.spec
    with hold_machine(services, spec.id) as paths:
        current = services.records.find(spec.id)
        if current is None:
            return
        if current.state not in ENDED:
            if current.alive:
                raise MachineError(
                    f"the machine {spec.name} is {current.state}", hint=f"stop it first: firebuild stop {spec.name}"
                )
            finish_held(services, current, paths)
        release(current.progress, paths)
        detach_network(services.networks, spec.id, deadline=Deadline(_CLEANUP_S, "taking down the network"))
        remove_tree(paths.run)
        remove_tree(paths.state)
        services.records.delete(spec.id)
