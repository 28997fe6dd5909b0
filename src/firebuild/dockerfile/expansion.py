"""Expands the variables of a typed instruction: which instruction expands what, as one table of functions."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import SpanError
from firebuild.dockerfile.expand import Expansion
from firebuild.dockerfile.mounts import Mount, parse_mount
from firebuild.dockerfile.scope import Scope
from firebuild.dockerfile.values import parse_ports, parse_signal
from firebuild.dockerfile.words import Pair
from firebuild.errors import DockerfileError


class Expanded(msgspec.Struct, frozen=True):
    """An instruction with its variables expanded. `used` and `unset`: the names that it asked for, for the cache key."""

    instruction: nodes.Instruction
    used: frozenset[str]
    unset: frozenset[str]


class _Tracker:
    """Expands through a scope and remembers the names."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.used: set[str] = set()
        self.unset: set[str] = set()

    def note(self, expansion: Expansion) -> Expansion:
        self.used |= expansion.used
        self.unset |= expansion.unset
        return expansion

    def word(self, text: str) -> str:
        return self.note(self.scope.expand(text)).text

    def words(self, text: str) -> tuple[str, ...]:
        return self.note(self.scope.expand(text)).words

    def file(self, file: nodes.InlineFile) -> nodes.InlineFile:
        if not file.expand:
            return file
        content = self.note(self.scope.expand_heredoc(file.content)).text
        return nodes.InlineFile(file.name, content, expand=False)

    def pair(self, pair: Pair) -> Pair:
        return Pair(self.word(pair.name), self.word(pair.value), pair.legacy)


def _env(instruction: nodes.Env, tracker: _Tracker) -> nodes.Instruction:
    return msgspec.structs.replace(instruction, pairs=tuple(map(tracker.pair, instruction.pairs)))


def _label(instruction: nodes.Label, tracker: _Tracker) -> nodes.Instruction:
    return msgspec.structs.replace(instruction, pairs=tuple(map(tracker.pair, instruction.pairs)))


def _run(instruction: nodes.Run, tracker: _Tracker) -> nodes.Instruction:
    mounts: list[Mount] = []
    for flag in instruction.mounts:
        try:
            mounts.append(parse_mount(flag.text, tracker.word))
        except DockerfileError as error:
            raise SpanError(error.message, offset=flag.offset, hint=error.hint) from None
    return msgspec.structs.replace(instruction, resolved_mounts=tuple(mounts))


def _copy(instruction: nodes.Copy, tracker: _Tracker) -> nodes.Instruction:
    return msgspec.structs.replace(
        instruction,
        sources=tuple(map(tracker.word, instruction.sources)),
        inline_files=tuple(map(tracker.file, instruction.inline_files)),
        destination=tracker.word(instruction.destination),
        chown=tracker.word(instruction.chown),
        chmod=tracker.word(instruction.chmod),
    )


def _add(instruction: nodes.Add, tracker: _Tracker) -> nodes.Instruction:
    return msgspec.structs.replace(
        instruction,
        sources=tuple(map(tracker.word, instruction.sources)),
        inline_files=tuple(map(tracker.file, instruction.inline_files)),
        destination=tracker.word(instruction.destination),
        chown=tracker.word(instruction.chown),
        chmod=tracker.word(instruction.chmod),
        checksum=tracker.word(instruction.checksum),
    )


def _expose(instruction: nodes.Expose, tracker: _Tracker) -> nodes.Instruction:
    words = [word for port in instruction.ports for word in tracker.words(port)]
    return msgspec.structs.replace(instruction, ports=parse_ports(words))


def _volume(instruction: nodes.Volume, tracker: _Tracker) -> nodes.Instruction:
    paths = tuple(map(tracker.word, instruction.paths))
    if not all(paths):
        raise DockerfileError("VOLUME takes no empty path")
    return msgspec.structs.replace(instruction, paths=paths)


def _stopsignal(instruction: nodes.StopSignal, tracker: _Tracker) -> nodes.Instruction:
    signal = tracker.word(instruction.signal)
    parse_signal(signal)
    return msgspec.structs.replace(instruction, signal=signal)


def _user(instruction: nodes.User, tracker: _Tracker) -> nodes.Instruction:
    return msgspec.structs.replace(instruction, user=tracker.word(instruction.user))


def _workdir(instruction: nodes.Workdir, tracker: _Tracker) -> nodes.Instruction:
    return msgspec.structs.replace(instruction, path=tracker.word(instruction.path))


def _expander(instruction: nodes.Instruction) -> Callable[[_Tracker], nodes.Instruction] | None:
    match instruction:
        case nodes.Env():
            return lambda tracker: _env(instruction, tracker)
        case nodes.Label():
            return lambda tracker: _label(instruction, tracker)
        case nodes.Run():
            return lambda tracker: _run(instruction, tracker)
        case nodes.Copy():
            return lambda tracker: _copy(instruction, tracker)
        case nodes.Add():
            return lambda tracker: _add(instruction, tracker)
        case nodes.Expose():
            return lambda tracker: _expose(instruction, tracker)
        case nodes.Volume():
            return lambda tracker: _volume(instruction, tracker)
        case nodes.StopSignal():
            return lambda tracker: _stopsignal(instruction, tracker)
        case nodes.User():
            return lambda tracker: _user(instruction, tracker)
        case nodes.Workdir():
            return lambda tracker: _workdir(instruction, tracker)
    return None


def expand_instruction(instruction: nodes.Instruction, scope: Scope) -> Expanded:
    """The instruction with its variables expanded, and the scope moved on by it if it is an ENV or an ARG.

    Expanded are ADD, COPY (not --from, not --exclude), ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR, the
    default of ARG, and the mounts of RUN. The commands of RUN, CMD, ENTRYPOINT, HEALTHCHECK and SHELL are left to the
    shell; an ONBUILD's trigger is expanded where it runs; FROM belongs to the global scope. Raises DockerfileError
    without a place (use `Dockerfile.locate`).
    """
    tracker = _Tracker(scope)
    if isinstance(instruction, nodes.Arg):
        for argument in instruction.arguments:
            tracker.note(scope.declare_arg(argument))
        return Expanded(instruction, frozenset(tracker.used), frozenset(tracker.unset))
    expander = _expander(instruction)
    expanded = expander(tracker) if expander else instruction
    if isinstance(expanded, nodes.Env):
        scope.set_env((pair.name, pair.value) for pair in expanded.pairs)
    return Expanded(expanded, frozenset(tracker.used), frozenset(tracker.unset))
