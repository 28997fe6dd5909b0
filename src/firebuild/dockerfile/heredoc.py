"""Finds the heredocs that an instruction announces: `<<EOF`, `<<-EOF`, `<<"EOF"`, `3<<EOF`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from firebuild.dockerfile.expand import Syntax, expand
from firebuild.dockerfile.words import parse_json_strings, split_head
from firebuild.errors import DockerfileError

_HEREDOC = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)")
_LEADING_TABS = re.compile(r"^\t+", re.MULTILINE)
_TAKES_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})

# Heredoc words are read with the backslash, whatever the escape directive says, as in BuildKit.
_LINE_SYNTAX = Syntax(raw_quotes=True, raw_escapes=True, keep_unset=True)
_WORD_SYNTAX = Syntax(keep_unset=True)
_RAW_WORD_SYNTAX = Syntax(raw_quotes=True, keep_unset=True)


class HeredocWord(msgspec.Struct, frozen=True):
    """An announced heredoc. `expand`: no part of the name was quoted; `chomp`: `<<-`, leading tabs go."""

    name: str
    expand: bool
    chomp: bool
    file_descriptor: int = 0


class Heredoc(msgspec.Struct, frozen=True):
    """A heredoc with its content as written, each line with its newline; tabs are still there if `chomp`."""

    name: str
    content: str
    expand: bool
    chomp: bool
    file_descriptor: int = 0

    @property
    def text(self) -> str:
        """The content as the program or the file gets it: without leading tabs if the form is `<<-`."""
        return _LEADING_TABS.sub("", self.content) if self.chomp else self.content


def parse_heredoc_word(text: str) -> HeredocWord | None:
    """The heredoc that one word announces, or None. Raises DockerfileError for unbalanced quotes."""
    match = _HEREDOC.fullmatch(text)
    if match is None or not match.group(3):
        return None
    words = expand(match.group(3), {}, syntax=_WORD_SYNTAX).words
    if len(words) != 1:
        return None
    raw = expand(match.group(3), {}, syntax=_RAW_WORD_SYNTAX).text
    quoted = _count_quotes(raw) != _count_quotes(words[0])
    return HeredocWord(words[0], not quoted, match.group(2) == "-", int(match.group(1)[:6] or "0"))


def _count_quotes(text: str) -> int:
    return text.count("'") + text.count('"')


def find_heredocs(line: str, escape: str) -> Sequence[HeredocWord]:
    """The heredocs that a logical line announces, in their order. Only RUN, COPY and ADD, and ONBUILD with one of
    these, have any, and only outside the JSON form."""
    if "<<" not in line:
        return ()
    head = split_head(line, escape)
    name = head.name.text.upper()
    if name == "ONBUILD":
        head = split_head(line, escape, start=head.rest.offset)
        name = head.name.text.upper()
    if name not in _TAKES_HEREDOCS or parse_json_strings(head.rest) is not None:
        return ()
    try:
        words = expand(line, {}, syntax=_LINE_SYNTAX, limit=2 * len(line) + 2).words
    except DockerfileError:
        # A line that this lexer cannot read (a lone quote, say) has no heredocs; the shell may know what it means.
        return ()
    found = [parse_heredoc_word(word) for word in words]
    return [word for word in found if word is not None]
