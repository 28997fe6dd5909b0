"""Bytes of a Dockerfile to logical lines: directives, comments, continuations, heredocs. No instruction is known here
but for where heredocs may stand."""

from __future__ import annotations

import re
from bisect import bisect_right

import msgspec

from firebuild.dockerfile.errors import LocatedDockerfileError, SpanError, printable, shown
from firebuild.dockerfile.excerpt import render_excerpt
from firebuild.dockerfile.expand import SPACES
from firebuild.dockerfile.heredoc import Heredoc, find_heredocs
from firebuild.dockerfile.location import Location
from firebuild.errors import DockerfileError

MAX_FILE_SIZE = 1024 * 1024
# BuildKit's own limit for one line (bufio.MaxScanTokenSize), and the kernel's for one argument (MAX_ARG_STRLEN).
MAX_LINE_LENGTH = 64 * 1024 - 1
MAX_INSTRUCTION_LENGTH = 128 * 1024
MAX_INSTRUCTIONS = 1000

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_DIRECTIVE = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*")
DIRECTIVES = ("syntax", "escape", "check")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Directive(msgspec.Struct, frozen=True):
    """A parser directive such as `# escape=`` at the top of the file."""

    name: str
    value: str
    line: int


class Source(msgspec.Struct, frozen=True):
    """A Dockerfile's name and lines, to show places in it."""

    name: str
    lines: tuple[str, ...]

    def locate(
        self, error: DockerfileError, location: Location, *, line: LogicalLine | None = None
    ) -> LocatedDockerfileError:
        """`error` with its place: at its offset of `line` if it has one, else at the start of `location`."""
        if isinstance(error, LocatedDockerfileError):
            return error
        number, column = location.start_line, location.start_column
        if isinstance(error, SpanError) and line is not None:
            number, column = line.position(error.offset)
        return LocatedDockerfileError(
            error.message,
            file_name=printable(self.name),
            location=location,
            line=number,
            column=column,
            hint=error.hint,
            details=render_excerpt(self.lines, location, line=number),
        )


