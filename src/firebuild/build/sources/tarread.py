"""Reading a tar that a stranger made, as a stream of checked entries; nothing is unpacked.

Formats: POSIX ustar and pax (pax(1), IEEE Std 1003.1), GNU's long names and base-256 numbers (tar(5)). What readers of tar
disagree about (sparse maps, data behind a link, names with a zero byte) is refused by the entry's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec

from firebuild.errors import ContextError
from firebuild.events.text import neutralise

BLOCK = 512
_CHUNK = 256 * 1024
_EXTENSION_MAX = 1 << 20
_PATH_MAX = 4095
_TIME_MAX = 1 << 33
_XATTR_PREFIX = "SCHILY.xattr."
_KINDS = {
    b"0": "file", b"\0": "file", b"7": "file", b"1": "hardlink", b"2": "symlink", b"3": "a character device",
    b"4": "a block device", b"5": "directory", b"6": "a FIFO",
}  # fmt: skip
_REFUSED = {
    b"S": "a GNU sparse file: write the archive without --sparse",
    b"M": "a file continued from another volume", b"V": "a volume label", b"D": "a GNU folder dump",
}  # fmt: skip
_TIME = re.compile(r"(-?[0-9]{1,12})(?:\.[0-9]*)?")


class TarLimits(msgspec.Struct, frozen=True):
    """`entries`: members; `bytes`: of their content; `depth`: components of a name."""

    entries: int = 1_000_000
    bytes: int = 64 << 30
    depth: int = 200


class TarEntry(msgspec.Struct, frozen=True):
    """One member. `path`: relative and clean, empty for the root itself; `kind`: file, directory, symlink, hardlink, or
    what it is called if it is a device or FIFO; `target`: a link's, for a hard link as clean as `path`; `device`: major and
    minor; text is UTF-8 with surrogate escapes."""

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_s: int
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, str] = {}


class TarReader:
    """Reads entries in turn. `read`: gives at most that many next bytes of the plain tar, empty at its end; `subject`: names
    the archive in errors. All methods raise ContextError for an archive that is wrong, and what `read` raises."""

    def __init__(self, read: Callable[[int], bytes], subject: str, limits: TarLimits | None = None) -> None:
        self._read = read
        self._subject = subject
        self._limits = limits or TarLimits()
        self._left = 0
        self._padding = 0
        self._count = 0
        self._bytes = 0
        self.offset = 0

    def __iter__(self) -> Iterator[TarEntry]:
        while (entry := self.next_entry()) is not None:
            yield entry

    def next_entry(self) -> TarEntry | None:
        """The next entry, or None behind the last; what was left of the one before is skipped."""
        for _ in self.read_content():
            pass
        extensions: dict[str, str] = {}
        extended = 0
        while True:
            block = self._read_header()
            if block is None:
                return None
            kind, size = block[156:157], self._number(block, 124, 12, "size")
            if kind not in (b"x", b"g", b"L", b"K"):
                return self._entry(block, kind, size, extensions)
            extended += size
            if extended > _EXTENSION_MAX:
                raise self._error(f"an entry's extended headers have more than {_EXTENSION_MAX} bytes")
            data = self._exactly(size)
            self._exactly(-size % BLOCK)
            if kind == b"x":
                extensions |= self._parse_pax(data)
            elif kind != b"g":  # global records: comments of `git archive` and the like
                key = "path" if kind == b"L" else "linkpath"
                extensions[key] = _decode(data.split(b"\0", 1)[0])

    def read_content(self) -> Iterator[bytes]:
        """The content of the entry that next_entry gave last, in pieces."""
        while self._left:
            piece = self._read(min(self._left, _CHUNK))
            if not piece:
                raise self._error("it ends in the middle of a file")
            self._left -= len(piece)
            self.offset += len(piece)
            yield piece
        padding, self._padding = self._padding, 0
        self._exactly(padding)

    def _read_header(self) -> bytes | None:
        block = self._up_to(BLOCK)
        if not block.strip(b"\0"):
            # Two blocks of zeros are the end; one, or the end of the stream, is what some writers leave.
            return None
        if len(block) < BLOCK:
            raise self._error("it ends in the middle of a header")
        stored = self._number(block, 148, 8, "checksum")
        if stored != sum(block) - sum(block[148:156]) + 8 * 32:
            raise self._error("there is no tar header where one should be")
        return block

    def _entry(self, block: bytes, type_: bytes, size: int, extensions: dict[str, str]) -> TarEntry:
        name = extensions.get("path") or _name(block)
        target = extensions.get("linkpath") or _decode(block[157:257].split(b"\0", 1)[0])
        shown = neutralise(name[:200])
        kind = _KINDS.get(type_)
        if kind is None:
            what = _REFUSED.get(type_, f"of the unknown type {type_!r}")
            raise self._error(f"the entry `{shown}` is {what}")
        if kind == "file" and name.endswith("/"):
            kind = "directory"
        if any(key.startswith("GNU.sparse.") for key in extensions):
            raise self._error(f"the entry `{shown}` is {_REFUSED[b'S']}")
        size = self._whole(extensions.get("size"), size, 1 << 60, "size", shown) if kind == "file" else 0
        self._count += 1
        self._bytes += size
        if self._count > self._limits.entries:
            raise self._error(f"it has more than {self._limits.entries} entries")
        if self._bytes > self._limits.bytes:
            raise self._error(f"its files have more than {self._limits.bytes} bytes")
        path = self._clean(name, shown)
        if kind == "hardlink":
            target = self._clean(target, shown)
            if not target:
                raise self._error(f"the entry `{shown}` is a hard link to nothing")
        elif kind == "symlink" and (not target or "\0" in target or len(_encode(target)) > _PATH_MAX):
            raise self._error(f"the entry `{shown}` is a symbolic link without a usable target")
        self._left, self._padding = size, -size % BLOCK
        return TarEntry(
            path=path,
            kind=kind,
            mode=self._number(block, 100, 8, "mode") & 0o7777,
            uid=self._whole(extensions.get("uid"), self._number(block, 108, 8, "owner"), 2**32 - 2, "owner", shown),
            gid=self._whole(extensions.get("gid"), self._number(block, 116, 8, "group"), 2**32 - 2, "group", shown),
            size=size,
            mtime_s=self._time(block, extensions.get("mtime"), shown),
            target=target if kind in ("symlink", "hardlink") else "",
            device=self._device(block, shown) if kind.endswith("device") else (0, 0),
            xattrs={
                key[len(_XATTR_PREFIX) :]: value for key, value in extensions.items() if key.startswith(_XATTR_PREFIX)
            },
        )

    def _clean(self, name: str, shown: str) -> str:
        """A name relative to the archive's root. One that is absolute counts from there too, as in Docker."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self._error(f"the entry `{shown}` leads out of it (`..`)")
        if "\0" in name or len(_encode(name)) > _PATH_MAX or any(len(_encode(part)) > 255 for part in parts):
            raise self._error(f"the entry `{shown}` has a name that no file can have")
        if len(parts) > self._limits.depth:
            raise self._error(f"the entry `{shown}` is nested too deep")
        return "/".join(parts)

    def _device(self, block: bytes, shown: str) -> tuple[int, int]:
        major, minor = self._number(block, 329, 8, "device"), self._number(block, 337, 8, "device")
        # What Linux has (makedev(3)); 0:0 is no device, but overlayfs's mark that a name is deleted.
        if major >= 1 << 12 or minor >= 1 << 20 or (major, minor) == (0, 0):
            raise self._error(f"the entry `{shown}` is a device with an impossible number")
        return major, minor

    def _time(self, block: bytes, text: str | None, shown: str) -> int:
        if text is None:
            if block[136] == 0xFF:  # before 1970: base 256, two's complement
                return max(int.from_bytes(block[136:148], "big", signed=True), -_TIME_MAX)
            return min(self._number(block, 136, 12, "time"), _TIME_MAX)
        match = _TIME.fullmatch(text)
        if match is None:
            raise self._error(f"the entry `{shown}` has a time that is none")
        return min(max(int(match[1]), -_TIME_MAX), _TIME_MAX)

    def _whole(self, text: str | None, default: int, most: int, what: str, shown: str) -> int:
        value = default
        if text is not None:
            value = int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else -1
        if not 0 <= value <= most:
            raise self._error(f"the entry `{shown}` has an impossible {what}")
        return value

    def _number(self, block: bytes, start: int, length: int, what: str) -> int:
        field = block[start : start + length]
        if field[0] & 0x80:
            value = int.from_bytes(field[1:], "big")
            if field[0] != 0x80 or value > 1 << 62:
                raise self._error(f"a header's {what} is negative or too large")
            return value
        text = field.split(b"\0", 1)[0].strip(b" ")
        if text.strip(b"01234567"):
            raise self._error(f"a header's {what} is not a number")
        return int(text or b"0", 8)

    def _parse_pax(self, data: bytes) -> dict[str, str]:
        """Records `LENGTH KEY=VALUE\\n`; a later one replaces an earlier one."""
        found: dict[str, str] = {}
        position = 0
        while position < len(data):
            space = data.find(b" ", position, position + 12)
            digits = data[position:space] if space > 0 else b""
            end = position + (int(digits) if digits.isdigit() else 0)
            key, equals, value = data[space + 1 : max(end - 1, 0)].partition(b"=")
            if end <= space + 1 or end > len(data) or data[end - 1 : end] != b"\n" or not equals:
                raise self._error("a pax header does not parse")
            if not value and key in (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"):
                found.pop(_decode(key), None)
            else:
                found[_decode(key)] = _decode(value)
            position = end
        return found

    def _exactly(self, size: int) -> bytes:
        data = self._up_to(size)
        if len(data) < size:
            raise self._error("it ends in the middle of an entry")
        return data

    def _up_to(self, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        while left and (piece := self._read(left)):
            parts.append(piece)
            left -= len(piece)
            self.offset += len(piece)
        return b"".join(parts)

    def _error(self, why: str) -> ContextError:
        return ContextError(f"{self._subject} is not an archive that firebuild can take: {why}")


def is_header(block: bytes) -> bool:
    """Whether a block of 512 bytes is the header of a tar entry: its checksum tells."""
    text = block[148:156].split(b"\0", 1)[0].strip(b" ")
    if len(block) != BLOCK or not text or text.strip(b"01234567"):
        return False
    return int(text, 8) == sum(block) - sum(block[148:156]) + 8 * 32


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    # In GNU's own format, `ustar  \0`, what stands at 345 is no prefix.
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _decode(prefix + b"/" + name if prefix else name)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
