"""Checks a Dockerfile against its context and its base images without building: lint and plan, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from firebuild.build.graph import GetImage, NamedContexts
from firebuild.build.plan import PlanOptions, plan_build
from firebuild.build.services import BuildRequest
from firebuild.build.sources.spec import ImageContext
from firebuild.build.steps import ContextSource, Plan
from firebuild.dockerfile.ignore import IgnoreRules
from firebuild.dockerfile.lint.flow import BaseFacts
from firebuild.dockerfile.lint.linter import lint_dockerfile, refuse_warnings
from firebuild.dockerfile.lint.warnings import LintWarning
from firebuild.dockerfile.scope import GlobalScope, Platform, platform_args
from firebuild.dockerfile.stages import SCRATCH, Dockerfile, parse_dockerfile
from firebuild.errors import FirebuildError, NotFoundError
from firebuild.events.text import neutralise
from firebuild.names import Reference, parse_reference
from firebuild.store.images import Image


class CheckReport(msgspec.Struct, frozen=True):
    """What a check found. `lines`: the Dockerfile's, for excerpts; `notices`: what should be known and is no warning;
    `error`: the first fault that a build would end with, if there is one."""

    name: str
    lines: tuple[str, ...] = ()
    warnings: tuple[LintWarning, ...] = ()
    notices: tuple[str, ...] = ()
    error: FirebuildError | None = None

    @property
    def passed(self) -> bool:
        """Whether there is neither a warning nor an error."""
        return not self.warnings and self.error is None


def make_options(request: BuildRequest, target: str | None) -> PlanOptions:
    """What a request says about its plan."""
    return PlanOptions(
        name=request.identity or request.name,
        platform=request.platform,
        build_args=request.build_args,
        labels=request.labels,
        target=target,
        network=request.network,
        pre_commands=tuple(request.pre_commands),
        post_commands=tuple(request.post_commands),
        contexts={
            name: source.reference if isinstance(source, ImageContext) else ContextSource(name)
            for name, source in request.contexts.items()
        },
    )


class _UnknownImage(Exception):
    """An image that is not at hand, so that nothing more can be said of what builds upon it: its name and why."""


def lint_plan(
    dockerfile: Dockerfile, plan: Plan, request: BuildRequest, ignore: IgnoreRules | None
) -> list[LintWarning]:
    """The linter's warnings of a build that is planned: of its needed stages. Raises DockerfileError for a malformed
    `check` directive, and where that directive makes warnings errors."""
    bases = {stage.index: base_facts(stage.base) for stage in plan.stages if not isinstance(stage.base, int)}
    warnings = lint_dockerfile(
        dockerfile,
        build_args=request.build_args,
        platform=request.platform,
        target=dockerfile.get_target(request.target).name or "",
        bases=bases,
        stages={stage.index for stage in plan.stages},
        ignore=ignore,
        context_names=_list_replaced(dockerfile, NamedContexts(make_options(request, None).contexts)),
    )
    refuse_warnings(dockerfile, warnings, request.build_args)
    return warnings


def base_facts(base: Image | ContextSource | None) -> BaseFacts:
    """What the linter must know of what a stage builds upon: nothing at all of `scratch` and of a folder."""
    if not isinstance(base, Image):
        return BaseFacts()
    config = base.config
    return BaseFacts(
        environment=dict(pair.partition("=")[::2] for pair in config.config.env),
        platform=Platform(config.os, config.architecture, config.variant or ""),
        shell=tuple(config.config.shell),
        triggers=tuple(config.config.on_build),
    )


def _list_replaced(dockerfile: Dockerfile, contexts: NamedContexts) -> set[str]:
    """The names of the stages that a named context takes the place of."""
    return {stage.name for stage in dockerfile.stages if stage.name and stage.name in contexts}


def check_image(
    request: BuildRequest,
    find_image: GetImage,
    load_ignore: Callable[[], IgnoreRules | None],
) -> CheckReport:
    """Lint and plan what a request asks for; without a target all stages. Boots nothing, pulls nothing, stores nothing.

    `find_image`: an image, of which only the configuration is looked at. It raises NotFoundError for one that does not
    exist, and another FirebuildError for one that is not at hand: a notice then says that what builds upon it was not
    planned. `load_ignore`: reads the context's ignore file. What a build of the request would raise is the report's
    `error`, and not raised.
    """
    try:
        dockerfile = parse_dockerfile(request.dockerfile, request.name)
    except FirebuildError as error:
        return CheckReport(request.name, error=error)
    check = _Check(dockerfile, request, find_image)
    ignore = None
    with check.guard():
        ignore = load_ignore()
    with check.guard():
        check.run(ignore)
    return CheckReport(
        name=request.name,
        lines=dockerfile.source.lines,
        warnings=tuple(check.warnings),
        notices=tuple(dict.fromkeys(check.notices)),
        error=check.error,
    )


class _Check:
    """One check on its way. The first error stays."""

    def __init__(self, dockerfile: Dockerfile, request: BuildRequest, find_image: GetImage) -> None:
        self.dockerfile = dockerfile
        self.request = request
        self.warnings: list[LintWarning] = []
        self.notices: list[str] = []
        self.error: FirebuildError | None = None
        self._find_image = find_image
        self._contexts = NamedContexts(make_options(request, None).contexts)
        self._images: dict[str, Image | FirebuildError] = {}

    @contextmanager
    def guard(self) -> Iterator[None]:
        """A part of the check; an error ends that part alone."""
        try:
            yield
        except FirebuildError as error:
            self.error = self.error or error

    def run(self, ignore: IgnoreRules | None) -> None:
        """Plan the stages, then lint them; all that comes of it is in this object."""
        target = self.dockerfile.get_target(self.request.target)
        planned: set[int] = set()
        for stage in [target] if self.request.target else reversed(self.dockerfile.stages):
            if stage.index not in planned:
                with self.guard():
                    planned |= self._plan(str(stage.index))
        stages = (planned or {target.index}) if self.request.target else None
        self.warnings = lint_dockerfile(
            self.dockerfile,
            build_args=self.request.build_args,
            platform=self.request.platform,
            target=target.name or "",
            bases=self._find_bases(target.name or ""),
            stages=stages,
            ignore=ignore,
            context_names=_list_replaced(self.dockerfile, self._contexts),
        )
        refuse_warnings(self.dockerfile, self.warnings, self.request.build_args)

    def _plan(self, target: str) -> set[int]:
        options = make_options(self.request, target)
        try:
            plan = plan_build(self.dockerfile, options, self._get_image)
        except _UnknownImage as unknown:
            self.notices.append(f"not planned, because the base image is not at hand: {neutralise(str(unknown))}")
            return set()
        self.notices += plan.warnings
        return {stage.index for stage in plan.stages}

    def _get_image(self, reference: Reference) -> Image:
        found = self._images.get(reference.full)
        if found is None:
            try:
                found = self._find_image(reference)
            except FirebuildError as error:
                found = error
            self._images[reference.full] = found
        if isinstance(found, NotFoundError):
            raise found
        if isinstance(found, FirebuildError):
            raise _UnknownImage(f"{reference.familiar}: {found.message}")
        return found

    def _find_bases(self, target: str) -> Mapping[int, BaseFacts]:
        """What is known of what stages build upon, also of those that cannot be planned."""
        platform = self.request.platform
        facts: dict[int, BaseFacts] = {}
        try:
            scope = GlobalScope(
                self.dockerfile.global_args,
                build_args=self.request.build_args,
                predefined=platform_args(platform, platform, target),
                escape=self.dockerfile.escape,
            )
        except FirebuildError:
            return facts
        for stage in self.dockerfile.stages:
            try:
                base = scope.expand(stage.base).text
                named = stage.name if stage.name and stage.name in self._contexts else base
                if named in self._contexts:
                    facts[stage.index] = base_facts(self._contexts.get(named, self._get_image))
                elif base != SCRATCH and self.dockerfile.find_base(stage, base) is None:
                    facts[stage.index] = base_facts(self._get_image(parse_reference(base)))
            except (FirebuildError, _UnknownImage):
                continue  # planning has reported it
        return facts
