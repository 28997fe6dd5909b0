"""Uncompressing LZ4's legacy frames, as the kernel build makes them: no library that firebuild depends on reads LZ4.

Format: lz4_Frame_format.md, "Legacy frame", and lz4_Block_format.md. A kernel of 60 MB takes a few seconds, once.
"""

from __future__ import annotations

MAGIC = b"\x02\x21\x4c\x18"
_BLOCK_MAX = 8 << 20


class Lz4LegacyDecompressor:
    """The same shape as the standard library's decompressors, for the whole input at once."""

    def __init__(self) -> None:
        self.eof = False

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """The content of the legacy frame at the beginning of `data`. Raises ValueError for what is none, or damaged."""
        if data[:4] != MAGIC:
            raise ValueError("no LZ4 legacy frame")
        output = bytearray()
        position = 4
        # The frame has no end mark. It ends with the data, with the next frame, or, inside a bzImage, with
        # the four bytes of the uncompressed size that the kernel build appends: too few for a block.
        while position + 4 < len(data) and len(output) < max_length:
            size = int.from_bytes(data[position : position + 4], "little")
            if data[position : position + 4] == MAGIC:
                position += 4
                continue
            position += 4
            if size > len(data) - position:
                raise ValueError(f"a block of {size} bytes reaches beyond the end")
            output += _decompress_block(data[position : position + size])
            position += size
        self.eof = position + 4 >= len(data)
        return bytes(output)


def _decompress_block(source: bytes) -> bytearray:
    """One block (at most 8 MiB of content). Raises ValueError."""
    output = bytearray()
    position = 0
    end = len(source)
    try:
        while True:
            token = source[position]
            position += 1
            length = token >> 4
            if length == 15:
                more = 255
                while more == 255:
                    more = source[position]
                    position += 1
                    length += more
            if length:
                if length > end - position:
                    raise ValueError("literals reach beyond the end")
                output += source[position : position + length]
                position += length
            if position == end:
                return output
            distance = source[position] | source[position + 1] << 8
            position += 2
            length = (token & 15) + 4
            if length == 19:
                more = 255
                while more == 255:
                    more = source[position]
                    position += 1
                    length += more
            start = len(output) - distance
            if start < 0 or not distance:
                raise ValueError("a match lies before the beginning")
            if len(output) + length > _BLOCK_MAX:
                raise ValueError("a block is larger than 8 MiB")
            if distance >= length:
                output += output[start : start + length]
            else:
                pattern = output[start:]
                output += (pattern * (length // distance + 1))[:length]
    except IndexError:
        raise ValueError("a block is cut short") from None
