"""What a COPY or ADD takes from the host: which files, and their digest."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

import msgspec

from firebuild.build.digest import FieldHash
from firebuild.build.filters import Filter, parse_parents_source
from firebuild.build.glob import has_wildcard, match_component, unescape
from firebuild.build.sources.items import ItemStream, RemoteItem
from firebuild.build.tree import ContextTree, Entry, check_kind
from firebuild.dockerfile.ignore import IgnoreRules
from firebuild.errors import ContextError
from firebuild.events.text import neutralise
from firebuild.guest.items import CopyItem

# Beyond this many files a miss is explained by the source's name alone.
MAX_EXPLAINED_FILES = 2000


class SelectedEntry(msgspec.Struct, frozen=True):
    """One entry that is copied. `name`: in the tar, `0` or `0/etc/x`; `digest`: of content, kind, mode and link target;
    `hard_link`: the name of the entry before it that it is another name of, else empty."""

    name: str
    entry: Entry
    digest: str
    hard_link: str = ""


class InlineContent(msgspec.Struct, frozen=True):
    """A heredoc as a source. `name`: the file's; `data`: its content, expanded."""

    name: str
    data: bytes


class Selection(msgspec.Struct, frozen=True):
    """All that one COPY takes from the host. `items` as the guest gets them, with `entries` and then `inline` behind them.

    `digest`: of everything that decides the result, 64 hex digits; `files`: path to short digest, to explain a miss,
    empty for very many; `unmatched`: wildcards that matched nothing (no error, as with Docker); `streams`: by its number
    each item that is no tree of the context: what is fetched, and archives that are unpacked.
    """

    items: tuple[CopyItem, ...]
    entries: tuple[SelectedEntry, ...]
    inline: tuple[InlineContent, ...]
    digest: str
    files: dict[str, str]
    unmatched: tuple[str, ...]
    streams: dict[int, ItemStream] = {}


def select_sources(
    context: ContextTree | None,
    sources: Sequence[str],
    inline: Sequence[InlineContent] = (),
    *,
    unpack: bool = False,
    remotes: Sequence[RemoteItem | None] = (),
    exclude: IgnoreRules | None = None,
    parents: bool = False,
) -> Selection:
    """Find the sources in the context and hash them. Raises ContextError naming the source.

    `unpack`: archives among them are to be unpacked; `remotes`: for each source what it was fetched as, None for a path;
    `exclude`, `parents`: as the flags.
    """
    rules = exclude if exclude is not None else IgnoreRules(())
    items: list[CopyItem] = []
    entries: list[SelectedEntry] = []
    unmatched: list[str] = []
    total = FieldHash("copy-sources-1")
    files: dict[str, str] = {}
    streams: dict[int, ItemStream] = {}
    for position, source in enumerate(sources):
        remote = remotes[position] if remotes else None
        if remote is not None:
            streams[len(items)] = remote.stream
            items.append(remote.item)
            total.add("remote", [remote.item.name, remote.item.kind, remote.digest])
            files[remote.shown] = remote.digest[:16]
            continue
        if context is None:
            raise ContextError(
                f"the source `{neutralise(source)}` cannot be copied: this build has no context",
                hint="give the folder that holds it",
            )
        part = parse_parents_source(source) if parents else None
        found = find_sources(context, part.base if part else source)
        if not found:
            unmatched.append(source)
        chosen = Filter(part.include if part else None, rules) if part or rules.patterns else None
        for name, top in found:
            number = len(items)
            if chosen is not None and top.kind != "directory" and not chosen.takes_file(name):
                continue
            if unpack and top.kind == "file" and _is_archive(context, top):
                digest = context.compute_content_digest(top)
                streams[number] = _ArchiveStream(context, top)
                items.append(CopyItem("", "archive"))
                total.add("archive", digest)
                files[top.path] = digest[:16]
                continue
            items.append(CopyItem("", "directory") if top.kind == "directory" else CopyItem(name, "file"))
            total.add("item", [items[-1].name, items[-1].kind])
            before = len(entries)
            for selected in _select_tree(context, number, top, chosen):
                entries.append(selected)
                total.add("entry", [selected.name, selected.digest])
                if selected.entry.kind != "directory":
                    files[selected.entry.path] = selected.digest[:16]
            if part is not None and part.required and len(entries) == before:
                raise _missing(context, source, posixpath.join(top.path, part.include))
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
        streams=streams,
    )


