"""A tree of the host's as a tar stream: what the user names, links as links, in the order of names."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from firebuild.errors import HostError, NotFoundError
from firebuild.host.files import map_os_error

_CHUNK = 256 << 10
_DEEPEST = 256
_TIME_MAX = 1 << 33


class PackOptions(msgspec.Struct, frozen=True):
    """`keep_owner`: owners as on the host, else root's. `left_out`: told of what no guest takes: sockets, FIFOs, devices.

    `takes`: of a path relative to the tree, and its status, whether it is packed at all."""

    keep_owner: bool = False
    left_out: Callable[[str], None] = lambda path: None
    takes: Callable[[str, os.stat_result], bool] = lambda path, status: True


def pack_tree(source: Path, name: str, options: PackOptions) -> Iterator[bytes]:
    """The tar of a file, link or folder under the name `name`; of a folder with an empty name what is in it.

    A folder's entries come after it, sorted. Raises HostError for what cannot be read or changes meanwhile."""
    try:
        folder = os.open(source.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise map_os_error(error, f"opening `{source.parent}`") from error
    try:
        yield from _pack(folder, source.name or ".", name, name, str(source), options, 0)
    finally:
        os.close(folder)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _pack(folder: int, own: str, name: str, top: str, shown: str, options: PackOptions, depth: int) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise HostError(f"`{shown}` is nested too deep to be copied")
    try:
        status = os.stat(own, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        if depth == 0:
            raise NotFoundError(f"`{shown}` does not exist") from None
        return  # gone since its folder was read
    relative = name[len(top) :].lstrip("/") if top else name
    if relative and not options.takes(relative, status):
        return
    kind = stat.S_IFMT(status.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        options.left_out(shown)
        return
    info = _header(name, status, options)
    try:
        if kind == stat.S_IFLNK:
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(own, dir_fd=folder)
            yield _encode(info)
        elif kind == stat.S_IFREG:
            yield from _pack_file(folder, own, info, shown)
        else:
            if name:
                info.type = tarfile.DIRTYPE
                yield _encode(info)
            # The first may be `.`, or what the user himself has named by a link.
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            inner = os.open(own, flags, dir_fd=folder)
            try:
                for child in sorted(os.listdir(inner)):
                    path = f"{name}/{child}" if name else child
                    yield from _pack(inner, child, path, top, f"{shown}/{child}", options, depth + 1)
            finally:
                os.close(inner)
    except OSError as error:
        raise map_os_error(error, f"reading `{shown}`") from error


def _header(name: str, status: os.stat_result, options: PackOptions) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(status.st_mode)
    info.mtime = min(max(int(status.st_mtime), 0), _TIME_MAX)
    if options.keep_owner:
        info.uid, info.gid = status.st_uid, status.st_gid
    return info


def _encode(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _pack_file(folder: int, own: str, info: tarfile.TarInfo, shown: str) -> Iterator[bytes]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(own, flags, dir_fd=folder), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise HostError(f"`{shown}` changed while it was copied")
        left = info.size = status.st_size
        yield _encode(info)
        while left:
            piece = file.read(min(left, _CHUNK))
            if not piece:
                raise HostError(
                    f"`{shown}` became shorter while it was copied", hint="copy it when nobody writes to it"
                )
            left -= len(piece)
            yield piece
        yield bytes(-info.size % tarfile.BLOCKSIZE)
