"""A private folder for what a build fetches: gone with the build, and swept by a later one if the build was killed."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from firebuild.errors import HostError
from firebuild.host.files import map_os_error, remove_tree

_LOCK_SUFFIX = ".lock"


class Scratch:
    """A context manager. The folder is made when it is first asked for; `root` None: below the system's temporary folder.

    Beside a folder in `root` lies its lock, held while the build runs: it is made first and removed last.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._folder: Path | None = None
        self._lock = -1

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        folder, self._folder = self._folder, None
        if folder is None:
            return
        try:
            remove_tree(folder)
            if self._lock >= 0:
                _lock_path(folder).unlink(missing_ok=True)
        finally:
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    @property
    def folder(self) -> Path:
        """The folder: others may pass through it, not list it. Raises HostError."""
        if self._folder is None:
            try:
                self._folder = self._make()
                # Programs that run unprivileged have folders of their own below it.
                self._folder.chmod(0o711)
            except OSError as error:
                raise map_os_error(error, "making a temporary folder") from error
        return self._folder

    def make_folder(self, name: str) -> Path:
        """A new private folder in it. Raises HostError."""
        path = self.folder / f"{name}-{secrets.token_hex(4)}"
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            raise map_os_error(error, f"making `{path}`") from error
        return path

    def open_file(self) -> BinaryIO:
        """A new file without a name, for reading and writing. Raises HostError."""
        import tempfile

        try:
            return tempfile.TemporaryFile(dir=self.folder)
        except OSError as error:
            raise map_os_error(error, "making a temporary file") from error

    def _make(self) -> Path:
        if self._root is None:
            import tempfile

            return Path(tempfile.mkdtemp(prefix="firebuild-"))
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for _ in range(100):
            folder = self._root / secrets.token_hex(8)
            lock = os.open(_lock_path(folder), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A sweep may have come between the two calls, and taken the lock's file away.
            if os.fstat(lock).st_nlink:
                self._lock = lock
                folder.mkdir(mode=0o711)
                return folder
            os.close(lock)
        raise HostError(f"no lock can be kept in `{self._root}`")


def sweep_scratch(root: Path) -> list[Path]:
    """Remove what killed builds left in `root`; returns the folders. Raises HostError."""
    removed: list[Path] = []
    for path in sorted(root.glob(f"*{_LOCK_SUFFIX}")) if root.is_dir() else ():
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = path.with_name(path.name.removesuffix(_LOCK_SUFFIX))
            if folder.exists():
                remove_tree(folder)
                removed.append(folder)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            continue  # its build still runs
        finally:
            os.close(lock)
    return removed


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK_SUFFIX)
