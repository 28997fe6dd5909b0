"""What a COPY or ADD takes from the build context: which files, their digest, and the tar that carries them."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator, Sequence

import msgspec

from firebuild.build.context import BuildContext, Entry, check_kind
from firebuild.build.digest import FieldHash
from firebuild.build.glob import has_wildcard, match_component, unescape
from firebuild.errors import ContextError
from firebuild.events.text import neutralise
from firebuild.guest.build import CopyItem

# Beyond this many files a miss is explained by the source's name alone.
MAX_EXPLAINED_FILES = 2000
_BLOCK = tarfile.BLOCKSIZE


class SelectedEntry(msgspec.Struct, frozen=True):
    """One entry that is copied. `name`: in the tar, `0` or `0/etc/x`; `digest`: of content, kind, mode and link target."""

    name: str
    entry: Entry
    digest: str


class InlineContent(msgspec.Struct, frozen=True):
    """A heredoc as a source. `name`: the file's; `data`: its content, expanded."""

    name: str
    data: bytes


class Selection(msgspec.Struct, frozen=True):
    """All that one COPY takes from the host. `items` as the guest gets them, with `entries` and then `inline` behind them.

    `digest`: of everything that decides the result, 64 hex digits; `files`: path to short digest, to explain a miss,
    empty for very many; `unmatched`: wildcards that matched nothing (no error, as with Docker).
    """

    items: tuple[CopyItem, ...]
    entries: tuple[SelectedEntry, ...]
    inline: tuple[InlineContent, ...]
    digest: str
    files: dict[str, str]
    unmatched: tuple[str, ...]


def select_sources(
    context: BuildContext | None, sources: Sequence[str], inline: Sequence[InlineContent] = ()
) -> Selection:
    """Find the sources in the context and hash them. Raises ContextError naming the source."""
    items: list[CopyItem] = []
    entries: list[SelectedEntry] = []
    unmatched: list[str] = []
    total = FieldHash("copy-sources-1")
    files: dict[str, str] = {}
    for source in sources:
        if context is None:
            raise ContextError(
                f"the source `{neutralise(source)}` cannot be copied: this build has no context",
                hint="give the folder that holds it",
            )
        found = find_sources(context, source)
        if not found:
            unmatched.append(source)
        for name, top in found:
            number = len(items)
            items.append(CopyItem("", "directory") if top.kind == "directory" else CopyItem(name, "file"))
            total.add("item", [items[-1].name, items[-1].kind])
            for selected in _select_tree(context, number, top):
                entries.append(selected)
                total.add("entry", [selected.name, selected.digest])
                if selected.entry.kind != "directory":
                    files[selected.entry.path] = selected.digest[:16]
    for document in inline:
        items.append(CopyItem(document.name, "file"))
        total.add("inline", [document.name.encode().hex(), document.data.hex()])
    return Selection(
        items=tuple(items),
        entries=tuple(entries),
        inline=tuple(inline),
        digest=total.hexdigest(),
        files=files if len(files) <= MAX_EXPLAINED_FILES else {},
        unmatched=tuple(unmatched),
    )


def find_sources(context: BuildContext, source: str) -> list[tuple[str, Entry]]:
    """What one source means: pairs of the name as written and the entry, links followed within the context.

    A source without wildcards that is missing raises ContextError; a wildcard may match nothing.
    """
    parts = _split_source(source)
    if not any(has_wildcard(part) for part in parts):
        path = posixpath.join("", *map(unescape, parts))
        found = context.find_resolved(path)
        if found is None:
            raise _missing(context, source, path)
        check_kind(found)
        return [(posixpath.basename(path) or "", found)]
    matches: list[tuple[str, Entry]] = [("", context.root_entry())]
    for part in parts:
        below: list[tuple[str, Entry]] = []
        for path, folder in matches:
            if folder.kind != "directory":
                continue
            for name in context.list_folder(folder.path):
                if match_component(part, name):
                    child = posixpath.join(path, name)
                    resolved = context.find_resolved(child)
                    if resolved is not None:
                        below.append((child, resolved))
        matches = below
    for _, entry in matches:
        check_kind(entry)
    return [(posixpath.basename(path), entry) for path, entry in matches]


def _split_source(source: str) -> list[str]:
    parts: list[str] = []
    for part in source.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            if not parts:
                raise ContextError(
                    f"the source `{neutralise(source)}` is outside the build context",
                    hint="only what lies below the context folder can be copied; build with a folder higher up",
                )
            parts.pop()
            continue
        parts.append(part)
    return parts


def _missing(context: BuildContext, source: str, path: str) -> ContextError:
    shown = neutralise(source)
    above = path
    while above:
        if context.is_excluded(above):
            return ContextError(
                f"the source `{shown}` is not in the build context: .dockerignore leaves it out",
                hint="add a line `!…` to the .dockerignore, or take the pattern away",
            )
        above = posixpath.dirname(above)
    hint = f"the context is `{context.folder}`"
    parent = context.find_resolved(posixpath.dirname(path))
    if parent is not None and parent.kind == "directory":
        from difflib import get_close_matches

        near = get_close_matches(posixpath.basename(path), list(context.list_folder(parent.path)), n=1)
        if near:
            hint = f"did you mean `{neutralise(posixpath.join(posixpath.dirname(path), near[0]))}`?"
    return ContextError(f"the source `{shown}` is not in the build context", hint=hint)


def _select_tree(context: BuildContext, number: int, top: Entry) -> Iterator[SelectedEntry]:
    for entry in context.walk(top):
        check_kind(entry)
        relative = entry.path[len(top.path) :].strip("/") if top.path else entry.path
        name = f"{number}/{relative}" if relative else str(number)
        fields = FieldHash("entry-1")
        fields.add("kind", entry.kind)
        if entry.kind == "symlink":
            fields.add("target", entry.target)
        else:
            fields.add("mode", f"{entry.mode:o}")
        if entry.kind == "file":
            fields.add("content", context.compute_content_digest(entry))
        yield SelectedEntry(name, entry, fields.hexdigest())


def open_tar(context: BuildContext | None, selection: Selection, *, inline_mtime_s: int) -> Iterator[bytes]:
    """The selection as a PAX tar in chunks, as PROTOCOL.md section 5, layer-copy, wants it: owner 0:0, whole seconds.

    Raises ContextError if a file is no longer what was hashed.
    """
    for selected in selection.entries:
        entry = selected.entry
        info = _tar_info(selected.name, entry.mode, entry.mtime_s)
        if entry.kind == "directory":
            info.type = tarfile.DIRTYPE
        elif entry.kind == "symlink":
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
        else:
            info.size = entry.size
        yield _header(info)
        if entry.kind == "file":
            assert context is not None, "entries come from a context"
            yield from context.read_verified(entry)
            yield _padding(entry.size)
    first = len(selection.items) - len(selection.inline)
    for number, document in enumerate(selection.inline, start=first):
        info = _tar_info(str(number), 0o644, inline_mtime_s)
        info.size = len(document.data)
        yield _header(info)
        yield document.data
        yield _padding(info.size)
    yield bytes(2 * _BLOCK)


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


def looks_like_archive(context: BuildContext, entry: Entry) -> bool:
    """Whether a file is what ADD would unpack: a tar, plain or compressed with gzip, bzip2, xz or zstd (by its magic)."""
    head = io.BytesIO()
    for chunk in context.read_chunks(entry):
        head.write(chunk)
        if head.tell() >= _BLOCK:
            break
    data = head.getvalue()[:_BLOCK]
    if data.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        return True
    try:
        tarfile.TarInfo.frombuf(data, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
