"""The typed instructions of a Dockerfile. Values are as written: `Scope` expands them when their turn comes."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from firebuild.dockerfile.heredoc import Heredoc
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.mounts import Mount, MountFlag
from firebuild.dockerfile.words import Pair


class Instruction(msgspec.Struct, frozen=True, kw_only=True, tag_field="instruction"):
    """What every instruction has. `text`: the instruction as one line; `comments`: the comment lines above it."""

    name: ClassVar[str] = ""

    location: Location
    text: str
    comments: tuple[str, ...] = ()


class Command(msgspec.Struct, frozen=True):
    """What RUN, CMD, ENTRYPOINT and a health check run: a program's arguments, or with `shell` one text for a shell
    (no argument at all if nothing was written)."""

    arguments: tuple[str, ...]
    shell: bool

    def argv(self, shell: tuple[str, ...]) -> tuple[str, ...]:
        """The program and its arguments, given the stage's SHELL."""
        return (*shell, " ".join(self.arguments)) if self.shell else self.arguments


class ArgDeclaration(msgspec.Struct, frozen=True):
    """One name of an ARG. `default`: as written, None if there is none; `description`: from a comment above."""

    name: str
    default: str | None = None
    description: str = ""


class InlineFile(msgspec.Struct, frozen=True):
    """A heredoc source of COPY or ADD. `expand`: variables in `content` are expanded (the name was not quoted)."""

    name: str
    content: str
    expand: bool


class From(Instruction, frozen=True, kw_only=True, tag="FROM"):
    """FROM. `base` and `platform` are expanded with the global arguments; `stage` is the name in lower case."""

    name: ClassVar[str] = "FROM"
    base: str
    stage: str | None = None
    platform: str | None = None
    description: str = ""


class Arg(Instruction, frozen=True, kw_only=True, tag="ARG"):
    """ARG, of one or several names."""

    name: ClassVar[str] = "ARG"
    arguments: tuple[ArgDeclaration, ...]


class Env(Instruction, frozen=True, kw_only=True, tag="ENV"):
    """ENV. All pairs are expanded with the environment from before the instruction."""

    name: ClassVar[str] = "ENV"
    pairs: tuple[Pair, ...]


class Label(Instruction, frozen=True, kw_only=True, tag="LABEL"):
    """LABEL."""

    name: ClassVar[str] = "LABEL"
    pairs: tuple[Pair, ...]


class Run(Instruction, frozen=True, kw_only=True, tag="RUN"):
    """RUN. `mounts` are expanded into `resolved_mounts` by `expand_instruction`; `network`: default, none or host;
    `security`: sandbox or insecure."""

    name: ClassVar[str] = "RUN"
    command: Command
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[MountFlag, ...] = ()
    resolved_mounts: tuple[Mount, ...] = ()
    network: str = "default"
    security: str = "sandbox"


class _Transfer(Instruction, frozen=True, kw_only=True):
    sources: tuple[str, ...]
    destination: str
    inline_files: tuple[InlineFile, ...] = ()
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()


class Copy(_Transfer, frozen=True, kw_only=True, tag="COPY"):
    """COPY. `source`: the value of --from, never expanded: a stage's name or index, a named context or an image."""

    name: ClassVar[str] = "COPY"
    source: str | None = None
    parents: bool = False


class Add(_Transfer, frozen=True, kw_only=True, tag="ADD"):
    """ADD. `unpack` and `keep_git_dir` are None where the flag is absent (the default depends on the source)."""

    name: ClassVar[str] = "ADD"
    checksum: str = ""
    keep_git_dir: bool | None = None
    unpack: bool | None = None


class Workdir(Instruction, frozen=True, kw_only=True, tag="WORKDIR"):
    """WORKDIR."""

    name: ClassVar[str] = "WORKDIR"
    path: str


class User(Instruction, frozen=True, kw_only=True, tag="USER"):
    """USER: a name or number, with a group behind a colon or not."""

    name: ClassVar[str] = "USER"
    user: str


class Shell(Instruction, frozen=True, kw_only=True, tag="SHELL"):
    """SHELL: the program and arguments before the text of a shell form."""

    name: ClassVar[str] = "SHELL"
    shell: tuple[str, ...]


class Cmd(Instruction, frozen=True, kw_only=True, tag="CMD"):
    """CMD."""

    name: ClassVar[str] = "CMD"
    command: Command


class Entrypoint(Instruction, frozen=True, kw_only=True, tag="ENTRYPOINT"):
    """ENTRYPOINT. An empty JSON form clears it. It also clears a CMD that the stage inherited."""

    name: ClassVar[str] = "ENTRYPOINT"
    command: Command


class Expose(Instruction, frozen=True, kw_only=True, tag="EXPOSE"):
    """EXPOSE. As written first; after `expand_instruction` each is `port/protocol`, ranges unrolled."""

    name: ClassVar[str] = "EXPOSE"
    ports: tuple[str, ...]


class Volume(Instruction, frozen=True, kw_only=True, tag="VOLUME"):
    """VOLUME."""

    name: ClassVar[str] = "VOLUME"
    paths: tuple[str, ...]


class StopSignal(Instruction, frozen=True, kw_only=True, tag="STOPSIGNAL"):
    """STOPSIGNAL. As written: `expand_instruction` checks that the signal exists."""

    name: ClassVar[str] = "STOPSIGNAL"
    signal: str


class Healthcheck(Instruction, frozen=True, kw_only=True, tag="HEALTHCHECK"):
    """HEALTHCHECK. `test`: as in the image's config (`NONE`, `CMD` …, `CMD-SHELL` …); times in nanoseconds, 0 for the
    default."""

    name: ClassVar[str] = "HEALTHCHECK"
    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


class Onbuild(Instruction, frozen=True, kw_only=True, tag="ONBUILD"):
    """ONBUILD. `trigger`: the text for the image's config, heredocs included; `parsed`: what it means here."""

    name: ClassVar[str] = "ONBUILD"
    trigger: str
    parsed: Instruction


class Maintainer(Instruction, frozen=True, kw_only=True, tag="MAINTAINER"):
    """MAINTAINER (deprecated)."""

    name: ClassVar[str] = "MAINTAINER"
    maintainer: str
