"""Control groups, versions 1 and 2: one made for a machine, its limits set and read back, its processes ended, removed.

Formats: cgroups(7), and the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from firebuild.errors import HostError
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error

CONTROLLERS = ("memory", "cpu", "pids", "io")
_V1_NAMES = {"io": "blkio"}
_CPU_PERIOD_US = 100_000
_PAUSE_S = 0.01


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the processes of a group may use together; 0: no limit. `cpu_us`: processor time in each 100 ms, in microseconds;
    `memory_bytes`: in whole pages; the others are processes and threads, and bytes and operations a second."""

    memory_bytes: int = 0
    cpu_us: int = 0
    pids: int = 0
    read_bps: int = 0
    write_bps: int = 0
    read_iops: int = 0
    write_iops: int = 0


class Hierarchies(msgspec.Struct, frozen=True):
    """Where this host's groups are. `version`: 1 or 2; `mounts`: by controller, as version 2 names them."""

    version: int
    mounts: dict[str, str]


class Value(msgspec.Struct, frozen=True):
    """A value for a file of a group. `optional`: a host that has no such file has not what it limits (swap)."""

    controller: str
    file: str
    text: str
    optional: bool = False


class Cgroup(msgspec.Struct, frozen=True):
    """A machine's group. `folders`: one of version 2, or one in each hierarchy of version 1, `depth` below their mounts;
    `values`: what is set, by file; `optional`: those that a host may not have; `controllers`: those that limit."""

    version: int
    folders: list[str]
    depth: int = 1
    controllers: list[str] = []
    values: dict[str, str] = {}
    optional: list[str] = []


