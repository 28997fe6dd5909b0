"""Expands `$x`, `${x…}`, quotes and escapes in a word, as a Dockerfile's instructions do (not as a shell does).

The forms are those of BuildKit's word lexer: `$x ${x} ${x:-w} ${x-w} ${x:+w} ${x+w} ${x:?e} ${x?e} ${x#p} ${x##p}
${x%p} ${x%%p} ${x/p/r} ${x//p/r}`. A pure function: the caller brings the variables and gets back which were used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from firebuild.dockerfile import pattern
from firebuild.dockerfile.errors import shown
from firebuild.errors import DockerfileError

MAX_EXPANDED_LENGTH = 64 * 1024
MAX_NESTING = 64

# What Go's unicode.IsSpace takes for white space (str.isspace() would add U+001C to U+001F).
SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_SPACE_RUN = re.compile(f"[{SPACES}]+")
_SPECIAL_PARAMETERS = frozenset("@*#?-$!0")
_HEREDOC_SPACES = "\t\r "


class Expansion(msgspec.Struct, frozen=True):
    """A word expanded. `text`: as one word; `words`: split at unquoted spaces, those of values too.

    `used`: the names that had a value; `unset`: the names that had none. Both belong into a cache key.
    """

    text: str
    words: tuple[str, ...]
    used: frozenset[str]
    unset: frozenset[str]


class Budget:
    """Bounds the characters that the expansions of one file may process, whatever they nest and repeat."""

    __slots__ = ("copied", "matched")

    def __init__(self, *, copied: int = 64 * 1024 * 1024, matched: int = 1024 * 1024) -> None:
        self.copied = copied
        self.matched = matched

    def spend_copy(self, amount: int) -> None:
        self.copied -= amount
        if self.copied < 0:
            raise DockerfileError("the expansions of this Dockerfile take too much work")

    def spend_match(self, amount: int) -> None:
        self.matched -= amount
        if self.matched < 0:
            raise DockerfileError("the pattern substitutions of this Dockerfile take too much work")


class Syntax(msgspec.Struct, frozen=True):
    """How to read a word. `escape`: the escape character; `quotes`: quotes group and are removed.

    `raw_quotes` and `raw_escapes` keep them in the result; `keep_unset` leaves references to unset names as written.
    """

    escape: str = "\\"
    quotes: bool = True
    raw_quotes: bool = False
    raw_escapes: bool = False
    keep_unset: bool = False


@lru_cache(maxsize=32)
def _plain_run(escape: str, stop: str, quotes: bool) -> re.Pattern[str]:
    special = "$<" + ("'\"" if quotes else "") + escape + stop
    return re.compile(f"[^{re.escape(special)}]+")


class _Words:
    """Collects the pieces of a text and splits it into words. An empty quoted word does not count, as in BuildKit."""

    __slots__ = ("current", "words")

    def __init__(self) -> None:
        self.words: list[str] = []
        self.current: list[str] = []

    def add(self, text: str) -> None:
        if not text:
            return
        pieces = _SPACE_RUN.split(text)
        self.current.append(pieces[0])
        for piece in pieces[1:]:
            self.close()
            self.current.append(piece)

    def add_raw(self, text: str) -> None:
        self.current.append(text)

    def close(self) -> None:
        word = "".join(self.current)
        if word:
            self.words.append(word)
        self.current = []


class _Expander:
    def __init__(self, source: str, variables: Mapping[str, str], syntax: Syntax, limit: int, budget: Budget) -> None:
        self.source = source
        self.position = 0
        self.variables = variables
        self.syntax = syntax
        self.limit = limit
        self.budget = budget
        self.depth = 0
        self.used: set[str] = set()
        self.unset: set[str] = set()

    def peek(self) -> str:
        return self.source[self.position : self.position + 1]

    def take(self) -> str:
        char = self.source[self.position : self.position + 1]
        self.position += 1
        return char

    def read(self, stop: str, raw_escapes: bool) -> tuple[str, list[str]]:
        """The text up to `stop` (which is consumed) or, with an empty `stop`, to the end."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise DockerfileError(f"substitutions are nested more than {MAX_NESTING} deep in {shown(self.source)}")
        parts: list[str] = []
        words = _Words()
        length = 0
        syntax = self.syntax
        plain = _plain_run(syntax.escape, stop, syntax.quotes)
        while self.position < len(self.source):
            match = plain.match(self.source, self.position)
            if match:
                piece = match.group()
                self.position = match.end()
                words.add(piece)
            else:
                char = self.source[self.position]
                if char == stop:
                    self.position += 1
                    words.close()
                    self.depth -= 1
                    return "".join(parts), words.words
                if char == "$":
                    piece = self.read_dollar(raw_escapes)
                    words.add(piece)
                else:
                    piece = self.read_special(char, raw_escapes)
                    words.add_raw(piece)
            length += len(piece)
            if length > self.limit:
                raise DockerfileError(f"{shown(self.source)} expands to more than {self.limit} characters")
            parts.append(piece)
        if stop:
            raise DockerfileError(f"a `{stop}` is missing in {shown(self.source)}")
        words.close()
        self.depth -= 1
        return "".join(parts), words.words

    def read_special(self, char: str, raw_escapes: bool) -> str:
        if char == "'":
            return self.read_single_quoted()
        if char == '"':
            return self.read_double_quoted(raw_escapes)
        if char == "<":
            return self.read_possible_heredoc()
        self.position += 1
        # The escape character: takes the next character literally, whatever it is; at the end it is dropped.
        following = self.take()
        return (char + following) if raw_escapes else following

    def read_single_quoted(self) -> str:
        start = self.position + 1
        end = self.source.find("'", start)
        if end < 0:
            raise DockerfileError(f"a single quote is not closed in {shown(self.source)}")
        self.position = end + 1
        text = self.source[start:end]
        return f"'{text}'" if self.syntax.raw_quotes else text

    def read_double_quoted(self, raw_escapes: bool) -> str:
        escape = self.syntax.escape
        self.position += 1
        parts: list[str] = []
        length = 0
        while True:
            char = self.peek()
            if not char:
                raise DockerfileError(f"a double quote is not closed in {shown(self.source)}")
            if char == '"':
                self.position += 1
                break
            if char == "$":
                piece = self.read_dollar(raw_escapes)
            else:
                self.position += 1
                piece = char
                if char == escape:
                    following = self.peek()
                    if not following:
                        continue
                    if following in ('"', "$", escape):
                        self.position += 1
                        piece = (char + following) if raw_escapes else following
                    elif raw_escapes:
                        # BuildKit writes the escape once as raw and once as itself.
                        piece = char + char
            length += len(piece)
            if length > self.limit:
                raise DockerfileError(f"{shown(self.source)} expands to more than {self.limit} characters")
            parts.append(piece)
        text = "".join(parts)
        return f'"{text}"' if self.syntax.raw_quotes else text

    def read_possible_heredoc(self) -> str:
        """`<<` keeps the spaces behind it to its word, so that `<<  EOF` is one word."""
        start = self.position
        self.position += 1
        if self.peek() == "<":
            self.position += 1
            while self.peek() and self.peek() in _HEREDOC_SPACES:
                self.position += 1
        return self.source[start : self.position]

    def read_name(self) -> str:
        start = self.position
        char = self.peek()
        if char.isdecimal():
            while self.peek().isdecimal():
                self.position += 1
        elif char in _SPECIAL_PARAMETERS and char:
            self.position += 1
        else:
            while (char := self.peek()) and (char.isalpha() or char.isdecimal() or char == "_"):
                self.position += 1
        return self.source[start : self.position]

    def find_value(self, name: str) -> str | None:
        value = self.variables.get(name)
        (self.unset if value is None else self.used).add(name)
        self.budget.spend_copy(len(value) if value else 1)
        return value

    def read_dollar(self, raw_escapes: bool) -> str:
        self.position += 1
        if self.peek() != "{":
            name = self.read_name()
            if not name:
                return "$"
            value = self.find_value(name)
            if value is None:
                return f"${name}" if self.syntax.keep_unset else ""
            return value
        self.position += 1
        following = self.peek()
        if not following:
            raise DockerfileError(f"a `}}` is missing in {shown(self.source)}")
        if following in "{}:":
            raise DockerfileError(f"bad substitution in {shown(self.source)}", hint="the form is `${name}`")
        name = self.read_name()
        operator = self.take()
        if operator == "}":
            value = self.find_value(name)
            if value is None:
                return f"${{{name}}}" if self.syntax.keep_unset else ""
            return value
        if operator == "/":
            return self.substitute_replacement(name)
        colon = operator == ":"
        if colon:
            operator = self.take()
        if operator not in ("+", "-", "?", "#", "%") or not operator or (colon and operator in "#%"):
            raise DockerfileError(
                f"unsupported modifier {shown((':' if colon else '') + operator)} in {shown(self.source)}",
                hint="known are `:-` `-` `:+` `+` `:?` `?` `#` `##` `%` `%%` `/` `//`",
            )
        return self.substitute(name, colon, operator)

    def substitute(self, name: str, colon: bool, operator: str) -> str:
        word, _ = self.read("}", operator in "#%")
        value = self.find_value(name)
        self.budget.spend_copy(len(word))
        if value is None and self.syntax.keep_unset:
            return f"${{{name}{':' if colon else ''}{operator}{word}}}"
        missing = value is None or (colon and value == "")
        if operator == "-":
            return word if missing else value or ""
        if operator == "+":
            return "" if missing else word
        if operator == "?":
            if missing:
                state = "is not set" if value is None else "is empty"
                raise DockerfileError(f"`{name}` {state}" + (f": {word}" if word else ""))
            return value or ""
        longest = word.startswith(operator)
        if longest:
            word = word[1:]
        text = value or ""
        self.budget.spend_match(len(text) if ("*" in word or "?" in word) else 0)
        if operator == "#":
            return pattern.trim_prefix(text, word, longest=longest)
        return pattern.trim_suffix(text, word, longest=longest)

    def substitute_replacement(self, name: str) -> str:
        every = self.peek() == "/"
        if every:
            self.position += 1
        wanted, _ = self.read("/", True)
        replacement, _ = self.read("}", True)
        value = self.find_value(name)
        self.budget.spend_copy(len(wanted) + len(replacement))
        if value is None:
            if self.syntax.keep_unset:
                return f"${{{name}{'//' if every else '/'}{wanted}/{replacement}}}"
            value = ""
        self.budget.spend_match(2 * len(value))
        return pattern.replace(value, wanted, replacement, every=every, limit=self.limit)


def expand(
    text: str,
    variables: Mapping[str, str],
    *,
    syntax: Syntax | None = None,
    limit: int = MAX_EXPANDED_LENGTH,
    budget: Budget | None = None,
) -> Expansion:
    """Expands `text` with `variables`. Raises DockerfileError (without a place) for what BuildKit refuses, and for a
    result of more than `limit` characters or more work than `budget` has left."""
    syntax = syntax or Syntax()
    expander = _Expander(text, variables, syntax, limit, budget or Budget())
    result, words = expander.read("", syntax.raw_escapes)
    return Expansion(result, tuple(words), frozenset(expander.used), frozenset(expander.unset))
