"""What the steps of a plan take from the host: the trees that they copy from, and what every COPY and ADD finds in them."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from firebuild.build.context import BuildContext
from firebuild.build.copy import Selection, select_sources
from firebuild.build.glob import escape_wildcards
from firebuild.build.mounts import list_origins
from firebuild.build.place import located
from firebuild.build.sources.inputs import apply_ignore
from firebuild.build.sources.spec import ImageContext
from firebuild.build.steps import (
    ContextSource,
    CopyAction,
    ImageSource,
    Origin,
    Plan,
    PlannedStep,
    RunAction,
    StageSource,
)
from firebuild.build.tree import ContextTree
from firebuild.dockerfile.ignore import IgnoreRules, parse_excludes
from firebuild.errors import InternalError
from firebuild.events.text import neutralise

if TYPE_CHECKING:
    from firebuild.build.services import BuildRequest
    from firebuild.build.sources.remote import RemoteSources
    from firebuild.dockerfile.stages import Dockerfile
    from firebuild.events.progress import Reporter


class ContextTrees:
    """The main context and the named ones, each opened if a step of the plan needs it. A context manager.

    Without a plan only the main one is opened. Raises ContextError, and DockerfileError for a malformed ignore file.
    """

    def __init__(self, request: BuildRequest, plan: Plan | None) -> None:
        self._request = request
        self._plan = plan
        self._resources = ExitStack()
        self._main: ContextTree | None = None
        self._named: dict[str, ContextTree] = {}

    def __enter__(self) -> ContextTrees:
        try:
            origins = _list_origins(self._plan) if self._plan else [None]
            if None in origins:
                self._main = self._open_main()
            for origin in origins:
                if isinstance(origin, ContextSource) and origin.name not in self._named:
                    self._named[origin.name] = self._open_named(origin.name)
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, trace)

    @property
    def ignore(self) -> IgnoreRules | None:
        """The rules of the main context's ignore file, if there is one."""
        return None if self._main is None else self._main.ignore

    def find(self, origin: Origin | None) -> ContextTree | None:
        """The tree that a copy of that origin reads; None if the build has no context."""
        return self._named[origin.name] if isinstance(origin, ContextSource) else self._main

    def _open_main(self) -> ContextTree | None:
        context = self._request.context
        if context is None or isinstance(context, ContextTree):
            return context
        tree = self._resources.enter_context(BuildContext(context))
        apply_ignore(tree, self._request.ignore_name)
        return tree

    def _open_named(self, name: str) -> ContextTree:
        source = self._request.contexts[name]
        if isinstance(source, ImageContext) or self._request.open_tree is None:
            raise InternalError(f"the build context `{name}` cannot be opened as a tree")
        return self._request.open_tree(source)


def list_copies(plan: Plan) -> list[tuple[PlannedStep, CopyAction]]:
    """The steps of a plan that take something from the host."""
    return [
        (step, step.action)
        for stage in plan.stages
        for step in stage.steps
        if isinstance(step.action, CopyAction) and not isinstance(step.action.origin, StageSource | ImageSource)
    ]


def _list_origins(plan: Plan) -> list[Origin | None]:
    """Where the steps of a plan take files from; None: the main context."""
    found: list[Origin | None] = [
        action.origin for _, action in list_copies(plan) if action.origin is not None or action.paths
    ]
    for stage in plan.stages:
        for step in stage.steps:
            if isinstance(step.action, RunAction):
                found += [origin for _, origin, _ in list_origins(step.action)]
    return found


def select_path(context: ContextTree | None, path: str) -> Selection:
    """What a mount takes from a context: one path, which is no pattern. Raises ContextError naming it."""
    return select_sources(context, [escape_wildcards(path)])


def select_all(
    plan: Plan, dockerfile: Dockerfile, trees: ContextTrees, remote: RemoteSources, reporter: Reporter
) -> dict[str, Selection]:
    """What every COPY and ADD takes from the host, by the step's id: found and hashed before any machine boots."""
    copies = list_copies(plan)
    if not copies:
        return {}
    selections: dict[str, Selection] = {}
    with reporter.step("[internal] load build context"):
        for step, action in copies:
            with located(dockerfile, step.location):
                remotes = [None if add is None else remote.select(add) for add in action.remotes]
                selections[step.id] = select_sources(
                    trees.find(action.origin), action.sources, action.inline, unpack=action.unpack, remotes=remotes,
                    exclude=parse_excludes(action.exclude), parents=action.parents,
                )  # fmt: skip
            for source in selections[step.id].unmatched:
                reporter.warn(
                    f"line {step.location.start_line}: `{neutralise(source)}` matches nothing in the build context"
                )
    return selections
