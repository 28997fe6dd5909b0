"""Use cases of snapshots: running machines saved, listed, checked, removed, and new machines started from them."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.happenings import note_snapshot
from firebuild.engine.kernels import get_boot
from firebuild.engine.machines import get_running, make_name
from firebuild.engine.space import require_room
from firebuild.errors import BusyError, FirebuildError, SnapshotError, StoreError, UsageError
from firebuild.host.identity import find_identity
from firebuild.host.sparse import clone_file
from firebuild.layout import MachineLayout
from firebuild.machine.lifecycle import start_machine
from firebuild.machine.snapshots import Snapshot
from firebuild.machine.snapshotting import check_host, check_shared, save_machine
from firebuild.machine.spec import MachineSpec, NetworkJoin, Restore
from firebuild.machine.state import MachineRecord
from firebuild.machine.stopping import stop_machine
from firebuild.names import PortMapping, new_machine_id, parse_hostname, parse_machine_name

CLONES_MAX = 1000
# Each is a VMM that starts: more at once than there are processors only wait for each other.
_AT_ONCE_MIN = 2


class SnapshotView(msgspec.Struct, frozen=True):
    """A snapshot, the bytes that it takes on this host, and the diffs that need it."""

    snapshot: Snapshot
    used_bytes: int
    children: list[str]


class CloneRequest(msgspec.Struct, frozen=True):
    """What `run --from-snapshot` is asked for. `name`: of one machine, or what the names of several begin with.

    The ports, labels and variables that are not given are: no ports, the snapshot's labels, the snapshot's variables."""

    snapshot: str
    count: int = 1
    name: str | None = None
    hostname: str | None = None
    ports: Sequence[PortMapping] = ()
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    auto_remove: bool = False
    boot_timeout_s: float | None = None


class Clones(msgspec.Struct):
    """What came of it: the machines that run, and the names of those that do not, with the reason."""

    started: list[MachineRecord] = []
    failed: list[tuple[str, FirebuildError]] = []


def create(
    engine: Engine,
    machine: str,
    name: str,
    *,
    diff: bool = False,
    stop: bool = False,
    labels: dict[str, str] | None = None,
) -> Snapshot:
    """Save a running machine, which goes on, or with `stop` ends. Raises SnapshotError, MachineError, ConflictError, DiskFullError."""
    record = get_running(engine, machine)
    return _create(engine, record, name, diff=diff, stop=stop, labels=labels or {}, temporary=False)


def _create(
    engine: Engine, record: MachineRecord, name: str, *, diff: bool, stop: bool, labels: dict[str, str], temporary: bool
) -> Snapshot:  # fmt: skip
    spec = record.spec
    store = engine.snapshots
    store.check_free(name)
    own = engine.layout.machine(spec.id)
    disks = sum(
        Path(drive.path).stat().st_blocks * 512 for drive in spec.drives if Path(drive.path).parent == own.state
    )
    require_room(engine, (spec.memory_mib << 20) + disks, f"the snapshot {name}")
    with store.hold():
        store.check_free(name)
        parent = _find_parent(engine, record) if diff else None
        with store.open_stage() as stage:
            made = save_machine(
                engine.machines, spec.id, stage, name=name, parent=parent, labels=labels,
                owner=find_identity(os.getpid()) if temporary else None, stays=not stop,
            )  # fmt: skip
            store.publish(stage, made)
        note_snapshot(engine, "created", name, made)
    if stop:
        stop_machine(engine.machines, engine.machines.records.get(spec.id), timeout_s=0)
    return made


def _find_parent(engine: Engine, record: MachineRecord) -> Snapshot:
    spec = record.spec
    if not spec.snapshot_id or record.progress.life:
        raise SnapshotError(
            f"{spec.name} was booted, and not started from a snapshot: there is nothing that a diff could be made to",
            hint="make a full snapshot: leave out --diff",
        )
    parent = next((each for each in engine.snapshots.list_all() if each.id == spec.snapshot_id), None)
    if parent is None:
        raise SnapshotError(
            f"the snapshot `{spec.snapshot}`, from which {spec.name} was started, is gone",
            hint="make a full snapshot: leave out --diff",
        )
    return parent


def view(engine: Engine, name: str) -> SnapshotView:
    """A snapshot. Raises NotFoundError, StoreError."""
    return _view(engine, engine.snapshots.get(name))


def list_views(engine: Engine) -> list[SnapshotView]:
    """All snapshots by name."""
    with engine.snapshots.hold(shared=True):
        return [_view(engine, snapshot) for snapshot in engine.snapshots.list_all()]


def _view(engine: Engine, snapshot: Snapshot) -> SnapshotView:
    children = [child.name for child in engine.snapshots.list_children(snapshot)]
    return SnapshotView(snapshot, engine.snapshots.used_bytes(snapshot), children)


def remove(engine: Engine, name: str, *, force: bool = False) -> None:
    """Remove a snapshot that no diff needs. Machines that were started from it keep what they have mapped.

    `force`: one that is not there is fine. Raises BusyError, NotFoundError."""
    store = engine.snapshots
    with store.hold():
        if force and not store.folder(name).exists():
            return
        try:
            snapshot = store.get(name)
        except StoreError:
            # A record that cannot be read names nobody.
            store.remove(name)
            note_snapshot(engine, "removed", name, None)
            return
        children = store.list_children(snapshot)
        if children:
            names = ", ".join(child.name for child in children)
            raise BusyError(
                f"the snapshot `{name}` is what these diffs were made to: {names}",
                hint=f"remove them first: firebuild snapshot rm {children[0].name}",
            )
        store.remove(name)
        note_snapshot(engine, "removed", name, snapshot)


def check_snapshots(engine: Engine) -> list[str]:
    """A sentence for each snapshot that is damaged, or could not be restored here."""
    problems = []
    for name in engine.snapshots.list_names():
        try:
            snapshot = engine.snapshots.find(name)
            if snapshot is not None:
                engine.snapshots.verify_memory(snapshot)
                check_shared(snapshot)
            else:
                problems.append(f"snapshot {name}: it has no record")
        except FirebuildError as error:
            problems.append(f"snapshot {name}: {error}")
    return problems


def run_clones(
    engine: Engine, request: CloneRequest, *, done: Callable[[MachineRecord], None] = lambda _: None
) -> Clones:
    """Start machines from a snapshot, several at once; `done` is told of each, whichever is ready first.

    Of several one that cannot be started takes no other with it. Raises NotFoundError, SnapshotError where none can be."""
    _check(request)
    engine.repair(quick=True)
    with engine.use_store(adds=False), engine.snapshots.hold(shared=True):
        snapshot = engine.snapshots.get(request.snapshot)
        needed = sum(
            (engine.snapshots.folder(snapshot.name) / disk.file).stat().st_blocks * 512 for disk in snapshot.own_disks
        )
        require_room(engine, needed * request.count, f"starting from the snapshot {snapshot.name}")
        check_host(snapshot)
        check_shared(snapshot)
        engine.snapshots.check_memory(snapshot)
        memory = engine.snapshots.find_whole_memory(snapshot)
        _, boot = get_boot(engine, snapshot.spec.kernel)
        if memory is not None:
            folder = engine.snapshots.folder(snapshot.name)
            return _start_all(
                engine, snapshot, Restore(folder / "state", memory, snapshot.vmm_version, boot), request, done
            )
    with engine.snapshots.hold():
        if engine.snapshots.find_whole_memory(snapshot) is None:
            require_room(engine, snapshot.memory_bytes, f"merging the memory of the snapshot {snapshot.name}")
            engine.snapshots.merge_memory(snapshot)
    return run_clones(engine, request, done=done)


def fork(engine: Engine, machine: str, request: CloneRequest, *, done: Callable[[MachineRecord], None]) -> Clones:
    """Start machines that go on where a running one is now, by a snapshot that is gone afterwards. Raises as create, run_clones."""
    _check(request)
    record = get_running(engine, machine)
    name = f"fork-{secrets.token_hex(6)}"
    _create(engine, record, name, diff=False, stop=False, labels={}, temporary=True)
    try:
        return run_clones(engine, msgspec.structs.replace(request, snapshot=name), done=done)
    finally:
        remove(engine, name, force=True)


def _check(request: CloneRequest) -> None:
    if not 1 <= request.count <= CLONES_MAX:
        raise UsageError(f"{request.count} is not a number of machines", hint=f"1 to {CLONES_MAX}")
    if request.count > 1 and any(port.host_port for port in request.ports):
        raise UsageError(
            "several machines cannot publish the same port",
            hint="leave the host's port out, so that each gets a free one",
        )
    if request.count > 1 and request.hostname is not None:
        raise UsageError("several machines cannot have one host name", hint="leave out --hostname, or -n")


def _start_all(
    engine: Engine, snapshot: Snapshot, restore: Restore, request: CloneRequest, done: Callable[[MachineRecord], None]
) -> Clones:  # fmt: skip
    clones = Clones()
    lock = threading.Lock()

    def start(name: str) -> None:
        try:
            spec = _plan_spec(engine, snapshot, request, name)
            started = start_machine(
                engine.machines, spec, restore, prepare=lambda paths: _clone_disks(engine, snapshot, paths)
            )
            with lock:
                clones.started.append(started)
                done(started)
        except FirebuildError as error:
            with lock:
                clones.failed.append((name, error))

    names = _plan_names(request)
    if len(names) == 1:
        start(names[0])
    else:
        with ThreadPoolExecutor(max_workers=max(_AT_ONCE_MIN, os.cpu_count() or 1)) as pool:
            list(pool.map(start, names))
    return clones


def _plan_names(request: CloneRequest) -> list[str]:
    if request.count == 1:
        return [parse_machine_name(request.name) if request.name is not None else make_name()]
    base = parse_machine_name(request.name) if request.name is not None else make_name()
    return [f"{base}-{number}" for number in range(1, request.count + 1)]


def _plan_spec(engine: Engine, snapshot: Snapshot, request: CloneRequest, name: str) -> MachineSpec:
    """The clone's spec: the machine's, with an id, a name, disks and addresses of its own. Its ports are those asked for."""
    machine_id = new_machine_id()
    paths = engine.layout.machine(machine_id)
    saved = snapshot.spec
    own = {disk.drive_id: disk.file for disk in snapshot.own_disks}
    return msgspec.structs.replace(
        saved,
        id=machine_id,
        name=name,
        hostname=parse_hostname(request.hostname or name.replace("_", "-").replace(".", "-").strip("-")),
        drives=[
            msgspec.structs.replace(drive, path=str(paths.state / own[drive.drive_id]))
            if drive.drive_id in own
            else drive
            for drive in saved.drives
        ],
        # What was that machine's alone: its addresses and its host ports.
        address=None,
        joins=[NetworkJoin(join.network, [], join.aliases) for join in saved.networks],
        ports=list(request.ports),
        env={**saved.env, **request.env},
        labels={**saved.labels, **request.labels},
        auto_remove=request.auto_remove,
        remover=None,
        sync_back=False,
        boot_timeout_s=request.boot_timeout_s or saved.boot_timeout_s,
        profile=engine.settings.profile,
        snapshot=snapshot.name,
        snapshot_id=snapshot.id,
    )


def _clone_disks(engine: Engine, snapshot: Snapshot, paths: MachineLayout) -> None:
    for disk in snapshot.own_disks:
        clone_file(engine.snapshots.folder(snapshot.name) / disk.file, paths.state / disk.file)