def find_hierarchies(root: Path = Path("/")) -> Hierarchies | None:
    """The hierarchies that limit things on this host, or None. `root`: where /proc and the mounts are looked for.

    A mounted version 2 without the memory controller is one beside version 1, which has the controllers then.
    """
    mounts: dict[str, str] = {}
    unified: str | None = None
    try:
        lines = (root / "proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for fields in (line.split(" ") for line in lines):
        # A mount may be hidden by another one above it.
        if len(fields) < 4 or fields[2] not in ("cgroup", "cgroup2") or not (root / fields[1].lstrip("/")).is_dir():
            continue
        if fields[2] == "cgroup2" and unified is None:
            unified = fields[1]
        elif fields[2] == "cgroup":
            for name in fields[3].split(","):
                mounts.setdefault(name, fields[1])
    if unified is not None:
        try:
            there = (root / unified.lstrip("/") / "cgroup.controllers").read_text(encoding="ascii").split()
        except OSError:
            there = []
        if there and ("memory" in there or not mounts):
            return Hierarchies(2, {name: unified for name in CONTROLLERS if name in there})
    found = {name: mounts[_V1_NAMES.get(name, name)] for name in CONTROLLERS if _V1_NAMES.get(name, name) in mounts}
    return Hierarchies(1, found) if found else None


def find_block_device(folder: Path) -> str | None:
    """`MAJOR:MINOR` of the whole disk that a folder lies on; None where there is none (overlay, tmpfs, btrfs)."""
    number = os.stat(folder).st_dev
    if os.major(number) == 0:
        return None
    device = Path(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
    if (device / "partition").exists():
        device = device.parent
    try:
        return (device / "dev").read_text(encoding="ascii").strip()
    except OSError:
        return None


def plan_values(limits: Limits, version: int, device: str | None) -> list[Value]:
    """What is written for these limits. Raises HostError where `device` is needed and there is none."""
    values: list[Value] = []
    if limits.memory_bytes:
        text = str(limits.memory_bytes)
        if version == 2:
            values += [Value("memory", "memory.max", text), Value("memory", "memory.swap.max", "0", optional=True)]
        else:
            # Memory and swap together, so that nothing of it goes to swap.
            values += [
                Value("memory", "memory.limit_in_bytes", text),
                Value("memory", "memory.memsw.limit_in_bytes", text, optional=True),
            ]
    if limits.cpu_us and version == 2:
        values.append(Value("cpu", "cpu.max", f"{limits.cpu_us} {_CPU_PERIOD_US}"))
    elif limits.cpu_us:
        values += [
            Value("cpu", "cpu.cfs_period_us", str(_CPU_PERIOD_US)), Value("cpu", "cpu.cfs_quota_us", str(limits.cpu_us)),
        ]  # fmt: skip
    if limits.pids:
        values.append(Value("pids", "pids.max", str(limits.pids)))
    return values + _plan_io(limits, version, device)


def _plan_io(limits: Limits, version: int, device: str | None) -> list[Value]:
    asked = {
        ("rbps", "blkio.throttle.read_bps_device"): limits.read_bps,
        ("wbps", "blkio.throttle.write_bps_device"): limits.write_bps,
        ("riops", "blkio.throttle.read_iops_device"): limits.read_iops,
        ("wiops", "blkio.throttle.write_iops_device"): limits.write_iops,
    }
    given = {names: number for names, number in asked.items() if number}
    if not given:
        return []
    if device is None:
        raise HostError(
            "a limit of the disk's use cannot be set: the machines' folder lies on no disk of its own",
            hint="put the run cache on a file system that is on a disk, or leave out the --vmm-io limits",
        )
    if version == 1:
        return [Value("io", file, f"{device} {number}") for (_, file), number in given.items()]
    words = " ".join(f"{word}={given.get((word, file), 'max')}" for word, file in asked)
    return [Value("io", "io.max", f"{device} {words}")]


def plan_cgroup(hierarchies: Hierarchies | None, parent: str, name: str, values: Sequence[Value]) -> Cgroup | None:
    """The group `name` below `parent`; None where nothing is asked for and this host has none. Raises HostError for a limit
    that this host cannot set. Nothing is made."""
    if hierarchies is None:
        if values:
            raise HostError(
                "limits cannot be set: this host shows no control groups",
                hint="mount them, or leave out the --vmm limits",
            )
        return None
    missing = sorted({value.controller for value in values if value.controller not in hierarchies.mounts})
    if missing:
        raise HostError(
            f"limits cannot be set: this host's control groups (version {hierarchies.version}) lack {', '.join(missing)}",
            hint="enable the controller for the groups of this host, or leave out that limit",
        )
    # Where nothing is limited the group still tells which processes are the machine's.
    controllers = sorted({value.controller for value in values}) or [_any_of(hierarchies)]
    folders = {each: os.path.join(hierarchies.mounts[each], parent, name) for each in controllers}
    return Cgroup(
        version=hierarchies.version, folders=list(dict.fromkeys(folders.values())), depth=len(Path(parent).parts),
        controllers=sorted({value.controller for value in values}),
        values={os.path.join(folders[value.controller], value.file): value.text for value in values},
        optional=[os.path.join(folders[value.controller], value.file) for value in values if value.optional],
    )  # fmt: skip


def _any_of(hierarchies: Hierarchies) -> str:
    return next(name for name in ("pids", *CONTROLLERS) if name in hierarchies.mounts)


def make_cgroup(cgroup: Cgroup) -> None:
    """Make the group, set its limits and read them back. Raises HostError; what is half made is the caller's to remove."""
    try:
        for folder in cgroup.folders:
            os.makedirs(os.path.dirname(folder), mode=0o755, exist_ok=True)
        if cgroup.version == 2:
            _enable(Path(cgroup.folders[0]), cgroup)
        for folder in cgroup.folders:
            os.mkdir(folder, 0o755)
    except FileExistsError as error:
        raise HostError(f"the control group `{error.filename}` exists already", hint="run `firebuild purge`") from None
    except OSError as error:
        raise map_os_error(error, f"making the control group `{cgroup.folders[0]}`") from error
    for path, text in cgroup.values.items():
        if path not in cgroup.optional or os.path.exists(path):
            _write(path, text)
    check_values(cgroup)


def _enable(folder: Path, cgroup: Cgroup) -> None:
    """Version 2 gives a group the controllers that the groups above it hand down."""
    for above in reversed(folder.parents[: cgroup.depth + 1]):
        have = (above / "cgroup.subtree_control").read_text(encoding="ascii").split()
        lacking = [name for name in cgroup.controllers if name not in have]
        if lacking:
            _write(str(above / "cgroup.subtree_control"), " ".join(f"+{name}" for name in lacking))


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise HostError(
            f"the limit `{text}` cannot be set in `{path}`: {error.strerror}",
            hint="see the kernel's log, or leave out that --vmm limit: a machine is not started without it",
        ) from error


def check_values(cgroup: Cgroup, *, pid: int | None = None) -> None:
    """Read the limits back, and with `pid` that this process is in the group. Raises HostError that says what differs."""
    for path, text in cgroup.values.items():
        if path in cgroup.optional and not os.path.exists(path):
            continue
        try:
            found = Path(path).read_text(encoding="ascii")
        except OSError as error:
            raise HostError(f"the limit in `{path}` cannot be read back: {error.strerror}") from error
        lines = [line.strip() for line in found.splitlines()]
        if not any(set(text.split()) <= set(line.split()) for line in lines):
            raise HostError(f"the limit in `{path}` is `{found.strip()}` and not `{text}`, as was asked for")
    for folder in cgroup.folders if pid is not None else ():
        if pid not in list_members(folder):
            raise HostError(f"the VMM {pid} is not in its control group `{folder}`")


def list_members(folder: str) -> list[int]:
    """The processes in a group; of one that is not there none."""
    try:
        with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
            return [int(line) for line in file.read().split()]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise map_os_error(error, f"reading the control group `{folder}`") from error


def has_starved(folders: Sequence[str]) -> bool:
    """Whether a process of the group was killed since it wanted more memory than the group may have."""
    for folder in folders:
        for name in ("memory.events", "memory.oom_control"):
            try:
                text = Path(folder, name).read_text(encoding="ascii")
            except OSError:
                continue  # A hierarchy of another controller has no such file.
            words = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
            if int(words.get("oom_kill", "0")) > 0:
                return True
    return False


def remove_cgroup(folders: Sequence[str], *, timeout_s: float = 20.0) -> None:
    """Kill what is in a group and remove it; absent is fine. Raises HostError where a process cannot be killed."""
    deadline = Deadline(timeout_s, "ending a control group")
    for folder in folders:
        while os.path.isdir(folder):
            members = [pid for pid in list_members(folder) if pid > 0]
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or deadline.remaining_s() <= 0:
                    raise HostError(
                        f"the control group `{folder}` cannot be removed: {error.strerror}",
                        details=f"processes in it: {members}" if members else None,
                    ) from error
                # A killed process leaves its group a moment after it was killed; no event tells of that in version 1.
                time.sleep(_PAUSE_S)
