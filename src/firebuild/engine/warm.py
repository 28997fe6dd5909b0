"""Warm starts: machines that begin where an earlier one was ready, by one snapshot for each kernel, disk, size and VMM."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.space import require_room
from firebuild.errors import FirebuildError, StoreError
from firebuild.host.deadline import Deadline
from firebuild.host.interrupts import hold_interrupts
from firebuild.host.kvm import find_cpu_model, find_host_mode
from firebuild.host.locks import hold_lock
from firebuild.host.sparse import clone_file
from firebuild.layout import MachineLayout
from firebuild.machine.build_machine import tied_running
from firebuild.machine.lifecycle import end_processes, start_machine
from firebuild.machine.services import hold_machine
from firebuild.machine.snapshots import Snapshot
from firebuild.machine.snapshotting import check_host, check_shared, save_machine
from firebuild.machine.spec import Boot, Entrypoint, MachineSpec, NetworkJoin, RestartPolicy, Restore
from firebuild.machine.state import MachineRecord
from firebuild.machine.supervisor import open_owner
from firebuild.names import MachineId, new_machine_id

LABEL = "org.firebuild.warm"
# What nobody has started from for so long is removed by `gc`.
UNUSED_S = 7 * 24 * 3600.0
_PREFIX = "warm-"
_LOCK_S = 600.0
# Of this module's own: what it writes and how it asks for it.
_FORMAT = 1

Report = Callable[[str], None]


def find_obstacle(spec: MachineSpec) -> str | None:
    """Why a machine cannot start warm, in words, or None."""
    if spec.init != "direct":
        return "its image starts with its own init, which has begun its services before the entrypoint is known"
    if spec.root_mode != "overlay":
        return "its root is a copy of its own"
    if spec.mounts or len(spec.drives) > 2:
        return "volumes and disks of its own cannot be added to a guest that is ready"
    if spec.extras.huge_pages == "2M":
        return "memory in pages of 2 MiB cannot be mapped from a snapshot's file"
    return None


def plan_key(spec: MachineSpec, boot: Boot, *, program: str | None, vmm: str, host: str) -> str:
    """What a guest that is ready depends on, as a digest: another kernel, initramfs, disk, size, VMM or host is another key.

    `program`: the VMM's, or None for the emulator; `vmm`: of which version; `host`: its mode and processor."""
    facts = [
        _FORMAT, program, vmm, host, [_identify(boot.kernel), _identify(boot.initramfs)], spec.kernel_args, spec.cpus,
        spec.memory_mib, spec.disk_size_bytes, spec.read_only, spec.root_mode, spec.init, spec.mmds, len(spec.networks),
        [[drive.drive_id, _identify(Path(drive.path)) if drive.read_only else ""] for drive in spec.drives],
        msgspec.to_builtins(spec.disk_limits), msgspec.to_builtins(spec.extras),
    ]  # fmt: skip
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]


def _identify(path: Path) -> list[str | int]:
    """A published file: what is at a path is never edited, so that its size and time tell another one."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def plan_template(spec: MachineSpec, paths: Callable[[MachineId], MachineLayout]) -> MachineSpec:
    """The machine that is saved: as the one that is wanted, without all that is that one's alone."""
    machine_id = new_machine_id()
    own = paths(machine_id)
    drives = [
        drive if drive.read_only else msgspec.structs.replace(drive, path=str(own.state / Path(drive.path).name))
        for drive in spec.drives
    ]
    return msgspec.structs.replace(
        spec, id=machine_id, name=f"{_PREFIX}{secrets.token_hex(6)}", hostname="warm", template=True, drives=drives, ports=[],
        address=None, joins=[NetworkJoin(join.network) for join in spec.networks], env={}, users={}, entrypoint=Entrypoint(),
        restart=RestartPolicy(), health=None, tty=False, stdin=False, stdin_once=False, auto_remove=True, remover=None,
        volumes=[], labels={LABEL: "template"}, sync_back=False,
    )  # fmt: skip


def start_warm(
    engine: Engine,
    spec: MachineSpec,
    boot: Boot,
    *,
    prepare: Callable[[MachineLayout], None],
    await_attach: bool,
    report: Report,
) -> MachineRecord:
    """Start a machine from its warm snapshot, which is made where there is none. What does not work is told, and the machine
    is started cold: nothing fails that would not fail cold. Raises as start_machine."""
    obstacle = find_obstacle(spec)
    if obstacle is not None:
        report(f"started cold: {obstacle}")
        return start_machine(engine.machines, spec, boot, prepare=prepare, await_attach=await_attach)
    name = None
    try:
        name = _PREFIX + _plan_key(engine, spec, boot)
        _ensure(engine, name, spec, boot, prepare, report)
        return _start_from(engine, name, spec, boot, await_attach=await_attach)
    except FirebuildError as error:
        record = start_machine(engine.machines, spec, boot, prepare=prepare, await_attach=await_attach)
        # Only now: what fails cold too is no fault of the snapshot's.
        report(f"started cold: {error}")
        if name is not None:
            _forget(engine, name)
        return record


