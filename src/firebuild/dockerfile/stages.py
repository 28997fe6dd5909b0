"""A whole Dockerfile: its global arguments and its stages, and what `FROM` and `--from` refer to."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from firebuild.dockerfile.errors import did_you_mean, shown
from firebuild.dockerfile.instructions import parse_instruction
from firebuild.dockerfile.lexer import Directive, LexedFile, LogicalLine, Source, lex
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.nodes import Arg, From, Instruction
from firebuild.errors import DockerfileError, NotFoundError

RESERVED_STAGE_NAMES = ("context", "scratch")
SCRATCH = "scratch"
MAX_STAGES_SHOWN = 20
_INDEX = re.compile(r"[+-]?[0-9]{1,18}")


class Stage(msgspec.Struct, frozen=True):
    """One stage: its FROM and the instructions behind it. `name`: in lower case, None if it has none."""

    index: int
    name: str | None
    start: From
    instructions: tuple[Instruction, ...]

    @property
    def label(self) -> str:
        """The name that progress and messages show: the stage's own, or `stage-0`."""
        return self.name or f"stage-{self.index}"

    @property
    def base(self) -> str:
        """The base as written: expand it with the global scope."""
        return self.start.base

    @property
    def platform(self) -> str | None:
        """The platform as written, or None."""
        return self.start.platform

    @property
    def location(self) -> Location:
        """Where its FROM stands."""
        return self.start.location


class Dockerfile(msgspec.Struct, frozen=True):
    """A parsed Dockerfile. `lines`: the logical lines in the file's order, for lint and for places in messages."""

    source: Source
    escape: str
    directives: tuple[Directive, ...]
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    lines: tuple[LogicalLine, ...]

    def directive(self, name: str) -> str | None:
        """The value of a directive (`syntax`, `escape`, `check`), or None."""
        return next((each.value for each in self.directives if each.name == name), None)

    def locate(self, error: DockerfileError, location: Location) -> DockerfileError:
        """`error` with file, line and excerpt: for faults that show only while planning or running.

        An error that has its place already comes back as it is.
        """
        line = next((each for each in self.lines if each.location == location), None)
        return self.source.locate(error, location, line=line)

    def find_base(self, stage: Stage, base: str) -> Stage | None:
        """The stage that a FROM (expanded to `base`) builds upon, or None for an image.

        As in BuildKit the nearest stage above of exactly that name counts; names are in lower case.
        """
        for candidate in reversed(self.stages[: stage.index]):
            if candidate.name == base:
                return candidate
        return None

    def find_copy_source(self, stage: Stage, reference: str) -> Stage | None:
        """The stage that `COPY --from=reference` means, or None for a named context or an image.

        A number is an index; a name counts in any case, and of equal names the last in the file. Raises
        DockerfileError (without a place) for a stage that does not come before `stage`.
        """
        if _INDEX.fullmatch(reference):
            index = int(reference)
            if not 0 <= index < len(self.stages):
                raise DockerfileError(f"there is no stage with the index {shown(reference)}")
            return self._before(stage, self.stages[index])
        found = self._find_last(reference)
        return None if found is None else self._before(stage, found)

    def find_mount_source(self, stage: Stage, reference: str) -> Stage | None:
        """The stage that `RUN --mount=from=reference` means, or None: like COPY, but a number is a name."""
        found = self._find_last(reference)
        return None if found is None else self._before(stage, found)

    def get_target(self, name: str | None) -> Stage:
        """The stage to build: the last, or the one of that name or index. Raises NotFoundError."""
        if not name:
            return self.stages[-1]
        found = self._find_last(name)
        if found is None and _INDEX.fullmatch(name) and 0 <= int(name) < len(self.stages):
            found = self.stages[int(name)]
        if found is None:
            raise NotFoundError(
                f"{self.source.name} has no stage {shown(name)}", hint=self.suggest_stage(name, self.stages)
            )
        return found

    @staticmethod
    def suggest_stage(name: str, stages: Sequence[Stage]) -> str | None:
        """The hint for a name that is none of these stages: one like it, and which there are."""
        names = [stage.name or str(stage.index) for stage in stages]
        if not names:
            return None
        listed = f"the stages are {', '.join(names[:MAX_STAGES_SHOWN])}{' …' if len(names) > MAX_STAGES_SHOWN else ''}"
        near = did_you_mean(name, [stage.name for stage in stages if stage.name])
        return f"{near} {listed}" if near else listed

    def _find_last(self, name: str) -> Stage | None:
        wanted = name.lower()
        return next((stage for stage in reversed(self.stages) if stage.name == wanted), None)

    @staticmethod
    def _before(stage: Stage, found: Stage) -> Stage:
        if found.index >= stage.index:
            raise DockerfileError(
                f"stage `{stage.label}` cannot take files from stage `{found.label}`, which does not come before it",
                hint="move the source stage up",
            )
        return found


