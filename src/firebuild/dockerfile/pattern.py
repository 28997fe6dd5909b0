"""The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*`, `?` and escapes, matched in linear time.

Matching simulates all positions of the pattern at once in one integer's bits (Baeza-Yates and Gonnet, "Shift-And"),
so that no pattern of a stranger backtracks. As in BuildKit, neither wildcard matches a newline.
"""

from __future__ import annotations

from firebuild.dockerfile.errors import shown
from firebuild.errors import DockerfileError

MAX_PATTERN_LENGTH = 4096

_STAR = ("star", "")
_ANY = ("any", "")
_Token = tuple[str, str]


class _Program:
    """A pattern as bit masks: bit i of a state set says that the first i consuming tokens have matched."""

    __slots__ = ("accept", "any", "chars", "loops")

    def __init__(self, tokens: list[_Token]) -> None:
        self.chars: dict[str, int] = {}
        self.any = 0
        self.loops = 0
        position = 0
        for kind, char in tokens:
            bit = 1 << position
            if kind == "star":
                self.loops |= bit
                continue
            if kind == "any":
                self.any |= bit
            else:
                self.chars[char] = self.chars.get(char, 0) | bit
            position += 1
        self.accept = 1 << position

    def step(self, states: int, char: str) -> int:
        consumed = self.chars.get(char, 0)
        if char == "\n":
            return (states & consumed) << 1
        return ((states & (consumed | self.any)) << 1) | (states & self.loops)

    def find_end(self, value: str, start: int, *, longest: bool) -> int | None:
        states = 1
        found = start if states & self.accept else None
        if found is not None and not longest:
            return found
        for index in range(start, len(value)):
            states = self.step(states, value[index])
            if not states:
                break
            if states & self.accept:
                found = index + 1
                if not longest:
                    break
        return found


def _parse(text: str) -> list[_Token]:
    if len(text) > MAX_PATTERN_LENGTH:
        raise DockerfileError(f"the pattern {shown(text)} is longer than {MAX_PATTERN_LENGTH} characters")
    tokens: list[_Token] = []
    index = 0
    while index < len(text):
        char = text[index]
        index += 1
        if char == "*":
            tokens.append(_STAR)
        elif char == "?":
            tokens.append(_ANY)
        elif char == "\\":
            escaped = text[index : index + 1]
            if escaped not in ("}", "/", "*", "?", "\\") or not escaped:
                raise DockerfileError(
                    f"invalid escape `\\{escaped}` in the pattern {shown(text)}",
                    hint="a pattern escapes only `*`, `?`, `\\`, `/` and `}`",
                )
            tokens.append(("char", escaped))
            index += 1
        else:
            tokens.append(("char", char))
    return tokens


def _literal(tokens: list[_Token]) -> str | None:
    if any(kind != "char" for kind, _ in tokens):
        return None
    return "".join(char for _, char in tokens)


def trim_prefix(value: str, pattern: str, *, longest: bool) -> str:
    """`value` without the shortest or longest prefix that matches; unchanged if none does."""
    tokens = _parse(pattern)
    literal = _literal(tokens)
    if literal is not None:
        return value.removeprefix(literal)
    end = _Program(tokens).find_end(value, 0, longest=longest)
    return value if end is None else value[end:]


def trim_suffix(value: str, pattern: str, *, longest: bool) -> str:
    """`value` without the shortest or longest suffix that matches; unchanged if none does."""
    tokens = _parse(pattern)
    literal = _literal(tokens)
    if literal is not None:
        return value.removesuffix(literal)
    end = _Program(tokens[::-1]).find_end(value[::-1], 0, longest=longest)
    return value if end is None else value[: len(value) - end]


def _find_starts(tokens: list[_Token], value: str) -> bytearray:
    """1 at every offset where some match starts: one pass of the reversed pattern from the end."""
    program = _Program(tokens[::-1])
    starts = bytearray(len(value) + 1)
    states = 0
    for index in range(len(value), -1, -1):
        states |= 1
        if states & program.accept:
            starts[index] = 1
        if index:
            states = program.step(states, value[index - 1])
    return starts


def replace(value: str, pattern: str, replacement: str, *, every: bool, limit: int) -> str:
    """`value` with the first or every longest match replaced.

    An empty match next to a match before it does not count (as Go's regexp has it). Raises DockerfileError if the
    result would exceed `limit` characters.
    """
    tokens = _parse(pattern)
    program = _Program(tokens)
    starts = _find_starts(tokens, value)
    parts: list[str] = []
    length = 0
    copied = search = 0
    while search <= len(value):
        start = starts.find(1, search)
        if start < 0:
            break
        end = program.find_end(value, start, longest=True)
        assert end is not None, "a start that the reversed pattern found has an end"
        parts.append(value[copied:start])
        length += start - copied
        if end > copied or start == 0:
            parts.append(replacement)
            length += len(replacement)
        copied = end
        search = max(search + 1, end)
        if length + len(value) - copied > limit:
            raise DockerfileError(f"the result of a substitution exceeds {limit} characters")
        if not every:
            break
    parts.append(value[copied:])
    return "".join(parts)
