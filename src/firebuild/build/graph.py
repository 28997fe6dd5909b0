"""Which stages a build needs: from the target down along FROM and COPY --from, ONBUILD triggers included. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from firebuild.build.place import located
from firebuild.build.sources.spec import normalise_context_name
from firebuild.build.steps import ContextSource
from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import shown
from firebuild.dockerfile.platforms import is_same_platform, parse_platform
from firebuild.dockerfile.scope import GlobalScope, Platform
from firebuild.dockerfile.stages import SCRATCH, Dockerfile, Stage, parse_trigger, relocate
from firebuild.errors import BuildError, DockerfileError, NotFoundError, UsageError
from firebuild.names import Reference, parse_reference
from firebuild.store.images import Image

GetImage = Callable[[Reference], Image]


class GraphNode(msgspec.Struct, frozen=True):
    """A needed stage. `base`: a stage, an image, a named context, or None for scratch; `base_name`: expanded; `triggers`:
    how many of `instructions` come first from ONBUILD; `sources`: for each COPY --from and `from` of a mount by its text, what it means."""

    stage: Stage
    base: Stage | Image | ContextSource | None
    base_name: str
    instructions: tuple[nodes.Instruction, ...]
    triggers: int
    sources: dict[str, Stage | Image | ContextSource]


class NamedContexts:
    """The named contexts of a build: they take the place of stages and images of their names, as in BuildKit."""

    def __init__(self, contexts: Mapping[str, ContextSource | Reference | None]) -> None:
        self._contexts = contexts

    def __contains__(self, name: str) -> bool:
        return bool(self._contexts) and normalise_context_name(name) in self._contexts

    def get(self, name: str, ask: GetImage) -> ContextSource | Image | None:
        """What the context of that name is; None for scratch."""
        found = self._contexts[normalise_context_name(name)]
        return ask(found) if isinstance(found, Reference) else found


def plan_graph(
    dockerfile: Dockerfile,
    target: Stage,
    scope: GlobalScope,
    platform: Platform,
    get_image: GetImage,
    contexts: Mapping[str, ContextSource | Reference | None] | None = None,
) -> list[GraphNode]:
    """The stages that `target` needs, in the Dockerfile's order. `get_image` is asked once for each needed reference.
    `contexts`: named contexts by their normalised names; None is `scratch`.

    Raises DockerfileError with its place, and what `get_image` raises.
    """
    images: dict[str, Image] = {}

    def ask(reference: Reference) -> Image:
        if reference.full not in images:
            images[reference.full] = get_image(reference)
        return images[reference.full]

    named = NamedContexts(contexts or {})
    found: dict[int, GraphNode] = {}
    pending = [target]
    while pending:
        stage = pending.pop()
        if stage.index in found:
            continue
        node = _plan_node(dockerfile, stage, scope, platform, ask, named)
        found[stage.index] = node
        needed = [node.base, *node.sources.values()]
        pending.extend(item for item in needed if isinstance(item, Stage))
    return [found[index] for index in sorted(found)]


def _plan_node(
    dockerfile: Dockerfile, stage: Stage, scope: GlobalScope, platform: Platform, ask: GetImage, named: NamedContexts
) -> GraphNode:
    if stage.name and stage.name in named:
        return GraphNode(stage, named.get(stage.name, ask), stage.name, (), 0, {})
    with located(dockerfile, stage.location):
        base_name = scope.expand(stage.base).text
        if not base_name:
            raise DockerfileError(
                f"the base {shown(stage.base)} of stage `{stage.label}` is empty",
                hint="give the ARG before FROM a default, or pass --build-arg",
            )
        _check_platform(stage, scope, platform)
        base, triggers = _find_base(dockerfile, stage, base_name, ask, named)
    instructions = (*triggers, *stage.instructions)
    sources: dict[str, Stage | Image | ContextSource] = {}
    for instruction in instructions:
        for name in _list_source_names(instruction):
            with located(dockerfile, instruction.location):
                if name not in sources:
                    sources[name] = _find_source(dockerfile, stage, name, ask, named)
    return GraphNode(stage, base, base_name, instructions, len(triggers), sources)


def _list_source_names(instruction: nodes.Instruction) -> list[str]:
    if isinstance(instruction, nodes.Copy):
        return [instruction.source] if instruction.source is not None else []
    if isinstance(instruction, nodes.Run):
        # `scratch` is nothing to mount from.
        return [flag.source for flag in instruction.mounts if flag.source and flag.source != SCRATCH]
    return []


def _find_base(
    dockerfile: Dockerfile, stage: Stage, base_name: str, ask: GetImage, named: NamedContexts
) -> tuple[Stage | Image | ContextSource | None, list[nodes.Instruction]]:
    base = dockerfile.find_base(stage, base_name)
    if base is not None and base.name and base.name in named:
        return base, []
    if base is None and base_name in named:
        context = named.get(base_name, ask)
        triggers = context.config.config.on_build if isinstance(context, Image) else []
        return context, _parse_triggers(triggers, stage)
    if base is not None:
        own = [each.trigger for each in base.instructions if isinstance(each, nodes.Onbuild)]
        return base, _parse_triggers(own, stage)
    if base_name == SCRATCH:
        return None, []
    image = _ask_or_suggest(dockerfile, stage, base_name, ask)
    return image, _parse_triggers(image.config.config.on_build, stage)


def _parse_triggers(texts: list[str], stage: Stage) -> list[nodes.Instruction]:
    return [relocate(parse_trigger(text, "ONBUILD trigger of the base"), stage.location) for text in texts]


def _find_source(
    dockerfile: Dockerfile, stage: Stage, name: str, ask: GetImage, named: NamedContexts
) -> Stage | Image | ContextSource:
    found = dockerfile.find_copy_source(stage, name)
    if found is not None:
        return found
    if name in named:
        context = named.get(name, ask)
        if context is None:
            raise DockerfileError(f"the build context {shown(name)} is `scratch`: there is nothing to copy")
        return context
    return _ask_or_suggest(dockerfile, stage, name, ask)


def _ask_or_suggest(dockerfile: Dockerfile, stage: Stage, name: str, ask: GetImage) -> Image:
    """The image of that name. Where there is none, a name that could be a stage's is compared with those there are."""
    reference = _parse_image_name(name)
    try:
        return ask(reference)
    except NotFoundError as error:
        earlier = dockerfile.stages[: stage.index]
        hint = dockerfile.suggest_stage(name, earlier) if "/" not in name and ":" not in name else None
        if hint is None:
            raise
        raise NotFoundError(
            f"{shown(name)} is none of the stages above, and as an image: {error.message}",
            hint=hint,
            details=error.details,
        ) from error


def _parse_image_name(text: str) -> Reference:
    try:
        return parse_reference(text)
    except UsageError as error:
        raise DockerfileError(
            f"{shown(text)} is neither a stage of this Dockerfile nor an image reference", hint=error.hint
        ) from error


def _check_platform(stage: Stage, scope: GlobalScope, platform: Platform) -> None:
    if stage.platform is None:
        return
    text = scope.expand(stage.platform).text
    if not text:
        raise DockerfileError(f"the platform {shown(stage.platform)} is empty")
    wanted = parse_platform(text, platform)
    if not is_same_platform(wanted, platform):
        raise BuildError(
            f"stage `{stage.label}` is for the platform {shown(text)}; this build machine is {platform}",
            hint="take --platform away, or build on a host of that platform",
        )
