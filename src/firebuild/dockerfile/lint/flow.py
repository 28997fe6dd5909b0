"""The rules that follow a stage from instruction to instruction: variables, working directories, what replaces what."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import msgspec

from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import shown
from firebuild.dockerfile.expansion import Expanded, expand_instruction
from firebuild.dockerfile.ignore import IgnoreRules, clean_path
from firebuild.dockerfile.lint import rules
from firebuild.dockerfile.lint.warnings import Collector
from firebuild.dockerfile.scope import NOT_IN_ENVIRONMENT, Platform, Scope
from firebuild.errors import DockerfileError

# Either full words between underscores, or the whole name.
_SECRET = re.compile(
    r"(?:^|_)(?:apikey|auth|credentials?|key|passwd|password|pword|secret|token)(?:_|$)", re.IGNORECASE
)
_NO_SECRET = re.compile(r"(?:^|_)(?:public|file|version)(?:_|$)", re.IGNORECASE)


def looks_secret(name: str) -> bool:
    """Whether a variable's name says that its value is a secret, as BuildKit guesses it."""
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|[A-Za-z0-9_.-]+@[^/:]+:|github\.com/")
# The patterns that leave nothing of a context.
_EVERYTHING = ("*", "**", "**/*")


class BaseFacts(msgspec.Struct, frozen=True):
    """What the linter must know of the image that a stage builds upon. `triggers`: its ONBUILD instructions."""

    environment: Mapping[str, str] = {}
    platform: Platform | None = None
    shell: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()


