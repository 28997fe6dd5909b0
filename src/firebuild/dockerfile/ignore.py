"""`.dockerignore`, exactly: which paths of a context the patterns exclude, and which folders need no walk.

The rules are those of moby/patternmatcher. Everything is anchored at the context's root; a pattern matches a path if
it matches the path or any folder above it; the last pattern that matches wins; `!` makes an exception.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from firebuild.dockerfile.errors import LocatedDockerfileError, printable
from firebuild.dockerfile.excerpt import render_excerpt
from firebuild.dockerfile.expand import SPACES
from firebuild.dockerfile.globs import GlobSet, check_glob
from firebuild.dockerfile.location import Location
from firebuild.errors import DockerfileError

MAX_FILE_SIZE = 1024 * 1024
MAX_PATTERNS = 10_000

_BOM = b"\xef\xbb\xbf"


class IgnorePattern(msgspec.Struct, frozen=True):
    """One pattern: cleaned, without its `!`. `line`: where it stands in the file, from 1."""

    text: str
    exception: bool
    line: int


class Verdict(msgspec.Struct, frozen=True):
    """What the patterns say of one path. Hand it back for the entries of a folder.

    `excluded`: the path is not part of the context; `pattern`: the pattern that decided, None if none matched;
    `prunable`: it is excluded, and nothing below it can be an exception.
    """

    excluded: bool
    prunable: bool
    pattern: IgnorePattern | None
    states: int
    matched: int


class IgnoreRules:
    """The patterns of an ignore file (or of --exclude), ready to match."""

    def __init__(self, patterns: Iterable[IgnorePattern]) -> None:
        """Raises DockerfileError for a malformed glob."""
        self.patterns = tuple(patterns)
        if len(self.patterns) > MAX_PATTERNS:
            raise DockerfileError(f"there are more than {MAX_PATTERNS} ignore patterns")
        self._globs = GlobSet([pattern.text for pattern in self.patterns])
        self._exceptions = 0
        for index, pattern in enumerate(self.patterns):
            if pattern.exception:
                self._exceptions |= self._globs.states_of(index)
        self._root = Verdict(False, False, None, self._globs.start, 0)

    @property
    def root(self) -> Verdict:
        """The verdict of the context's root, which is never excluded."""
        return self._root

    def match(self, name: str, parent: Verdict) -> Verdict:
        """The verdict of the entry `name` of the folder that `parent` is the verdict of."""
        states = parent.states
        if parent is not self._root:
            states = self._globs.advance(states, "/")
        states = self._globs.advance(states, name)
        matched = parent.matched | (states & self._globs.accepting)
        if not matched:
            return Verdict(False, False, None, states, 0)
        last = matched.bit_length() - 1
        pattern = self.patterns[self._globs.owner(last)]
        if pattern.exception:
            return Verdict(False, False, pattern, states, matched)
        below = self._globs.advance(states, "/") & self._exceptions
        return Verdict(True, below >> (last + 1) == 0, pattern, states, matched)

    def match_path(self, path: str) -> Verdict:
        """The verdict of a whole path, relative to the context's root."""
        verdict = self._root
        for name in clean_path(path).strip("/").split("/"):
            if name != ".":
                verdict = self.match(name, verdict)
        return verdict

    def excludes(self, path: str) -> bool:
        """Whether a path, relative to the context's root, is excluded."""
        return self.match_path(path).excluded


def clean_path(path: str) -> str:
    """The shortest equal path, by the text alone (Go's path.Clean): `a//b/../c/.` is `a/c`, the empty path is `.`."""
    rooted = path.startswith("/")
    kept: list[str] = []
    for name in path.split("/"):
        if name == "..":
            if kept and kept[-1] != "..":
                kept.pop()
            elif not rooted:
                kept.append(name)
        elif name not in ("", "."):
            kept.append(name)
    cleaned = "/".join(kept)
    if rooted:
        return f"/{cleaned}"
    return cleaned or "."


def parse_ignore(data: bytes, name: str = ".dockerignore") -> IgnoreRules:
    """Reads an ignore file. `name`: as messages show it. Raises LocatedDockerfileError for a malformed pattern."""
    if len(data) > MAX_FILE_SIZE:
        raise LocatedDockerfileError(
            f"the file has {len(data)} bytes; at most {MAX_FILE_SIZE} are read",
            file_name=printable(name),
            location=Location(1, 1, 1, 1),
            line=1,
            column=1,
        )
    lines = data.removeprefix(_BOM).decode("utf-8", "surrogateescape").split("\n")
    patterns: list[IgnorePattern] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            continue
        try:
            pattern = parse_ignore_pattern(line, number)
        except DockerfileError as error:
            raise _locate(error, lines, number, name) from None
        if pattern is not None:
            patterns.append(pattern)
            if len(patterns) > MAX_PATTERNS:
                raise _locate(DockerfileError(f"there are more than {MAX_PATTERNS} patterns"), lines, number, name)
    return IgnoreRules(patterns)


def parse_ignore_pattern(text: str, line: int = 0) -> IgnorePattern | None:
    """One pattern of an ignore file or an --exclude; None for an empty one. Raises DockerfileError."""
    text = text.strip(SPACES)
    if not text:
        return None
    exception = text.startswith("!")
    cleaned = text[1:].strip(SPACES) if exception else text
    if cleaned:
        cleaned = clean_path(cleaned)
        if len(cleaned) > 1:
            cleaned = cleaned.removeprefix("/")
    # The matcher trims, cleans and looks for `!` once more, so that `/!a` is an exception and `!/` is none of a path.
    cleaned = f"!{cleaned}" if exception else cleaned
    cleaned = cleaned.strip(SPACES)
    if not cleaned:
        return None
    cleaned = clean_path(cleaned)
    exception = cleaned.startswith("!")
    if exception:
        cleaned = cleaned[1:]
        if not cleaned:
            raise DockerfileError("a lone `!` is no exception", hint="write `!path`")
    check_glob(cleaned)
    return IgnorePattern(cleaned, exception, line)


def parse_excludes(patterns: Iterable[str]) -> IgnoreRules:
    """The rules of --exclude flags. Raises DockerfileError."""
    parsed = [parse_ignore_pattern(pattern) for pattern in patterns]
    return IgnoreRules(pattern for pattern in parsed if pattern is not None)


def ignore_file_names(dockerfile: str) -> tuple[str, str]:
    """The ignore files of a Dockerfile, relative to the context, the one that wins first."""
    return f"{dockerfile}.dockerignore", ".dockerignore"


def _locate(error: DockerfileError, lines: list[str], number: int, name: str) -> LocatedDockerfileError:
    location = Location(number, 1, number, len(lines[number - 1]) + 1)
    return LocatedDockerfileError(
        error.message,
        file_name=printable(name),
        location=location,
        line=number,
        column=1,
        hint=error.hint,
        details=render_excerpt(lines, location),
    )
