"""The build context: a local folder, read beneath its root only, each folder listed once and each file hashed once.

Nothing is copied: a file is read when a COPY needs its digest, and again when its bytes are sent. The second reading
must give the same bytes, else the build fails by name; so no key can stand for bytes that were not sent.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

from firebuild.build.filedigests import FileDigests
from firebuild.build.tree import ContextTree, Entry, changed_error
from firebuild.dockerfile.ignore import IgnoreRules
from firebuild.errors import ContextError, FirebuildError
from firebuild.events.text import neutralise
from firebuild.host import log
from firebuild.host.beneath import open_beneath

_T = TypeVar("_T")

READ_SIZE = 256 * 1024
MAX_DEPTH = 200
MAX_FILE_SIZE = 64 << 30

_REFUSED = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class BuildContext(ContextTree):
    """An open context folder; a context manager. `mtime_s`: the time of all entries, None for each one's own;
    `digests`: of files that earlier builds read."""

    def __init__(
        self,
        folder: Path,
        ignore: IgnoreRules | None = None,
        *,
        mtime_s: int | None = None,
        digests: FileDigests | None = None,
    ) -> None:
        super().__init__(ignore)
        self._kept = digests
        self.folder = folder
        self.place = str(folder)
        self._mtime_s = mtime_s
        self._root = -1
        self._entries = 0

    def __enter__(self) -> BuildContext:
        try:
            self._root = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ContextError(
                f"the build context `{self.folder}` cannot be opened: {error.strerror}", hint="name a folder"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)
        self._root = -1
        if self._kept is not None:
            try:
                self._kept.save()
            except FirebuildError as failed:
                # The next build reads the files again: no reason to fail this one.
                log.warning(__name__, "the digests of the build context are not kept: %s", failed)

    def root_entry(self) -> Entry:
        """See ContextTree."""
        mtime_s = int(os.fstat(self._root).st_mtime) if self._mtime_s is None else self._mtime_s
        return Entry("", "directory", 0o755, 0, mtime_s, "", ())

    def compute_content_digest(self, entry: Entry) -> str:
        """See ContextTree."""
        if self._kept is None:
            return super().compute_content_digest(entry)
        with self._lock:
            known = self._digests.get(entry.path) or self._kept.find(entry.path, entry.identity)
            if known is not None:
                return self._digests.setdefault(entry.path, known)
        now_ns = time.time_ns()
        digest = super().compute_content_digest(entry)
        self._kept.note(entry.path, entry.identity, digest, read_at_ns=now_ns)
        return digest

    def read_verified(self, entry: Entry) -> Iterator[bytes]:
        """See ContextTree."""
        try:
            yield from super().read_verified(entry)
        except ContextError:
            if self._kept is not None:
                self._kept.forget(entry.path)
            raise

    def read_chunks(self, entry: Entry) -> Iterator[bytes]:
        """See ContextTree."""
        left = entry.size
        with self._open_file(entry) as file:
            while left:
                chunk = file.read(min(left, READ_SIZE))
                if not chunk:
                    raise changed_error(entry.path)
                left -= len(chunk)
                yield chunk
            if file.read(1) or _identity(os.fstat(file.fileno())) != entry.identity:
                raise changed_error(entry.path)

    def _open_file(self, entry: Entry) -> BinaryIO:
        # O_NONBLOCK: a FIFO that took the file's place must not hold the build.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = self._call(entry.path, lambda: open_beneath(self._root, os.fsencode(entry.path), flags))
        if _identity(os.fstat(descriptor)) != entry.identity:
            os.close(descriptor)
            raise changed_error(entry.path)
        if entry.size > MAX_FILE_SIZE:
            os.close(descriptor)
            raise ContextError(
                f"`{neutralise(entry.path)}` in the build context is larger than {MAX_FILE_SIZE >> 30} GiB"
            )
        return os.fdopen(descriptor, "rb", buffering=0)

    def _read_folder(self, path: str) -> Iterator[Entry]:
        if path.count("/") >= MAX_DEPTH:
            raise ContextError(f"`{neutralise(path[:200])}…` in the build context is nested too deep")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        descriptor = self._call(path, lambda: open_beneath(self._root, os.fsencode(path) or b".", flags))
        try:
            for name in sorted(self._call(path, lambda: os.listdir(descriptor)), key=os.fsencode):
                entry = self._read_entry(descriptor, posixpath.join(path, name), name)
                if entry is not None:
                    yield entry
        finally:
            os.close(descriptor)

    def _read_entry(self, folder: int, path: str, name: str) -> Entry | None:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else ""
        except FileNotFoundError:
            return None  # it went away while the folder was being read
        except OSError as error:
            raise _unreadable(path, error) from error
        kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}.get(
            stat.S_IFMT(status.st_mode), _REFUSED.get(stat.S_IFMT(status.st_mode), "a special file")
        )
        size = status.st_size if kind == "file" else 0
        mode = stat.S_IMODE(status.st_mode)
        mtime_s = int(status.st_mtime) if self._mtime_s is None else self._mtime_s
        inode = (status.st_dev, status.st_ino) if kind == "file" and status.st_nlink > 1 else ()
        return Entry(path, kind, mode, size, mtime_s, target, _identity(status), inode)

    def _call(self, path: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EXDEV, errno.ENOENT, errno.ENOTDIR):
                raise changed_error(path) from error
            raise _unreadable(path, error) from error


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _unreadable(path: str, error: OSError) -> ContextError:
    return ContextError(f"`{neutralise(path)}` in the build context cannot be read: {error.strerror}")
