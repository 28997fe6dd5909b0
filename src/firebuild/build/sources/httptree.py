"""The files beside a Dockerfile that was fetched over HTTP: each is fetched when an instruction names it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import quote

from firebuild.build.sources.fetched import Fetched
from firebuild.build.sources.http import FetchLimits, fetch
from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.url import Url
from firebuild.build.tree import ContextTree, Entry
from firebuild.errors import ContextError
from firebuild.events.text import neutralise

_READ_SIZE = 256 * 1024
MODE = 0o644


class HttpTree(ContextTree):
    """A context manager. Paths are relative to the Dockerfile's folder on the server; there are files only, mode 0644.

    A server lists nothing: folders and wildcards as sources raise ContextError.
    """

    def __init__(self, dockerfile: Url, scratch: Scratch, limits: FetchLimits | None = None) -> None:
        super().__init__()
        folder = dockerfile.path.rpartition("/")[0] + "/"
        self._base = Url(dockerfile.scheme, dockerfile.host, dockerfile.port, folder, "", dockerfile.login)
        self.place = self._base.shown
        self._scratch = scratch
        self._limits = limits
        self._fetched: dict[str, Fetched] = {}

    def __enter__(self) -> HttpTree:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._fetched.values():
            each.file.close()
        self._fetched.clear()

    def root_entry(self) -> Entry:
        """See ContextTree."""
        return Entry("", "directory", 0o755, 0, 0, "", ())

    def find_entry(self, path: str) -> Entry | None:
        """See find_resolved: there are no links."""
        return self.find_resolved(path)

    def find_resolved(self, path: str) -> Entry | None:
        """The file of that path, fetched. Raises ContextError where the server has none, or the path is no file's."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            raise self._error(path or ".")
        clean = "/".join(parts)
        with self._lock:
            found = self._fetched.get(clean)
            if found is None:
                found = self._fetched[clean] = fetch(self._url_of(clean), self._scratch, self._limits)
        return Entry(clean, "file", MODE, found.size, found.mtime_s or 0, "", ())

    def read_chunks(self, entry: Entry) -> Iterator[bytes]:
        """See ContextTree."""
        found = self._fetched[entry.path]
        position = 0
        while chunk := os.pread(found.file.fileno(), _READ_SIZE, position):
            position += len(chunk)
            yield chunk

    def _url_of(self, path: str) -> Url:
        # Quoted whole: a `?`, a `#` or a `%2e` in a source is part of a file's name, and nothing leads out of the folder.
        base = self._base
        quoted = base.path + quote(path, safe="/", errors="surrogateescape")
        return Url(base.scheme, base.host, base.port, quoted, "", base.login)

    def _read_folder(self, path: str) -> Iterator[Entry]:
        raise self._error(path)

    def _error(self, path: str) -> ContextError:
        return ContextError(
            f"`{neutralise(path or '*')}` means more than one file: the context is `{self.place}`, which cannot be listed",
            hint="name each file, or build from a repository, an archive or a folder",
        )
