"""What a build took in from elsewhere, noted as it happens: repositories with their commits, files with their digests."""

from __future__ import annotations

import threading

import msgspec


class Material(msgspec.Struct, frozen=True, order=True):
    """`uri`: without credentials; `algorithm`: sha1 or sha256; `value`: hex digits."""

    uri: str
    algorithm: str
    value: str


class Materials(msgspec.Struct):
    """A collector. Thread-safe; each material counts once."""

    _found: set[Material] = msgspec.field(default_factory=set)
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def note_file(self, uri: str, sha256: str) -> None:
        """A file or archive from a URL."""
        self._note(Material(uri, "sha256", sha256))

    def note_commit(self, uri: str, commit: str) -> None:
        """A repository; how long a commit's id is says which hash it is."""
        self._note(Material(uri, "sha1" if len(commit) == 40 else "sha256", commit))

    def _note(self, material: Material) -> None:
        with self._lock:
            self._found.add(material)

    def list_all(self) -> list[Material]:
        """All of them, sorted."""
        with self._lock:
            return sorted(self._found)
