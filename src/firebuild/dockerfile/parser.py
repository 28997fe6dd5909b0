"""Logical lines to syntax nodes: the instruction's name, its flags, its JSON form or its rest. No meaning yet."""

from __future__ import annotations

import msgspec

from firebuild.dockerfile.errors import SpanError, did_you_mean, shown
from firebuild.dockerfile.expand import SPACES
from firebuild.dockerfile.lexer import LogicalLine
from firebuild.dockerfile.words import Word, parse_json_strings, split_head

INSTRUCTION_NAMES = (
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
)
_KNOWN = frozenset(INSTRUCTION_NAMES)
JSON_FORM_INSTRUCTIONS = frozenset({"ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME"})
REFUSED_TRIGGERS = frozenset({"FROM", "MAINTAINER", "ONBUILD"})


class Node(msgspec.Struct, frozen=True):
    """One instruction as it is written. `name`: in capitals; `written`: as in the file; `flags`: unquoted words.

    `json`: the strings of the JSON form, else None and `rest` holds; `trigger`: the instruction inside an ONBUILD.
    """

    name: str
    written: Word
    flags: tuple[Word, ...]
    rest: Word
    line: LogicalLine
    json: tuple[str, ...] | None = None
    trigger: Node | None = None

    @property
    def text(self) -> str:
        """The instruction as one line, trimmed: what history and progress show."""
        return self.line.text[self.written.offset :].strip(SPACES)


def parse_line(line: LogicalLine, escape: str) -> Node:
    """The node of a logical line. Raises SpanError."""
    node = _parse_at(line, escape, 0)
    if node.name != "ONBUILD":
        return node
    if not node.rest.text:
        raise SpanError("ONBUILD needs an instruction", offset=node.written.offset)
    trigger = _parse_at(line, escape, node.rest.offset)
    if trigger.name in REFUSED_TRIGGERS:
        raise SpanError(f"{trigger.name} cannot be a trigger of ONBUILD", offset=trigger.written.offset)
    return msgspec.structs.replace(node, trigger=trigger)


def _parse_at(line: LogicalLine, escape: str, start: int) -> Node:
    head = split_head(line.text, escape, start=start)
    name = head.name.text.upper()
    if not name:
        raise SpanError("a line continuation leads to no instruction", offset=start)
    if name not in _KNOWN or not head.name.text.isascii():
        raise SpanError(
            f"unknown instruction {shown(head.name.text)}",
            offset=head.name.offset,
            hint=did_you_mean(head.name.text, INSTRUCTION_NAMES),
        )
    json = parse_json_strings(head.rest) if name in JSON_FORM_INSTRUCTIONS else None
    return Node(name, head.name, head.flags, head.rest, line, json)