def find_sources(context: ContextTree, source: str) -> list[tuple[str, Entry]]:
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
    first = next(number for number, part in enumerate(parts, start=1) if has_wildcard(part))
    matches: list[tuple[str, Entry]] = [("", context.root_entry())]
    for number, part in enumerate(parts, start=1):
        below: list[tuple[str, Entry]] = []
        for path, folder in matches:
            if folder.kind != "directory":
                continue
            for name, entry in context.list_folder(folder.path).items():
                if match_component(part, name):
                    child = posixpath.join(path, name)
                    if first <= number < len(parts) and entry.kind == "symlink":
                        # As in BuildKit, links are followed above the first wildcard, and at the end.
                        continue
                    resolved = context.find_resolved(child)
                    if resolved is not None:
                        below.append((child, resolved))
                    elif number == len(parts):
                        # A link to nowhere that a wildcard names is as wrong as one that is named in full.
                        raise _missing(context, source, child)
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


def _missing(context: ContextTree, source: str, path: str) -> ContextError:
    shown = neutralise(source)
    above = path
    while above:
        if context.is_excluded(above):
            return ContextError(
                f"the source `{shown}` is not in the build context: .dockerignore leaves it out",
                hint="add a line `!…` to the .dockerignore, or take the pattern away",
            )
        above = posixpath.dirname(above)
    hint = f"the context is `{neutralise(context.place)}`"
    parent = context.find_resolved(posixpath.dirname(path))
    if parent is not None and parent.kind == "directory":
        from difflib import get_close_matches

        near = get_close_matches(posixpath.basename(path), list(context.list_folder(parent.path)), n=1)
        if near:
            hint = f"did you mean `{neutralise(posixpath.join(posixpath.dirname(path), near[0]))}`?"
    return ContextError(f"the source `{shown}` is not in the build context", hint=hint)


def _select_tree(context: ContextTree, number: int, top: Entry, chosen: Filter | None) -> Iterator[SelectedEntry]:
    if chosen is not None and top.kind == "directory":
        pairs = chosen.walk(context, top)
    else:
        pairs = ((entry.path[len(top.path) :].strip("/"), entry) for entry in context.walk(top))
    linked: dict[tuple[int, ...], str] = {}
    for relative, entry in pairs:
        check_kind(entry)
        name = f"{number}/{relative}" if relative else str(number)
        fields = FieldHash("entry-1")
        fields.add("kind", entry.kind)
        if entry.kind == "symlink":
            fields.add("target", entry.target)
        else:
            fields.add("mode", f"{entry.mode:o}")
        if entry.kind == "file":
            fields.add("content", context.compute_content_digest(entry))
        first = linked.setdefault(entry.inode, name) if entry.inode else name
        if first != name:
            fields.add("hard-link", first)
        yield SelectedEntry(name, entry, fields.hexdigest(), first if first != name else "")


def _is_archive(context: ContextTree, entry: Entry) -> bool:
    from firebuild.build.sources.archive import is_archive

    return is_archive(context.read_chunks(entry))


class _ArchiveStream(ItemStream):
    """A local archive that ADD unpacks."""

    def __init__(self, context: ContextTree, entry: Entry) -> None:
        self._context = context
        self._entry = entry

    def chunks(self, number: int) -> Iterator[bytes]:
        from firebuild.build.sources.archive import convert_archive

        return convert_archive(
            self._context.read_verified(self._entry), number, f"the archive `{neutralise(self._entry.path)}`"
        )
