"""An archive as a build context: indexed where it lies, never unpacked."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from firebuild.build.sources.scratch import Scratch
from firebuild.build.sources.tarread import TarEntry, TarLimits, TarReader
from firebuild.build.tree import ContextTree, Entry
from firebuild.errors import ContextError, ImageError
from firebuild.events.text import neutralise
from firebuild.host.files import map_os_error
from firebuild.images.compression import ExpansionLimits, uncompress

_READ_SIZE = 256 * 1024
# A context is kept on disk while it is used: half of what a layer may have.
PLAIN_LIMITS = ExpansionLimits(bytes=64 << 30, ratio=2000, ratio_from_bytes=256 << 20)


def spool_plain(file: BinaryIO, subject: str, scratch: Scratch, limits: ExpansionLimits | None = None) -> BinaryIO:
    """An archive uncompressed into a file without a name. Raises ContextError for what does not uncompress, or too far."""
    plain = scratch.open_file()
    try:
        for piece in uncompress(file, subject, limits or PLAIN_LIMITS):
            plain.write(piece)
        plain.flush()
        plain.seek(0)
    except ImageError as error:
        plain.close()
        raise ContextError(error.message, hint=error.hint) from error
    except OSError as error:
        plain.close()
        raise map_os_error(error, f"saving {subject}") from error
    except BaseException:
        plain.close()
        raise
    return plain


class TarTree(ContextTree):
    """A plain tar in a file as a tree. A context manager: the file is its own from the start.

    As if unpacked into an empty folder: of equal names the last counts, missing parents are there, a hard link is the
    file that it means. Raises ContextError for an archive that is wrong, and for an entry that lies below a link.
    """

    def __init__(self, plain: BinaryIO, subject: str, limits: TarLimits | None = None) -> None:
        super().__init__()
        self.place = subject.strip("`")
        self._plain = plain
        self._children: dict[str, dict[str, Entry]] = {"": {}}
        self._offsets: dict[str, int] = {}
        self._subject = subject
        self._mtime_s = 0
        reader = TarReader(plain.read, subject, limits)
        try:
            for entry in reader:
                self._add(entry, reader.offset)
        except BaseException:
            plain.close()
            raise

    def __enter__(self) -> TarTree:
        return self

    def __exit__(self, *_: object) -> None:
        self._plain.close()

    def root_entry(self) -> Entry:
        """See ContextTree."""
        return Entry("", "directory", 0o755, 0, self._mtime_s, "", ())

    def read_chunks(self, entry: Entry) -> Iterator[bytes]:
        """See ContextTree."""
        position, left = self._offsets[entry.path], entry.size
        while left:
            chunk = os.pread(self._plain.fileno(), min(left, _READ_SIZE), position)
            if not chunk:
                raise ContextError(f"{self._subject} became shorter while it was read")
            position += len(chunk)
            left -= len(chunk)
            yield chunk

    def _read_folder(self, path: str) -> Iterator[Entry]:
        children = self._children.get(path, {})
        for name in sorted(children, key=os.fsencode):
            yield children[name]

    def _add(self, entry: TarEntry, offset: int) -> None:
        if not entry.path:
            self._mtime_s = entry.mtime_s
            return
        folder = self._ensure_parents(entry.path)
        name = posixpath.basename(entry.path)
        old = folder.get(name)
        kind, size, mode, mtime_s, target = entry.kind, entry.size, entry.mode, entry.mtime_s, entry.target
        inode: tuple[int, ...] = ()
        if kind == "hardlink":
            linked = self._find(entry.target)
            if linked is None or linked.kind == "directory":
                raise ContextError(
                    f"{self._subject}: the entry `{neutralise(entry.path)}` is a hard link to "
                    f"`{neutralise(entry.target)}`, which is no file before it"
                )
            kind, size, mode, mtime_s, target = linked.kind, linked.size, linked.mode, linked.mtime_s, linked.target
            offset = self._offsets.get(linked.path, 0)
            inode = linked.inode or ((offset,) if kind == "file" else ())
            if inode and not linked.inode:
                self._ensure_parents(linked.path)[linked.name] = msgspec.structs.replace(linked, inode=inode)
        if old is not None and old.kind == "directory" and kind != "directory":
            self._forget(old.path)
        if kind == "directory":
            self._children.setdefault(entry.path, {})
        self._offsets.pop(entry.path, None)
        if kind == "file":
            self._offsets[entry.path] = offset
        folder[name] = Entry(entry.path, kind, mode, size, mtime_s, target if kind == "symlink" else "", (), inode)

    def _ensure_parents(self, path: str) -> dict[str, Entry]:
        folder, here = self._children[""], ""
        for part in path.split("/")[:-1]:
            here = posixpath.join(here, part)
            found = folder.get(part)
            if found is None:
                folder[part] = Entry(here, "directory", 0o755, 0, 0, "", ())
                self._children[here] = {}
            elif found.kind != "directory":
                raise ContextError(
                    f"{self._subject}: the entry `{neutralise(path)}` lies below `{neutralise(here)}`, "
                    f"which is {'a link' if found.kind == 'symlink' else 'no folder'}"
                )
            folder = self._children[here]
        return folder

    def _find(self, path: str) -> Entry | None:
        parent, name = posixpath.split(path)
        return self._children.get(parent, {}).get(name)

    def _forget(self, path: str) -> None:
        for child in self._children.pop(path, {}).values():
            self._offsets.pop(child.path, None)
            if child.kind == "directory":
                self._forget(child.path)
