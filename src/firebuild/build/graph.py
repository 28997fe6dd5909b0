"""Which stages a build needs: from the target down along FROM and COPY --from, ONBUILD triggers included. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from firebuild.build.place import located
from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import shown
from firebuild.dockerfile.scope import GlobalScope, Platform
from firebuild.dockerfile.stages import SCRATCH, Dockerfile, Stage, parse_trigger, relocate
from firebuild.errors import BuildError, DockerfileError, UsageError
from firebuild.names import Reference, parse_reference
from firebuild.store.images import Image

GetImage = Callable[[Reference], Image]


class GraphNode(msgspec.Struct, frozen=True):
    """A needed stage. `base`: a stage, an image, or None for scratch; `base_name`: expanded; `triggers`: how many of
    `instructions` come first from ONBUILD; `sources`: for each COPY --from by its text, a stage or an image."""

    stage: Stage
    base: Stage | Image | None
    base_name: str
    instructions: tuple[nodes.Instruction, ...]
    triggers: int
    sources: dict[str, Stage | Image]


def plan_graph(
    dockerfile: Dockerfile, target: Stage, scope: GlobalScope, platform: Platform, get_image: GetImage
) -> list[GraphNode]:
    """The stages that `target` needs, in the Dockerfile's order. `get_image` is asked once for each needed reference.

    Raises DockerfileError with its place, and what `get_image` raises.
    """
    images: dict[str, Image] = {}

    def ask(reference: Reference) -> Image:
        if reference.full not in images:
            images[reference.full] = get_image(reference)
        return images[reference.full]

    found: dict[int, GraphNode] = {}
    pending = [target]
    while pending:
        stage = pending.pop()
        if stage.index in found:
            continue
        node = _plan_node(dockerfile, stage, scope, platform, ask)
        found[stage.index] = node
        needed = [node.base, *node.sources.values()]
        pending.extend(item for item in needed if isinstance(item, Stage))
    return [found[index] for index in sorted(found)]


def _plan_node(
    dockerfile: Dockerfile, stage: Stage, scope: GlobalScope, platform: Platform, ask: GetImage
) -> GraphNode:
    with located(dockerfile, stage.location):
        base_name = scope.expand(stage.base).text
        if not base_name:
            raise DockerfileError(
                f"the base {shown(stage.base)} of stage `{stage.label}` is empty",
                hint="give the ARG before FROM a default, or pass --build-arg",
            )
        _check_platform(stage, scope, platform)
        base, triggers = _find_base(dockerfile, stage, base_name, ask)
    instructions = (*triggers, *stage.instructions)
    sources: dict[str, Stage | Image] = {}
    for instruction in instructions:
        if isinstance(instruction, nodes.Copy) and instruction.source is not None:
            with located(dockerfile, instruction.location):
                name = instruction.source
                if name not in sources:
                    sources[name] = _find_source(dockerfile, stage, name, ask)
    return GraphNode(stage, base, base_name, instructions, len(triggers), sources)


def _find_base(
    dockerfile: Dockerfile, stage: Stage, base_name: str, ask: GetImage
) -> tuple[Stage | Image | None, list[nodes.Instruction]]:
    base = dockerfile.find_base(stage, base_name)
    if base is not None:
        own = [each.trigger for each in base.instructions if isinstance(each, nodes.Onbuild)]
        return base, _parse_triggers(own, stage)
    if base_name == SCRATCH:
        return None, []
    image = ask(_parse_image_name(base_name))
    return image, _parse_triggers(image.config.config.on_build, stage)


def _parse_triggers(texts: list[str], stage: Stage) -> list[nodes.Instruction]:
    return [relocate(parse_trigger(text, "ONBUILD trigger of the base"), stage.location) for text in texts]


def _find_source(dockerfile: Dockerfile, stage: Stage, name: str, ask: GetImage) -> Stage | Image:
    found = dockerfile.find_copy_source(stage, name)
    return found if found is not None else ask(_parse_image_name(name))


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
    wanted = text.lower().replace("x86_64", "amd64").replace("aarch64", "arm64").split("/")
    wanted = wanted if len(wanted) > 1 else ["linux", *wanted]
    if wanted[:2] != [platform.os, platform.architecture]:
        raise BuildError(f"stage `{stage.label}` is for {shown(text)}; this build machine is {platform}")
