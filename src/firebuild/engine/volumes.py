"""Use cases of volumes: made, listed, described, removed, given to machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.folders import check_folder
from firebuild.errors import BusyError, FirebuildError, UsageError
from firebuild.layout import MachineLayout
from firebuild.machine.claims import find_users, hold_volumes
from firebuild.machine.mounts import MountRequest, plan_mounts
from firebuild.machine.spec import DriveSpec, MountSpec
from firebuild.store.volumes import DEFAULT_BYTES, MIN_BYTES, Volume, VolumeStore

MAX_BYTES = 16 << 40


class VolumeView(msgspec.Struct, frozen=True):
    """A volume and the machines that name it, ended ones included."""

    volume: Volume
    users: list[dict[str, str]]


def create(
    engine: Engine, name: str, *, size_bytes: int = DEFAULT_BYTES, labels: Mapping[str, str] | None = None
) -> Volume:
    """Make an empty volume. Raises ConflictError, UsageError, HostError."""
    if not MIN_BYTES <= size_bytes <= MAX_BYTES:
        raise UsageError(f"a volume has {MIN_BYTES >> 20} MiB to {MAX_BYTES >> 40} TiB, not {size_bytes} bytes")
    engine.layout.ensure()
    with hold_volumes(engine.layout):
        return open_store(engine).create(name, size_bytes, labels or {})


def open_store(engine: Engine) -> VolumeStore:
    """The volumes of this installation."""
    return VolumeStore(engine.layout.volumes)


def view(engine: Engine, name: str) -> VolumeView:
    """A volume and who has it. Raises NotFoundError."""
    return _view(engine, open_store(engine).get(name))


def list_views(engine: Engine) -> list[VolumeView]:
    """All volumes by name."""
    return [_view(engine, volume) for volume in open_store(engine).list_all()]


def _view(engine: Engine, volume: Volume) -> VolumeView:
    users = [
        {
            "Id": str(record.spec.id), "Name": record.spec.name, "State": str(record.effective_state),
            "Target": mount.target, "Mode": "ro" if mount.read_only else "rw",
        }
        for record, mount in find_users(engine.machines.records, volume.name)
    ]  # fmt: skip
    return VolumeView(volume, users)


def remove(engine: Engine, name: str, *, force: bool = False) -> None:
    """Remove a volume that no machine names, ended ones included. `force`: one that is not there is fine.

    Raises BusyError, NotFoundError."""
    with hold_volumes(engine.layout):
        store = open_store(engine)
        if force and not store.disk(name).parent.exists():
            return
        users = find_users(engine.machines.records, name)
        if users:
            machine = users[0][0]
            raise BusyError(
                f"the volume `{name}` belongs to the machine {machine.spec.name} ({machine.effective_state})",
                hint=f"remove that first: firebuild rm {machine.spec.name}",
            )
        store.remove(name)


def prune(engine: Engine, chosen: Callable[[Volume], bool]) -> tuple[list[Volume], list[FirebuildError]]:
    """Remove the chosen volumes that no machine names; those removed, and the failures."""
    removed: list[Volume] = []
    failures: list[FirebuildError] = []
    for found in list_views(engine):
        if found.users or not chosen(found.volume):
            continue
        try:
            remove(engine, found.volume.name)
            removed.append(found.volume)
        except BusyError:
            continue  # a machine was faster
        except FirebuildError as error:
            failures.append(error)
    with hold_volumes(engine.layout):
        open_store(engine).sweep()
    return removed, failures


def ensure(engine: Engine, requests: Sequence[MountRequest], report: Callable[[str], None]) -> None:
    """Make the volumes that are missing, as Docker does. `report` is told."""
    for request in requests:
        if request.is_folder or open_store(engine).find(request.source) is not None:
            continue
        create(engine, request.source)
        report(f"made the volume {request.source}")


def plan_drives(
    engine: Engine, requests: Sequence[MountRequest], machine: MachineLayout
) -> tuple[list[DriveSpec], list[MountSpec]]:
    """The drives behind the root's, and where they are mounted. Raises UsageError, NotFoundError."""
    drives: list[DriveSpec] = []
    mounts: list[MountSpec] = []
    for number, request in enumerate(plan_mounts(requests)):
        drive_id = f"volume{number}"
        if request.is_folder:
            path, volume = machine.folder_disk(number), ""
        else:
            path, volume = open_store(engine).disk(request.source), request.source
        drives.append(DriveSpec(drive_id, str(path), request.read_only, durable=not request.is_folder))
        mounts.append(
            MountSpec(
                drive_id, request.target, request.read_only, request.seed and not request.read_only, volume,
                str(check_folder(engine, request)) if request.is_folder else "",
            )
        )  # fmt: skip
    return drives, mounts


def is_older(volume: Volume, age_s: float) -> bool:
    """Whether it was made that long ago."""
    return time.time_ns() - volume.created_at_ns >= age_s * 10**9
