"""Use cases of machines: run, stop, kill, exec's target, remove, purge."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from firebuild.config.settings import split_words
from firebuild.engine.bases import find_baseos
from firebuild.engine.bootable import Report, ensure_image
from firebuild.engine.core import Engine
from firebuild.engine.disks import ensure_root_disk
from firebuild.engine.folders import Synced, fill_disks, needs_sync, note_folders, sync_back
from firebuild.engine.health import HealthOptions, plan_health
from firebuild.engine.kernels import get_boot
from firebuild.engine.raw_disks import plan_raw_disks
from firebuild.engine.space import require_room
from firebuild.engine.volumes import ensure, plan_drives
from firebuild.errors import ConflictError, FirebuildError, MachineError, NameTakenError, UsageError
from firebuild.host.deadline import Deadline
from firebuild.host.files import copy_sparse
from firebuild.host.identity import find_identity
from firebuild.images.skopeo import Access
from firebuild.images.transfer import Progress
from firebuild.layout import MachineLayout
from firebuild.machine.lifecycle import finish_machine, remove_machine, start_machine
from firebuild.machine.living import await_start, resume_machine
from firebuild.machine.metadata import parse_signal
from firebuild.machine.mounts import DiskRequest, MountRequest, plan_mounts
from firebuild.machine.spec import (
    DEFAULT_KERNEL_ARGS,
    DEFAULT_MEMORY_MIB,
    DEFAULT_NETWORK,
    DEFAULT_STOP_TIMEOUT_S,
    DiskLimits,
    DriveSpec,
    Entrypoint,
    MachineSpec,
    NetworkJoin,
    RestartPolicy,
    VmmExtras,
)
from firebuild.machine.state import ENDED, MachineRecord, State
from firebuild.machine.stopping import stop_machine
from firebuild.names import MachineId, PortMapping, new_machine_id, parse_hostname, parse_machine_name, parse_reference
from firebuild.network.attach import find_attachments
from firebuild.store.disks import make_blank
from firebuild.store.images import Image

DEFAULT_UPPER_BYTES = 8 << 30
NETWORKS_MAX = 8
_COLLECTION_S = 300.0
# Below that a resolver gives up before its answer has come.
NET_RATE_MIN = 4 << 10
INIT_LABEL = "org.firebuild.init"
USER_LABEL = "org.firebuild.user"

_ADJECTIVES = ("amber", "brisk", "calm", "clever", "eager", "fond", "gentle", "happy", "keen", "lively", "mellow")
_NAME_TRIES = 20
_NOUNS = ("badger", "comet", "delta", "ember", "falcon", "grove", "harbor", "island", "juniper", "lagoon", "maple")


class RunRequest(msgspec.Struct, frozen=True):
    """What `run` is asked for. `command` replaces the image's CMD; `entrypoint` its ENTRYPOINT (and then its CMD too).

    `memory_mib`: MiB. `env` wins over the image's variables. `ssh_keys`: public keys, one a line, for
    `ssh_users`; without these for the user whom the image names. `caller_attaches`: the entrypoint waits for that.
    `warm`: None for what the settings say.
    """

    image: str
    command: Sequence[str] = ()
    name: str | None = None
    hostname: str | None = None
    kernel: str | None = None
    kernel_args: str | None = None
    cpus: int = 1
    memory_mib: int = DEFAULT_MEMORY_MIB
    disk_size_bytes: int = DEFAULT_UPPER_BYTES
    root_mode: str = "overlay"
    read_only: bool = False
    init: str = "auto"
    networks: Sequence[NetworkJoin] = (NetworkJoin(DEFAULT_NETWORK),)
    ports: Sequence[PortMapping] = ()
    env: dict[str, str] = {}
    ssh_keys: str = ""
    ssh_users: Sequence[str] = ()
    entrypoint: str | None = None
    user: str | None = None
    workdir: str | None = None
    mmds: bool = True
    tty: bool = False
    stdin: bool = False
    caller_attaches: bool = False
    auto_remove: bool = False
    caller_removes: bool = False
    boot_timeout_s: float | None = None
    stop_signal: str | None = None
    stop_timeout_s: float | None = None
    labels: dict[str, str] = {}
    restart: RestartPolicy = RestartPolicy()
    mounts: Sequence[MountRequest] = ()
    disks: Sequence[DiskRequest] = ()
    disk_limits: DiskLimits = DiskLimits()
    extras: VmmExtras = VmmExtras()
    net_bytes_per_s: int = 0
    warm: bool | None = None
    sync_back: bool = False
    health: HealthOptions = HealthOptions()
    pull: str = "missing"
    access: Access = Access(retries=1)


def make_name() -> str:
    """A random adjective_noun name."""
    return f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_NOUNS)}{secrets.randbelow(100)}"


def run_machine(
    engine: Engine, request: RunRequest, *, progress: Progress | None = None, report: Report = lambda _: None
) -> MachineRecord:
    """Start a machine from an image and return when its guest is ready. `report` is told what has to be fetched or made
    first. Raises FirebuildError; then nothing of it is left."""
    require_room(engine, 0, f"starting a machine from {request.image}")
    with engine.use_store(adds=False):
        if request.name is not None:
            return _run_machine(engine, request, parse_machine_name(request.name), progress, report)
        for _ in range(_NAME_TRIES):
            # Among hundreds of machines two random names are soon the same; who is told so has begun nothing yet.
            with suppress(NameTakenError):
                return _run_machine(engine, request, make_name(), progress, report)
    raise ConflictError("no free name was found for the machine", hint="choose one with --name")


def _run_machine(
    engine: Engine, request: RunRequest, name: str, progress: Progress | None, report: Report
) -> MachineRecord:
    _check(request)
    engine.repair(quick=True)
    found = None if request.pull == "always" else engine.keep_image(lambda: find_baseos(engine, request.image))
    if found is None:
        ensure_image(
            engine, request.image, policy=request.pull, access=request.access, progress=progress, report=report
        )
    image = found or engine.keep_image(lambda: engine.images.get_named(request.image))
    if request.read_only and plan_init(image, request) == "system":
        raise UsageError(
            f"{request.image} starts with its own init, which needs a root that it can write to: --read-only does not go",
            hint="add `--init direct`, or leave out --read-only",
        )
    kernel, boot = get_boot(engine, request.kernel)
    _check_name_free(engine, name)
    disk = ensure_root_disk(engine, image, report, progress=progress)
    machine_id = new_machine_id()
    paths = engine.layout.machine(machine_id)
    if request.root_mode == "copy":
        drives = [DriveSpec("rootfs", str(paths.root_copy), read_only=False)]
    else:
        drives = [
            DriveSpec("rootfs", str(disk.path), read_only=True),
            DriveSpec("upper", str(paths.upper_disk), read_only=False),
        ]
    plan_mounts(request.mounts)
    more, mounts = plan_drives(engine, request.mounts, paths)
    ensure(engine, request.mounts, report)
    note_folders(request.mounts, sync_back=request.sync_back, report=report)
    drives += more + plan_raw_disks(engine, request.disks, beside=len(more))
    spec = MachineSpec(
        id=machine_id, name=name, kind="run",
        hostname=parse_hostname(request.hostname or name.replace("_", "-").replace(".", "-").strip("-")),
        kernel=kernel.name, cpus=request.cpus, memory_mib=request.memory_mib,
        network=request.networks[0].network if request.networks else None,
        image=_name_of(image), image_digest=image.manifest_digest,
        kernel_args=request.kernel_args or DEFAULT_KERNEL_ARGS, disk_size_bytes=request.disk_size_bytes,
        root_mode=request.root_mode, read_only=request.read_only, init=plan_init(image, request), drives=drives, ports=list(request.ports),
        address=next((address for join in request.networks for address in join.addresses), None), joins=list(request.networks),
        allow=split_words(engine.settings.machine_allow),
        env=dict(request.env), users=plan_users(image, request), entrypoint=plan_entrypoint(image, request),
        restart=request.restart, health=plan_health(image.config.config, request.health),
        tty=request.tty, stdin=request.stdin, stdin_once=request.stdin and request.caller_attaches,
        mmds=request.mmds, auto_remove=request.auto_remove,
        # A killed command must not take with it what was to be copied back.
        remover=find_identity(os.getpid()) if request.caller_removes and not request.sync_back else None,
        stop_timeout_s=DEFAULT_STOP_TIMEOUT_S if request.stop_timeout_s is None else request.stop_timeout_s,
        boot_timeout_s=request.boot_timeout_s or engine.settings.boot_timeout_s, labels=dict(request.labels),
        profile=engine.settings.profile, volumes=sorted(image.config.config.volumes), mounts=mounts, sync_back=request.sync_back,
        disk_limits=request.disk_limits, extras=request.extras, net_bytes_per_s=request.net_bytes_per_s,
    )  # fmt: skip

    def make_disks(machine: MachineLayout) -> None:
        if spec.root_mode == "copy":
            copy_sparse(disk.path, machine.root_copy)
            if request.disk_size_bytes > machine.root_copy.stat().st_size:
                os.truncate(machine.root_copy, request.disk_size_bytes)
        else:
            make_blank(machine.upper_disk, spec.disk_size_bytes, journal=True, label="upper")
        fill_disks(engine, spec, machine)

    if engine.settings.warm if request.warm is None else request.warm:
        from firebuild.engine.warm import start_warm

        record = start_warm(engine, spec, boot, prepare=make_disks, await_attach=request.caller_attaches, report=report)
    else:
        record = start_machine(engine.machines, spec, boot, prepare=make_disks, await_attach=request.caller_attaches)
    for attachment in find_attachments(engine.networks, machine_id):
        for warning in attachment.warnings:
            report(f"warning: {warning}")
    return record


def _name_of(image: Image) -> str:
    return parse_reference(image.reference).familiar if image.reference else image.id


def _check(request: RunRequest) -> None:
    if request.root_mode not in ("overlay", "copy"):
        raise UsageError(f"`{request.root_mode}` is not a root mode", hint="choose overlay or copy")
    if request.init not in ("auto", "direct", "system"):
        raise UsageError(f"`{request.init}` is not a way to start", hint="choose auto, direct or system")
    check_size(request.cpus, request.memory_mib)
    for name in request.env:
        if not name or "=" in name or "\0" in name:
            raise UsageError(f"`{name}` is not the name of an environment variable")
    if request.restart.name != "no" and (request.auto_remove or request.caller_removes):
        raise UsageError("--restart and --rm: choose one", hint="a machine that is removed at its end is not restarted")
    if request.sync_back and not any(mount.is_folder and not mount.read_only for mount in request.mounts):
        raise UsageError("--sync-back without a folder to copy back", hint="give one with -v ./FOLDER:/PATH")
    if request.sync_back and request.auto_remove:
        raise UsageError(
            "--sync-back, --rm and -d: what is removed at its end cannot be copied back", hint="leave out --rm or -d"
        )
    if not request.networks and request.net_bytes_per_s:
        raise UsageError("a rate of the network, and no network", hint="leave out --network none, or --net-rate")
    if 0 < request.net_bytes_per_s < NET_RATE_MIN:
        raise UsageError(
            f"{request.net_bytes_per_s} bytes a second is no rate for a network", hint=f"at least {NET_RATE_MIN >> 10}k"
        )
    if not request.networks and request.ports:
        raise UsageError("ports can only be published on a network", hint="leave out --network none, or -p")
    names = [join.network for join in request.networks]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the network `{name}` is named twice")
    if len(names) > NETWORKS_MAX:
        raise UsageError(f"a machine is in at most {NETWORKS_MAX} networks, not {len(names)}")


def check_size(cpus: int, memory_mib: int) -> None:
    """Raises UsageError for what no machine can have."""
    if not 1 <= cpus <= 32:
        raise UsageError(f"a machine has 1 to 32 processors, not {cpus}")
    if not 64 <= memory_mib <= 1 << 20:
        raise UsageError(f"{memory_mib} MiB is not a machine's memory", hint="at least 64 MiB")


def _check_name_free(engine: Engine, name: str) -> None:
    """An early answer, before a disk is made; the database's unique index is what decides."""
    taken = engine.machines.records.find(name)
    if taken is not None and taken.spec.name == name:
        raise NameTakenError(
            f"the name `{name}` is taken by the machine {taken.spec.id} ({taken.effective_state})",
            hint=f"choose another --name, or remove it: firebuild rm {name}",
        )


