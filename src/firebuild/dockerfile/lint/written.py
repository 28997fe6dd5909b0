"""The rules that look at a Dockerfile as it is written, whatever its variables mean."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import shown
from firebuild.dockerfile.lexer import LogicalLine
from firebuild.dockerfile.lint import rules
from firebuild.dockerfile.lint.warnings import Collector
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.parser import parse_line
from firebuild.dockerfile.stages import RESERVED_STAGE_NAMES, Dockerfile, list_duplicate_names
from firebuild.dockerfile.words import split_spaces


class _Written(msgspec.Struct, frozen=True):
    """An instruction and how it is written. `keyword`: its name as in the file; `words`: its arguments, of FROM only."""

    instruction: nodes.Instruction
    line: LogicalLine
    keyword: str
    words: tuple[str, ...]


def lint_written(dockerfile: Dockerfile, collector: Collector) -> None:
    """Report what is seen without any variable."""
    found = _list_written(dockerfile)
    for written in found:
        _lint_continuation(written, collector)
        match written.instruction:
            case nodes.From() as start:
                _lint_from_casing(written, collector)
                _lint_description(start, [start.stage] if start.stage else [], collector)
            case nodes.Arg() as arg:
                _lint_description(arg, [each.name for each in arg.arguments], collector)
            case nodes.Maintainer() as maintainer:
                collector.report(rules.MAINTAINER_DEPRECATED, maintainer)
    _lint_casing(found[len(dockerfile.global_args) :], collector)
    for stage in dockerfile.stages:
        if stage.name in RESERVED_STAGE_NAMES:
            collector.report(rules.RESERVED_STAGE_NAME, stage.start, name=shown(stage.name))
    for stage in list_duplicate_names(dockerfile.stages):
        collector.report(rules.DUPLICATE_STAGE_NAME, stage.start, name=shown(stage.name or ""))


def _list_written(dockerfile: Dockerfile) -> list[_Written]:
    """Every instruction of the file, in its order: a logical line holds exactly one."""
    instructions: list[nodes.Instruction] = [*dockerfile.global_args]
    for stage in dockerfile.stages:
        instructions += [stage.start, *stage.instructions]
    found: list[_Written] = []
    for instruction, line in zip(instructions, dockerfile.lines, strict=True):
        node = parse_line(line, dockerfile.escape)
        words = split_spaces(node.rest) if node.name == "FROM" else []
        found.append(_Written(instruction, line, node.written.text, tuple(word.text for word in words)))
    return found


def _lint_continuation(written: _Written, collector: Collector) -> None:
    if written.line.empty_lines:
        number = written.line.empty_lines[0]
        place = Location(number, 1, number, 1)
        collector.report(rules.NO_EMPTY_CONTINUATION, written.instruction, location=place)


def _lint_from_casing(written: _Written, collector: Collector) -> None:
    if len(written.words) != 3:
        return
    _, keyword, name = written.words
    if name != name.lower():
        collector.report(rules.STAGE_NAME_CASING, written.instruction, name=shown(name))
    # A FROM in a case of its own is the matter of another rule.
    lower, upper = written.keyword == written.keyword.lower(), written.keyword == written.keyword.upper()
    if (lower and keyword != keyword.lower()) or (upper and keyword != keyword.upper()):
        collector.report(
            rules.FROM_AS_CASING, written.instruction, keyword=shown(keyword), instruction=shown(written.keyword)
        )


def _lint_description(instruction: nodes.Instruction, names: list[str], collector: Collector) -> None:
    if not instruction.comments or not names:
        return
    if instruction.comments[-1].split(" ")[0] not in names:
        wanted = names[0] if len(names) == 1 else "name"
        collector.report(
            rules.INVALID_DEFINITION_DESCRIPTION,
            instruction,
            instruction=instruction.name,
            name=shown(wanted).strip("`"),
        )


def _lint_casing(found: Sequence[_Written], collector: Collector) -> None:
    lower = sum(written.keyword == written.keyword.lower() for written in found)
    upper = sum(written.keyword == written.keyword.upper() for written in found)
    for written in found:
        wanted = written.keyword.lower() if lower > upper else written.keyword.upper()
        if written.keyword != wanted:
            collector.report(
                rules.CONSISTENT_INSTRUCTION_CASING,
                written.instruction,
                instruction=shown(written.keyword),
                case="lower" if lower > upper else "upper",
            )
