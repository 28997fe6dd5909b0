"""`.dockerignore`: the tables of patternmatcher's rules, the walk with pruning, and a property test against a model."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from firebuild.dockerfile.errors import LocatedDockerfileError
from firebuild.dockerfile.ignore import (
    IgnoreRules,
    Verdict,
    clean_path,
    ignore_file_names,
    parse_excludes,
    parse_ignore,
)
from firebuild.errors import DockerfileError

ONE_PATTERN = [
    ("**", "file", True),
    ("**/", "dir/file", True),
    ("**/**", "dir/file", True),
    ("dir/**", "dir/dir2/file", True),
    ("dir/**", "dir", False),
    ("**/dir", "dir/file", True),
    ("**/dir2/*", "dir/dir2/file", True),
    ("**/dir2/**", "dir/dir2/dir3/file", True),
    ("**file", "dir/xfile", True),
    ("**file*", "xfile", False),
    ("**/file*txt", "dir/dir/file.txt", True),
    ("**/**/*.txt2", "dir/dir/file.txt", False),
    ("**/*.txt", "file.txt", True),
    ("a**/*.txt", "a/dir/dir/file.txt", True),
    ("a/*.txt", "a/dir/file.txt", False),
    ("a/*.txt**", "a/file.txt", True),
    ("a[b-d]e", "ace", True),
    ("a[b-d]e", "aae", False),
    ("a[^b-d]e", "aze", True),
    ("a[!b]e", "a!e", True),
    ("a[!b]e", "aze", False),
    (r"[\]a]", "]", True),
    ("[a-ζ]*", "β", True),
    (".*", ".foo", True),
    (".*", "foo", False),
    ("abc.def", "abcZdef", False),
    ("abc?def", "abc/def", False),
    (r"a\*b", "a*b", True),
    (r"a\*b", "axb", False),
    ("a\\\\", "a\\", True),
    ("**/.foo", "bar.foo", False),
    ("a(b)c/def", "a(b)c/def", True),
    ("a.|)$(}+{bc", "a.|)$(}+{bc", True),
    ("foo", "a/foo", False),
    ("/foo", "foo", True),
    ("./foo/", "foo/bar", True),
    ("a/../b", "b", True),
    ("../x", "x", False),
    ("Foo", "foo", False),
    (".", "a", False),
]

FILES = [
    ("node_modules\n!node_modules/keep\n", "node_modules/keep/x", False),
    ("node_modules\n!node_modules/keep\n", "node_modules/x", True),
    ("!a.go\n*.go\n", "a.go", True),
    ("*.go\n!a.go\n", "a.go", False),
    ("docs/*\n!docs/README.md\n", "docs/README.md", False),
    ("**\n!util/web\nutil/web/foo\n", "util/web/foo", True),
    ("# comment\n  #not\n", "#not", True),
    ("\ufeff# comment\nx\n", "# comment", False),
    ("\ufeffx\n", "x", True),
    ("  spaced  \r\n", "spaced", True),
    ("! x\n", "x", False),
    ("*\n!  /x\n", "x", False),
    ("*\n/!x\n", "x", False),
    ("**/y\n!x\n", "x/y", False),
    ("\n\n   \n", "x", False),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), ONE_PATTERN)
def test_one_pattern(pattern: str, path: str, expected: bool) -> None:
    assert parse_excludes([pattern]).excludes(path) is expected


@pytest.mark.parametrize(("text", "path", "expected"), FILES)
def test_file(text: str, path: str, expected: bool) -> None:
    assert parse_ignore(text.encode()).excludes(path) is expected


@pytest.mark.parametrize(
    "pattern", ["!", "! ", "!/", "[", "[]a]", "[-]", "[x-]", "[a-b-c]", "[^", "a[", "\\", "[b-a]", "[a\\"]
)
def test_malformed_patterns(pattern: str) -> None:
    with pytest.raises(LocatedDockerfileError) as caught:
        parse_ignore(f"fine\n{pattern}\nalso\n".encode(), "web.Dockerfile.dockerignore")
    assert caught.value.message.startswith("web.Dockerfile.dockerignore:2:1: ")
    assert caught.value.details is not None
    assert f"2 | >>> {pattern.rstrip()}" in caught.value.details


def test_verdict_names_the_deciding_pattern() -> None:
    verdict = parse_ignore(b"*.log\n\n!keep.log\n").match_path("keep.log")
    assert verdict.pattern is not None
    assert (verdict.excluded, verdict.pattern.line, verdict.pattern.exception) == (False, 3, True)


def test_pruning() -> None:
    rules = parse_ignore(b"a\nb\n!b/keep/x\nc\n!**/y\nd\n!c/z\n")
    assert rules.match_path("a").prunable is False, "`!**/y` may match below it"
    assert rules.match_path("d").prunable is True, "no exception comes behind it but `c/z`"
    assert rules.match_path("b/other").prunable is False
    narrow = parse_ignore(b"b\n!b/keep/x\n")
    assert narrow.match_path("b").prunable is False
    assert narrow.match_path("b/other").prunable is True
    assert narrow.match_path("b/keep").prunable is False


def test_root_is_never_excluded() -> None:
    rules = parse_ignore(b"**\n")
    assert rules.match_path(".").excluded is False
    assert rules.root.excluded is False


def test_limits() -> None:
    with pytest.raises(LocatedDockerfileError, match="at most"):
        parse_ignore(b"a\n" * (600 * 1024))
    with pytest.raises(LocatedDockerfileError, match="more than 10000"):
        parse_ignore(b"a\n" * 10_001)


def test_hostile_patterns_are_linear() -> None:
    rules = parse_ignore(("*a" * 200 + "b\n" + "**/" * 200 + "x*y\n").encode())
    assert rules.excludes("a" * 255) is False
    assert rules.excludes("a/" * 2000 + "xy") is True


def test_names_of_the_file() -> None:
    assert ignore_file_names("docker/web.Dockerfile") == ("docker/web.Dockerfile.dockerignore", ".dockerignore")


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [("", "."), ("a//b/./c/..", "a/b"), ("/..//a", "/a"), ("../../a", "../../a"), ("a/../..", ".."), ("/", "/")],
)
def test_clean_path(path: str, cleaned: str) -> None:
    assert clean_path(path) == cleaned


def _matches(pattern: str, path: str) -> bool:
    """One cleaned pattern against one path, straight from the rules."""
    if pattern.startswith("**") and not set(pattern[2:]) & set("*?[\\"):
        suffix = pattern[2:]
        return path.endswith(suffix) or path == suffix.removeprefix("/")

    @cache
    def walk(at: int, position: int) -> bool:
        if at == len(pattern):
            return position == len(path)
        char = pattern[at]
        if pattern.startswith("**", at):
            rest = at + 3 if pattern.startswith("/", at + 2) else at + 2
            if rest >= len(pattern):
                return True
            later = [index + 1 for index in range(position, len(path)) if path[index] == "/"]
            return walk(rest, position) or any(walk(rest, index) for index in later)
        if char == "*":
            if walk(at + 1, position):
                return True
            return position < len(path) and path[position] != "/" and walk(at, position + 1)
        if position == len(path):
            return False
        if char == "?":
            return path[position] != "/" and walk(at + 1, position + 1)
        if char == "[":
            end = pattern.index("]", at + 2)
            chars = pattern[at + 1 : end]
            inside = path[position] in chars.removeprefix("^")
            return inside != chars.startswith("^") and walk(end + 1, position + 1)
        return char == path[position] and walk(at + 1, position + 1)

    return walk(0, 0)


def _model(patterns: list[str], path: str) -> bool:
    parts = path.split("/")
    parents = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    excluded = False
    for pattern in patterns:
        cleaned = clean_path(pattern.removeprefix("!")).removeprefix("/")
        if any(_matches(cleaned, parent) for parent in parents):
            excluded = not pattern.startswith("!")
    return excluded


_names = st.sampled_from(["a", "b", "ab", "ba", ".a", "aab"])
_paths = st.lists(_names, min_size=1, max_size=4).map("/".join)
_parts = st.sampled_from(["a", "b", "*", "**", "?", "a*", "*b", "[ab]", "[^a]", ".a", "**a", "a?b"])
_patterns = st.builds(
    lambda exception, parts: ("!" if exception else "") + "/".join(parts),
    st.booleans(),
    st.lists(_parts, min_size=1, max_size=4),
)


@given(st.lists(_patterns, max_size=5), st.lists(_paths, min_size=1, max_size=6))
@example(["**/y", "!x"], ["x/y"])
def test_against_the_model(patterns: list[str], paths: list[str]) -> None:
    rules = parse_excludes(patterns)
    for path in paths:
        assert rules.excludes(path) is _model(patterns, path), (patterns, path)


@given(st.lists(_patterns, max_size=5), st.lists(_paths, min_size=1, max_size=8))
def test_a_walk_that_prunes_finds_the_same(patterns: list[str], paths: list[str]) -> None:
    rules = parse_excludes(patterns)
    every = {"/".join(path.split("/")[:end]) for path in paths for end in range(1, 5)}
    found: set[str] = set()

    def walk(folder: str, verdict: Verdict) -> None:
        prefix = f"{folder}/" if folder else ""
        for path in every:
            if path.startswith(prefix) and "/" not in path[len(prefix) :] and path != folder:
                inner = rules.match(path[len(prefix) :], verdict)
                if not inner.excluded:
                    found.add(path)
                if not inner.prunable:
                    walk(path, inner)

    walk("", rules.root)
    assert found == {path for path in every if not rules.excludes(path)}


@given(st.text("a/*?[]^-!\\. #", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        rules: IgnoreRules = parse_ignore(text.encode())
    except DockerfileError as error:
        assert error.message
        return
    assert rules.excludes("a/a") in (True, False)
