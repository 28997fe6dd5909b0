"""Large files with holes: cloned where the file system can, laid over each other, digested by what they hold."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from firebuild.host.files import copy_sparse, map_os_error

# linux/fs.h
_FICLONE = 0x40049409
_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16

Method = Literal["reflink", "copy"]


def clone_file(source: Path, target: Path, *, mode: int = 0o600) -> Method:
    """Copy a file: its blocks shared where the file system can (ioctl_ficlonerange(2)), else its bytes, keeping the holes.

    Returns which. `target` must not exist. Raises DiskFullError, HostError; a partial copy is removed.
    """
    try:
        with open(source, "rb", buffering=0) as reading, open(target, "xb", buffering=0) as writing:
            os.fchmod(writing.fileno(), mode)
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        return "reflink"
    except FileExistsError as error:
        raise map_os_error(error, f"copying `{source}` to `{target}`") from error
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM):
            raise map_os_error(error, f"copying `{source}` to `{target}`") from error
    copy_sparse(source, target, mode=mode)
    return "copy"


def lay_over(changes: Path, target: Path) -> None:
    """Write what `changes` holds (its holes are not) to the same places of `target`. Raises DiskFullError, HostError."""
    try:
        with open(changes, "rb", buffering=0) as reading, open(target, "r+b", buffering=0) as writing:
            for first, last in _extents(reading.fileno()):
                for start in range(first, last, _PIECE_BYTES):
                    data = os.pread(reading.fileno(), min(_PIECE_BYTES, last - start), start)
                    os.pwrite(writing.fileno(), data, start)
            os.fsync(writing.fileno())
    except OSError as error:
        raise map_os_error(error, f"laying `{changes}` over `{target}`") from error


def digest_content(path: Path) -> str:
    """The SHA-256, in hexadecimal, of a file's size and its blocks of 64 KiB that are not all zeros, wherever its holes are.

    Raises HostError."""
    digest = hashlib.sha256()
    zeros = bytes(_BLOCK_BYTES)
    done = 0
    try:
        with open(path, "rb", buffering=0) as file:
            digest.update(os.fstat(file.fileno()).st_size.to_bytes(8, "big"))
            for first, last in _extents(file.fileno()):
                for start in range(max(done, first - first % _BLOCK_BYTES), last, _BLOCK_BYTES):
                    data = os.pread(file.fileno(), _BLOCK_BYTES, start)
                    if data != zeros[: len(data)]:
                        digest.update(start.to_bytes(8, "big"))
                        digest.update(data)
                    done = start + _BLOCK_BYTES
    except OSError as error:
        raise map_os_error(error, f"reading `{path}`") from error
    return digest.hexdigest()


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    size = os.fstat(descriptor).st_size
    end = 0
    while end < size:
        try:
            first = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(descriptor, first, os.SEEK_HOLE)
        yield first, end
