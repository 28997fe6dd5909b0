"""What a COPY can take from, whatever holds it: a tree of entries with files that are hashed once and read again."""

from __future__ import annotations

import hashlib
import posixpath
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

import msgspec

from firebuild.dockerfile.ignore import IgnoreRules, Verdict
from firebuild.errors import ContextError
from firebuild.events.text import neutralise

MAX_LINKS = 40
MAX_ENTRIES = 1_000_000


class Entry(msgspec.Struct, frozen=True):
    """What stands at a path of the context. `path`: below the root, `""` for the root itself; `kind`: file, directory,
    symlink, or what it is called if firebuild refuses it; `mode`: permission bits; `identity`: tells whether it changed;
    `inode`: of a file with several names, the same for all of them, else empty."""

    path: str
    kind: str
    mode: int
    size: int
    mtime_s: int
    target: str
    identity: tuple[int, ...]
    inode: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The last component of the path."""
        return posixpath.basename(self.path)


class ContextTree(ABC):
    """An open tree. Thread-safe. All paths are relative to its root, `/` between names, `""` is the root itself.

    `place`: what messages call it. Each folder is listed once, each file hashed once.
    """

    place: str = ""

    def __init__(self, ignore: IgnoreRules | None = None) -> None:
        self._lock = threading.RLock()
        self._digests: dict[str, str] = {}
        self._entries = 0
        self.hide(ignore or IgnoreRules(()))
        self._hides = ignore is not None

    def hide(self, ignore: IgnoreRules) -> None:
        """Show only what these rules leave in."""
        with self._lock:
            self._ignore = ignore
            self._hides = True
            self._verdicts: dict[str, Verdict] = {"": ignore.root}
            self._listings: dict[str, dict[str, Entry]] = {}

    @property
    def ignore(self) -> IgnoreRules | None:
        """The rules that hide something, or None."""
        return self._ignore if self._hides else None

    @abstractmethod
    def root_entry(self) -> Entry:
        """The root folder itself; its mode is always 0755, so that where a tree lies does not matter."""

    @abstractmethod
    def _read_folder(self, path: str) -> Iterator[Entry]:
        """All entries of a folder, sorted by name. Raises ContextError."""

    @abstractmethod
    def read_chunks(self, entry: Entry) -> Iterator[bytes]:
        """A file's bytes, exactly `entry.size` of them. Raises ContextError if it is not what it was when it was listed."""

    def list_folder(self, path: str) -> dict[str, Entry]:
        """The visible entries of a folder by name, sorted. Raises ContextError."""
        with self._lock:
            found = self._listings.get(path)
            if found is None:
                found = {}
                for entry in self._read_folder(path):
                    if self._is_visible(entry, self._ignore.match(entry.name, self._verdicts[path])):
                        found[entry.name] = entry
                self._entries += len(found)
                if self._entries > MAX_ENTRIES:
                    raise ContextError(
                        f"the build context `{self.place}` has more than {MAX_ENTRIES} files",
                        hint="leave out with a .dockerignore what no COPY needs",
                    )
                self._listings[path] = found
            return found

    def _is_visible(self, entry: Entry, verdict: Verdict) -> bool:
        if entry.kind == "directory":
            self._verdicts[entry.path] = verdict
        if not verdict.excluded:
            return True
        # An excluded folder is there all the same if something below it is included again.
        return entry.kind == "directory" and not verdict.prunable and bool(self.list_folder(entry.path))

    def is_excluded(self, path: str) -> bool:
        """Whether .dockerignore leaves the path out."""
        return self._ignore.excludes(path)

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
            raise changed_error(entry.path)


def check_kind(entry: Entry) -> None:
    """Raises ContextError, naming it, for what no image is given from a context: FIFOs, devices, sockets."""
    if entry.kind not in ("file", "directory", "symlink"):
        raise ContextError(
            f"`{neutralise(entry.path)}` in the build context is {entry.kind}: it cannot be copied",
            hint="remove it, or leave it out with a .dockerignore",
        )


def changed_error(path: str) -> ContextError:
    """The error for a file that is no longer what it was."""
    return ContextError(
        f"`{neutralise(path)}` in the build context changed while it was being read",
        hint="build again when nothing writes to the folder",
    )
