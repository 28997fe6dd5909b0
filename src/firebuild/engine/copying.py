"""Copying files into and out of running machines. What a guest sends is data: it lands below the folder that was named, or not at all."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from firebuild.build.sources.tarread import TarEntry, TarLimits, TarReader
from firebuild.engine.copy_plan import Place, Side, clean_guest_path, is_contents_path, is_folder_path, plan_place
from firebuild.errors import ContextError, GuestError, NotFoundError, UsageError
from firebuild.events.text import neutralise
from firebuild.guest import control
from firebuild.host.deadline import Deadline
from firebuild.host.landing import Attributes, Landing
from firebuild.host.packing import PackOptions, pack_tree

# For a guest to answer, and between two pieces of what it sends.
PATIENCE_S = 60.0
_LIMITS = TarLimits(entries=10_000_000, bytes=16 << 40, depth=256)
# Behind an archive's end stand blocks of zeros, some 10 KiB with most writers.
_TAIL_BYTES = 1 << 20
_PIECE = 256 << 10

Progress = Callable[[int, int | None], None]


class CopyOptions(msgspec.Struct, frozen=True):
    """`keep_owner`: owners as at the source, else root's in the guest and the caller's on the host. `follow_link`: a link
    that is the source is followed. `progress`: told of bytes; `left_out`: of what is not copied, a sentence each."""

    keep_owner: bool = False
    follow_link: bool = False
    progress: Progress = lambda done, total: None
    left_out: Callable[[str], None] = lambda text: None


class Copied(msgspec.Struct, frozen=True):
    """What was copied. `bytes`: of files' content."""

    entries: int
    bytes: int


def copy_to_guest(vsock: Path, source: str, target: str, options: CopyOptions) -> Copied:
    """Copy a file, link or folder of the host into a guest. Raises NotFoundError, UsageError, HostError, GuestError."""
    origin, real = _look_at_source(source, options.follow_link)
    goal, real_parent = _look_in_guest(vsock, target)
    place = plan_place(origin, goal)
    if goal.kind == "missing" and real_parent is None:
        raise NotFoundError(f"the folder of `{target}` does not exist in the machine")
    total = os.path.getsize(real) if origin.kind == "file" else None
    pack = PackOptions(
        keep_owner=options.keep_owner,
        left_out=lambda path: options.left_out(f"`{path}` is a socket, FIFO or device and was left out"),
    )
    chunks = _count(pack_tree(Path(real), place.name, pack), total, options.progress)
    counts = control.copy_in(vsock, place.folder, chunks)
    return Copied(counts.entries, counts.bytes)


def copy_stream_to_guest(vsock: Path, stream: BinaryIO, target: str, options: CopyOptions) -> Copied:
    """Unpack a plain tar into a folder of the guest, which must be there. Raises UsageError, GuestError."""
    goal, _ = _look_in_guest(vsock, target)
    if goal.kind != "directory":
        raise UsageError(f"an archive is unpacked into a folder; `{target}` is none", hint="make it first")
    chunks = iter(lambda: stream.read(_PIECE), b"")
    try:
        counts = control.copy_in(vsock, goal.path, _count(chunks, None, options.progress))
    except GuestError as error:
        if error.guest_code == "bad-archive":
            error.message = f"standard input is not a plain tar that the machine can take: {error.message}"
            error.hint = "unpack a compressed one first: `gzip -dc x.tar.gz | firebuild cp - …`"
        raise
    return Copied(counts.entries, counts.bytes)


def copy_stream_from_guest(vsock: Path, source: str, stream: BinaryIO, options: CopyOptions) -> Copied:
    """Write the tar of what stands at `source` to a stream, as the guest sends it. Raises NotFoundError, GuestError."""
    origin = _find_in_guest(vsock, source, options.follow_link)
    sent = 0
    with control.open_copy_out(vsock, origin.path, PATIENCE_S) as pieces:
        for piece in pieces:
            stream.write(piece)
            sent += len(piece)
            options.progress(sent, None)
    stream.flush()
    return Copied(0, sent)


def copy_from_guest(vsock: Path, source: str, target: str, options: CopyOptions) -> Copied:
    """Copy a file, link or folder of a guest to the host. Raises NotFoundError, UsageError, ConflictError, HostError, GuestError."""
    origin = _find_in_guest(vsock, source, options.follow_link)
    goal = _look_at_target(target)
    # It goes by the name that was written, wherever a link at its end leads.
    named = msgspec.structs.replace(origin, path=clean_guest_path(source))
    place = plan_place(named, goal)
    if not os.path.isdir(place.folder):
        raise NotFoundError(f"the folder `{place.folder}` does not exist")
    with control.open_copy_out(vsock, origin.path, PATIENCE_S) as pieces:
        return land(pieces, posixpath.basename(origin.path), place, origin.kind, options)


def land(pieces: Iterator[bytes], top: str, place: Place, kind: str, options: CopyOptions) -> Copied:
    """Write what a guest sends, a tar of which all names begin with `top`, to its place. Raises GuestError for a tar that is
    something else, ConflictError, HostError."""
    source = Pieces(pieces, options.progress)
    reader = TarReader(source.read, "what the guest sent", _LIMITS)
    entries = size = 0
    with Landing(Path(place.folder)) as landing:
        try:
            for entry in reader:
                _check_first(entry, top, kind, first=entries == 0)
                path = _path_below(entry, top, place.name)
                if path or entry.kind == "directory":
                    _land_entry(landing, path, entry, reader, options)
                entries += 1
                size += entry.size
            if entries == 0:
                raise ContextError("the guest sent nothing")
            source.drain()
        except ContextError as error:
            raise GuestError(neutralise(error.message), guest_code="bad-archive") from error
    return Copied(entries, size)


