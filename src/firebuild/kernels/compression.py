"""Uncompressing whole files of moderate size: kernels and their modules."""

from __future__ import annotations

import sys
from typing import Any

from firebuild.errors import KernelError

SIZE_MAX = 1 << 30
MAGIC = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x89LZO\x00", "lzo"),
)


def sniff(data: bytes) -> str:
    """The compression by the first bytes, or `none`."""
    for magic, kind in MAGIC:
        if data.startswith(magic):
            return kind
    return "none"


def uncompress(data: bytes, subject: str, *, size_max: int = SIZE_MAX) -> bytes:
    """The content of one compressed stream at the beginning of `data`; bytes behind its end are ignored.

    Raises KernelError naming `subject`: damaged, cut short, more than `size_max` bytes, or a kind no library here reads.
    """
    kind = sniff(data)
    if kind == "none":
        return data
    decompressor = _new_decompressor(kind)
    if decompressor is None:
        raise KernelError(f"{subject} is compressed with {kind}, which firebuild does not read")
    try:
        content: bytes = decompressor.decompress(data, size_max + 1)
    except Exception as error:
        if isinstance(error, (MemoryError, KernelError)):
            raise
        raise KernelError(f"{subject} is damaged: its {kind} data does not decompress: {error}") from error
    if len(content) > size_max:
        raise KernelError(f"{subject} expands to more than {size_max} bytes")
    if not decompressor.eof:
        raise KernelError(f"{subject} is cut short: its {kind} data has no end")
    return content


def _new_decompressor(kind: str) -> Any:
    if kind == "gzip":
        import zlib

        return zlib.decompressobj(31)
    if kind in ("xz", "lzma"):
        import lzma

        # The kernel's xz stream uses the x86 branch filter, which liblzma knows.
        return lzma.LZMADecompressor(format=lzma.FORMAT_AUTO, memlimit=512 << 20)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    if kind == "zstd":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd

        # The kernel is compressed with a window of 128 MiB (scripts/Makefile.lib, zstd22).
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 27})
    if kind == "lz4":
        from firebuild.kernels.lz4 import Lz4LegacyDecompressor

        return Lz4LegacyDecompressor()
    return None
