"""The build context: a local folder, read beneath its root only, each folder listed once and each file hashed once.

Nothing is copied: a file is read when a COPY needs its digest, and again when its bytes are sent. The second reading
must give the same bytes, else the build fails by name; so no key can stand for bytes that were not sent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

import msgspec

from firebuild.dockerfile.ignore import IgnoreRules, Verdict
from firebuild.errors import ContextError
from firebuild.events.text import neutralise
from firebuild.host.beneath import open_beneath

_T = TypeVar("_T")

READ_SIZE = 256 * 1024
MAX_LINKS = 40
MAX_ENTRIES = 1_000_000
MAX_DEPTH = 200
MAX_FILE_SIZE = 64 << 30

_REFUSED = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Entry(msgspec.Struct, frozen=True):
    """What stands at a path of the context. `path`: below the root, `""` for the root itself; `kind`: file, directory,
    symlink, or what it is called if firebuild refuses it; `mode`: permission bits; `identity`: tells whether it changed."""

    path: str
    kind: str
    mode: int
    size: int
    mtime_s: int
    target: str
    identity: tuple[int, ...]

    @property
    def name(self) -> str:
        """The last component of the path."""
        return posixpath.basename(self.path)


class BuildContext:
    """An open context folder; a context manager. Thread-safe. All paths are relative to the root, `/` between names."""

    def __init__(self, folder: Path, ignore: IgnoreRules | None = None) -> None:
        self.folder = folder
        self._ignore = ignore or IgnoreRules(())
        self._verdicts: dict[str, Verdict] = {"": self._ignore.root}
        self._root = -1
        self._lock = threading.RLock()
        self._listings: dict[str, dict[str, Entry]] = {}
        self._digests: dict[str, str] = {}
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

    def root_entry(self) -> Entry:
        """The root folder itself; its mode is always 0755, so that where a context lies does not matter."""
        return Entry("", "directory", 0o755, 0, int(os.fstat(self._root).st_mtime), "", ())

    def list_folder(self, path: str) -> dict[str, Entry]:
        """The visible entries of a folder by name, sorted. Raises ContextError."""
        with self._lock:
            found = self._listings.get(path)
            if found is None:
                found = self._read_folder(path)
                self._listings[path] = found
            return found

    def find_entry(self, path: str) -> Entry | None:
        """What stands at `path`, no link followed on the way or at the end; None if nothing visible does."""
        here = self.root_entry()
        for part in path.split("/") if path else ():
            found = self.list_folder(here.path).get(part) if here.kind == "directory" else None
            if found is None:
                return None
            here = found
        return here

    def find_resolved(self, path: str) -> Entry | None:
        """What stands at `path`, links followed as if the context were the root of a file system: none leads out.

        None where something is missing or excluded. Raises ContextError for a loop of links.
        """
        pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        here = self.root_entry()
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                here = self.find_entry(posixpath.dirname(here.path)) or self.root_entry()
                continue
            if here.kind != "directory":
                return None
            found = self.list_folder(here.path).get(part)
            if found is None:
                return None
            if found.kind != "symlink":
                here = found
                continue
            links += 1
            if links > MAX_LINKS:
                raise ContextError(f"`{neutralise(path)}` in the build context leads through a loop of links")
            if found.target.startswith("/"):
                here = self.root_entry()
            pending += [piece for piece in reversed(found.target.split("/")) if piece not in ("", ".")]
        return here

    def is_excluded(self, path: str) -> bool:
        """Whether .dockerignore leaves the path out."""
        return self._ignore.excludes(path)

    def walk(self, top: Entry) -> Iterator[Entry]:
        """`top` and, if it is a folder, everything visible below it, parents first, names sorted. Raises ContextError."""
        pending = [top]
        while pending:
            entry = pending.pop()
            yield entry
            if entry.kind == "directory":
                pending.extend(reversed(self.list_folder(entry.path).values()))

    def compute_content_digest(self, entry: Entry) -> str:
        """sha256 of a file's content in hex; read once. Raises ContextError."""
        with self._lock:
            known = self._digests.get(entry.path)
        if known is not None:
            return known
        total = hashlib.sha256()
        for chunk in self.read_chunks(entry):
            total.update(chunk)
        with self._lock:
            return self._digests.setdefault(entry.path, total.hexdigest())

    def read_verified(self, entry: Entry) -> Iterator[bytes]:
        """A file's bytes, exactly those whose digest compute_content_digest gave. Raises ContextError."""
        expected = self.compute_content_digest(entry)
        total = hashlib.sha256()
        for chunk in self.read_chunks(entry):
            total.update(chunk)
            yield chunk
        if total.hexdigest() != expected:
            raise _changed(entry.path)

    def read_chunks(self, entry: Entry) -> Iterator[bytes]:
        """A file's bytes, exactly `entry.size` of them. Raises ContextError if it is not what it was when it was listed."""
        left = entry.size
        with self._open_file(entry) as file:
            while left:
                chunk = file.read(min(left, READ_SIZE))
                if not chunk:
                    raise _changed(entry.path)
                left -= len(chunk)
                yield chunk
            if file.read(1) or _identity(os.fstat(file.fileno())) != entry.identity:
                raise _changed(entry.path)

    def _open_file(self, entry: Entry) -> BinaryIO:
        # O_NONBLOCK: a FIFO that took the file's place must not hold the build.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = self._call(entry.path, lambda: open_beneath(self._root, os.fsencode(entry.path), flags))
        if _identity(os.fstat(descriptor)) != entry.identity:
            os.close(descriptor)
            raise _changed(entry.path)
        if entry.size > MAX_FILE_SIZE:
            os.close(descriptor)
            raise ContextError(
                f"`{neutralise(entry.path)}` in the build context is larger than {MAX_FILE_SIZE >> 30} GiB"
            )
        return os.fdopen(descriptor, "rb", buffering=0)

    def _read_folder(self, path: str) -> dict[str, Entry]:
        if path.count("/") >= MAX_DEPTH:
            raise ContextError(f"`{neutralise(path[:200])}…` in the build context is nested too deep")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        descriptor = self._call(path, lambda: open_beneath(self._root, os.fsencode(path) or b".", flags))
        found: dict[str, Entry] = {}
        try:
            for name in sorted(self._call(path, lambda: os.listdir(descriptor)), key=os.fsencode):
                entry = self._read_entry(descriptor, posixpath.join(path, name), name)
                if entry is not None and self._is_visible(entry, self._ignore.match(name, self._verdicts[path])):
                    found[name] = entry
        finally:
            os.close(descriptor)
        self._entries += len(found)
        if self._entries > MAX_ENTRIES:
            raise ContextError(
                f"the build context `{self.folder}` has more than {MAX_ENTRIES} files",
                hint="leave out with a .dockerignore what no COPY needs",
            )
        return found

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
        return Entry(path, kind, mode, size, int(status.st_mtime), target, _identity(status))

    def _is_visible(self, entry: Entry, verdict: Verdict) -> bool:
        if entry.kind == "directory":
            self._verdicts[entry.path] = verdict
        if not verdict.excluded:
            return True
        # An excluded folder is there all the same if something below it is included again.
        return entry.kind == "directory" and not verdict.prunable and bool(self.list_folder(entry.path))

    def _call(self, path: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EXDEV, errno.ENOENT, errno.ENOTDIR):
                raise _changed(path) from error
            raise _unreadable(path, error) from error


def check_kind(entry: Entry) -> None:
    """Raises ContextError, naming it, for what no image is given from a context: FIFOs, devices, sockets."""
    if entry.kind not in ("file", "directory", "symlink"):
        raise ContextError(
            f"`{neutralise(entry.path)}` in the build context is {entry.kind}: it cannot be copied",
            hint="remove it, or leave it out with a .dockerignore",
        )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _changed(path: str) -> ContextError:
    return ContextError(
        f"`{neutralise(path)}` in the build context changed while it was being read",
        hint="build again when nothing writes to the folder",
    )


def _unreadable(path: str, error: OSError) -> ContextError:
    return ContextError(f"`{neutralise(path)}` in the build context cannot be read: {error.strerror}")
