"""The faults of a Dockerfile: first without a place (pure functions), then with the file, line and column."""

from __future__ import annotations

from collections.abc import Iterable

from firebuild.dockerfile.location import Location
from firebuild.errors import DockerfileError

_SHOWN_LENGTH = 80


class SpanError(DockerfileError):
    """A fault at a place in one logical line. `offset`: in characters from the line's start."""

    def __init__(self, message: str, *, offset: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class LocatedDockerfileError(DockerfileError):
    """A fault with its place: the message starts with `file:line:column`, `details` is the excerpt.

    `problem` is the sentence without the place; `location` the whole instruction; `line` and `column` the very place.
    """

    def __init__(
        self,
        problem: str,
        *,
        file_name: str,
        location: Location,
        line: int,
        column: int,
        hint: str | None = None,
        details: str | None = None,
    ) -> None:
        super().__init__(f"{file_name}:{line}:{column}: {problem}", hint=hint, details=details)
        self.problem = problem
        self.file_name = file_name
        self.location = location
        self.line = line
        self.column = column


def printable(text: str) -> str:
    """Text of a stranger made fit for a terminal: control characters and undecodable bytes become escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\t" else _escape(char) for char in text)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def shown(text: str) -> str:
    """A word of the file as an error message quotes it: printable, shortened, in backquotes."""
    if len(text) > _SHOWN_LENGTH:
        text = text[: _SHOWN_LENGTH - 1] + "…"
    return f"`{printable(text)}`"


def did_you_mean(word: str, known: Iterable[str], *, prefix: str = "") -> str | None:
    """The hint for a word that resembles a known one, else None."""
    if len(word) > _SHOWN_LENGTH:
        return None
    from difflib import get_close_matches

    by_fold = {name.casefold(): name for name in known}
    matches = get_close_matches(word.casefold(), by_fold, n=1, cutoff=0.6)
    return f"did you mean `{prefix}{by_fold[matches[0]]}`?" if matches else None
