"""Who has a volume: one machine that may write to it, or any number that only read.

There is no lock to forget: a volume is in use as long as the record of a machine that has not ended says so. The machine's
end, or the repair of one whose processes died, is what frees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebuild.errors import BusyError, NotFoundError
from firebuild.host.deadline import Deadline
from firebuild.host.locks import hold_lock
from firebuild.layout import Layout
from firebuild.machine.spec import MachineSpec, MountSpec
from firebuild.machine.state import ENDED, MachineRecord, MachineRecords

_LOCK_S = 60.0


@contextmanager
def hold_volumes(layout: Layout) -> Iterator[None]:
    """While nobody makes, removes or begins to use a volume. Raises BusyError after a while."""
    with hold_lock(layout.volume_lock, "the volumes", deadline=Deadline(_LOCK_S, "waiting for the volumes")):
        yield


@contextmanager
def claim_volumes(layout: Layout, records: MachineRecords, spec: MachineSpec) -> Iterator[None]:
    """For the moment in which a machine's record begins to say that it has its volumes.

    Raises BusyError naming who has one, NotFoundError where one is gone."""
    if not any(mount.volume for mount in spec.mounts):
        yield
        return
    paths = {drive.drive_id: drive.path for drive in spec.drives}
    with hold_volumes(layout):
        for mount in filter(lambda mount: mount.volume, spec.mounts):
            if not Path(paths[mount.drive_id]).exists():
                raise NotFoundError(f"the volume `{mount.volume}` does not exist any more")
            for record, use in find_users(records, mount.volume):
                if record.spec.id == spec.id or record.state in ENDED or (use.read_only and mount.read_only):
                    continue
                raise BusyError(
                    f"the volume `{mount.volume}` is in use by the machine {record.spec.name}"
                    f" ({record.effective_state}, {'read-only' if use.read_only else 'read-write'})",
                    hint="a volume has one machine that may write to it, or many that read: stop that machine, or give"
                    " it to all of them with `:ro`",
                )
        yield


def find_users(records: MachineRecords, volume: str) -> list[tuple[MachineRecord, MountSpec]]:
    """The machines that have, or when they are started again will have, a volume; and how."""
    return [
        (record, mount)
        for record in records.list_all()
        for mount in record.spec.mounts
        if mount.volume == volume
    ]  # fmt: skip
