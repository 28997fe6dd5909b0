"""Files and block devices of the host that a machine sees as block devices of its own."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from firebuild.engine.core import Engine
from firebuild.errors import BusyError, NotFoundError, UsageError
from firebuild.host.files import map_os_error
from firebuild.machine.claims import RAW_DISK
from firebuild.machine.mounts import MOUNTS_MAX, DiskRequest
from firebuild.machine.spec import DriveSpec

_SECTOR = 512


def plan_raw_disks(engine: Engine, requests: Sequence[DiskRequest], *, beside: int) -> list[DriveSpec]:
    """Their drives, in the order in which they were given; `beside`: how many volumes the machine has.

    Raises NotFoundError, UsageError, BusyError for a device that this host uses itself, HostError."""
    if len(requests) + beside > MOUNTS_MAX:
        raise UsageError(f"a machine has at most {MOUNTS_MAX} volumes and disks, not {len(requests) + beside}")
    drives: list[DriveSpec] = []
    for number, request in enumerate(requests):
        path = os.path.realpath(request.path)
        if any(drive.path == path for drive in drives):
            raise UsageError(f"the disk `{request.path}` is named twice")
        state = Path(os.path.realpath(engine.layout.state))
        if state in Path(path).parents:
            raise UsageError(
                f"`{request.path}` belongs to firebuild", hint="give a volume to a machine with -v NAME:/PATH"
            )
        _check_disk(path, request)
        drives.append(DriveSpec(f"{RAW_DISK}{number}", path, request.read_only, durable=True))
    return drives


def _check_disk(path: str, request: DiskRequest) -> None:
    # Of a block device O_EXCL asks whether this host has it mounted or otherwise in use; of a file it says nothing.
    flags = (os.O_RDONLY if request.read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        status = os.stat(path)
        is_block = stat.S_ISBLK(status.st_mode)
        if not is_block and not stat.S_ISREG(status.st_mode):
            raise UsageError(f"`{request.path}` is neither a file nor a block device")
        descriptor = os.open(path, flags | (os.O_EXCL if is_block else 0))
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise NotFoundError(
            f"the disk `{request.path}` does not exist", hint="make one: truncate -s 10G FILE"
        ) from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(
                f"this host uses the disk `{request.path}` itself", hint="unmount it first; two kernels that write to a"
                " file system destroy it",
            ) from error  # fmt: skip
        raise map_os_error(error, f"opening the disk `{request.path}`") from error
    if size < _SECTOR or size % _SECTOR:
        raise UsageError(f"the disk `{request.path}` has {size} bytes: a disk has whole sectors of {_SECTOR}")