def _plan_key(engine: Engine, spec: MachineSpec, boot: Boot) -> str:
    from firebuild import __version__

    choice = engine.machines.vmm.choose()
    version = __version__ if choice.program is None else repr(_identify(Path(choice.program)))
    host = f"{find_host_mode().kind} {find_cpu_model() or ''}"
    return plan_key(spec, boot, program=choice.program, vmm=version, host=host)


def _ensure(
    engine: Engine, name: str, spec: MachineSpec, boot: Boot, prepare: Callable[[MachineLayout], None], report: Report
) -> None:
    """Make the snapshot where there is none. Of several who want it the first makes it, and the others wait."""
    if _is_there(engine, name):
        return
    deadline = Deadline(_LOCK_S, "waiting for another command's warm start")
    with hold_lock(engine.layout.warm_lock, "warm starts", deadline=deadline):
        if _is_there(engine, name):
            return
        require_room(engine, spec.memory_mib << 20, "a snapshot for warm starts")
        report("making a snapshot for warm starts (once for this kernel, image and size)")
        template = plan_template(spec, engine.layout.machine)
        services, store = engine.machines, engine.snapshots
        with open_owner() as owner:
            start_machine(services, template, boot, prepare=prepare, owner=owner)
            with tied_running(services, template):
                with store.hold(), store.open_stage() as stage:
                    made = save_machine(
                        services, template.id, stage, name=name, parent=None, labels={LABEL: name.removeprefix(_PREFIX)},
                        owner=None, stays=False,
                    )  # fmt: skip
                    store.publish(stage, made)
                with hold_interrupts(), hold_machine(services, template.id):
                    end_processes(services, template.id)


def _is_there(engine: Engine, name: str) -> bool:
    try:
        return engine.snapshots.find(name) is not None
    except StoreError:
        # A damaged record is made anew.
        _forget(engine, name)
        return False


def _start_from(engine: Engine, name: str, spec: MachineSpec, boot: Boot, *, await_attach: bool) -> MachineRecord:
    store = engine.snapshots
    with store.hold(shared=True):
        snapshot = store.get(name)
        check_host(snapshot)
        check_shared(snapshot)
        store.check_memory(snapshot)
        folder = store.folder(name)
        restore = Restore(folder / "state", folder / "memory", snapshot.vmm_version, boot)

        def clone_disks(paths: MachineLayout) -> None:
            for disk in snapshot.own_disks:
                clone_file(folder / disk.file, paths.state / disk.file)

        record = start_machine(engine.machines, spec, restore, prepare=clone_disks, await_attach=await_attach)
        os.utime(folder / "snapshot.json")
        return record


def _forget(engine: Engine, name: str) -> None:
    with engine.snapshots.hold():
        if engine.snapshots.folder(name).exists():
            engine.snapshots.remove(name)


def forget_kernel(engine: Engine, kernel: str) -> None:
    """Remove the snapshots of warm starts with that kernel: they are nobody's, and must not keep it."""
    if engine.layout.snapshots.is_dir():
        with engine.snapshots.hold():
            for snapshot in engine.snapshots.list_all():
                if LABEL in snapshot.labels and snapshot.spec.kernel == kernel:
                    engine.snapshots.remove(snapshot.name)


def collect_warm(engine: Engine, *, dry_run: bool) -> list[Snapshot]:
    """Remove the snapshots of warm starts that cannot be used any more, or have not been used for a week: whose disk, kernel or
    host is another one."""
    if not engine.layout.snapshots.is_dir():
        return []
    with engine.snapshots.hold():
        stale = [each for each in engine.snapshots.list_all() if LABEL in each.labels and _is_stale(engine, each)]
        if not dry_run:
            for snapshot in stale:
                engine.snapshots.remove(snapshot.name)
    return stale


def _is_stale(engine: Engine, snapshot: Snapshot) -> bool:
    used_s = (engine.snapshots.folder(snapshot.name) / "snapshot.json").stat().st_mtime
    if time.time() - used_s > UNUSED_S:
        return True
    try:
        check_host(snapshot)
        check_shared(snapshot)
    except FirebuildError:
        return True
    return snapshot.spec.image_digest not in engine.images.list_references().values()
