"""A warning of the linter, and the one place where warnings are collected and those that are not wanted dropped."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import msgspec

from firebuild.dockerfile.errors import did_you_mean
from firebuild.dockerfile.lint.options import CheckOptions, find_comment_options
from firebuild.dockerfile.lint.rules import Rule
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.nodes import Instruction

_MAX_SUGGESTIONS = 200


class LintWarning(msgspec.Struct, frozen=True):
    """What a rule has found. `message`: one sentence without a final period, fit for a terminal."""

    rule: Rule
    message: str
    location: Location

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.location.start_line

    def __str__(self) -> str:
        return f"{self.rule.name}: {self.message} (line {self.line})"


class Collector:
    """Takes what the rules find, in any order."""

    def __init__(self, options: CheckOptions) -> None:
        self._options = options
        self._options_at: dict[Location, CheckOptions] = {}
        self._suggestions = _MAX_SUGGESTIONS
        self._found: list[LintWarning] = []

    def report(self, rule: Rule, about: Instruction, /, *, location: Location | None = None, **fields: str) -> None:
        """Take in a finding. `about`: the instruction; `location`: the very place, if it is not all of the instruction.

        `fields`: of the rule's message, fit for a terminal.
        """
        if self._options_for(about).applies(rule):
            self._found.append(LintWarning(rule, rule.render(**fields), location or about.location))

    def _options_for(self, about: Instruction) -> CheckOptions:
        options = self._options_at.get(about.location)
        if options is None:
            own = find_comment_options(about.comments)
            options = self._options if own is None else self._options.merge(own)
            self._options_at[about.location] = options
        return options

    def suggest(self, name: str, known: Iterable[str], *, prefix: str = "") -> str:
        """The end of a message, naming a word that resembles `name`; empty if there is none.

        Only the first warnings of a file have one: a comparison with every name is work that a file must not multiply.
        """
        if self._suggestions == 0:
            return ""
        self._suggestions -= 1
        hint = did_you_mean(name, islice(known, _MAX_SUGGESTIONS), prefix=prefix)
        return f" ({hint})" if hint else ""

    def warnings(self) -> list[LintWarning]:
        """What was found, by lines."""
        return sorted(self._found, key=lambda warning: (warning.line, warning.location.start_column))
