"""What firebuild does not do with a Dockerfile, and what cannot be done, refused by name before any machine boots."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import shown
from firebuild.dockerfile.ignore import parse_excludes
from firebuild.dockerfile.modes import check_mode
from firebuild.errors import DockerfileError

if TYPE_CHECKING:
    from firebuild.build.sources.remote import RemoteAdd


def check_supported(instruction: nodes.Instruction) -> None:
    """Raises DockerfileError (without a place) for an expanded instruction that has something in it that cannot be done."""
    match instruction:
        case nodes.Run():
            _check_run(instruction)
        case nodes.Copy():
            _check_copy(instruction)
        case nodes.Add():
            _check_add(instruction)


def _check_run(instruction: nodes.Run) -> None:
    if instruction.security != "sandbox":
        raise DockerfileError(
            "RUN --security=insecure is refused: steps run in a microVM of their own and need no such thing",
            hint="take the flag away",
        )
    if instruction.network == "host":
        raise DockerfileError(
            "RUN --network=host is refused: a build machine has no access to the host's network",
            hint="`--network=default` reaches the outside, `--network=none` nothing",
        )


def is_lone_heredoc(instruction: nodes.Run) -> bool:
    """Whether a RUN's command is one heredoc and nothing else, so that its content is the script."""
    text = " ".join(instruction.command.arguments)
    return len(instruction.heredocs) == 1 and re.fullmatch(r"[0-9]*<<-?\s*\S+", text.strip()) is not None


def _check_copy(instruction: nodes.Copy) -> None:
    from firebuild.build.sources.gitref import looks_like_git

    _check_transfer(instruction)
    for source in instruction.sources:
        if source.startswith(("http://", "https://")) or looks_like_git(source):
            raise DockerfileError(f"COPY takes no remote source: {shown(source)}", hint="ADD does")


def _check_add(instruction: nodes.Add) -> None:
    _check_transfer(instruction)
    parse_remotes(instruction)


def parse_remotes(instruction: nodes.Add) -> tuple[RemoteAdd | None, ...]:
    """For each source of an expanded ADD what it fetches, None for a path. Raises DockerfileError."""
    from firebuild.build.sources.gitref import GitSource
    from firebuild.build.sources.remote import parse_remote

    checksum = instruction.checksum
    remotes = tuple(
        parse_remote(source, checksum=checksum, keep_git_dir=instruction.keep_git_dir, unpack=instruction.unpack)
        for source in instruction.sources
    )
    if checksum and len(instruction.sources) != 1:
        raise DockerfileError("--checksum cannot be given for several sources")
    if checksum and remotes[0] is None:
        raise DockerfileError("--checksum needs an HTTP(S) or git source")
    if instruction.keep_git_dir is not None and not any(
        each is not None and isinstance(each.source, GitSource) for each in remotes
    ):
        raise DockerfileError("--keep-git-dir needs a git source")
    return remotes


def _check_transfer(instruction: nodes.Copy | nodes.Add) -> None:
    name = instruction.name
    if instruction.chmod:
        check_mode(instruction.chmod)
    parse_excludes(instruction.exclude)
    if not instruction.sources and not instruction.inline_files:
        raise DockerfileError(f"{name} needs a source")
