"""Who has a volume: one machine that may write to it, or any number that only read.

There is no lock to forget: a volume is in use as long as the record of a machine that has not ended says so. The machine's
end, or the repair of one whose processes died, is what frees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from firebuild.errors import BusyError, NotFoundError
from firebuild.host.deadline import Deadline
from firebuild.host.locks import hold_lock
from firebuild.layout import Layout
from firebuild.machine.spec import MachineSpec, MountSpec
from firebuild.machine.state import ENDED, MachineRecord, MachineRecords

# What the ids of the user's own disks begin with.
RAW_DISK = "disk"
_LOCK_S = 60.0


@contextmanager
def hold_volumes(layout: Layout) -> Iterator[None]:
    """While nobody makes, removes or begins to use a volume. Raises BusyError after a while."""
    with hold_lock(layout.volume_lock, "the volumes", deadline=Deadline(_LOCK_S, "waiting for the volumes")):
        yield


class _Use(NamedTuple):
    """`key`: of what is used; `shown`: for people."""

    key: str
    shown: str
    read_only: bool


@contextmanager
def claim_disks(layout: Layout, records: MachineRecords, spec: MachineSpec) -> Iterator[None]:
    """For the moment in which a machine's record begins to say that it has its volumes, and disks of the user's.

    Raises BusyError naming who has one, NotFoundError where one is gone."""
    mine = list(_uses(spec))
    if not mine:
        yield
        return
    with hold_volumes(layout):
        for drive in spec.drives:
            if any(use.key == drive.path for use in mine) and not Path(drive.path).exists():
                raise NotFoundError(f"the disk `{drive.path}` of {spec.name} does not exist any more")
        for record in records.list_all(kind=None):
            if record.spec.id == spec.id or record.state in ENDED:
                continue
            for theirs in _uses(record.spec):
                for use in mine:
                    if use.key == theirs.key and not (use.read_only and theirs.read_only):
                        raise _busy(use, theirs, record)
        yield


def _uses(spec: MachineSpec) -> Iterator[_Use]:
    """By the file, of which a device has one name: what is resolved before it is recorded."""
    volumes = {mount.drive_id: mount.volume for mount in spec.mounts if mount.volume}
    for drive in spec.drives:
        if drive.drive_id in volumes:
            yield _Use(drive.path, f"the volume `{volumes[drive.drive_id]}`", drive.read_only)
        elif spec.kind != "build" and drive.drive_id.startswith(RAW_DISK):
            yield _Use(drive.path, f"the disk `{drive.path}`", drive.read_only)


def _busy(use: _Use, theirs: _Use, record: MachineRecord) -> BusyError:
    mode = "read-only" if theirs.read_only else "read-write"
    return BusyError(
        f"{use.shown} is in use by the machine {record.spec.name} ({record.effective_state}, {mode})",
        hint="a disk has one machine that may write to it, or many that read: stop that machine, or give it to all of"
        " them with `:ro`",
    )


def find_users(records: MachineRecords, volume: str) -> list[tuple[MachineRecord, MountSpec]]:
    """The machines that have, or when they are started again will have, a volume; and how."""
    return [
        (record, mount)
        for record in records.list_all()
        for mount in record.spec.mounts
        if mount.volume == volume
    ]  # fmt: skip
