"""Waiting for files by inotify(7): readiness without sleeping."""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from firebuild.errors import HostError
from firebuild.host.deadline import Deadline

_IN_MODIFY = 0x02
_IN_CREATE = 0x100
_IN_MOVED_TO = 0x80
_IN_CLOEXEC = 0o2000000
_IN_NONBLOCK = 0o4000


class FileWatch:
    """Watches a folder for files that appear in it or grow. A context manager. Raises HostError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1

    def __enter__(self) -> FileWatch:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if self._descriptor < 0:
            raise HostError(f"inotify_init1 failed: {os.strerror(ctypes.get_errno())}")
        mask = _IN_MODIFY | _IN_CREATE | _IN_MOVED_TO
        if libc.inotify_add_watch(self._descriptor, os.fsencode(self._folder), mask) < 0:
            number = ctypes.get_errno()
            os.close(self._descriptor)
            raise HostError(f"cannot watch `{self._folder}`: {os.strerror(number)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def wait(self, others: Sequence[int] = (), timeout_s: float | None = None) -> list[int]:
        """Wait for a change in the folder, for one of the descriptors `others`, or `timeout_s`; returns the ready ones of `others`."""
        ready, _, _ = select.select([self._descriptor, *others], [], [], timeout_s)
        if self._descriptor in ready:
            try:
                os.read(self._descriptor, 65536)
            except BlockingIOError:
                return [number for number in ready if number != self._descriptor]
        return [number for number in ready if number != self._descriptor]


def wait_for_path(path: Path, deadline: Deadline, *, alive: Callable[[], bool] = lambda: True) -> bool:
    """Wait until `path` exists; False if `alive()` turned false first (asked every second). Raises DeadlineError, HostError."""
    with FileWatch(path.parent) as watch:
        # The watch stands before the first look, so no creation can be missed.
        while not path.exists():
            if not alive():
                return False
            watch.wait(timeout_s=min(1.0, deadline.check()))
        return True
