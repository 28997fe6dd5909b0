"""Saving a running machine: its guest held still, its VMM paused, both files and its own disks written; then it goes on."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import msgspec

from firebuild.errors import FirebuildError, GuestError, MachineError, SnapshotError
from firebuild.guest.control import request_continue, request_pause_for_snapshot
from firebuild.host import log
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error
from firebuild.host.identity import ProcessIdentity, find_identity, wait_gone
from firebuild.host.interrupts import hold_interrupts
from firebuild.host.kvm import find_cpu_model, find_host_mode
from firebuild.host.sparse import clone_file, digest_content
from firebuild.layout import MachineLayout
from firebuild.machine.booting import check_unjailed
from firebuild.machine.services import MachineServices, hold_machine
from firebuild.machine.snapshots import OwnDisk, SharedDisk, Snapshot
from firebuild.machine.spec import MachineSpec
from firebuild.machine.state import MachineRecord, State
from firebuild.names import MachineId
from firebuild.vmm.api import open_api
from firebuild.vmm.models import SnapshotCreate

_SAVE_S = 300.0
_HOLD_S = 60.0
_GO_ON_S = 30.0


class _Facts(msgspec.Struct, frozen=True):
    vmm_version: str
    own_disks: list[OwnDisk]


def check_saveable(spec: MachineSpec, paths: MachineLayout) -> list[SharedDisk]:
    """The disks that a machine shares with others. Raises SnapshotError for one that it shares and may write to: its clones
    would write to the same file system at once, each believing that it is alone."""
    if spec.extras.huge_pages == "2M":
        # Firecracker's docs/hugepages.md: its memory cannot be mapped from a file.
        raise SnapshotError(
            f"{spec.name} has its memory in pages of 2 MiB, which no VMM restores from a file",
            hint="run what is to be saved without `--huge-pages 2m`",
        )
    shared = []
    for drive in spec.drives:
        if _is_own(drive.path, paths):
            continue
        if not drive.read_only:
            raise SnapshotError(
                f"{spec.name} may write to `{drive.path}`, which is not its own: no snapshot can be made of it",
                hint="give volumes and disks to a machine that is to be saved with `:ro`",
            )
        status = _status(Path(drive.path))
        shared.append(SharedDisk(drive.drive_id, drive.path, status.st_size, status.st_mtime_ns))
    return shared


def check_shared(snapshot: Snapshot) -> None:
    """Raises SnapshotError where a disk that the machine shared is gone, or has changed: what the guest has cached of it would be
    wrong."""
    for disk in snapshot.shared_disks:
        try:
            status = os.stat(disk.path)
        except FileNotFoundError:
            raise SnapshotError(
                f"the disk `{disk.path}` of the snapshot `{snapshot.name}` is gone",
                hint=f"it cannot be restored without it; remove it: firebuild snapshot rm {snapshot.name}",
            ) from None
        except OSError as error:
            raise map_os_error(error, f"looking at the disk `{disk.path}`") from error
        if (status.st_size, status.st_mtime_ns) != (disk.size_bytes, disk.modified_ns):
            raise SnapshotError(
                f"the disk `{disk.path}` has changed since the snapshot `{snapshot.name}` was made",
                hint=f"it cannot be restored with it; remove it: firebuild snapshot rm {snapshot.name}",
            )


def check_host(snapshot: Snapshot) -> None:
    """Raises SnapshotError on a host whose kind or processor is another one."""
    mode, model = find_host_mode().kind, find_cpu_model() or ""
    for what, saved, here in (("host mode", snapshot.host_mode, mode), ("CPU model", snapshot.cpu_model, model)):
        if saved != here:
            raise SnapshotError(
                f"the snapshot `{snapshot.name}` was made with the {what} `{saved}`, and this host's is `{here}`",
                hint="restore it on a host like the one where it was made",
            )


def save_machine(
    services: MachineServices, machine_id: MachineId, stage: Path, *, name: str, parent: Snapshot | None,
    labels: dict[str, str], owner: ProcessIdentity | None, stays: bool,
) -> Snapshot:  # fmt: skip
    """Save a running machine into `stage`, and let it go on; with `stays` False it stands still then, to be ended.

    With `parent` only what has changed of its memory since it was started from that. Whatever fails, and whoever is killed,
    the machine goes on as if nothing had been asked. Raises MachineError, SnapshotError, GuestError, ApiError, HostError.
    """
    with hold_machine(services, machine_id) as paths:
        record = services.records.get(machine_id)
        if record.effective_state is not State.RUNNING:
            raise MachineError(
                f"the machine {record.spec.name} is {record.effective_state}, not running",
                hint="list machines with `firebuild ls -a`",
            )
        check_unjailed(record.spec.name, record.progress.uid is not None)
        shared = check_saveable(record.spec, paths)
        created_at_ns = time.time_ns()
        held = msgspec.structs.replace(record.progress, holder=find_identity(os.getpid()))
        services.records.update(machine_id, State.PAUSED, held)
        done = False
        try:
            facts = _save(record.spec, paths, stage, diff=parent is not None)
            done = True
        finally:
            if stays or not done:
                with hold_interrupts():
                    go_on(services, services.records.get(machine_id), paths)
    memory = stage / "memory"
    status = _status(memory)
    return Snapshot(
        id=secrets.token_hex(16), name=name, kind="full" if parent is None else "diff", created_at_ns=created_at_ns,
        spec=record.spec, vmm_version=facts.vmm_version, host_mode=find_host_mode().kind,
        cpu_model=find_cpu_model() or "", own_disks=facts.own_disks, shared_disks=shared,
        memory_bytes=status.st_size, memory_changed_ns=status.st_ctime_ns, memory_digest=digest_content(memory),
        parent=parent.name if parent is not None else "", parent_id=parent.id if parent is not None else "",
        labels=labels, owner=owner,
    )  # fmt: skip


def _save(spec: MachineSpec, paths: MachineLayout, stage: Path, *, diff: bool) -> _Facts:
    request_pause_for_snapshot(paths.vsock, Deadline(_HOLD_S, f"waiting for {spec.name} to stand still"))
    with open_api(paths.api_socket, Deadline(_SAVE_S, f"saving {spec.name}")) as api:
        version = api.get_version()
        api.pause()
        api.create_snapshot(SnapshotCreate(str(stage / "state"), str(stage / "memory"), "Diff" if diff else "Full"))
        disks = []
        for drive in spec.drives:
            if _is_own(drive.path, paths):
                file = Path(drive.path).name
                disks.append(OwnDisk(drive.drive_id, file, clone_file(Path(drive.path), stage / file)))
    return _Facts(version, disks)


def go_on(services: MachineServices, record: MachineRecord, paths: MachineLayout) -> None:
    """Let a machine that was held for a snapshot go on. The lock is held. Raises nothing: what fails is logged, and the machine stays
    paused."""
    vmm = record.progress.vmm
    if vmm is not None and wait_gone(vmm, 0):
        log.warning(__name__, "the VMM of the machine %s has ended while it was saved", record.spec.name)
        return
    try:
        with open_api(paths.api_socket, Deadline(_GO_ON_S, "resuming the machine")) as api:
            api.resume()
        _continue(paths.vsock)
    except FirebuildError as error:
        log.warning(__name__, "the machine %s does not go on after its snapshot: %s", record.spec.name, error)
        return
    progress = msgspec.structs.replace(record.progress, holder=None)
    services.records.update(record.spec.id, State.RUNNING, progress)


def _continue(vsock: Path) -> None:
    try:
        request_continue(vsock, Deadline(_GO_ON_S, "letting the guest go on"))
    except GuestError as error:
        # It was never held: it could not be, or its command died before it asked.
        if error.guest_code != "bad-request":
            raise


def _is_own(path: str, paths: MachineLayout) -> bool:
    return Path(path).parent == paths.state


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise map_os_error(error, f"looking at `{path}`") from error
