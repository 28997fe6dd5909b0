"""The guest's memory as a file: made for a boot, saved whole or as what has changed, opened again for a restore.

A memory file is the RAM from address 0 on, holes for what is zero, and two pages behind it: the *base* page, which only a
whole file has, and the *bind* page with the id of the state file that it belongs to. A file of changes laid over the whole one
that the machine was restored from is whole again, and bound to its own state file.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from firebuild.errors import HostError

PAGE = 4096
TRAILER_BYTES = 2 * PAGE
_BASE_MARK = b"firecracker-emulator: whole memory, version 1\n"
_BIND_MARK = b"firecracker-emulator: memory of "
# linux/fs.h
_FICLONE = 0x40049409
# Documentation/admin-guide/mm/pagemap.rst
_PM_FILE_OR_SHARED, _PM_SWAPPED, _PM_PRESENT = 1 << 61, 1 << 62, 1 << 63
_COPY_BYTES = 1 << 30
_READ_BYTES = 1 << 20


class MemoryFileError(Exception):
    """A file that is not the memory that was asked for. The text says why."""


def make_ram(size: int, owner: int | None) -> int:
    """A descriptor of new memory, all zero, that `owner` (None: this user) may open by /dev/fd. Raises OSError."""
    descriptor = os.memfd_create("firecracker-emulator-ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        if owner is not None:
            os.fchown(descriptor, owner, -1)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_saved(path: Path, size: int, memory_id: str, owner: int | None, *, private: bool) -> int:
    """A descriptor of saved memory that `owner` may open by /dev/fd, to be mapped copy-on-write.

    It is the file itself, or a copy of it in memory where `private` is asked for or `owner` may not write to the file (QEMU
    opens what it maps for writing). Raises OSError, MemoryFileError for one that is cut, damaged or another machine's.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check_trailer(descriptor, size, memory_id)
        status = os.fstat(descriptor)
        mine = os.access(path, os.W_OK) if owner is None else status.st_uid == owner and status.st_mode & stat.S_IWUSR
        if mine and not private:
            return descriptor
        copy = make_ram(size, owner)
        try:
            _copy_extents(descriptor, copy, size)
        except BaseException:
            os.close(copy)
            raise
        os.close(descriptor)
        return copy
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def save_whole(path: Path, source: int, size: int, memory_id: str, owner: int | None, changes: Changes | None) -> None:
    """Write a whole memory file: all of `source`, what the machine has changed in its private mapping over it.

    It is written aside and then put in its place; it is not synced. Raises OSError, HostError.
    """
    with _written_aside(path, owner) as target:
        if not _clone(source, target):
            os.ftruncate(target, size + TRAILER_BYTES)
            _copy_extents(source, target, size)
        if changes is not None:
            changes.write_to(target)
        os.ftruncate(target, size)
        os.ftruncate(target, size + TRAILER_BYTES)
        os.pwrite(target, _BASE_MARK, size)
        os.pwrite(target, _bind_page(memory_id), size + PAGE)


def save_changes(
    path: Path, source: int, size: int, memory_id: str, owner: int | None, changes: Changes | None
) -> None:
    """Write only what has changed since the machine was restored; of one that was booted, all that it has (a whole file)."""
    if changes is None:
        save_whole(path, source, size, memory_id, owner, None)
        return
    with _written_aside(path, owner) as target:
        os.ftruncate(target, size + TRAILER_BYTES)
        changes.write_to(target)
        os.pwrite(target, _bind_page(memory_id), size + PAGE)


class Changes:
    """The pages of a process's copy-on-write mapping that are no more the file's: its own memory, read from outside."""

    def __init__(self, pid: int, source: int, size: int) -> None:
        self._pid = pid
        self._size = size
        self._start = _find_mapping(pid, source, size)

    def write_to(self, target: int) -> None:
        """Write each changed page to its place in `target`. Raises OSError."""
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            for first, last in self.runs():
                for begin in range(first, last, _READ_BYTES):
                    data = os.pread(memory.fileno(), min(_READ_BYTES, last - begin), self._start + begin)
                    if os.pwrite(target, data, begin) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def runs(self) -> Iterator[tuple[int, int]]:
        """The changed ranges in bytes from the start of the memory, ascending."""
        entries = array.array("Q")
        with open(f"/proc/{self._pid}/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(self._start // PAGE * 8)
            entries.frombytes(_read_exactly(pagemap.fileno(), self._size // PAGE * 8))
        begin = -1
        for number, entry in enumerate(entries):
            changed = entry & (_PM_PRESENT | _PM_SWAPPED) and not entry & _PM_FILE_OR_SHARED
            if changed and begin < 0:
                begin = number
            elif not changed and begin >= 0:
                yield begin * PAGE, number * PAGE
                begin = -1
        if begin >= 0:
            yield begin * PAGE, self._size


def _find_mapping(pid: int, source: int, size: int) -> int:
    """Where a process has mapped a file of this inode, whole. Raises HostError."""
    inode = os.fstat(source).st_ino
    end = 0
    start = None
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if int(fields[4]) != inode:
                continue
            low, high = (int(text, 16) for text in fields[0].split("-"))
            if int(fields[2], 16) == 0:
                start, end = low, low
            if low == end:
                end = high
    if start is None or end - start < size:
        raise HostError("the guest's memory is not where it should be in QEMU's process")
    return start


def _check_trailer(descriptor: int, size: int, memory_id: str) -> None:
    actual = os.fstat(descriptor).st_size
    if actual != size + TRAILER_BYTES:
        raise MemoryFileError(f"the memory file has {actual} bytes instead of {size + TRAILER_BYTES}")
    base, bind = os.pread(descriptor, PAGE, size), os.pread(descriptor, PAGE, size + PAGE)
    if not bind.startswith(_BIND_MARK):
        raise MemoryFileError("the memory file is none of this emulator's, or damaged")
    if bind != _bind_page(memory_id):
        raise MemoryFileError("the memory file belongs to another snapshot")
    if not base.startswith(_BASE_MARK):
        raise MemoryFileError("the memory file holds changes alone: lay it over the one that they were made to")


def _bind_page(memory_id: str) -> bytes:
    return (_BIND_MARK + memory_id.encode("ascii") + b"\n").ljust(PAGE, b"\0")


@contextlib.contextmanager
def _written_aside(path: Path, owner: int | None) -> Iterator[int]:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if owner is not None:
            os.fchown(descriptor, owner, -1)
        yield descriptor
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _clone(source: int, target: int) -> bool:
    """Share the blocks of a file where the file system can (ioctl_ficlonerange(2))."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _copy_extents(source: int, target: int, size: int) -> None:
    """Copy what is no hole, to the same places."""
    for first, last in _extents(source, size):
        os.lseek(target, first, os.SEEK_SET)
        offset = first
        while offset < last:
            sent = os.sendfile(target, source, offset, min(_COPY_BYTES, last - offset))
            if sent == 0:
                raise OSError(errno.EIO, "the memory file became shorter")
            offset += sent


def _extents(source: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            first = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if first >= size:
            return
        end = min(os.lseek(source, first, os.SEEK_HOLE), size)
        yield first, end


def _read_exactly(descriptor: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(descriptor, min(size, _READ_BYTES))
        if not piece:
            raise HostError("QEMU's page map ends too early")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
