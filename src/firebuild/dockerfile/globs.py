"""The globs of `.dockerignore` as one automaton: all patterns matched at once, in linear time, remembered as it goes.

The grammar is that of moby/patternmatcher: `*` and `?` stop at `/`, `**` crosses it, `[…]` is a class (negated with
`^`), a backslash escapes. A set of states is an integer: each pattern owns a run of bits, in the patterns' order, and
its last bit accepts. Transitions are remembered (a lazy DFA), so that a walk costs a look-up for each character.
"""

from __future__ import annotations

from collections.abc import Sequence

from firebuild.dockerfile.errors import shown
from firebuild.errors import DockerfileError

# What the remembered transitions may take, about, before they are forgotten.
_MEMORY_BYTES = 32 * 1024 * 1024


class _Class:
    """A `[…]`: ranges of characters, perhaps negated. Unlike `?` it may match a slash, as in patternmatcher."""

    def __init__(self, ranges: list[tuple[str, str]], negated: bool) -> None:
        self.ranges = ranges
        self.negated = negated

    def matches(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) != self.negated


def _bad(pattern: str, why: str) -> DockerfileError:
    return DockerfileError(f"the pattern {shown(pattern)} is malformed: {why}")


def _parse_class(pattern: str, index: int) -> tuple[_Class, int]:
    """Reads a class whose `[` stands before `index` (the grammar of Go's filepath.Match)."""
    negated = pattern.startswith("^", index)
    index += negated
    ranges: list[tuple[str, str]] = []
    while not (ranges and pattern.startswith("]", index)):
        low, index = _parse_class_char(pattern, index)
        high = low
        if pattern.startswith("-", index):
            high, index = _parse_class_char(pattern, index + 1)
        if high < low:
            raise _bad(pattern, f"the range {shown(f'{low}-{high}')} is empty")
        ranges.append((low, high))
    return _Class(ranges, negated), index + 1


def _parse_class_char(pattern: str, index: int) -> tuple[str, int]:
    char = pattern[index : index + 1]
    if char in ("-", "]"):
        raise _bad(pattern, f"{shown(char)} must be escaped in a class")
    if char == "\\":
        index += 1
        char = pattern[index : index + 1]
    if not char or index + 1 >= len(pattern):
        raise _bad(pattern, "a class is not closed")
    return char, index + 1


def check_glob(pattern: str) -> None:
    """Raises DockerfileError if a pattern is malformed."""
    index = 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if char == "[":
            _, index = _parse_class(pattern, index)
        elif char == "\\":
            if index == len(pattern):
                raise _bad(pattern, "it ends with an escape")
            index += 1


class GlobSet:
    """Patterns, in order, matched together. `start`: the states before any character; `accepting`: the last bits."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises DockerfileError for a malformed pattern."""
        self.start = 0
        self.accepting = 0
        self._bits = 0
        self._chars: dict[str, int] = {}
        self._any_name_char = 0
        self._classes: list[tuple[int, _Class]] = []
        self._loop_name = 0
        self._loop_all = 0
        self._skips = 0
        self._owners: dict[int, int] = {}
        self._runs: list[tuple[int, int]] = []
        for index, pattern in enumerate(patterns):
            self._add(index, pattern)
        self.start = self._close(self.start)
        self._classes_of: dict[str, int] = {}
        self._tables: dict[int, dict[str, int]] = {}
        self._table_limit = max(64, _MEMORY_BYTES // (400 + self._bits // 4))

    def states_of(self, index: int) -> int:
        """The bits that belong to a pattern."""
        start, end = self._runs[index]
        return (1 << end) - (1 << start)

    def owner(self, bit: int) -> int:
        """The pattern that an accepting bit belongs to."""
        return self._owners[bit]

    def advance(self, states: int, text: str) -> int:
        """The states after `text`."""
        for char in text:
            if not states:
                return 0
            table = self._tables.get(states)
            if table is None:
                if len(self._tables) >= self._table_limit:
                    self._tables.clear()
                table = self._tables[states] = {}
            following = table.get(char)
            if following is None:
                following = table[char] = self._step(states, char)
            states = following
        return states

    def _add(self, index: int, pattern: str) -> None:
        start = self._bits
        self.start |= 1 << start
        self._add_tokens(pattern)
        self._owners[self._bits] = index
        self.accepting |= 1 << self._bits
        self._bits += 1
        self._runs.append((start, self._bits))

    def _add_tokens(self, pattern: str) -> None:
        # A leading `**` whose rest is plain text compares ends alone: `**foo` matches `xfoo`. With any other wildcard
        # behind it, it stands for whole folders: `**foo*` does not match `xfoo`. So patternmatcher has it.
        if pattern.startswith("**") and not any(char in pattern[2:] for char in "*?[]\\"):
            if pattern.startswith("**/"):
                self._add_folders()
                pattern = pattern[3:]
            else:
                self._loop_all |= 1 << self._bits
                pattern = pattern[2:]
        index = 0
        while index < len(pattern):
            char = pattern[index]
            index += 1
            if char == "*" and pattern.startswith("*", index):
                index += 1
                if pattern.startswith("/", index):
                    index += 1
                if index == len(pattern):
                    self._loop_all |= 1 << self._bits
                else:
                    self._add_folders()
            elif char == "*":
                self._loop_name |= 1 << self._bits
            elif char == "?":
                self._any_name_char |= 1 << self._bits
                self._bits += 1
            elif char == "[":
                parsed, index = _parse_class(pattern, index)
                self._classes.append((1 << self._bits, parsed))
                self._bits += 1
            else:
                if char == "\\":
                    if index == len(pattern):
                        raise _bad(pattern, "it ends with an escape")
                    char = pattern[index]
                    index += 1
                self._add_char(char)

    def _add_char(self, char: str) -> None:
        self._chars[char] = self._chars.get(char, 0) | 1 << self._bits
        self._bits += 1

    def _add_folders(self) -> None:
        """`**/`: nothing, or anything that ends with a slash. Two bits: an entry that may be skipped, and a loop."""
        self._skips |= 1 << self._bits
        self._bits += 1
        self._loop_all |= 1 << self._bits
        self._add_char("/")

    def _close(self, states: int) -> int:
        entries = states & self._skips
        while entries:
            states |= entries << 1 | entries << 2
            entries = entries << 2 & self._skips
        return states

    def _step(self, states: int, char: str) -> int:
        consuming = self._chars.get(char, 0) | self._class_bits(char)
        looping = self._loop_all
        if char != "/":
            consuming |= self._any_name_char
            looping |= self._loop_name
        return self._close(((states & consuming) << 1) | (states & looping))

    def _class_bits(self, char: str) -> int:
        if not self._classes:
            return 0
        bits = self._classes_of.get(char)
        if bits is None:
            bits = 0
            for bit, parsed in self._classes:
                if parsed.matches(char):
                    bits |= bit
            self._classes_of[char] = bits
        return bits
