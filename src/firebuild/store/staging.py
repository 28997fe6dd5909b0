"""Private folders for half-made things: locked while their owner lives, swept when it is dead."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebuild.errors import HostError
from firebuild.host import log
from firebuild.host.files import map_os_error, remove_tree


@contextmanager
def open_stage(parent: Path, *, prefix: str = "", mode: int = 0o700) -> Iterator[Path]:
    """A new private folder in `parent`, with our flock on it; removed at the end unless it was renamed away."""
    path, descriptor = _claim(parent, prefix, mode)
    try:
        yield path
    finally:
        try:
            remove_tree(path)
        finally:
            os.close(descriptor)


def _claim(parent: Path, prefix: str, mode: int) -> tuple[Path, int]:
    while True:
        path = parent / (prefix + secrets.token_hex(12))
        try:
            path.mkdir(mode=mode)
        except OSError as error:
            raise map_os_error(error, f"making a folder below `{parent}`") from error
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # a sweep was faster than our lock
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)


def sweep_unlocked(folder: Path, *, prefix: str = "") -> list[Path]:
    """Remove each file and folder in `folder` whose name begins with `prefix` and on which no process holds a flock.

    Returns what was removed.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name.startswith(prefix)]
    except FileNotFoundError:
        return []
    removed = []
    for entry in entries:
        try:
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                continue
            raise map_os_error(error, f"sweeping `{entry.path}`") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(Path(entry.path), is_folder=entry.is_dir(follow_symlinks=False))
        except BlockingIOError:
            continue  # its owner lives
        except (HostError, OSError) as error:
            # A program of the dead owner may still be writing there: the next sweep gets it.
            log.warning(__name__, "the leftover `%s` cannot be removed yet: %s", entry.path, error)
        else:
            removed.append(Path(entry.path))
        finally:
            os.close(descriptor)
    return removed


def _remove(path: Path, *, is_folder: bool) -> None:
    if is_folder:
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
