"""What the files of a build context had for digests when they were read last, so that unchanged ones are not read again.

<folder>/<key>      one context's, as MessagePack: [version, {path: [identity, digest]}]; the key is the digest of its path

A file counts as unchanged while its mode, device, inode, size, and its times of modification and of change to the
nanosecond are what they were. No program can set the latter (stat(2), st_ctime), so a file whose old times were put back is
read. One that was changed shortly before it was read is not kept: a second change within the clock's grain would not show
(what Documentation/technical/racy-git of git calls racily clean).
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import msgspec

from firebuild.errors import HostError
from firebuild.host import log
from firebuild.host.files import map_os_error, write_atomic

_VERSION = 1
# File systems' clocks are as coarse as two seconds (FAT).
_SETTLED_NS = 2 * 10**9
# Files that the build did not look at are kept too, as another target may, but not without end.
_SPARE = 10_000
_MAX_CONTEXTS = 100
_READ_LIMIT = 512 << 20


class KeptDigest(msgspec.Struct, frozen=True, array_like=True):
    """One file's. `identity`: see firebuild.build.context; `digest`: sha256 of its bytes."""

    identity: tuple[int, ...]
    digest: bytes


class FileDigests:
    """The digests of one context's files. Thread-safe; creating the object touches nothing. What cannot be read counts as
    not kept."""

    def __init__(self, folder: Path, context: Path) -> None:
        self._path = folder / hashlib.sha256(os.fsencode(context)).hexdigest()
        self._lock = threading.Lock()
        self._old: dict[bytes, KeptDigest] | None = None
        self._seen: dict[bytes, KeptDigest] = {}
        self._changed = False

    def find(self, path: str, identity: tuple[int, ...]) -> str | None:
        """The digest of the file at a path of the context, as 64 hex digits, if it is what it was; else None."""
        name = os.fsencode(path)
        with self._lock:
            if self._old is None:
                self._old = self._load()
            kept = self._old.get(name)
            if kept is None or kept.identity != identity:
                return None
            self._seen[name] = kept
            return kept.digest.hex()

    def note(self, path: str, identity: tuple[int, ...], digest: str, *, read_at_ns: int) -> None:
        """Keep a digest. `identity`: ends with the times of modification and of change; `read_at_ns`: when reading began."""
        if max(identity[-2:]) > read_at_ns - _SETTLED_NS:
            return
        with self._lock:
            self._seen[os.fsencode(path)] = KeptDigest(identity, bytes.fromhex(digest))
            self._changed = True

    def forget(self, path: str) -> None:
        """A file's bytes are not what they were, whatever its times say."""
        name = os.fsencode(path)
        with self._lock:
            self._changed = True
            self._seen.pop(name, None)
            if self._old is not None:
                self._old.pop(name, None)

    def save(self) -> None:
        """Keep what was noted for the next build. Raises DiskFullError, HostError."""
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            old = {name: kept for name, kept in (self._old or {}).items() if name not in self._seen}
            entries = self._seen if len(old) > _SPARE + len(self._seen) else {**old, **self._seen}
            data = msgspec.msgpack.encode((_VERSION, entries))
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._drop_others()
        except OSError as error:
            raise map_os_error(error, f"writing `{self._path}`") from error
        # Not synced: whatever is lost is read again.
        write_atomic(self._path, data, durable=False)

    def _load(self) -> dict[bytes, KeptDigest]:
        try:
            with open(self._path, "rb") as file:
                data = file.read(_READ_LIMIT)
            version, entries = msgspec.msgpack.decode(data, type=tuple[int, dict[bytes, KeptDigest]])
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise HostError(f"reading `{self._path}` failed: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.debug(__name__, "`%s` is not used: %s", self._path, error)
            return {}
        return entries if version == _VERSION else {}

    def _drop_others(self) -> None:
        """Make room for one more context: the one that has not changed for longest goes."""
        folder = self._path.parent
        names = [name for name in os.listdir(folder) if name != self._path.name]
        if len(names) < _MAX_CONTEXTS:
            return
        paths = sorted((folder / name for name in names), key=lambda path: path.stat().st_mtime_ns)
        for path in paths[: len(paths) - _MAX_CONTEXTS + 1]:
            path.unlink(missing_ok=True)
