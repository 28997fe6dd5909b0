"""What `$name` means where: global arguments, each stage's ARG and ENV, build arguments, predefined names. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from firebuild.dockerfile.expand import MAX_EXPANDED_LENGTH, Budget, Expansion, Syntax, expand
from firebuild.dockerfile.lexer import MAX_FILE_SIZE
from firebuild.dockerfile.nodes import Arg, ArgDeclaration

PROXY_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")

# Arguments that steer BuildKit and never become variables of a step.
NOT_IN_ENVIRONMENT = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})

# A heredoc is read with the backslash whatever the escape directive says, and its quotes are text.
_HEREDOC_SYNTAX = Syntax(quotes=False)


class Platform(msgspec.Struct, frozen=True):
    """A platform as OCI has it: `linux/arm64/v8`."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def platform_args(build: Platform, target: Platform, stage: str) -> dict[str, str]:
    """The predefined arguments that FROM sees, and that a stage sees once it declares them. `stage`: what is built."""
    return {
        "BUILDPLATFORM": str(build),
        "BUILDOS": build.os,
        "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture,
        "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": str(target),
        "TARGETOS": target.os,
        "TARGETOSVERSION": target.os_version,
        "TARGETARCH": target.architecture,
        "TARGETVARIANT": target.variant,
        "TARGETSTAGE": stage or "default",
    }


def proxy_environment(build_args: Mapping[str, str]) -> dict[str, str]:
    """What RUN steps get of proxy build arguments without any ARG, in both cases. Never part of a cache key."""
    found: dict[str, str] = {}
    for name in sorted(build_args):
        if name.upper() in PROXY_NAMES and build_args[name]:
            found[name.upper()] = build_args[name]
    return found | {name.lower(): value for name, value in found.items()}


def list_unused_build_args(build_args: Mapping[str, str], declared: Iterable[str]) -> list[str]:
    """The build arguments that no ARG declares, but for predefined ones: worth a notice."""
    known = (
        set(declared) | {*PROXY_NAMES, "SOURCE_DATE_EPOCH"} | set(platform_args(Platform("", ""), Platform("", ""), ""))
    )
    return sorted(
        name
        for name in build_args
        if name not in known and name.upper() not in PROXY_NAMES and not name.startswith("BUILDKIT_")
    )


class GlobalScope:
    """The arguments before the first FROM. FROM's base and platform are expanded with it."""

    def __init__(
        self,
        global_args: Iterable[Arg],
        *,
        build_args: Mapping[str, str],
        predefined: Mapping[str, str],
        escape: str = "\\",
        budget: Budget | None = None,
    ) -> None:
        """`predefined`: as `platform_args` gives it; a build argument of such a name overrides it.

        Raises DockerfileError for a default that cannot be expanded; `failed` then names the ARG.
        """
        self.build_args = MappingProxyType(dict(build_args))
        self.escape = escape
        self.budget = budget or Budget()
        self.values: dict[str, str] = {name: build_args.get(name, value) for name, value in predefined.items()}
        self.failed: Arg | None = None
        for instruction in global_args:
            self.declare(instruction)

    def declare(self, instruction: Arg) -> None:
        """Takes in one ARG: a build argument as it is, else its default expanded, else what is predefined."""
        for argument in instruction.arguments:
            if argument.name in self.build_args:
                self.values[argument.name] = self.build_args[argument.name]
            elif argument.default is not None:
                self.values[argument.name] = self.expand(argument.default).text

    def expand(self, text: str) -> Expansion:
        """Expands with the global arguments. Raises DockerfileError."""
        return expand(text, self.values, syntax=Syntax(escape=self.escape), budget=self.budget)


class Scope:
    """The variables of one stage at one instruction. The planner feeds it each ENV and ARG as it passes them.

    Of an ENV and an ARG of one name the later counts for expansions and RUN (BuildKit's rule: an ENV behind an ARG
    overrides it, an ARG behind an ENV, also one of the base image, hides it); the image's config keeps only ENV.
    """

    def __init__(self, global_scope: GlobalScope, environment: Mapping[str, str]) -> None:
        """`environment`: of the base image, in its order."""
        self._global = global_scope
        self._environment = dict(environment)
        self._variables = dict(environment)
        self._arguments: dict[str, str | None] = {}

    def fork(self) -> Scope:
        """The scope of a stage that builds upon this one: it inherits arguments too, as in BuildKit."""
        child = Scope(self._global, self._environment)
        child._variables = dict(self._variables)
        child._arguments = dict(self._arguments)
        return child

    @property
    def escape(self) -> str:
        """The escape character of the file."""
        return self._global.escape

    @property
    def environment(self) -> Mapping[str, str]:
        """The ENV so far, the base image's first: what the image's config gets."""
        return MappingProxyType(self._environment)

    @property
    def run_environment(self) -> Mapping[str, str]:
        """The ENV and ARG so far: what a RUN gets, and what its cache key holds."""
        return MappingProxyType(self._variables)

    @property
    def declared(self) -> tuple[str, ...]:
        """The names that the stage's ARGs declared, in their order."""
        return tuple(self._arguments)

    def is_declared(self, name: str) -> bool:
        """Whether an ARG of the stage, or of one that it builds upon, declared the name."""
        return name in self._arguments

    def history_args(self) -> tuple[str, ...]:
        """The arguments in force as `name=value`, as BuildKit's history shows them before a RUN (`|2 a=1 b=2 …`)."""
        return tuple(f"{name}={self._variables.get(name, value or '')}" for name, value in self._arguments.items())

    def find_arg(self, name: str) -> str | None:
        """The value of a declared argument, None for one without a value or one that is not declared."""
        if name not in self._arguments:
            return None
        return self._variables.get(name, self._arguments[name])

    def set_env(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Takes in an ENV whose names and values are expanded."""
        for name, value in pairs:
            self._environment[name] = value
            self._variables[name] = value

    def declare_arg(self, argument: ArgDeclaration) -> Expansion:
        """Takes in one name of an ARG: a build argument as it is, else its default expanded, else the global value.

        Returns the expansion of the default (empty if none was expanded). Raises DockerfileError.
        """
        value = self._global.build_args.get(argument.name)
        expansion = Expansion("", (), frozenset(), frozenset())
        if value is None and argument.default is not None:
            expansion = self.expand(argument.default)
            value = expansion.text
        elif value is None:
            value = self._global.values.get(argument.name)
        self._arguments[argument.name] = value
        if value is not None and argument.name not in NOT_IN_ENVIRONMENT:
            self._variables[argument.name] = value
        return expansion

    def expand(self, text: str) -> Expansion:
        """Expands a word with the variables so far. Raises DockerfileError."""
        return expand(text, self._variables, syntax=Syntax(escape=self.escape), budget=self._global.budget)

    def expand_heredoc(self, content: str) -> Expansion:
        """Expands a heredoc's content: quotes are text, and the escape character is the backslash."""
        return expand(
            content,
            self._variables,
            syntax=_HEREDOC_SYNTAX,
            limit=MAX_FILE_SIZE + MAX_EXPANDED_LENGTH,
            budget=self._global.budget,
        )

    def expand_for_display(self, text: str) -> str:
        """An instruction's text for progress output: known variables replaced, quotes and unknown ones kept."""
        syntax = Syntax(escape=self.escape, raw_quotes=True, keep_unset=True)
        return expand(text, self._variables, syntax=syntax, limit=2 * MAX_EXPANDED_LENGTH).text
