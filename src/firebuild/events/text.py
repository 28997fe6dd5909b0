"""Text of strangers made fit for terminals and logs: no control sequence passes."""

from __future__ import annotations

import re

# ECMA-48: CSI sequences, the string sequences (OSC, DCS, SOS, PM, APC) up to their terminator, and two-byte escapes.
_SEQUENCES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]*[0-~]"
)


def neutralise(text: str) -> str:
    """One line of text without terminal sequences; other control and invisible characters become escapes.

    Tabs stay. What is left holds no C0, C1, bidirectional or other format control: it cannot move a cursor, set a title
    or reorder a line.
    """
    if text.isprintable():
        return text
    text = _SEQUENCES.sub("", text)
    return "".join(char if char.isprintable() or char in "\t\xa0" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def decode_output(data: bytes) -> str:
    """Bytes of a program as text; what is not UTF-8 becomes U+FFFD."""
    return data.decode("utf-8", "replace")


class LineSplitter:
    """Turns chunks of bytes into lines fit to be shown. A line longer than `limit` bytes is given out in pieces.

    A carriage return within a line starts it over, as a terminal shows it: of a progress bar the last state stays.
    """

    def __init__(self, limit: int = 8192) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *lines, rest = (self._rest + data).split(b"\n")
        lines = [_last_state(line.rstrip(b"\r")) for line in lines]
        body = rest.rstrip(b"\r")
        rest = _last_state(body) + rest[len(body) :][:1]
        while len(rest) > self._limit:
            lines.append(rest[: self._limit])
            rest = rest[self._limit :]
        self._rest = rest
        return [_shown(piece) for line in lines for piece in _pieces(line, self._limit)]

    def flush(self) -> list[str]:
        """What is left without a newline, if anything."""
        rest, self._rest = self._rest, b""
        return [_shown(rest)] if rest else []


def _pieces(line: bytes, limit: int) -> list[bytes]:
    return [line[start : start + limit] for start in range(0, len(line), limit)] or [b""]


def _last_state(line: bytes) -> bytes:
    return line[line.rfind(b"\r") + 1 :]


def _shown(line: bytes) -> str:
    return neutralise(decode_output(_last_state(line.rstrip(b"\r"))))
