"""A jailed start of Firecracker, planned: the jailer's arguments, its folders, what is bound into them, what the VMM sees.

The jailer's arguments and folders: Firecracker's docs/jailer.md and src/jailer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from firebuild.errors import PathTooLongError, VmmError
from firebuild.vmm.process import VmmLaunch

SOCKET_PATH_MAX = 107
_PATH_MAX = 4095
_FILES = 2048
_FILE_SIZE_SLACK = 64 << 20
# In the jail: the VMM owns its root, but not this folder.
_FOLDER = "fb"
_ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


class Jailed(msgspec.Struct, frozen=True):
    """The programs that a jailed machine is started with, checked; `ids`: the first and last user that it may run as."""

    firecracker: str
    jailer: str
    ids: tuple[int, int]


class File(msgspec.Struct, frozen=True):
    """A file of the host that the VMM gets as `inside`, an absolute path in its root. `device`: a block device, which gets
    a node of its own there; everything else is bound."""

    source: str
    inside: str
    read_only: bool
    device: bool = False


class Drive(msgspec.Struct, frozen=True):
    """A drive to be brought in. `size`: bytes."""

    drive_id: str
    path: str
    read_only: bool
    device: bool
    size: int


class JailPlan(msgspec.Struct, frozen=True):
    """A jailed start. `base`: what the jailer makes its folders in; `root`: the VMM's root, as the host sees it.

    `files`: by what they are (`kernel`, `initramfs`, `log`, a drive's id with `drive:` before it).
    `no_file`, `fsize`: its resource limits. `netns`: the namespace it joins; None: an empty one of its own.
    """

    base: Path
    root: Path
    api_socket: str
    vsock: str
    files: dict[str, File]
    uid: int
    netns: str | None
    no_file: int
    fsize: int
    launch: VmmLaunch

    def on_host(self, inside: str) -> Path:
        """Where a file of the VMM's root is for the host."""
        return self.root / inside.lstrip("/")


def plan_jail(
    jailed: Jailed,
    *,
    vmm_id: str,
    uid: int,
    base: Path,
    kernel: Path,
    initramfs: Path,
    log: Path,
    drives: Sequence[Drive],
    memory_bytes: int,
    netns: str | None,
    cgroup: tuple[int, str] | None,
) -> JailPlan:
    """Plan it. `cgroup`: version and path below the root of the group that the VMM is in already.

    Raises PathTooLongError, VmmError for paths that the jailer cannot take; nothing exists yet.
    """
    program = os.path.basename(os.path.realpath(jailed.firecracker))
    root = base / program / vmm_id / "root"
    api_socket, vsock = "/api.sock", "/v.sock"
    files = {
        "kernel": File(str(kernel), f"/{_FOLDER}/kernel", read_only=True),
        "initramfs": File(str(initramfs), f"/{_FOLDER}/initramfs", read_only=True),
        "log": File(str(log), f"/{_FOLDER}/vmm.log", read_only=False),
    }
    for drive in drives:
        files[f"drive:{drive.drive_id}"] = File(
            drive.path, f"/{_FOLDER}/drive-{drive.drive_id}", drive.read_only, device=drive.device
        )
    _check_paths(root, [api_socket, f"{vsock}_4294967295"], files)
    fsize = max([memory_bytes, *(drive.size for drive in drives if not drive.read_only)]) + _FILE_SIZE_SLACK
    arguments = [
        jailed.jailer, "--id", vmm_id, "--exec-file", jailed.firecracker, "--uid", str(uid), "--gid", str(uid),
        "--chroot-base-dir", str(base), *(("--netns", netns) if netns else ()), "--new-pid-ns",
        "--resource-limit", f"no-file={_FILES}", "--resource-limit", f"fsize={fsize}",
        *(("--cgroup-version", str(cgroup[0]), "--parent-cgroup", cgroup[1]) if cgroup else ()),
        "--", "--api-sock", api_socket, "--log-path", files["log"].inside, "--level", "Info",
    ]  # fmt: skip
    return JailPlan(
        base=base, root=root, api_socket=api_socket, vsock=vsock, files=files, uid=uid, netns=netns,
        no_file=_FILES, fsize=fsize, launch=VmmLaunch(arguments, _ENVIRONMENT),
    )  # fmt: skip


def _check_paths(root: Path, sockets: Sequence[str], files: dict[str, File]) -> None:
    # What the VMM binds has a short path in its root; the host connects by a descriptor. What is left is the kernel's bound.
    for inside in sockets:
        if len(os.fsencode(inside)) > SOCKET_PATH_MAX:
            raise PathTooLongError(
                f"the VMM's socket `{inside}` has {len(os.fsencode(inside))} bytes; the kernel takes {SOCKET_PATH_MAX}"
            )
    for inside in [*sockets, *(file.inside for file in files.values())]:
        length = len(os.fsencode(root)) + len(os.fsencode(inside))
        if length > _PATH_MAX:
            raise PathTooLongError(
                f"the path `{inside}` in the jail `{root}` has {length} bytes; the kernel takes {_PATH_MAX}",
                hint="choose a shorter folder with --chroot-base",
            )
    if any("\n" in file.source for file in files.values()):
        raise VmmError("the path of a file for the VMM holds a line break")
