"""Splits the text of an instruction: its name, its flags, its words, its name-value pairs, its JSON form."""

from __future__ import annotations

import re

import msgspec

from firebuild.dockerfile.errors import SpanError, shown
from firebuild.dockerfile.expand import SPACES

# BuildKit separates words by these only; the wider SPACES are trimmed at the ends.
WORD_SPACES = "\t\v\f\r "
_WORD_SPACE_RUN = re.compile(f"[{WORD_SPACES}]+")
_SPACE_SET = frozenset(SPACES)
_FLAG_SPACES = frozenset("\t\n\v\f\r ")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Word(msgspec.Struct, frozen=True):
    """A piece of an instruction. `offset`: in characters from the start of the logical line."""

    text: str
    offset: int


class Head(msgspec.Struct, frozen=True):
    """An instruction split: `name` as written, its flags (`--a=b`, unquoted) and the `rest`, trimmed."""

    name: Word
    flags: tuple[Word, ...]
    rest: Word


class Pair(msgspec.Struct, frozen=True):
    """A name and a value of ENV or LABEL. `legacy`: written as `ENV name value`."""

    name: str
    value: str
    legacy: bool = False


def _trimmed(text: str, start: int, end: int) -> Word:
    while start < end and text[start] in _SPACE_SET:
        start += 1
    while end > start and text[end - 1] in _SPACE_SET:
        end -= 1
    return Word(text[start:end], start)


def split_head(text: str, escape: str, *, start: int = 0) -> Head:
    """Splits the instruction that begins at `start` of a logical line into name, flags and rest."""
    whole = _trimmed(text, start, len(text))
    end = whole.offset + len(whole.text)
    space = _WORD_SPACE_RUN.search(text, whole.offset, end)
    if space is None:
        return Head(whole, (), Word("", end))
    name = Word(text[whole.offset : space.start()], whole.offset)
    flags, position = _split_flags(text, space.end(), end, escape)
    return Head(name, tuple(flags), _trimmed(text, position, end))


def _split_flags(text: str, position: int, end: int, escape: str) -> tuple[list[Word], int]:
    """The words that begin with `--`, quotes and escapes removed, and the offset where the arguments begin."""
    flags: list[Word] = []
    while True:
        while position < end and text[position] in _FLAG_SPACES:
            position += 1
        if not text.startswith("--", position, end):
            return flags, position
        start = position
        chars: list[str] = []
        quote = ""
        while position < end:
            char = text[position]
            if quote:
                if char == quote:
                    quote = ""
                    position += 1
                    continue
            elif char in _FLAG_SPACES:
                break
            elif char in "'\"":
                quote = char
                position += 1
                continue
            if char == escape:
                position += 1
                if position >= end:
                    break
                char = text[position]
            chars.append(char)
            position += 1
        word = "".join(chars)
        if word == "--":
            return flags, position
        flags.append(Word(word, start))


def split_spaces(rest: Word) -> list[Word]:
    """The words of `rest`, separated by spaces alone: quotes mean nothing yet. Empty if `rest` is."""
    words: list[Word] = []
    position = 0
    for match in _WORD_SPACE_RUN.finditer(rest.text):
        words.append(Word(rest.text[position : match.start()], rest.offset + position))
        position = match.end()
    if rest.text:
        words.append(Word(rest.text[position:], rest.offset + position))
    return words


def split_quoted(rest: Word, escape: str) -> list[Word]:
    """The words of `rest`, separated by spaces outside quotes; quotes and escapes stay in them for the expansion."""
    text = rest.text
    words: list[Word] = []
    position = 0
    end = len(text)
    while True:
        while position < end and text[position] in _SPACE_SET:
            position += 1
        if position >= end:
            return words
        start = position
        chars: list[str] = []
        quote = ""
        while position < end:
            char = text[position]
            if quote:
                if char == quote:
                    quote = ""
            elif char in _SPACE_SET:
                break
            elif char in "'\"":
                quote = char
            if char == escape and quote != "'":
                position += 1
                if position >= end:
                    break
                chars.append(char)
                char = text[position]
            chars.append(char)
            position += 1
        if chars:
            words.append(Word("".join(chars), rest.offset + start))


def parse_pairs(instruction: str, rest: Word, escape: str) -> tuple[Pair, ...]:
    """The pairs of ENV and LABEL, in `name=value …` or in the old `name value` form. Raises SpanError."""
    words = split_quoted(rest, escape)
    if not words:
        raise SpanError(f"{instruction} needs at least one argument", offset=rest.offset)
    if "=" not in words[0].text:
        parts = _WORD_SPACE_RUN.split(rest.text, maxsplit=1)
        if len(parts) < 2:
            raise SpanError(
                f"{instruction} needs a name and a value, and got only {shown(rest.text)}",
                offset=rest.offset,
                hint=f"write `{instruction} name=value`",
            )
        return (Pair(parts[0], parts[1], legacy=True),)
    pairs: list[Pair] = []
    for word in words:
        name, equals, value = word.text.partition("=")
        if not equals:
            raise SpanError(
                f"{shown(word.text)} has no `=`; {instruction} takes `name=value`",
                offset=word.offset,
                hint="quote a value that has spaces",
            )
        if not name:
            raise SpanError(f"{instruction} needs a name before the `=`", offset=word.offset)
        pairs.append(Pair(name, value))
    return tuple(pairs)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def parse_json_strings(rest: Word) -> tuple[str, ...] | None:
    """The JSON form: an array of strings. None if the text is no JSON array (it is then the shell form).

    Raises SpanError for a valid array that holds anything but strings.
    """
    if not rest.text.startswith("["):
        return None
    import json

    try:
        value = json.loads(rest.text, parse_constant=_refuse_constant)
    except RecursionError:
        value = [None]
    except ValueError:
        return None
    if not isinstance(value, list):
        return None
    strings: list[str] = []
    for item in value:
        if not isinstance(item, str):
            raise SpanError("the JSON form takes an array of strings only", offset=rest.offset)
        strings.append(_LONE_SURROGATE.sub("\ufffd", item))
    return tuple(strings)