def plan_users(image: Image, request: RunRequest) -> dict[str, str]:
    """Who may log in with which keys: those asked for, or the user whom the image names. Raises UsageError."""
    users = list(request.ssh_users)
    if not request.ssh_keys:
        if users:
            raise UsageError("--ssh-user without a key", hint="give public keys with --identity-file")
        return {}
    own = image.config.config.labels.get(USER_LABEL)
    if not users and not own:
        raise UsageError(
            f"the image {request.image} names no user to log in as", hint="say who gets the keys with --ssh-user"
        )
    return dict.fromkeys(users or [own or ""], request.ssh_keys)


def plan_init(image: Image, request: RunRequest) -> str:
    """Who is PID 1: `direct` (vminit) or `system` (the image's own init). With auto the image's label decides."""
    if request.init != "auto":
        return request.init
    return "system" if image.config.config.labels.get(INIT_LABEL) == "system" else "direct"


def plan_entrypoint(image: Image, request: RunRequest) -> Entrypoint:
    """What runs: the image's configuration with the request's changes, by Docker's rules. Raises UsageError if nothing would run.

    In system mode that may be: the image's init runs."""
    config = image.config.config
    entrypoint, cmd = list(config.entrypoint), list(config.cmd)
    if request.entrypoint is not None:
        entrypoint, cmd = ([request.entrypoint] if request.entrypoint else []), []
    if request.command:
        cmd = list(request.command)
    if not entrypoint and not cmd and plan_init(image, request) == "direct":
        raise UsageError(
            f"the image {request.image} names no command, and none was given",
            hint=f"give one: firebuild run --from {request.image} -- /bin/sleep 60",
        )
    stop_signal = request.stop_signal or config.stop_signal or "SIGTERM"
    parse_signal(stop_signal)
    return Entrypoint(
        entrypoint=entrypoint,
        cmd=cmd,
        env=dict(part.split("=", 1) for part in config.env if "=" in part),
        shell=list(config.shell) or ["/bin/sh", "-c"],
        user=request.user if request.user is not None else config.user,
        workdir=request.workdir or config.working_dir or "/",
        stop_signal=stop_signal,
    )


