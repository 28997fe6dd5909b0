"""Cache disks: ext4 files that the cache mounts of builds are kept on, each for one build machine at a time.

<caches>/<key>/disk.ext4        what the guests wrote; never mounted by this host
<caches>/<key>/cache.json       CacheInfo; `clean` is false while a machine has the disk
<locks>/cache-<key>             held (flock) by the build whose machine has the disk
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from firebuild.errors import BusyError, StoreError
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, remove_tree, write_atomic
from firebuild.host.locks import hold_lock
from firebuild.store.disks import make_blank

_KEY = re.compile(r"[0-9a-f]{64}")
_DOOMED = ".doomed-"
_WAIT_S = 6 * 3600.0
_RELEASE_S = 60.0
_LOOK_AGAIN_S = 0.05
# That many builds at once may each have a private cache of one kind.
MAX_PRIVATE = 64


class CacheWish(msgspec.Struct, frozen=True):
    """A cache that a build needs. `key`: which one; `name`: for people; `private`: a fresh one will do as well as the one
    of that key, and is taken if that is in use."""

    key: str
    name: str
    private: bool = False


class CacheInfo(msgspec.Struct, frozen=True):
    """A cache. `size_bytes`: what it takes on this host; `clean`: whether its last machine ended in order."""

    key: str
    name: str
    created_at_ns: int
    used_at_ns: int
    clean: bool = True
    size_bytes: int = 0
    version: int = 1


class CacheStore:
    """The caches below one folder. Creating the object touches nothing. `size_bytes`: of the file systems (sparse)."""

    def __init__(self, root: Path, locks: Path, size_bytes: int, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.root = root
        self._locks = locks
        self._size_bytes = size_bytes
        self._clock = clock

    @contextmanager
    def attach(
        self,
        wishes: Sequence[CacheWish],
        *,
        waiting: Callable[[str], None] = lambda _: None,
        renewed: Callable[[str], None] = lambda _: None,
    ) -> Iterator[list[Path]]:
        """The disks of these caches, in their order, for one machine: made where there are none, checked where there are.

        A cache that another build has is waited for (`waiting` is told its name), a private one is not. One that is
        damaged begins anew (`renewed` is told). Leaving the block well says that the machine ended in order.
        Raises BusyError after hours, MissingProgramError without e2fsck or mke2fs, DiskFullError, HostError.
        """
        with ExitStack() as held:
            paths: dict[int, Path] = {}
            taken: list[str] = []
            # Always in the same order, so that no two builds wait for each other.
            for number in sorted(range(len(wishes)), key=lambda number: (wishes[number].private, wishes[number].key)):
                wish = wishes[number]
                key = self._claim(wish, held, waiting)
                paths[number] = self._prepare(key, wish.name, renewed)
                taken.append(key)
            yield [paths[number] for number in range(len(wishes))]
            for key in taken:
                self._note(key, clean=True)

    def _claim(self, wish: CacheWish, held: ExitStack, waiting: Callable[[str], None]) -> str:
        for attempt in range(MAX_PRIVATE if wish.private else 1):
            key = wish.key if attempt == 0 else derive_key(wish.key, attempt)
            try:
                held.enter_context(self._hold(key, wish.name))
                return key
            except BusyError:
                if not wish.private:
                    waiting(wish.name)
                    deadline = Deadline(_WAIT_S, f"waiting for the cache `{wish.name}`")
                    held.enter_context(self._hold(key, wish.name, deadline))
                    return key
        raise BusyError(f"more than {MAX_PRIVATE} builds use the private cache `{wish.name}`")

    @contextmanager
    def _hold(self, key: str, name: str, deadline: Deadline | None = None) -> Iterator[None]:
        lock = self._locks / f"cache-{check_key(key)}"
        with hold_lock(lock, f"the cache `{name}`", deadline=deadline):
            yield

    def _prepare(self, key: str, name: str, renewed: Callable[[str], None]) -> Path:
        """The disk of a held cache, sound; from now on it counts as unclean."""
        folder = self.root / key
        disk = folder / "disk.ext4"
        old = self._find(key)
        if old is not None and disk.exists():
            wait_until_free(disk, name)
            from firebuild.store.disk_check import repair_disk

            if not repair_disk(disk):
                renewed(name)
                self._drop(folder)
                old = None
        else:
            # A folder without a whole record is what a build left that was killed while it made it.
            self._drop(folder)
            old = None
        if old is None:
            self._make(folder, name)
        self._note(key, clean=False)
        return disk

    def _make(self, folder: Path, name: str) -> None:
        try:
            # The unprivileged VMM passes through to its disk; it cannot list.
            folder.mkdir(mode=0o711, parents=True)
        except OSError as error:
            raise map_os_error(error, f"making the cache `{name}`") from error
        now = self._clock()
        make_blank(folder / "disk.ext4", self._size_bytes, journal=True, label="cache")
        self._write(CacheInfo(folder.name, name, now, now))

    def _note(self, key: str, *, clean: bool) -> None:
        info = self._find(key)
        if info is None:
            raise StoreError(f"the record of the cache {key[:12]} is gone", hint="somebody removed it by hand")
        self._write(msgspec.structs.replace(info, used_at_ns=self._clock(), clean=clean))

    def _write(self, info: CacheInfo) -> None:
        record = msgspec.structs.replace(info, size_bytes=0)
        write_atomic(self.root / info.key / "cache.json", msgspec.json.encode(record), mode=0o600)

    def _find(self, key: str) -> CacheInfo | None:
        try:
            data = (self.root / check_key(key) / "cache.json").read_bytes()
            return msgspec.json.decode(data, type=CacheInfo)
        except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
            return None
        except OSError as error:
            raise map_os_error(error, f"reading the cache {key[:12]}") from error

    # -- for whoever looks after them --------------------------------------------------------------------------------

    def list_caches(self) -> list[CacheInfo]:
        """All caches with what they take on this host, the least recently used first. Raises HostError."""
        try:
            keys = [name for name in os.listdir(self.root) if _KEY.fullmatch(name)]
        except FileNotFoundError:
            return []
        found = []
        for key in keys:
            info = self._find(key)
            if info is not None:
                try:
                    blocks = (self.root / key / "disk.ext4").stat().st_blocks
                except OSError:
                    continue  # it is being made or removed
                found.append(msgspec.structs.replace(info, size_bytes=blocks * 512))
        return sorted(found, key=lambda info: (info.used_at_ns, info.key))

    def remove_cache(self, key: str) -> None:
        """Remove a cache; absent is fine. Raises BusyError while a build has it, HostError."""
        with self._hold(key, key[:12]):
            self._drop(self.root / key)

    def sweep(self) -> list[Path]:
        """Remove what interrupted removals left; returns what was removed."""
        try:
            left = [self.root / name for name in os.listdir(self.root) if name.startswith(_DOOMED)]
        except FileNotFoundError:
            return []
        for path in left:
            remove_tree(path)
        return left

    def _drop(self, folder: Path) -> None:
        doomed = self.root / f"{_DOOMED}{secrets.token_hex(8)}"
        try:
            os.rename(folder, doomed)
        except FileNotFoundError:
            return
        except OSError as error:
            raise map_os_error(error, f"removing the cache {folder.name[:12]}") from error
        remove_tree(doomed)


def check_key(key: str) -> str:
    """`key` itself. Raises StoreError if it cannot be a cache's."""
    if not _KEY.fullmatch(key):
        raise StoreError(f"`{key[:100]}` is not a cache's key")
    return key


def derive_key(key: str, number: int) -> str:
    """The key of a further private cache of one kind."""
    import hashlib

    return hashlib.sha256(f"{key} {number}".encode()).hexdigest()


def wait_until_free(disk: Path, name: str) -> None:
    """Wait until no process has the disk open: the machine of a build that was killed may live a moment longer.

    Its lock went with the build. A write lease (fcntl(2), F_SETLEASE) is given only to who alone has a file open.
    Raises DeadlineError, HostError.
    """
    deadline = Deadline(_RELEASE_S, f"waiting until the machine of a killed build lets go of the cache `{name}`")
    pause = threading.Event()
    try:
        descriptor = os.open(disk, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise map_os_error(error, f"opening the cache `{name}`") from error
    try:
        while True:
            try:
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                return
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return  # this file system has no leases
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise map_os_error(error, f"opening the cache `{name}`") from error
            deadline.check()
            pause.wait(_LOOK_AGAIN_S)
    finally:
        os.close(descriptor)
