"""Repairing what a crash left: machines whose owner died, and folders, sockets and networks that no record names."""

from __future__ import annotations

from pathlib import Path

from firebuild.errors import BusyError, FirebuildError
from firebuild.host import log
from firebuild.host.deadline import Deadline
from firebuild.host.files import remove_tree
from firebuild.host.identity import is_alive
from firebuild.machine.services import MachineServices, try_hold_machine
from firebuild.machine.state import ENDED, MachineRecord, State
from firebuild.names import MachineId
from firebuild.network.records import list_halves, list_records

_CLEANUP_S = 120.0


def reconcile(services: MachineServices) -> list[str]:
    """Repair everything that no living process owns; returns a sentence for each thing repaired.

    A machine that was being created or started when its command died is undone. One whose supervisor died has ended.
    What cannot be repaired now is logged and left for the next time: it stays recorded.
    """
    repaired: list[str] = []
    for record in services.records.list_all(kind=None):
        if record.state in ENDED and record.removable:
            from firebuild.machine.lifecycle import remove_machine

            try:
                remove_machine(services, record)
                repaired.append(f"machine {record.spec.name}: ended, and was to be removed; removed")
            except FirebuildError as error:
                log.warning(__name__, "the machine %s could not be removed: %s", record.spec.name, error)
            continue
        if record.state in ENDED or (record.state is not State.CREATED and _owned(record) and not _left_held(record)):
            continue
        try:
            if _repair(services, record):
                repaired.append(f"machine {record.spec.name}: its {record.state} was cut short; cleaned up")
        except BusyError:
            continue
        except FirebuildError as error:
            log.warning(__name__, "the machine %s could not be repaired: %s", record.spec.name, error)
    repaired += _sweep(services)
    return repaired


def _left_held(record: MachineRecord) -> bool:
    """Whether it stands still for a snapshot whose command has died."""
    holder = record.progress.holder
    return record.state is State.PAUSED and holder is not None and not is_alive(holder) and record.alive


def _owned(record: MachineRecord) -> bool:
    # A build machine and a starting one belong to their command, whose lock tells; the others to their supervisor.
    return record.state in (State.RUNNING, State.PAUSED, State.STOPPING) and record.alive


def _repair(services: MachineServices, seen: MachineRecord) -> bool:
    # Every command looks for what to repair, and next to none finds any: the drivers are imported where they are needed.
    from firebuild.machine.lifecycle import finish_held, settle_start

    # Without waiting: whoever holds the lock is alive and at work on it.
    with try_hold_machine(services, seen.spec.id) as paths:
        record = services.records.find(seen.spec.id)
        if record is None or record.state in ENDED:
            return False
        if record.state in (State.CREATED, State.STARTING):
            settle_start(services, record, paths, reason="its start was cut short")
            return True
        if _left_held(record):
            from firebuild.machine.snapshotting import go_on

            go_on(services, record, paths)
            return True
        if record.alive:
            return False
        finish_held(services, record, paths)
        return True


def _sweep(services: MachineServices) -> list[str]:
    """Folders and attachments without a record: their command died between two removals, or its database is gone."""
    swept = _repair_names(services.networks.names_dir)
    known = {str(record.spec.id) for record in services.records.list_all(kind=None)}
    keys = (*list_records(services.networks), *list_halves(services.networks))
    for machine_id in sorted({key.partition(".")[0] for key in keys}):
        if machine_id not in known and _abandoned(services, machine_id):
            from firebuild.network.attach import detach_network

            detach_network(
                services.networks, MachineId(machine_id), deadline=Deadline(_CLEANUP_S, "taking down the network")
            )
            swept.append(f"network of the forgotten machine {machine_id}: taken down")
    for root in (services.layout.machines, services.layout.machines_run):
        for folder in root.iterdir() if root.is_dir() else ():
            if folder.name not in known and _abandoned(services, folder.name):
                _end_forgotten(services, folder.name)
                remove_tree(folder)
                swept.append(f"folder of the forgotten machine {folder.name}: removed")
    for lock in services.layout.machine_locks.iterdir():
        if lock.name not in known:
            # Looking is enough: a lock whose machine is gone goes with whoever held it last.
            _abandoned(services, lock.name)
    return swept


def _end_forgotten(services: MachineServices, name: str) -> None:
    """A database that was moved away may have known machines that run: their supervisors still listen."""
    from firebuild.machine.isolation import release_forgotten
    from firebuild.machine.supervisor import open_supervisor

    paths = services.layout.machine(MachineId(name))
    with open_supervisor(paths) as link:
        if link is not None:
            link.kill_vmm()
            deadline = Deadline(_CLEANUP_S, f"ending the forgotten machine {name}")
            while link.find_event(deadline) is not None:
                continue
    release_forgotten(services.vmm, name, paths)


def _repair_names(folder: Path | None) -> list[str]:
    """Mend the networks' name servers, of which most hosts have none."""
    if folder is None or not any(entry.is_dir() for entry in folder.glob("*")):
        return []
    from firebuild.network.resolver import repair_resolvers

    return repair_resolvers(folder)


def _abandoned(services: MachineServices, name: str) -> bool:
    # A record is written before its folder, so a folder without one has no owner, unless the owner just removed the record.
    try:
        with try_hold_machine(services, MachineId(name)):
            return services.records.find(name) is None
    except BusyError:
        return False
