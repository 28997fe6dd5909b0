"""The one way in: a parsed Dockerfile to its warnings. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import LocatedDockerfileError, shown
from firebuild.dockerfile.expand import Expansion
from firebuild.dockerfile.ignore import IgnoreRules
from firebuild.dockerfile.lint import rules
from firebuild.dockerfile.lint.flow import BaseFacts, StageLinter
from firebuild.dockerfile.lint.options import CheckOptions, load_check_options
from firebuild.dockerfile.lint.warnings import Collector, LintWarning
from firebuild.dockerfile.lint.written import lint_written
from firebuild.dockerfile.platforms import is_same_platform, parse_platform
from firebuild.dockerfile.scope import GlobalScope, Platform, Scope, platform_args
from firebuild.dockerfile.stages import SCRATCH, Dockerfile, Stage, parse_trigger
from firebuild.errors import DockerfileError, UsageError
from firebuild.names import parse_reference

# What every stage has whose base sets none: BuildKit's default on Linux.
_DEFAULT_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def lint_dockerfile(
    dockerfile: Dockerfile,
    *,
    build_args: Mapping[str, str],
    platform: Platform,
    target: str = "",
    bases: Mapping[int, BaseFacts] | None = None,
    stages: Collection[int] | None = None,
    ignore: IgnoreRules | None = None,
    context_names: Collection[str] = (),
) -> list[LintWarning]:
    """What BuildKit's linter would warn of, by lines; the file's `check` directive and the comments above are obeyed.

    `platform`: what is built for, and on; `target`: the name of the stage to build; `bases`: for each stage, by its
    index, that builds upon an image: what is known of that image. Of a stage whose image is not there, undefined
    variables are not reported. `stages`: the indices of those whose instructions are looked at, None for all;
    `ignore`: the rules of the context's ignore file; `context_names`: the named contexts, which replace stages.

    What would make the build fail is not reported here: plan it. Raises DockerfileError for a malformed `check`.
    """
    collector = Collector(load_check_options(dockerfile, build_args))
    lint_written(dockerfile, collector)
    predefined = platform_args(platform, platform, target)
    _lint_default_bases(dockerfile, predefined, build_args, collector)
    try:
        scope = GlobalScope(
            dockerfile.global_args, build_args=build_args, predefined=predefined, escape=dockerfile.escape
        )
    except DockerfileError:
        return collector.warnings()
    walk = _Walk(dockerfile, scope, platform, bases or {}, ignore, collector)
    for stage in dockerfile.stages:
        base = walk.lint_from(stage)
        if stage.name in context_names or (stages is not None and stage.index not in stages):
            continue
        walk.lint_stage(stage, base)
    return collector.warnings()


def refuse_warnings(dockerfile: Dockerfile, warnings: Collection[LintWarning], build_args: Mapping[str, str]) -> None:
    """Raises LocatedDockerfileError, at the first of `warnings`, if the file's `check` directive says `error=true`."""
    options: CheckOptions = load_check_options(dockerfile, build_args)
    if not options.error or not warnings:
        return
    first = min(warnings, key=lambda warning: warning.line)
    names = ", ".join(sorted({warning.rule.name for warning in warnings}))
    error = DockerfileError(
        f"the checks found {len(warnings)} warning{'s' if len(warnings) > 1 else ''} ({names}): {first.message}",
        hint="the `check` directive of the file (`error=true`) makes warnings errors",
    )
    located = dockerfile.locate(error, first.location)
    assert isinstance(located, LocatedDockerfileError)
    raise located


