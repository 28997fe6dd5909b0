"""What keeps a machine's VMM apart: its control group, its jail and its user; made, read back after the start, given back.

The order is the record's: what is recorded in `Progress` (groups, user, owners of files) is recorded before it is done.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from firebuild.errors import HostError, MachineError, UsageError
from firebuild.host.cgroups import (
    Cgroup,
    Limits,
    check_values,
    find_block_device,
    find_hierarchies,
    make_cgroup,
    plan_cgroup,
    plan_values,
    remove_cgroup,
)
from firebuild.host.files import copy_sparse, map_os_error
from firebuild.host.isolation import Isolation, read_isolation, read_own_namespaces
from firebuild.host.user_ids import claim_id, free_ids
from firebuild.layout import IDS_FOLDER, Layout, MachineLayout
from firebuild.machine.services import VmmSettings
from firebuild.machine.spec import Boot, MachineSpec
from firebuild.machine.state import Progress
from firebuild.vmm.jailer import Drive, JailPlan, plan_jail

if TYPE_CHECKING:
    from firebuild.vmm.programs import VmmChoice

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SECCOMP_FILTER = 2


class Kept(msgspec.Struct, frozen=True):
    """What keeps a machine apart, planned: either may be missing."""

    cgroup: Cgroup | None = None
    jail: JailPlan | None = None


def plan_limits(settings: VmmSettings, spec: MachineSpec) -> Limits:
    """The limits of a machine. Raises UsageError for less memory than its guest's."""
    beside, wanted = settings.memory_max
    guest = spec.memory_mib << 20
    if not wanted:
        return settings.limits
    if not beside and wanted <= guest:
        raise UsageError(
            f"--vmm-memory-max is {wanted >> 20} MiB, and {spec.name} alone has a guest of {spec.memory_mib} MiB",
            hint="give more, or so much beside the guest's: --vmm-memory-max +256m",
        )
    total = guest + wanted if beside else wanted
    return msgspec.structs.replace(settings.limits, memory_bytes=total // _PAGE * _PAGE)


def plan_group(settings: VmmSettings, layout: Layout, spec: MachineSpec, *, jailed: bool) -> Cgroup | None:
    """The group of a machine that has limits, or is jailed. Raises HostError for limits that this host cannot set."""
    if spec.limits == Limits() and not jailed:
        return None
    hierarchies = find_hierarchies()
    version = hierarchies.version if hierarchies is not None else 2
    values = plan_values(spec.limits, version, find_block_device(layout.state))
    return plan_cgroup(hierarchies, settings.cgroup_parent, spec.id, values)


def plan_kept(
    settings: VmmSettings,
    layout: Layout,
    spec: MachineSpec,
    boot: Boot,
    paths: MachineLayout,
    choice: VmmChoice,
    *,
    netns: str | None,
) -> Kept:
    """Plan what keeps a machine apart. A jailed one has a user of its own then, until `release`. Raises FirebuildError."""
    cgroup = plan_group(settings, layout, spec, jailed=choice.jailed is not None)
    if choice.jailed is None:
        return Kept(cgroup)
    uid = claim_id(IDS_FOLDER, *choice.jailed.ids, paths.state)
    jail = plan_jail(
        choice.jailed, vmm_id=spec.id, uid=uid, base=paths.jails, kernel=boot.kernel, initramfs=boot.initramfs,
        log=paths.vmm_log, drives=[_plan_drive(spec.name, drive.drive_id, drive.path, drive.read_only, paths) for drive in spec.drives],
        memory_bytes=spec.memory_mib << 20, netns=netns,
        cgroup=(cgroup.version, f"{settings.cgroup_parent}/{spec.id}") if cgroup is not None else None,
    )  # fmt: skip
    return Kept(cgroup, jail)


def _plan_drive(name: str, drive_id: str, path: str, read_only: bool, paths: MachineLayout) -> Drive:
    try:
        status = os.stat(path)
    except OSError as error:
        raise map_os_error(error, f"looking at the disk `{path}` of {name}") from error
    if read_only and stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IROTH:
        # Its owner alone may read it, and it may be that of several machines: this one gets a copy.
        path = str(paths.private_disk(drive_id))
    return Drive(drive_id, path, read_only, device=stat.S_ISBLK(status.st_mode), size=status.st_size)


def note_kept(kept: Kept, progress: Progress) -> Progress:
    """The record of what is about to be made, with the owners that files have now. Raises HostError."""
    groups = kept.cgroup.folders if kept.cgroup is not None else []
    if kept.jail is None:
        return msgspec.structs.replace(progress, cgroups=groups, uid=None)
    owners = {}
    for file in kept.jail.files.values():
        if not file.read_only and not file.device and os.path.exists(file.source):
            status = os.stat(file.source)
            owners[file.source] = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    return msgspec.structs.replace(progress, cgroups=groups, uid=kept.jail.uid, owners=owners)


def apply_kept(kept: Kept, spec: MachineSpec, paths: MachineLayout) -> None:
    """Make the group, and the folders of the jail with what is brought into it. Raises HostError, DiskFullError."""
    if kept.cgroup is not None:
        make_cgroup(kept.cgroup)
    jail = kept.jail
    if jail is None:
        return
    try:
        jail.root.parent.mkdir(mode=0o755, parents=True)
        jail.root.mkdir(mode=0o700)
        for key, file in jail.files.items():
            inside = jail.on_host(file.inside)
            inside.parent.mkdir(mode=0o755, exist_ok=True)
            if key == "log":
                os.close(os.open(file.source, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            if file.device:
                mode = stat.S_IFBLK | (0o400 if file.read_only else 0o600)
                os.mknod(inside, mode, os.stat(file.source).st_rdev)
                os.chown(inside, jail.uid, jail.uid)
                continue
            inside.touch(mode=0o400)
            if not file.read_only:
                _give(file.source, jail.uid, jail.uid, 0o600)
        for drive in spec.drives:
            copy = paths.private_disk(drive.drive_id)
            if jail.files[f"drive:{drive.drive_id}"].source == str(copy):
                copy.unlink(missing_ok=True)
                copy_sparse(Path(drive.path), copy)
                _give(copy, jail.uid, jail.uid, 0o400)
        for link, inside_path in ((paths.api_socket, jail.api_socket), (paths.vsock, jail.vsock)):
            link.symlink_to(os.path.relpath(jail.on_host(inside_path), link.parent))
    except OSError as error:
        raise map_os_error(error, f"making the jail `{jail.root}`") from error


def _give(path: str | Path, uid: int, gid: int, mode: int) -> None:
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def check_kept(kept: Kept, vmm_pid: int, name: str, *, seccomp: bool) -> None:
    """Read back what keeps the VMM apart. `seccomp`: each of its threads has a filter by now. Raises MachineError that says
    what differs."""
    try:
        if kept.cgroup is not None:
            check_values(kept.cgroup, pid=vmm_pid)
        if kept.jail is None:
            return
        found = find_differences(kept.jail, read_isolation(vmm_pid), read_own_namespaces(), seccomp=seccomp)
    except HostError as error:
        found = [str(error)]
    if found:
        raise MachineError(
            f"the VMM of {name} is not kept apart as it should be, and was killed: {'; '.join(found)}",
            hint="see `firebuild doctor --production`; is the jailer Firecracker's own?",
        )


def find_differences(jail: JailPlan, seen: Isolation, own: dict[str, int], *, seccomp: bool) -> list[str]:
    """How a jailed VMM differs from its plan; `own`: the namespaces of this process."""
    wanted = [jail.uid] * 4
    found = []
    if seen.uids != wanted:
        found.append(f"its users are {seen.uids} and not {jail.uid}")
    if seen.gids != wanted:
        found.append(f"its groups are {seen.gids} and not {jail.uid}")
    if any(group != jail.uid for group in seen.groups):
        found.append(f"it has the further groups {[group for group in seen.groups if group != jail.uid]}")
    if set(seen.no_new_privs) != {1}:
        found.append("it can gain privileges (NoNewPrivs is 0)")
    if seccomp and set(seen.seccomp) != {_SECCOMP_FILTER}:
        without = sum(value != _SECCOMP_FILTER for value in seen.seccomp)
        found.append(f"{without} of its {len(seen.seccomp)} threads have no seccomp filter")
    root = os.stat(jail.root)
    if seen.root != (root.st_dev, root.st_ino):
        found.append("its root is not the jail")
    for namespace in ("mnt", "pid", "net"):
        if seen.namespaces[namespace] == own[namespace]:
            found.append(f"it is in the host's {namespace} namespace")
    if jail.netns is not None and seen.namespaces["net"] != os.stat(jail.netns).st_ino:
        found.append(f"it is not in the network namespace `{jail.netns}`")
    for limit, number in (("Max open files", jail.no_file), ("Max file size", jail.fsize)):
        if seen.limits.get(limit) != (str(number), str(number)):
            found.append(f"its limit `{limit}` is {seen.limits.get(limit)} and not {number}")
    return found


def release(progress: Progress, paths: MachineLayout) -> None:
    """Give back what kept a machine apart, whose processes are to be dead: what lives in its group is killed. Idempotent.

    Raises HostError; then it is to be tried again."""
    remove_cgroup(progress.cgroups)
    for path, (uid, gid, mode) in progress.owners.items():
        try:
            if os.stat(path).st_uid == progress.uid:
                _give(path, uid, gid, mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise map_os_error(error, f"giving `{path}` back to its owner") from error
    try:
        for copy in paths.state.glob(paths.private_disk("*").name) if progress.uid is not None else ():
            copy.unlink()
    except OSError as error:
        raise map_os_error(error, f"removing copies of disks in `{paths.state}`") from error
    # Also where it was killed before it could record which one it has.
    free_ids(IDS_FOLDER, paths.state)


def release_forgotten(settings: VmmSettings, name: str, paths: MachineLayout) -> None:
    """As release, of a machine that no record names: its jailed VMM, which does not end with its supervisor, is killed."""
    hierarchies = find_hierarchies()
    mounts = sorted(set(hierarchies.mounts.values())) if hierarchies is not None else []
    remove_cgroup([os.path.join(mount, settings.cgroup_parent, name) for mount in mounts])
    free_ids(IDS_FOLDER, paths.state)