class StageLinter:
    """Follows one stage. `complete`: the base's environment is known, so that what is unset is undefined."""

    def __init__(
        self,
        scope: Scope,
        collector: Collector,
        *,
        ignore: IgnoreRules | None,
        complete: bool = True,
        has_shell: bool = False,
        has_workdir: bool = False,
    ) -> None:
        self.scope = scope
        self._collector = collector
        self._ignore = ignore
        self._complete = complete
        self._has_shell = has_shell
        self._has_workdir = has_workdir
        self._last: dict[str, nodes.Instruction] = {}

    def fork(self) -> StageLinter:
        """The linter of a stage that builds upon this one."""
        return StageLinter(
            self.scope.fork(),
            self._collector,
            ignore=self._ignore,
            complete=self._complete,
            has_shell=self._has_shell,
            has_workdir=self._has_workdir,
        )

    def follow(self, instruction: nodes.Instruction) -> None:
        """Take in an instruction without a word: a trigger of the base, which this file cannot mend."""
        try:
            expand_instruction(instruction, self.scope)
        except DockerfileError:
            return
        self._has_workdir |= isinstance(instruction, nodes.Workdir)
        self._has_shell |= isinstance(instruction, nodes.Shell)

    def lint(self, instruction: nodes.Instruction) -> None:
        """Take in an instruction and report what is wrong with it. What makes a build fail is left to the build."""
        try:
            self._lint(instruction)
        except DockerfileError:
            return

    def _lint(self, instruction: nodes.Instruction) -> None:
        if isinstance(instruction, nodes.Arg):
            self._lint_arg(instruction)
            return
        if isinstance(instruction, nodes.Expose):
            self._lint_expose(instruction)
            return
        before = self.scope.run_environment
        pairs = instruction.pairs if isinstance(instruction, nodes.Env) else ()
        new = {pair.name for pair in pairs if pair.name not in before}
        expanded = expand_instruction(instruction, self.scope)
        self._report_undefined(instruction, expanded.unset, new)
        self._lint_expanded(instruction, expanded)

    def _lint_expanded(self, instruction: nodes.Instruction, expanded: Expanded) -> None:
        match expanded.instruction:
            case nodes.Env() | nodes.Label() as pairs:
                if any(pair.legacy for pair in pairs.pairs):
                    self._collector.report(rules.LEGACY_KEY_VALUE_FORMAT, instruction, instruction=pairs.name)
                for pair in pairs.pairs if isinstance(pairs, nodes.Env) else ():
                    self._lint_secret(instruction, pair.name)
            case nodes.Workdir() as workdir:
                if not self._has_workdir and not workdir.path.startswith("/"):
                    self._collector.report(rules.WORKDIR_RELATIVE_PATH, instruction, path=shown(workdir.path))
                self._has_workdir = True
            case nodes.Copy() as copy:
                if copy.source is None:
                    self._lint_sources(instruction, copy.sources)
            case nodes.Add() as add:
                self._lint_sources(instruction, [each for each in add.sources if not _REMOTE.match(each)])
            case nodes.Shell():
                self._has_shell = True
            case nodes.Cmd() | nodes.Entrypoint() as program:
                self._lint_once(instruction)
                if program.command.shell and not self._has_shell:
                    self._collector.report(rules.JSON_ARGS_RECOMMENDED, instruction, instruction=program.name)
            case nodes.Healthcheck():
                self._lint_once(instruction)

    def _lint_arg(self, instruction: nodes.Arg) -> None:
        # One by one: a name counts from its own declaration on, and not in its own default.
        for argument in instruction.arguments:
            new = set() if self.scope.is_declared(argument.name) else {argument.name}
            self._lint_secret(instruction, argument.name)
            expansion = self.scope.declare_arg(argument)
            self._report_undefined(instruction, expansion.unset, new)

    def _lint_expose(self, instruction: nodes.Expose) -> None:
        for port in [word for text in instruction.ports for word in self.scope.expand(text).words]:
            *outer, inner = port.split(":")
            protocol = inner.partition("/")[2]
            if protocol != protocol.lower():
                self._collector.report(rules.EXPOSE_PROTO_CASING, instruction, port=shown(port))
            if any(outer):
                self._collector.report(rules.EXPOSE_INVALID_FORMAT, instruction, port=shown(port))

    def _report_undefined(self, instruction: nodes.Instruction, unset: Iterable[str], new: Collection[str]) -> None:
        """`new`: the names that the instruction itself has defined, and that it could not use yet."""
        if not self._complete:
            return
        for name in sorted(unset):
            if name in NOT_IN_ENVIRONMENT or (name not in new and self.scope.is_declared(name)):
                continue
            known = (each for each in self.scope.run_environment if each not in new)
            self._collector.report(
                rules.UNDEFINED_VAR,
                instruction,
                name=shown(f"${name}"),
                suggestion=self._collector.suggest(name, known, prefix="$"),
            )

    def _lint_secret(self, instruction: nodes.Instruction, name: str) -> None:
        if looks_secret(name):
            self._collector.report(
                rules.SECRETS_USED_IN_ARG_OR_ENV, instruction, instruction=instruction.name, name=shown(name)
            )

    def _lint_sources(self, instruction: nodes.Instruction, sources: Iterable[str]) -> None:
        ignore = self._ignore
        if ignore is None or any(pattern.exception for pattern in ignore.patterns):
            return
        for source in sources:
            path = clean_path(source)
            if _leaves_out(ignore, path):
                self._collector.report(
                    rules.COPY_IGNORED_FILE, instruction, instruction=instruction.name, source=shown(path)
                )

    def _lint_once(self, instruction: nodes.Instruction) -> None:
        earlier = self._last.get(instruction.name)
        if earlier is not None:
            self._collector.report(rules.MULTIPLE_INSTRUCTIONS_DISALLOWED, earlier, instruction=instruction.name)
        self._last[instruction.name] = instruction


def _leaves_out(ignore: IgnoreRules, path: str) -> bool:
    """Whether rules without exceptions leave nothing of a clean path. The root is no path that a pattern can mean."""
    if path in (".", "/"):
        return any(pattern.text in _EVERYTHING for pattern in ignore.patterns)
    return ignore.excludes(path)