def get_running(engine: Engine, name: str) -> MachineRecord:
    """The machine of that id, prefix or name, which must run. Raises NotFoundError, MachineError."""
    record = engine.machines.records.get(name)
    if record.effective_state in ENDED or not record.alive:
        raise MachineError(f"the machine {record.spec.name} is {record.effective_state}", hint="see `firebuild ls -a`")
    if record.state is State.PAUSED:
        raise MachineError(
            f"the machine {record.spec.name} is paused", hint=f"let it go on: firebuild resume {record.spec.name}"
        )
    return record


def end_machine(engine: Engine, name: str, *, timeout_s: float | None) -> MachineRecord:
    """Stop a machine: its stop signal, then after `timeout_s` (None: its own) force. One that has ended already is fine."""
    record = engine.machines.records.get(name)
    timeout_s = record.spec.stop_timeout_s if timeout_s is None else timeout_s
    if timeout_s > 0 and record.state in (State.CREATED, State.STARTING):
        # What is being started is stopped in order, once it runs.
        started = await_start(engine.machines, record)
        if started is None:
            raise MachineError(f"the machine {record.spec.name} is not there any more: its start came to nothing")
        record = started
    if timeout_s > 0 and record.effective_state is State.PAUSED:
        # It cannot end in order while its processors stand still.
        resume_machine(engine.machines, record.spec.id)
    stop_machine(engine.machines, record, timeout_s=timeout_s)
    return record


