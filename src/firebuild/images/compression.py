"""Uncompressing streams of which nobody knows the honesty: kind by magic, bounded output, bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import msgspec

from firebuild.errors import ImageError

CHUNK = 1 << 18
_MEMORY_LIMIT = 256 << 20
_WINDOW_LOG_MAX = 27  # 128 MiB, what `zstd -d` takes without being asked
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
)


class ExpansionLimits(msgspec.Struct, frozen=True):
    """`bytes`: of uncompressed data; `ratio`: uncompressed to compressed, asked for once `ratio_from_bytes` have come out."""

    bytes: int = 256 << 30
    ratio: int = 5000
    ratio_from_bytes: int = 1 << 30


def sniff(head: bytes) -> str:
    """The compression of a file by its first bytes: gzip, xz, zstd, bzip2 or none."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    # A zstd stream may begin with a skippable frame (RFC 8878, section 3.1.2).
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"
    return "none"


def load_zstd() -> Any:
    """The zstd module: the standard library's from Python 3.14 on, else backports.zstd."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def uncompress(file: BinaryIO, subject: str, limits: ExpansionLimits | None = None) -> Iterator[bytes]:
    """The uncompressed content of a file, in pieces; several members or frames one after the other count as one.

    Raises ImageError naming `subject` for data that is damaged, cut short, or expands beyond the limits.
    """
    limits = limits or ExpansionLimits()
    head = file.read(CHUNK)
    kind = sniff(head)
    taken, given = 0, 0

    def read() -> bytes:
        nonlocal taken, head
        data, head = (head or file.read(CHUNK)), b""
        taken += len(data)
        return data

    for piece in _plain(read) if kind == "none" else _members(read, kind, subject):
        given += len(piece)
        if given > limits.bytes:
            raise ImageError(f"{subject} expands to more than {limits.bytes} bytes")
        if given > limits.ratio_from_bytes and given > taken * limits.ratio:
            raise ImageError(f"{subject} expands more than {limits.ratio} times: it looks like a decompression bomb")
        yield piece


def _plain(read: Callable[[], bytes]) -> Iterator[bytes]:
    while data := read():
        yield data


def _members(read: Callable[[], bytes], kind: str, subject: str) -> Iterator[bytes]:
    data = read()
    while data:
        decompressor = _new_decompressor(kind)
        try:
            while not decompressor.eof:
                if not data and decompressor.needs_input:
                    data = read()
                    if not data:
                        raise ImageError(f"{subject} is cut short: its {kind} stream has no end")
                piece = decompressor.decompress(data, CHUNK)
                data = b""
                if piece:
                    yield piece
        except ImageError:
            raise
        except Exception as error:
            if not _is_decompression_error(error):
                raise
            raise ImageError(f"{subject} is damaged: its {kind} stream does not decompress: {error}") from error
        data = decompressor.unused_data or read()
        # gzip and xz both allow zero bytes behind and between members.
        while kind in ("gzip", "xz") and data and not (data := data.lstrip(b"\0")):
            data = read()


def _is_decompression_error(error: Exception) -> bool:
    import lzma
    import zlib

    if isinstance(error, OSError):
        return error.errno is None  # bz2's way to say "invalid data"; a real read error has a number
    return isinstance(error, (zlib.error, lzma.LZMAError, load_zstd().ZstdError, EOFError, ValueError))


class _Gzip:
    """zlib's decompressor for one gzip member, in the shape of lzma's and bz2's."""

    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def _new_decompressor(kind: str) -> Any:
    if kind == "gzip":
        return _Gzip()
    if kind == "xz":
        import lzma

        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY_LIMIT)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    zstd = load_zstd()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})
