"""The `check` directive: which rules are skipped, which experimental ones hold, and whether a warning is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from firebuild.dockerfile.errors import shown
from firebuild.dockerfile.lexer import parse_directive
from firebuild.dockerfile.lint.rules import Rule
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.stages import Dockerfile
from firebuild.dockerfile.values import parse_boolean
from firebuild.errors import DockerfileError

ALL = "all"
# The build argument that stands in for the directive, as in BuildKit.
CHECK_ARGUMENT = "BUILDKIT_DOCKERFILE_CHECK"


class CheckOptions(msgspec.Struct, frozen=True):
    """What a `check` directive chose. A name that no rule has does nothing, as in BuildKit."""

    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error: bool = False

    def applies(self, rule: Rule) -> bool:
        """Whether a rule is in force. `skip` has no power over experimental rules, which are off unless asked for."""
        if rule.experimental:
            return not self.experimental.isdisjoint((ALL, rule.name))
        return self.skip.isdisjoint((ALL, rule.name))

    def merge(self, other: CheckOptions) -> CheckOptions:
        """These options and what `other` adds to them; whether warnings are errors is the file's alone."""
        return CheckOptions(self.skip | other.skip, self.experimental | other.experimental, self.error)


def parse_check_options(text: str) -> CheckOptions:
    """Reads `skip=Rule1,Rule2;experimental=all;error=true`. Only what stands before the first space counts.

    Raises DockerfileError.
    """
    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error = False
    text = text.partition(" ")[0]
    for option in text.split(";") if text else ():
        name, equals, value = option.partition("=")
        if not equals or name not in ("skip", "experimental", "error"):
            raise DockerfileError(
                f"{shown(option)} is no option of `check`",
                hint="write `# check=skip=Rule1,Rule2;error=true`; the options are skip, experimental and error",
            )
        if name == "error":
            error = parse_boolean(value)
        elif name == "skip":
            skip = frozenset(value.split(","))
        else:
            experimental = frozenset(value.split(","))
    return CheckOptions(skip, experimental, error)


def load_check_options(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> CheckOptions:
    """The options of a whole file: of the build argument BUILDKIT_DOCKERFILE_CHECK, else of its `check` directive.

    Raises DockerfileError, with its place if it is the directive's.
    """
    given = build_args.get(CHECK_ARGUMENT)
    if given is not None:
        try:
            return parse_check_options(given)
        except DockerfileError as error:
            raise DockerfileError(f"the build argument {CHECK_ARGUMENT}: {error.message}", hint=error.hint) from None
    for directive in dockerfile.directives:
        if directive.name == "check":
            try:
                return parse_check_options(directive.value)
            except DockerfileError as error:
                text = dockerfile.source.lines[directive.line - 1]
                raise dockerfile.locate(error, Location(directive.line, 1, directive.line, len(text) + 1)) from None
    return CheckOptions()


def find_comment_options(comments: Iterable[str]) -> CheckOptions | None:
    """The options that a comment above an instruction gives for it alone (`# check=skip=…`); None for a malformed one."""
    for comment in comments:
        found = parse_directive(comment)
        if found is not None and found[0] == "check":
            try:
                return parse_check_options(found[1])
            except DockerfileError:
                return None
    return None
