"""Files that are whole or absent: atomic writes, durable renames, sparse copies, free space."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from firebuild.errors import DiskFullError, FirebuildError, HostError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def map_os_error(error: OSError, doing: str) -> FirebuildError:
    """The error to raise for an OSError: DiskFullError where space ran out, else HostError. `doing`: "writing `x`"."""
    if error.errno in _FULL:
        return DiskFullError(
            f"no space left on the device while {doing}",
            hint="free space with `firebuild gc`, or use a larger file system",
        )
    return HostError(f"{doing} failed: {error.strerror or error}")


@contextmanager
def open_atomic(path: Path, *, mode: int = 0o600, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole and durable when the block ends well, and not at all otherwise. Without
    `durable` a power cut may lose or empty it: for what can be made again at any time.

    Written beside `path`, fsynced, renamed over it, and the folder fsynced. An error of fsync is an error of the
    operation and is never retried: Linux drops the dirty pages. What killed writers left there is removed first. Raises
    DiskFullError, HostError.
    """
    sweep_beside(path)
    temporary = path
    try:
        temporary, descriptor = _claim_beside(path, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
            os.rename(temporary, path)  # while it is open, and so locked
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        _discard(temporary, path)
        raise map_os_error(error, f"writing `{path}`") from error
    except BaseException:
        _discard(temporary, path)
        raise


def _claim_beside(path: Path, mode: int) -> tuple[Path, int]:
    """A new file for what is to become `path`, with our flock on it: it is unlocked when we are dead."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink == 1:
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # a sweep was faster than our lock


def sweep_beside(path: Path) -> None:
    """Remove what writers of `path` that were killed left beside it. What cannot be removed now is left to the next sweep."""
    shape = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{12}\.tmp")
    try:
        names = [name for name in os.listdir(path.parent) if shape.fullmatch(name)]
    except OSError:
        return  # who writes there is told
    for name in names:
        with suppress(OSError):
            descriptor = os.open(path.with_name(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                os.unlink(path.with_name(name))
            finally:
                os.close(descriptor)


def _discard(temporary: Path, path: Path) -> None:
    if temporary != path:
        with suppress(OSError):  # the next writer sweeps it; what happened before is what is to be told
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Write `data` to `path`, whole and durable (see `open_atomic`) or not at all. Raises DiskFullError, HostError."""
    with open_atomic(path, mode=mode, durable=durable) as file:
        file.write(data)


def publish(temporary: Path, path: Path) -> None:
    """Make a finished file visible under its name: fsync, rename, fsync the folder. Raises DiskFullError, HostError."""
    try:
        sync_file(temporary)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise map_os_error(error, f"publishing `{path}`") from error


def sync_file(path: Path) -> None:
    """fsync one file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """fsync a folder, so that the names in it are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_sparse(path: Path, size_bytes: int, *, mode: int = 0o600) -> None:
    """A new file of `size_bytes` that occupies nothing. Raises HostError if it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise map_os_error(error, f"making `{path}`") from error


def copy_sparse(source: Path, target: Path, *, mode: int = 0o600) -> None:
    """Copy a file, keeping its holes; target must not exist. Raises DiskFullError, HostError; a partial copy is removed."""
    try:
        with open(source, "rb", buffering=0) as reading:
            size = os.fstat(reading.fileno()).st_size
            make_sparse(target, size, mode=mode)
            with open(target, "r+b", buffering=0) as writing:
                offset = 0
                while offset < size:
                    try:
                        start = os.lseek(reading.fileno(), offset, os.SEEK_DATA)
                    except OSError as error:
                        if error.errno == errno.ENXIO:
                            break
                        raise
                    end = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
                    while start < end:
                        copied = os.copy_file_range(reading.fileno(), writing.fileno(), end - start, start, start)
                        if copied == 0:
                            raise OSError(errno.EIO, "the source became shorter while it was copied")
                        start += copied
                    offset = end
    except OSError as error:
        target.unlink(missing_ok=True)
        raise map_os_error(error, f"copying `{source}` to `{target}`") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def free_bytes(path: Path) -> int:
    """Bytes that may still be written below `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def require_free(path: Path, needed_bytes: int, purpose: str) -> None:
    """Raises DiskFullError before work starts if fewer than `needed_bytes` are free below `path`."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise DiskFullError(
            f"{purpose} needs {needed_bytes // 2**20} MiB below `{path}`; {free // 2**20} MiB are free",
            hint="free space with `firebuild gc`, or use a larger file system",
        )


def remove_tree(path: Path) -> None:
    """Remove a folder of our own and all below it; absent is fine. Never crosses into another file system. Raises HostError.

    What vanishes meanwhile (a process that is ending removes its own sockets) does not keep the rest from being removed.
    """
    import shutil

    if not path.exists() and not path.is_symlink():
        return
    try:
        device = path.lstat().st_dev
        for folder, names, _ in os.walk(path):
            for name in names:
                below = os.path.join(folder, name)
                if _device_of(below) not in (device, None):
                    raise HostError(f"`{below}` is a mount point; nothing below `{path}` was removed")
        shutil.rmtree(path, onerror=_skip_absent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise map_os_error(error, f"removing `{path}`") from error


def _device_of(path: str) -> int | None:
    """The file system that holds `path` itself, a link not followed; None if it is gone."""
    try:
        return os.lstat(path).st_dev
    except FileNotFoundError:
        return None


def _skip_absent(_function: object, _path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    """shutil.rmtree's `onerror`: what is gone is as it should be."""
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]