def settle_folders(engine: Engine, name: str) -> list[Synced]:
    """Copy the folders of a machine back, where it has ended and they are still to be. Also of one that is not there any more."""
    record = engine.machines.records.find(name)
    return sync_back(engine, record.spec.id) if record is not None and needs_sync(engine, record) else []


def remove(engine: Engine, name: str, *, force: bool) -> MachineRecord:
    """Remove an ended machine with its disk and logs; with `force` a running one is killed first, and folders that were to
    be copied back are not."""
    record = engine.machines.records.get(name)
    if force:
        stop_machine(engine.machines, record, timeout_s=0)
    elif needs_sync(engine, record):
        raise MachineError(
            f"the folders of the machine {record.spec.name} are not copied back yet",
            hint=f"`firebuild wait {record.spec.name}` does that; `rm -f` gives its changes up",
        )
    remove_machine(engine.machines, record)
    return record


def purge(engine: Engine) -> tuple[list[str], list[str], list[FirebuildError]]:
    """Remove every ended machine and all that crashes left: the names removed, the repairs made, the failures met.

    It waits for machines whose owner has died and whose supervisor is cleaning up.
    """
    from firebuild.machine.orphans import finish_orphans
    from firebuild.network.garbage import collect_garbage

    repaired, failures = finish_orphans(engine.machines)
    repaired += engine.repair()
    removed: list[str] = []
    for record in engine.machines.records.list_all():
        if record.state not in ENDED:
            continue
        try:
            settle_folders(engine, record.spec.id)
            remove_machine(engine.machines, record)
            removed.append(record.spec.name)
        except FirebuildError as error:
            failures.append(error)
    failures += collect_garbage(engine.networks, Deadline(_COLLECTION_S, "collecting what networks hold"))
    return removed, repaired, failures


def note_end(engine: Engine, machine_id: str, life: int | None) -> None:
    """What the supervisor of that life calls when its VMM has ended."""
    record = engine.machines.records.find(machine_id)
    if record is not None:
        finish_machine(engine.machines, record.spec.id, life)


def note_change(engine: Engine, machine_id: str, *, health: str | None, restarts: int | None) -> None:
    """What the supervisor calls when its guest has told something new of itself."""
    engine.machines.records.note_told(MachineId(machine_id), health=health, restarts=restarts)