def parse_dockerfile(data: bytes, name: str = "Dockerfile") -> Dockerfile:
    """Parses a Dockerfile. `name`: as messages show it. Raises LocatedDockerfileError, before any side effect."""
    lexed = lex(data, name)
    global_args: list[Arg] = []
    stages: list[Stage] = []
    body: list[Instruction] = []
    start: From | None = None
    for line in lexed.logical_lines:
        instruction = _parse(lexed, line)
        if isinstance(instruction, From):
            if start is not None:
                stages.append(Stage(len(stages), start.stage, start, tuple(body)))
            start, body = instruction, []
        elif start is not None:
            body.append(instruction)
        elif isinstance(instruction, Arg):
            global_args.append(instruction)
        else:
            error = DockerfileError(
                f"{instruction.name} stands before the first FROM", hint="only ARG may stand before FROM"
            )
            raise lexed.source.locate(error, line.location)
    if start is None:
        last = lexed.logical_lines[-1].location
        raise lexed.source.locate(DockerfileError("the file has no FROM, so there is nothing to build"), last)
    stages.append(Stage(len(stages), start.stage, start, tuple(body)))
    return Dockerfile(
        lexed.source, lexed.escape, lexed.directives, tuple(global_args), tuple(stages), lexed.logical_lines
    )


def parse_trigger(trigger: str, name: str = "ONBUILD") -> Instruction:
    """The instruction of an ONBUILD trigger from an image's config. Raises LocatedDockerfileError.

    As in BuildKit it is read with the backslash as the escape character. Its location counts in the trigger's own
    text: set the location of the FROM that brought it, with `relocate`.
    """
    lexed = lex(trigger.encode("utf-8", "surrogateescape"), name)
    if len(lexed.logical_lines) != 1:
        error = DockerfileError("an ONBUILD trigger is one instruction")
        raise lexed.source.locate(error, lexed.logical_lines[-1].location)
    instruction = _parse(lexed, lexed.logical_lines[0])
    if instruction.name in ("FROM", "MAINTAINER", "ONBUILD"):
        error = DockerfileError(f"{instruction.name} cannot be a trigger of ONBUILD")
        raise lexed.source.locate(error, instruction.location)
    return instruction


def relocate(instruction: Instruction, location: Location) -> Instruction:
    """The same instruction at another place."""
    return msgspec.structs.replace(instruction, location=location)


def list_duplicate_names(stages: Sequence[Stage]) -> list[Stage]:
    """The stages whose name an earlier stage has: allowed, as in BuildKit, and warned of."""
    seen: set[str] = set()
    duplicates: list[Stage] = []
    for stage in stages:
        if stage.name in seen:
            duplicates.append(stage)
        elif stage.name:
            seen.add(stage.name)
    return duplicates


def _parse(lexed: LexedFile, line: LogicalLine) -> Instruction:
    try:
        return parse_instruction(line, lexed.escape)
    except DockerfileError as error:
        raise lexed.source.locate(error, line.location, line=line) from None
