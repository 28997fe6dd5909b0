"""Checking a tar's framing as it streams past: nothing is unpacked, no name is followed.

Formats: POSIX ustar and pax (pax(1), IEEE Std 1003.1), GNU's long names (tar(5)). Readers of tar disagree about some
archives (data behind a link, sparse maps, bytes behind the end); what can be read in two ways is refused.
"""

from __future__ import annotations

import msgspec

from firebuild.errors import ImageError

BLOCK = 512
_HEADER_DATA_MAX = 1 << 20
_REGULAR = b"0\x007"
_WITHOUT_DATA = b"123456"  # hard link, symbolic link, character and block device, directory, FIFO
_NAMES = {b"S"[0]: "a GNU sparse file", b"M"[0]: "a file continued from another volume", b"V"[0]: "a volume label"}


class TarLimits(msgspec.Struct, frozen=True):
    """How much a tar may hold. `entries`: members, as many as the guest unpacks; `bytes`: of the whole archive."""

    entries: int = 4_000_000
    bytes: int = 256 << 30


class TarChecker:
    """Feed it the archive in pieces of any size, then call `finish`. `subject` names the archive in errors."""

    def __init__(self, subject: str, limits: TarLimits | None = None) -> None:
        self._subject = subject
        self._limits = limits or TarLimits()
        self._pending = bytearray()
        self._skip = 0
        self._offset = 0  # of the first byte of `_pending`, or of what is being skipped
        self._header_data = 0  # bytes of a pax or long-name record still to collect
        self._record = bytearray()
        self._record_type = 0
        self._next_size: int | None = None
        self._long_name: str | None = None
        self._zero_blocks = 0
        self.entries = 0
        self.data_bytes = 0

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return self._offset + len(self._pending)

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes. Raises ImageError naming the offset."""
        view = memoryview(data)
        if self.size + len(view) > self._limits.bytes:
            raise self._error(f"it is larger than {self._limits.bytes} bytes", self.size)
        while view:
            if self._skip:
                step = min(self._skip, len(view))
                self._skip -= step
                self._offset += step
                view = view[step:]
                continue
            step = min(BLOCK - len(self._pending), len(view))
            self._pending += view[:step]
            view = view[step:]
            if len(self._pending) == BLOCK:
                block = bytes(self._pending)
                self._block(block)
                self._pending.clear()
                self._offset += BLOCK

    def finish(self) -> None:
        """The archive is at its end. Raises ImageError if that is too early."""
        if self._pending or self._skip or self._header_data:
            raise self._error("it ends in the middle of an entry", self.size)
        if not self._zero_blocks:
            raise self._error("it ends without an end-of-archive mark, so it may be cut short", self.size)

    def _block(self, block: bytes) -> None:
        if self._header_data:
            self._collect(block)
        elif not block.strip(b"\0"):
            self._zero_blocks += 1
        elif self._zero_blocks:
            raise self._error("there are bytes behind its end", self._offset)
        else:
            self._header(block)

    def _header(self, block: bytes) -> None:
        stored = self._number(block[148:156], "checksum")
        total = sum(block) - sum(block[148:156]) + 8 * 32
        if stored != total:
            raise self._error("there is no tar header where one should be (its checksum is wrong)", self._offset)
        kind = block[156]
        size = self._number(block[124:136], "size")
        if kind in b"xgLK":
            if size > _HEADER_DATA_MAX:
                raise self._error(f"an extended header has {size} bytes, more than {_HEADER_DATA_MAX}", self._offset)
            self._record_type = kind
            self._header_data = size
            self._record.clear()
            return
        name = self._long_name or self._name(block)
        if self._next_size is not None:
            size, self._next_size = self._next_size, None
        self._long_name = None
        self.entries += 1
        if self.entries > self._limits.entries:
            raise self._error(f"it has more than {self._limits.entries} entries", self._offset)
        if kind in _WITHOUT_DATA:
            if size:
                raise self._error(f"the entry `{name}` is a link, folder or device and has data", self._offset)
        elif kind not in _REGULAR:
            what = _NAMES.get(kind, f"of the unknown type {bytes([kind])!r}")
            raise self._error(f"the entry `{name}` is {what}, which firebuild does not take", self._offset)
        self.data_bytes += size
        # A block of this header is still to be counted by `feed`.
        self._skip = -(-size // BLOCK) * BLOCK

    def _collect(self, block: bytes) -> None:
        take = min(self._header_data, BLOCK)
        self._record += block[:take]
        self._header_data -= take
        if self._header_data:
            return
        if self._record_type == b"L"[0]:
            self._long_name = _printable(bytes(self._record).rstrip(b"\0"))
        elif self._record_type in b"xg":
            self._pax(bytes(self._record))

    def _pax(self, record: bytes) -> None:
        """The records `LENGTH KEY=VALUE\\n` of a pax extended header: framing, and the keys that change framing."""
        position = 0
        while position < len(record):
            space = record.find(b" ", position, position + 12)
            length_text = record[position:space] if space > 0 else b""
            length = int(length_text) if length_text.isdigit() else 0
            end = position + length
            if length < 5 or end > len(record) or record[end - 1 : end] != b"\n":
                raise self._error("a pax header's records do not parse", self._offset)
            key, equals, value = record[space + 1 : end - 1].partition(b"=")
            if not equals:
                raise self._error("a pax header's record has no value", self._offset)
            if key == b"size":
                if self._record_type == b"g"[0] or not value.isdigit() or len(value) > 18:
                    raise self._error("a pax header states an impossible size", self._offset)
                self._next_size = int(value)
            elif key == b"path":
                self._long_name = _printable(value)
            elif key.startswith(b"GNU.sparse."):
                raise self._error("an entry is a sparse file, which firebuild does not take", self._offset)
            position = end

    def _number(self, field: bytes, what: str) -> int:
        if field[0] & 0x80:  # base 256 (GNU), here never negative
            if field[0] != 0x80:
                raise self._error(f"a header's {what} is negative or too large", self._offset)
            value = int.from_bytes(field[1:], "big")
        else:
            text = field.split(b"\0", 1)[0].strip(b" ")
            if text and text.strip(b"01234567"):
                raise self._error(f"a header's {what} is not a number", self._offset)
            value = int(text or b"0", 8)
        if value > 1 << 60:
            raise self._error(f"a header's {what} is too large", self._offset)
        return value

    @staticmethod
    def _name(block: bytes) -> str:
        name = block[:100].split(b"\0", 1)[0]
        prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
        return _printable(prefix + b"/" + name if prefix else name)

    def _error(self, why: str, offset: int) -> ImageError:
        return ImageError(f"{self._subject} is not a tar that firebuild can take: at byte {offset}: {why}")


def _printable(name: bytes) -> str:
    text = name[:200].decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
