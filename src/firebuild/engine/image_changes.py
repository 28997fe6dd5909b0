"""`image import --change`: Dockerfile instructions that change a configuration and make no layer."""

from __future__ import annotations

from collections.abc import Sequence

from firebuild.build.imageconfig import StageConfig, join_path
from firebuild.dockerfile import nodes
from firebuild.dockerfile.expansion import expand_instruction
from firebuild.dockerfile.scope import GlobalScope, Platform, Scope
from firebuild.dockerfile.stages import parse_dockerfile
from firebuild.errors import UsageError
from firebuild.store.images import ImageConfig

_ALLOWED = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
]


def parse_changes(changes: Sequence[str]) -> list[nodes.Instruction]:
    """One instruction each, as `docker import` takes them. Raises UsageError, DockerfileError with the place."""
    for change in changes:
        word = (change.split(None, 1) or [""])[0].upper()
        if word not in _ALLOWED or "\n" in change:
            raise UsageError(f"`{change[:200]}` cannot change an image", hint="one of " + ", ".join(_ALLOWED))
    text = "FROM scratch\n" + "".join(f"{change}\n" for change in changes)
    return list(parse_dockerfile(text.encode(), name="--change").stages[0].instructions)


def apply_changes(config: ImageConfig, changes: Sequence[nodes.Instruction]) -> None:
    """Change `config` in place; what the instructions add to the history is left out: an import has one entry.

    Raises DockerfileError for a variable that cannot be expanded.
    """
    history = list(config.history)
    stage = StageConfig(config, (), Platform(config.os, config.architecture, config.variant or ""))
    scope = Scope(GlobalScope((), build_args={}, predefined={}), stage.environment())
    for change in changes:
        instruction = expand_instruction(change, scope).instruction
        if isinstance(instruction, nodes.Workdir):
            config.config.working_dir = join_path(config.config.working_dir or "/", instruction.path)
        else:
            stage.apply(instruction, scope)
    config.history = history
