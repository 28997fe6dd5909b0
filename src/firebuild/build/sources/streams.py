"""What ADD fetched, as the tar entries that are sent."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from firebuild.build.sources.archive import convert_archive
from firebuild.build.sources.items import ItemStream
from firebuild.build.tree import check_kind
from firebuild.errors import ContextError

if TYPE_CHECKING:
    from firebuild.build.sources.fetched import Fetched
    from firebuild.build.sources.gitref import GitSource
    from firebuild.build.sources.remote import RemoteAdd, RemoteSources

HTTP_MODE = 0o600
_CHUNK = 256 * 1024


def read_file(fetched: Fetched) -> Iterator[bytes]:
    """A fetched file's bytes, from its beginning."""
    position = 0
    while chunk := os.pread(fetched.file.fileno(), _CHUNK, position):
        position += len(chunk)
        yield chunk


class FetchedFile(ItemStream):
    """A file that was fetched."""

    def __init__(self, fetched: Fetched) -> None:
        self._fetched = fetched

    def chunks(self, number: int) -> Iterator[bytes]:
        """See ItemStream."""
        info = tarfile.TarInfo(str(number))
        info.mode, info.mtime, info.size = HTTP_MODE, self._fetched.mtime_s or 0, self._fetched.size
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        total = hashlib.sha256()
        for chunk in read_file(self._fetched):
            total.update(chunk)
            yield chunk
        if total.hexdigest() != self._fetched.sha256:
            raise ContextError(f"`{self._fetched.url.shown}` changed on its way")
        yield bytes(-info.size % tarfile.BLOCKSIZE)


class LazyFile(ItemStream):
    """A file that is fetched when it is sent."""

    def __init__(self, sources: RemoteSources, add: RemoteAdd) -> None:
        self._sources = sources
        self._add = add

    def chunks(self, number: int) -> Iterator[bytes]:
        """See ItemStream."""
        yield from FetchedFile(self._sources.fetch_file(self._add)).chunks(number)


class FetchedArchive(ItemStream):
    """A fetched archive that ADD unpacks."""

    def __init__(self, fetched: Fetched, subject: str) -> None:
        self._fetched = fetched
        self._subject = subject

    def chunks(self, number: int) -> Iterator[bytes]:
        """See ItemStream."""
        yield from convert_archive(read_file(self._fetched), number, self._subject)


class LazyRepository(ItemStream):
    """A commit of a repository, fetched when it is sent."""

    def __init__(self, sources: RemoteSources, source: GitSource, keep_git_dir: bool) -> None:
        self._sources = sources
        self._source = source
        self._keep = keep_git_dir

    def chunks(self, number: int) -> Iterator[bytes]:
        """See ItemStream."""
        tree = self._sources.open_repository(self._source, keep_git_dir=self._keep, noted=True)
        for entry in tree.walk(tree.root_entry()):
            check_kind(entry)
            info = tarfile.TarInfo(f"{number}/{entry.path}" if entry.path else str(number))
            info.mode, info.mtime = entry.mode, entry.mtime_s
            if entry.kind == "directory":
                info.type = tarfile.DIRTYPE
            elif entry.kind == "symlink":
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
            else:
                info.size = entry.size
            yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            if entry.kind == "file":
                yield from tree.read_chunks(entry)
                yield bytes(-entry.size % tarfile.BLOCKSIZE)
