"""Disks that become larger: the file here, without a look into it; the file system by the guest's kernel at the next start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.volumes import MAX_BYTES, open_store
from firebuild.errors import BusyError, MachineError, UsageError
from firebuild.host.files import map_os_error
from firebuild.machine.claims import find_users, hold_volumes
from firebuild.machine.services import hold_machine
from firebuild.machine.state import ENDED, MachineRecord
from firebuild.store.volumes import Volume


def grow_machine(
    engine: Engine, name: str, size_bytes: int, fields: Mapping[str, Any] = MappingProxyType({})
) -> MachineRecord:
    """Make an ended machine's own disk larger, and change `fields` of its spec.

    Raises MachineError for one that has not ended, UsageError for a smaller size.
    """
    machine_id = engine.machines.records.get(name).spec.id
    with hold_machine(engine.machines, machine_id) as paths:
        record = engine.machines.records.get(machine_id)
        if record.state not in ENDED:
            raise MachineError(
                f"the machine {record.spec.name} is {record.effective_state}; its disk grows when it is started",
                hint=f"stop it first: firebuild stop {record.spec.name}",
            )
        disk = paths.root_copy if record.spec.root_mode == "copy" else paths.upper_disk
        _grow(disk, size_bytes, f"the disk of {record.spec.name}")
        engine.machines.records.change_spec(msgspec.structs.replace(record.spec, disk_size_bytes=size_bytes, **fields))
        return engine.machines.records.get(machine_id)


def grow_volume(engine: Engine, name: str, size_bytes: int) -> Volume:
    """Make a volume larger that no running machine has. Raises BusyError, NotFoundError, UsageError for a smaller size."""
    with hold_volumes(engine.layout):
        store = open_store(engine)
        store.get(name)
        for record, _ in find_users(engine.machines.records, name):
            if record.state not in ENDED:
                raise BusyError(
                    f"the volume `{name}` is in use by the machine {record.spec.name} ({record.effective_state})",
                    hint=f"it grows when it is mounted: stop that machine first: firebuild stop {record.spec.name}",
                )
        _grow(store.disk(name), size_bytes, f"the volume `{name}`")
        return store.resize(name, size_bytes)


def _grow(disk: Path, size_bytes: int, what: str) -> None:
    try:
        descriptor = os.open(disk, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if not size <= size_bytes <= MAX_BYTES:
                raise UsageError(
                    f"{what} has {size >> 20} MiB and can only become larger, up to {MAX_BYTES >> 40} TiB",
                    hint="copy what is in it to a new one to have it smaller",
                )
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise map_os_error(error, f"making {what} larger") from error
