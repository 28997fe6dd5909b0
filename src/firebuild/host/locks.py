"""Locks between processes: flock(2) on files in a folder that only root can write."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebuild.errors import BusyError
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error


@contextmanager
def hold_lock(path: Path, what: str, *, shared: bool = False, deadline: Deadline | None = None) -> Iterator[None]:
    """Hold the lock at `path` for the block; waits until `deadline` (none: do not wait). Raises BusyError naming `what`.

    The lock dies with the process; its file stays, unless its holder removes it. The descriptor is not inherited: no child
    can keep the lock.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise map_os_error(error, f"opening the lock `{path}`") from error
        try:
            _acquire(descriptor, what, operation, deadline)
            if not _is_current(descriptor, path):
                # Its holder removed the file while we waited: what we hold is no longer what others will lock.
                continue
            yield
            return
        finally:
            os.close(descriptor)


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (status.st_dev, status.st_ino) == (held.st_dev, held.st_ino)


def _acquire(descriptor: int, what: str, operation: int, deadline: Deadline | None) -> None:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        return
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise map_os_error(error, f"locking {what}") from error
    busy = BusyError(f"{what} is in use by another firebuild process", hint="wait for it to end, or end it")
    if deadline is None:
        raise busy
    # flock(2) has no timeout: a helper thread blocks in it on a duplicate, and is abandoned with that duplicate if it is late.
    duplicate = os.dup(descriptor)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)

    def wait() -> None:
        try:
            fcntl.flock(duplicate, operation)
            os.write(write_end, b"1")
        except OSError:
            return
        finally:
            os.close(duplicate)
            os.close(write_end)

    threading.Thread(target=wait, daemon=True).start()
    try:
        ready, _, _ = select.select([read_end], [], [], deadline.remaining_s())
        if not ready or not os.read(read_end, 1):
            raise busy
    finally:
        os.close(read_end)
