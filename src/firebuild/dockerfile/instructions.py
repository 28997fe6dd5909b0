"""Syntax nodes to typed instructions: argument counts, flags, forms, each checked as BuildKit checks them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypedDict

from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import SpanError, did_you_mean, shown
from firebuild.dockerfile.expand import SPACES, Syntax, expand
from firebuild.dockerfile.flags import Flags, parse_flags
from firebuild.dockerfile.heredoc import parse_heredoc_word
from firebuild.dockerfile.lexer import LogicalLine
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.mounts import MountFlag, parse_mount, parse_mount_flag
from firebuild.dockerfile.parser import Node, parse_line
from firebuild.dockerfile.values import parse_duration_ns
from firebuild.dockerfile.words import Word, parse_json_strings, parse_pairs, split_quoted, split_spaces
from firebuild.errors import DockerfileError

NETWORK_MODES = ("default", "none", "host")
SECURITY_MODES = ("sandbox", "insecure")
_MIN_HEALTH_INTERVAL_NS = 10**6
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


class _Common(TypedDict):
    """The fields that every instruction has."""

    location: Location
    text: str
    comments: tuple[str, ...]


class _Request:
    """A node on its way to an instruction."""

    def __init__(self, node: Node, escape: str) -> None:
        self.node = node
        self.escape = escape
        self.flags: Flags = parse_flags(node.name, node.flags)
        self.common: _Common = {
            "location": node.line.location,
            "text": node.text,
            "comments": node.line.comments,
        }

    def fail(self, message: str, *, at: Word | None = None, hint: str | None = None) -> SpanError:
        return SpanError(message, offset=(at or self.node.written).offset, hint=hint)

    def words(self) -> list[Word]:
        """The arguments of a list: of the JSON form, or separated by spaces."""
        if self.node.json is not None:
            return [Word(text, self.node.rest.offset) for text in self.node.json]
        return split_spaces(self.node.rest)

    def some(self, words: list[Word]) -> list[Word]:
        if not words:
            raise self.fail(f"{self.node.name} needs at least one argument")
        return words

    def one(self) -> str:
        if not self.node.rest.text:
            raise self.fail(f"{self.node.name} needs an argument")
        return self.node.rest.text

    def command(self) -> nodes.Command:
        if self.node.json is not None:
            return nodes.Command(self.node.json, shell=False)
        text = self.node.rest.text
        return nodes.Command((text,) if text else (), shell=True)

    def unquote(self, text: str) -> str:
        """The text expanded without any variable."""
        return expand(text, {}, syntax=Syntax(escape=self.escape)).text

    def at(self, word: Word, error: DockerfileError) -> SpanError:
        return SpanError(error.message, offset=word.offset, hint=error.hint)


def _describe(node: Node, name: str) -> str:
    """What a comment above says of `name`: `# name …`."""
    for comment in node.line.comments:
        if comment.startswith(f"{name} "):
            return comment[len(name) + 1 :]
    return ""


def _from(request: _Request) -> nodes.Instruction:
    node = request.node
    words = request.words()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].text.lower() != "as"):
        raise request.fail("FROM takes an image, and a name behind `AS` or nothing", hint="write `FROM image AS name`")
    stage = None
    if len(words) == 3:
        stage = words[2].text.lower()
        if not _STAGE_NAME.fullmatch(stage):
            raise request.fail(
                f"{shown(words[2].text)} is not a stage name",
                at=words[2],
                hint="a name starts with a letter, then letters, digits, `_`, `.`, `-`",
            )
    return nodes.From(
        **request.common,
        base=words[0].text,
        stage=stage,
        platform=request.flags.text("platform"),
        description=_describe(node, stage) if stage else "",
    )


def _arg(request: _Request) -> nodes.Instruction:
    node = request.node
    arguments: list[nodes.ArgDeclaration] = []
    for word in request.some(split_quoted(node.rest, request.escape)):
        name, equals, default = word.text.partition("=")
        if not name:
            raise request.fail("ARG needs a name before the `=`", at=word)
        arguments.append(nodes.ArgDeclaration(name, default if equals else None, _describe(node, name)))
    return nodes.Arg(**request.common, arguments=tuple(arguments))


def _env(request: _Request) -> nodes.Instruction:
    node = request.node
    pairs = parse_pairs("ENV", node.rest, request.escape)
    return nodes.Env(**request.common, pairs=pairs)


def _label(request: _Request) -> nodes.Instruction:
    node = request.node
    pairs = parse_pairs("LABEL", node.rest, request.escape)
    return nodes.Label(**request.common, pairs=pairs)


def _run(request: _Request) -> nodes.Instruction:
    node = request.node
    mounts: list[MountFlag] = []
    for word in request.flags.all("mount"):
        try:
            mounts.append(parse_mount_flag(word.text, word.offset))
            if "$" not in word.text:
                parse_mount(word.text, request.unquote)
        except DockerfileError as error:
            raise request.at(word, error) from None
    network = _choose(request, "network", NETWORK_MODES)
    security = _choose(request, "security", SECURITY_MODES)
    command = request.command()
    if not command.arguments and not command.shell:
        raise request.fail("RUN needs a command", at=node.rest)
    return nodes.Run(
        **request.common,
        command=command,
        heredocs=node.line.heredocs,
        mounts=tuple(mounts),
        network=network,
        security=security,
    )


def _choose(request: _Request, flag: str, known: tuple[str, ...]) -> str:
    word = request.flags.word(flag)
    if word is None:
        return known[0]
    if word.text not in known:
        raise request.fail(
            f"RUN --{flag} cannot be {shown(word.text)}",
            at=word,
            hint=did_you_mean(word.text, known) or "it is one of " + ", ".join(known),
        )
    return word.text


class _Sources:
    """The sources and the destination of COPY and ADD, heredocs taken out of the sources."""

    def __init__(self, request: _Request) -> None:
        node = request.node
        words = request.words()
        if len(words) < 2:
            raise request.fail(
                f"{node.name} needs a source and a destination", hint=f"write `{node.name} source… destination`"
            )
        if node.json is None and _heredoc_name(words[-1]) is not None:
            raise request.fail(f"a heredoc cannot be the destination of {node.name}", at=words[-1])
        contents = {heredoc.name: heredoc for heredoc in node.line.heredocs} if node.json is None else {}
        self.paths: list[str] = []
        self.inline_files: list[nodes.InlineFile] = []
        for word in words[:-1]:
            name = _heredoc_name(word) if contents else None
            if name is None or name not in contents:
                self.paths.append(word.text)
            else:
                heredoc = contents[name]
                self.inline_files.append(nodes.InlineFile(name, heredoc.text, heredoc.expand))
        unused = set(contents) - {file.name for file in self.inline_files}
        if unused:
            raise request.fail(
                f"the heredoc {shown(min(unused))} of {node.name} is no source of its own",
                hint="write `<<NAME` without spaces, and its name without spaces",
            )
        self.destination = words[-1].text


def _heredoc_name(word: Word) -> str | None:
    try:
        heredoc = parse_heredoc_word(word.text)
    except DockerfileError:
        return None
    return heredoc.name if heredoc else None


def _copy(request: _Request) -> nodes.Instruction:
    sources = _Sources(request)
    source = request.flags.word("from")
    if source is not None:
        try:
            changed = request.unquote(source.text) != source.text
        except DockerfileError:
            changed = True
        if changed:
            raise request.fail(
                f"COPY --from takes no variables: {shown(source.text)}",
                at=source,
                hint="give the image a stage of its own: `FROM $IMAGE AS name`",
            )
    return nodes.Copy(
        **request.common,
        sources=tuple(sources.paths),
        inline_files=tuple(sources.inline_files),
        destination=sources.destination,
        source=source.text if source and source.text else None,
        chown=request.flags.text("chown") or "",
        chmod=request.flags.text("chmod") or "",
        link=request.flags.booleans.get("link", False),
        parents=request.flags.booleans.get("parents", False),
        exclude=tuple(word.text for word in request.flags.all("exclude")),
    )


def _add(request: _Request) -> nodes.Instruction:
    sources = _Sources(request)
    return nodes.Add(
        **request.common,
        sources=tuple(sources.paths),
        inline_files=tuple(sources.inline_files),
        destination=sources.destination,
        chown=request.flags.text("chown") or "",
        chmod=request.flags.text("chmod") or "",
        link=request.flags.booleans.get("link", False),
        exclude=tuple(word.text for word in request.flags.all("exclude")),
        checksum=request.flags.text("checksum") or "",
        keep_git_dir=request.flags.booleans.get("keep-git-dir"),
        unpack=request.flags.booleans.get("unpack"),
    )


def _workdir(request: _Request) -> nodes.Instruction:
    return nodes.Workdir(**request.common, path=request.one())


def _user(request: _Request) -> nodes.Instruction:
    return nodes.User(**request.common, user=request.one())


def _stopsignal(request: _Request) -> nodes.Instruction:
    return nodes.StopSignal(**request.common, signal=request.one())


def _maintainer(request: _Request) -> nodes.Instruction:
    return nodes.Maintainer(**request.common, maintainer=request.one())


def _shell(request: _Request) -> nodes.Instruction:
    node = request.node
    if node.json is None and node.rest.text:
        raise request.fail("SHELL takes the JSON form only", at=node.rest, hint='write `SHELL ["program", "argument"]`')
    if not node.json:
        raise request.fail("SHELL needs at least one argument")
    return nodes.Shell(**request.common, shell=node.json)


def _cmd(request: _Request) -> nodes.Instruction:
    return nodes.Cmd(**request.common, command=request.command())


def _entrypoint(request: _Request) -> nodes.Instruction:
    return nodes.Entrypoint(**request.common, command=request.command())


def _expose(request: _Request) -> nodes.Instruction:
    # BuildKit sorts them as written; the image's config has no order.
    ports = sorted(word.text for word in request.some(request.words()))
    return nodes.Expose(**request.common, ports=tuple(ports))


def _volume(request: _Request) -> nodes.Instruction:
    node = request.node
    words = request.some(request.words())
    if not all(word.text.strip(SPACES) for word in words):
        raise request.fail("VOLUME takes no empty path", at=node.rest)
    paths = tuple(word.text.strip(SPACES) for word in words)
    return nodes.Volume(**request.common, paths=paths)


def _healthcheck(request: _Request) -> nodes.Instruction:
    node = request.node
    words = split_spaces(node.rest)
    if not words:
        raise request.fail("HEALTHCHECK needs `CMD` and a command, or `NONE`")
    kind = words[0].text.upper()
    rest = Word(
        node.rest.text[len(words[0].text) :].lstrip(SPACES), words[1].offset if len(words) > 1 else node.rest.offset
    )
    if kind == "NONE":
        if rest.text:
            raise request.fail("HEALTHCHECK NONE takes no arguments", at=rest)
        return nodes.Healthcheck(**request.common, test=("NONE",))
    if kind != "CMD":
        raise request.fail(
            f"unknown type {shown(words[0].text)} of HEALTHCHECK", at=words[0], hint="it is `CMD` or `NONE`"
        )
    arguments = parse_json_strings(rest)
    test = ("CMD-SHELL", rest.text) if arguments is None else ("CMD", *arguments)
    if not rest.text or arguments == ():
        raise request.fail("HEALTHCHECK CMD needs a command")
    return nodes.Healthcheck(
        **request.common,
        test=test,
        interval_ns=_health_interval(request, "interval"),
        timeout_ns=_health_interval(request, "timeout"),
        start_period_ns=_health_interval(request, "start-period"),
        start_interval_ns=_health_interval(request, "start-interval"),
        retries=_health_retries(request),
    )


def _health_interval(request: _Request, flag: str) -> int:
    word = request.flags.word(flag)
    if word is None or not word.text:
        return 0
    try:
        value = parse_duration_ns(word.text)
    except DockerfileError as error:
        raise request.at(word, error) from None
    if value and value < _MIN_HEALTH_INTERVAL_NS:
        raise request.fail(f"HEALTHCHECK --{flag} is at least 1ms, not {shown(word.text)}", at=word)
    return value


def _health_retries(request: _Request) -> int:
    word = request.flags.word("retries")
    if word is None or not word.text:
        return 0
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", word.text) or not 0 <= int(word.text) < 2**31:
        raise request.fail(f"HEALTHCHECK --retries cannot be {shown(word.text)}", at=word, hint="it is a whole number")
    return int(word.text)


def _onbuild(request: _Request) -> nodes.Instruction:
    node = request.node
    trigger = node.trigger
    assert trigger is not None, "the parser gives every ONBUILD its trigger"
    text = node.line.text[trigger.written.offset :]
    for heredoc in node.line.heredocs:
        text += f"\n{heredoc.content}{heredoc.name}"
    return nodes.Onbuild(
        **request.common,
        trigger=text,
        parsed=parse_node(trigger, request.escape),
    )


_READERS: Mapping[str, Callable[[_Request], nodes.Instruction]] = MappingProxyType(
    {
        "ADD": _add,
        "ARG": _arg,
        "CMD": _cmd,
        "COPY": _copy,
        "ENTRYPOINT": _entrypoint,
        "ENV": _env,
        "EXPOSE": _expose,
        "FROM": _from,
        "HEALTHCHECK": _healthcheck,
        "LABEL": _label,
        "MAINTAINER": _maintainer,
        "ONBUILD": _onbuild,
        "RUN": _run,
        "SHELL": _shell,
        "STOPSIGNAL": _stopsignal,
        "USER": _user,
        "VOLUME": _volume,
        "WORKDIR": _workdir,
    }
)


def parse_node(node: Node, escape: str) -> nodes.Instruction:
    """The typed instruction of a node. Raises SpanError."""
    return _READERS[node.name](_Request(node, escape))


def parse_instruction(line: LogicalLine, escape: str) -> nodes.Instruction:
    """The typed instruction of a logical line. Raises SpanError."""
    return parse_node(parse_line(line, escape), escape)