def _land_entry(landing: Landing, path: str, entry: TarEntry, reader: TarReader, options: CopyOptions) -> None:
    owner = (entry.uid, entry.gid) if options.keep_owner else None
    attributes = Attributes(mode=entry.mode, mtime_s=entry.mtime_s, owner=owner)
    if entry.kind == "directory":
        landing.make_folder(path, attributes)
    elif entry.kind == "file":
        landing.write_file(path, attributes, reader.read_content())
    elif entry.kind == "symlink":
        landing.make_link(path, entry.target, attributes)
    elif entry.kind == "hardlink":
        raise ContextError(f"the entry `{entry.path}` is a hard link")
    else:
        options.left_out(f"`{neutralise(entry.path)}` is {entry.kind} and was left out")


def _check_first(entry: TarEntry, top: str, kind: str, *, first: bool) -> None:
    """The first entry is what was asked for; where that is no folder it is the only one."""
    if not first and kind != "directory":
        raise ContextError("it holds more than the file that was asked for")
    if first and (entry.path != top or entry.kind != kind):
        raise ContextError(f"it begins with the {entry.kind} `{entry.path[:200]}`, not with the {kind} `{top}`")


def _path_below(entry: TarEntry, top: str, name: str) -> str:
    if entry.path == top:
        rest = ""
    elif not top:
        rest = entry.path
    elif entry.path.startswith(f"{top}/"):
        rest = entry.path[len(top) + 1 :]
    else:
        raise ContextError(f"the entry `{entry.path[:200]}` was not asked for")
    return "/".join(part for part in (name, rest) if part)


class Pieces:
    """A stream's pieces, to be read by number of bytes."""

    def __init__(self, pieces: Iterator[bytes], progress: Progress = lambda done, total: None) -> None:
        self._pieces = pieces
        self._progress = progress
        self._rest = memoryview(b"")
        self._seen = 0

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
            self._seen += len(self._rest)
            self._progress(self._seen, None)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    def drain(self) -> None:
        """Read what follows the archive's end: zeros, and few of them. Raises ContextError."""
        left = _TAIL_BYTES
        while piece := self.read(_PIECE):
            left -= len(piece)
            if left < 0 or piece.strip(b"\0"):
                raise ContextError("something stands behind its end")


def _count(chunks: Iterator[bytes], total: int | None, progress: Progress) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        done += len(chunk)
        progress(done if total is None else min(done, total), total)
        yield chunk


def _look_in_guest(vsock: Path, path: str) -> tuple[Side, str | None]:
    """A target in the guest, links followed; and its real path, None where its folder is missing."""
    deadline = Deadline(PATIENCE_S, "looking at the machine's files")
    facts = control.stat_path(vsock, clean_guest_path(path), deadline)
    kind = facts.real_kind
    if kind == "other":
        raise UsageError(f"`{path}` is a device, FIFO or socket in the machine")
    # A link to nowhere is replaced, as the file that it would be.
    side = Side(
        kind="file" if kind == "symlink" else kind, path=facts.real_path or clean_guest_path(path), shown=path,
        is_folder=is_folder_path(path),
    )  # fmt: skip
    return side, facts.real_path


def _find_in_guest(vsock: Path, path: str, follow_link: bool) -> Side:
    """A source in the guest. Its path is what to ask the guest for. Raises NotFoundError."""
    clean = clean_guest_path(path)
    facts = control.stat_path(vsock, clean, Deadline(PATIENCE_S, "looking at the machine's files"))
    if facts.kind == "missing" or facts.real_path is None:
        raise NotFoundError(f"`{path}` does not exist in the machine")
    follow = facts.kind == "symlink" and (follow_link or is_folder_path(path))
    kind = facts.real_kind if follow else facts.kind
    if follow and kind in ("missing", "symlink"):
        raise NotFoundError(f"`{path}` is a link to nothing in the machine")
    if kind == "other":
        raise UsageError(f"`{path}` is a device, FIFO or socket in the machine")
    return Side(
        kind=kind, path=clean_guest_path(facts.real_path) if follow else clean, shown=path,
        is_folder=is_folder_path(path), contents=is_contents_path(path),
    )  # fmt: skip


def _look_at_source(path: str, follow_link: bool) -> tuple[Side, str]:
    """A source on the host, by the name that was written, and where it is. Raises NotFoundError, UsageError."""
    is_folder = is_folder_path(path)
    clean = real = os.path.abspath(path)
    if os.path.islink(clean) and (follow_link or is_folder):
        real = os.path.realpath(clean)
    if not os.path.lexists(real):
        raise NotFoundError(f"`{path}` does not exist")
    return Side(_kind(real, path), clean, path, is_folder, is_contents_path(path)), real


def _look_at_target(path: str) -> Side:
    """A target on the host. Raises UsageError for a link to a folder: an earlier copy may have made it at the guest's word."""
    is_folder = is_folder_path(path)
    clean = os.path.abspath(path)
    if os.path.isdir(clean):
        if os.path.islink(clean) and not is_folder:
            raise UsageError(
                f"`{path}` is a link to a folder", hint=f"to copy into the folder that it leads to, write `{path}/`"
            )
        return Side("directory", clean, path, is_folder)
    if not os.path.lexists(clean):
        return Side("missing", clean, path, is_folder)
    if not os.path.islink(clean) and not os.path.isfile(clean):
        raise UsageError(f"`{path}` is a device, FIFO or socket")
    return Side("file", clean, path, is_folder)


def _kind(path: str, shown: str) -> str:
    if os.path.islink(path):
        return "symlink"
    if os.path.isdir(path):
        return "directory"
    if os.path.isfile(path):
        return "file"
    raise UsageError(f"`{shown}` is a device, FIFO or socket")
