"""ADD of an archive: its entries in the tar that the guest gets, rewritten as they stream past; nothing is unpacked here."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import chain

from firebuild.build.sources.tarread import BLOCK, TarEntry, TarLimits, TarReader, is_header
from firebuild.errors import ContextError, ImageError
from firebuild.images.compression import ExpansionLimits, sniff, uncompress

_TYPES = {
    "file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
    "a character device": tarfile.CHRTYPE, "a block device": tarfile.BLKTYPE, "a FIFO": tarfile.FIFOTYPE,
}  # fmt: skip


class _Stream:
    """Pieces of bytes as a file that can be read forwards."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes of the next piece; empty at the end."""
        if not self._rest:
            self._rest = next(self._pieces, b"")
        data = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(data) :]
        return data


def _open_plain(pieces: Iterator[bytes], subject: str, limits: ExpansionLimits | None) -> _Stream:
    def plain() -> Iterator[bytes]:
        try:
            yield from uncompress(_Stream(pieces), subject, limits)  # type: ignore[arg-type]
        except ImageError as error:
            raise ContextError(error.message, hint=error.hint) from error

    return _Stream(plain())


def is_archive(pieces: Iterator[bytes]) -> bool:
    """Whether ADD unpacks a file: a tar, plain or compressed with gzip, bzip2, xz or zstd, that has an entry.

    As in Docker, what is compressed and holds no tar is a plain file.
    """
    try:
        plain = _open_plain(pieces, "the file", None)
        block = b""
        while len(block) < BLOCK and (piece := plain.read(BLOCK - len(block))):
            block += piece
    except ContextError:
        return False
    return is_header(block)


def is_packed(pieces: Iterator[bytes]) -> bool:
    """Whether something is surely no text: an archive, or compressed."""
    head = next(pieces, b"")
    return sniff(head) != "none" or is_archive(chain([head], pieces))


def convert_archive(
    pieces: Iterator[bytes],
    number: int,
    subject: str,
    *,
    limits: TarLimits | None = None,
    expansion: ExpansionLimits | None = None,
) -> Iterator[bytes]:
    """The entries of an archive as those of item `number`, in chunks, without an end-of-archive mark.

    Owners, modes, times, devices and extended attributes stay. Names are clean and relative; one with `..` raises
    ContextError, and so does an archive that is wrong or too large. `pieces` is read to its end.
    """
    reader = TarReader(_open_plain(pieces, subject, expansion).read, subject, limits)
    while (entry := reader.next_entry()) is not None:
        if not entry.path:
            for _ in reader.read_content():
                pass
            continue
        yield _header(entry, number)
        yield from reader.read_content()
        yield bytes(-entry.size % BLOCK)
    for _ in pieces:
        pass


def _header(entry: TarEntry, number: int) -> bytes:
    info = tarfile.TarInfo(f"{number}/{entry.path}")
    info.type = _TYPES[entry.kind]
    info.mode, info.uid, info.gid, info.mtime, info.size = entry.mode, entry.uid, entry.gid, entry.mtime_s, entry.size
    info.linkname = f"{number}/{entry.target}" if entry.kind == "hardlink" else entry.target
    info.devmajor, info.devminor = entry.device
    info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in entry.xattrs.items()}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
