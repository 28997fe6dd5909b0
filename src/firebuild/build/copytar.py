"""The tar that carries what a COPY or ADD takes from the host, as the guest gets it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from firebuild.build.copy import SelectedEntry, Selection
from firebuild.build.tree import ContextTree

_BLOCK = tarfile.BLOCKSIZE


def open_tar(context: ContextTree | None, selection: Selection, *, inline_mtime_s: int) -> Iterator[bytes]:
    """The selection as a PAX tar in chunks, as PROTOCOL.md section 5, layer-copy, wants it: owner 0:0, whole seconds.

    Raises ContextError if a file is no longer what was hashed.
    """
    entries = iter([*selection.entries, None])
    selected = next(entries)
    for number in range(len(selection.items)):
        if number in selection.streams:
            yield from selection.streams[number].chunks(number)
        while selected is not None and _number_of(selected) == number:
            assert context is not None, "entries come from a context"
            yield from _entry_chunks(context, selected)
            selected = next(entries)
    first = len(selection.items) - len(selection.inline)
    for number, document in enumerate(selection.inline, start=first):
        info = _tar_info(str(number), 0o644, inline_mtime_s)
        info.size = len(document.data)
        yield _header(info)
        yield document.data
        yield _padding(info.size)
    yield bytes(2 * _BLOCK)


def _number_of(selected: SelectedEntry) -> int:
    return int(selected.name.partition("/")[0])


def _entry_chunks(context: ContextTree, selected: SelectedEntry) -> Iterator[bytes]:
    entry = selected.entry
    info = _tar_info(selected.name, entry.mode, entry.mtime_s)
    if entry.kind == "directory":
        info.type = tarfile.DIRTYPE
    elif selected.hard_link:
        info.type, info.linkname = tarfile.LNKTYPE, selected.hard_link
    elif entry.kind == "symlink":
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
    else:
        info.size = entry.size
    yield _header(info)
    if entry.kind == "file" and not selected.hard_link:
        yield from context.read_verified(entry)
        yield _padding(entry.size)


def folder_tar(mtime_s: int) -> bytes:
    """A tar with an empty folder as item 0: mode 0755."""
    info = _tar_info("0", 0o755, mtime_s)
    info.type = tarfile.DIRTYPE
    return _header(info) + empty_tar()


def empty_tar() -> bytes:
    """A tar without entries: what an empty layer is."""
    return bytes(2 * _BLOCK)


def _tar_info(name: str, mode: int, mtime_s: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime, info.uid, info.gid = mode, mtime_s, 0, 0
    return info


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