class _Walk:
    """Goes through the stages in the file's order."""

    def __init__(
        self,
        dockerfile: Dockerfile,
        scope: GlobalScope,
        platform: Platform,
        bases: Mapping[int, BaseFacts],
        ignore: IgnoreRules | None,
        collector: Collector,
    ) -> None:
        self._dockerfile = dockerfile
        self._scope = scope
        self._platform = platform
        self._bases = bases
        self._ignore = ignore
        self._collector = collector
        self._declared = {each.name for arg in dockerfile.global_args for each in arg.arguments} | set(scope.values)
        self._done: dict[int, StageLinter] = {}

    def lint_from(self, stage: Stage) -> str:
        """Report what is wrong with a FROM. Returns the base, expanded; empty if it cannot be."""
        base = self._expand_from(stage, stage.base)
        wanted = self._platform
        if stage.platform is not None:
            platform = self._expand_from(stage, stage.platform)
            if platform is not None:
                wanted = self._lint_platform(stage, stage.platform, platform)
        facts = self._bases.get(stage.index)
        if facts is not None and facts.platform is not None:
            same = (facts.platform.os, facts.platform.architecture) == (wanted.os, wanted.architecture)
            if not same and not is_same_platform(facts.platform, wanted):
                self._collector.report(
                    rules.INVALID_BASE_IMAGE_PLATFORM,
                    stage.start,
                    image=shown(base.text if base else stage.base),
                    actual=shown(str(facts.platform)),
                    expected=shown(str(wanted)),
                )
        return base.text if base else ""

    def _expand_from(self, stage: Stage, text: str) -> Expansion | None:
        try:
            expansion = self._scope.expand(text)
        except DockerfileError:
            return None
        for name in sorted(expansion.unset - self._declared):
            self._collector.report(
                rules.UNDEFINED_ARG_IN_FROM,
                stage.start,
                name=shown(name),
                suggestion=self._collector.suggest(name, self._declared),
            )
        return expansion

    def _lint_platform(self, stage: Stage, written: str, expansion: Expansion) -> Platform:
        if expansion.used == {"TARGETPLATFORM"} and not expansion.unset:
            if expansion.text == self._scope.values["TARGETPLATFORM"]:
                self._collector.report(rules.REDUNDANT_TARGET_PLATFORM, stage.start, platform=shown(written).strip("`"))
            return self._platform
        try:
            platform = parse_platform(expansion.text, self._platform)
        except DockerfileError:
            return self._platform
        name = stage.name or ""
        if not expansion.used and not expansion.unset and platform.os not in name and platform.architecture not in name:
            self._collector.report(
                rules.FROM_PLATFORM_FLAG_CONST_DISALLOWED, stage.start, platform=shown(expansion.text)
            )
        return platform

    def lint_stage(self, stage: Stage, base: str) -> None:
        """Report what is wrong with the instructions of a stage."""
        linter = self._open_stage(stage, base)
        self._done[stage.index] = linter
        for instruction in stage.instructions:
            linter.lint(instruction)

    def _open_stage(self, stage: Stage, base: str) -> StageLinter:
        parent = self._dockerfile.find_base(stage, base)
        if parent is not None and parent.index in self._done:
            linter = self._done[parent.index].fork()
            for instruction in parent.instructions:
                if isinstance(instruction, nodes.Onbuild):
                    _follow(linter, instruction.trigger)
            return linter
        facts = self._bases.get(stage.index if parent is None else parent.index)
        if facts is None:
            scope = Scope(self._scope, _DEFAULT_ENVIRONMENT)
            return StageLinter(scope, self._collector, ignore=self._ignore, complete=base == SCRATCH and parent is None)
        scope = Scope(self._scope, {**_DEFAULT_ENVIRONMENT, **facts.environment})
        linter = StageLinter(scope, self._collector, ignore=self._ignore, has_shell=bool(facts.shell))
        for trigger in facts.triggers:
            _follow(linter, trigger)
        return linter


def _follow(linter: StageLinter, trigger: str) -> None:
    try:
        instruction = parse_trigger(trigger)
    except DockerfileError:
        return
    linter.follow(instruction)


def _lint_default_bases(
    dockerfile: Dockerfile, predefined: Mapping[str, str], build_args: Mapping[str, str], collector: Collector
) -> None:
    """Whether each FROM names something if no argument is given that the file declares."""
    given = {name: build_args.get(name, value) for name, value in predefined.items()}
    try:
        scope = GlobalScope(dockerfile.global_args, build_args={}, predefined=given, escape=dockerfile.escape)
        bases = [scope.expand(stage.base).text for stage in dockerfile.stages]
    except DockerfileError:
        return
    for stage, base in zip(dockerfile.stages, bases, strict=True):
        try:
            parse_reference(base)
        except UsageError:
            collector.report(rules.INVALID_DEFAULT_ARG_IN_FROM, stage.start, base=shown(stage.base))