class LogicalLine(msgspec.Struct, frozen=True):
    """An instruction's text with its continuations joined, and what belongs to it.

    `segments`: for each piece of the text its offset in it, its line and its column there; `comments`: those above the
    instruction; `empty_lines`: the numbers of empty lines between continuations (which BuildKit warns of).
    """

    text: str
    location: Location
    segments: tuple[tuple[int, int, int], ...]
    heredocs: tuple[Heredoc, ...] = ()
    comments: tuple[str, ...] = ()
    empty_lines: tuple[int, ...] = ()

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset of the text."""
        index = bisect_right(self.segments, offset, key=lambda segment: segment[0]) - 1
        start, line, column = self.segments[max(index, 0)]
        return line, column + offset - start


class LexedFile(msgspec.Struct, frozen=True):
    """A Dockerfile in logical lines. `escape`: the escape character that its directive chose."""

    source: Source
    escape: str
    directives: tuple[Directive, ...]
    logical_lines: tuple[LogicalLine, ...]


class _Lexer:
    def __init__(self, name: str, lines: list[str]) -> None:
        self.source = Source(name, tuple(line.rstrip("\r") for line in lines))
        self.lines = lines
        self.index = 0
        self.escape = "\\"
        self.directives: list[Directive] = []
        self.directives_done = False
        self.escape_done = False
        self.comments: list[str] = []
        self.found: list[LogicalLine] = []

    def fail(
        self, message: str, number: int, column: int = 1, *, end: int | None = None, hint: str | None = None
    ) -> LocatedDockerfileError:
        last = end or number
        text = self.source.lines[last - 1] if 0 < last <= len(self.source.lines) else ""
        location = Location(number, column, last, len(text) + 1)
        return self.source.locate(DockerfileError(message, hint=hint), location)

    def run(self) -> LexedFile:
        while self.index < len(self.lines):
            self.read_one()
        if not self.found:
            raise self.fail("the file has no instructions", max(1, len(self.lines)))
        return LexedFile(self.source, self.escape, tuple(self.directives), tuple(self.found))

    def read_one(self) -> None:
        """Reads a blank line, a comment, a directive, or an instruction with its continuations and heredocs."""
        line = self.lines[self.index].rstrip("\r")
        self.index += 1
        stripped = line.lstrip(SPACES)
        if stripped.startswith("#"):
            stripped = _SURROGATE.sub("\ufffd", stripped)
            if not self.read_directive(stripped):
                comment = stripped[1:].strip(SPACES)
                if comment:
                    self.comments.append(comment)
                else:
                    self.comments.clear()
            return
        self.directives_done = True
        if stripped:
            self.read_instruction(stripped, len(line) - len(stripped) + 1)

    def read_directive(self, comment: str) -> bool:
        if self.directives_done:
            return False
        if self.index == 1 and comment.startswith("#!"):
            # After an interpreter line BuildKit still finds `syntax` and `check`, but no `escape`.
            self.escape_done = True
            return False
        found = parse_directive(comment[1:].lstrip(SPACES))
        if found is None or (found[0] == "escape" and self.escape_done):
            self.directives_done = True
            return False
        name, value = found
        if any(directive.name == name for directive in self.directives):
            raise self.fail(f"the directive `{name}` is given twice", self.index)
        if name == "escape":
            if value not in ("\\", "`"):
                raise self.fail(
                    f"the escape character cannot be {shown(value)}",
                    self.index,
                    hint="it is a backslash or a backquote",
                )
            self.escape = value
        self.directives.append(Directive(name, value, self.index))
        return True

    def trim_continuation(self, line: str) -> tuple[str, bool]:
        """The line without a continuation character at its end, and whether it had one."""
        stripped = line.rstrip(" \t")
        if stripped.endswith(self.escape) and not stripped.endswith(self.escape * 2):
            return stripped[:-1], True
        return line, False

    def read_instruction(self, stripped: str, column: int) -> None:
        start = self.index
        text, continues = self.trim_continuation(stripped)
        parts = [text]
        segments = [(0, start, column)]
        length = len(text)
        last = start
        empty: list[int] = []
        while continues and self.index < len(self.lines):
            line = self.lines[self.index].rstrip("\r")
            self.index += 1
            bare = line.lstrip(SPACES)
            if bare.startswith("#"):
                continue
            if not bare:
                empty.append(self.index)
                continue
            text, continues = self.trim_continuation(line)
            last = self.index
            segments.append((length, last, 1))
            parts.append(text)
            length += len(text)
            if length > MAX_INSTRUCTION_LENGTH:
                raise self.fail(
                    f"the instruction is longer than {MAX_INSTRUCTION_LENGTH} characters", start, column, end=last
                )
        joined = "".join(parts)
        self.check_text(joined, segments, start, column, last)
        if len(self.found) >= MAX_INSTRUCTIONS:
            raise self.fail(f"the file has more than {MAX_INSTRUCTIONS} instructions", start, column)
        logical = LogicalLine(
            joined, Location(start, column, last, len(self.source.lines[last - 1]) + 1), tuple(segments)
        )
        heredocs = self.read_heredocs(logical)
        end = self.index if heredocs else last
        location = Location(start, column, end, len(self.source.lines[end - 1]) + 1)
        self.found.append(LogicalLine(joined, location, logical.segments, heredocs, tuple(self.comments), tuple(empty)))
        self.comments = []

    def check_text(self, text: str, segments: list[tuple[int, int, int]], start: int, column: int, last: int) -> None:
        bad = _SURROGATE.search(text)
        offset = bad.start() if bad else text.find("\0")
        if offset < 0:
            return
        number, place = LogicalLine(text, Location(start, column, last, 1), tuple(segments)).position(offset)
        what = "bytes that are not UTF-8" if bad else "a NUL byte"
        raise self.fail(f"the instruction has {what}", number, place, hint="save the file as UTF-8")

    def read_heredocs(self, logical: LogicalLine) -> tuple[Heredoc, ...]:
        try:
            words = find_heredocs(logical.text, self.escape)
        except DockerfileError as error:
            raise self.source.locate(error, logical.location, line=logical) from None
        heredocs: list[Heredoc] = []
        for word in words:
            first = self.index
            while True:
                if self.index >= len(self.lines):
                    raise self.fail(
                        f"the heredoc {shown(word.name)} has no end",
                        logical.location.start_line,
                        logical.location.start_column,
                        end=logical.location.end_line,
                        hint=f"a line of its own must hold {shown(word.name)}",
                    )
                line = self.lines[self.index].rstrip("\r")
                self.index += 1
                if (line.lstrip("\t") if word.chomp else line) == word.name:
                    break
            content = "".join(f"{line}\n" for line in self.lines[first : self.index - 1])
            if _SURROGATE.search(content):
                raise self.fail(
                    f"the heredoc {shown(word.name)} has bytes that are not UTF-8",
                    logical.location.start_line,
                    logical.location.start_column,
                    end=self.index,
                    hint="save the file as UTF-8, or COPY a file",
                )
            heredocs.append(Heredoc(word.name, content, word.expand, word.chomp, word.file_descriptor))
        return tuple(heredocs)


def parse_directive(comment: str) -> tuple[str, str] | None:
    """The name and the value of a comment that has the form of a directive, without its `#`; None for any other."""
    match = _DIRECTIVE.fullmatch(comment)
    name = match.group(1).lower() if match else ""
    return (name, match.group(2)) if match and name in DIRECTIVES else None


def lex(data: bytes, name: str = "Dockerfile") -> LexedFile:
    """Splits a Dockerfile into logical lines. Raises LocatedDockerfileError.

    The limits hold before anything is decoded: a file of more than 1 MiB, or with a line of more than 65,535
    characters, is refused at once.
    """
    if len(data) > MAX_FILE_SIZE:
        raise _refuse_file(name, f"the file has {len(data)} bytes; at most {MAX_FILE_SIZE} are read")
    if data.startswith(_UTF16_BOMS):
        raise _refuse_file(name, "the file is UTF-16", hint="save it as UTF-8")
    lines = data.removeprefix(_BOM).decode("utf-8", "surrogateescape").split("\n")
    if lines[-1] == "":
        lines.pop()
    if not any(lines):
        raise _refuse_file(name, "the file is empty")
    lexer = _Lexer(name, lines)
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_LENGTH:
            raise lexer.fail(f"the line is longer than {MAX_LINE_LENGTH} characters", number)
    return lexer.run()


def _refuse_file(name: str, message: str, hint: str | None = None) -> LocatedDockerfileError:
    return LocatedDockerfileError(
        message, file_name=printable(name), location=Location(1, 1, 1, 1), line=1, column=1, hint=hint
    )
