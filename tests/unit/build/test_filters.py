"""COPY --parents and --exclude from a context: the cases of BuildKit's own tests, and their edges."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.build.context import BuildContext
from firebuild.build.copy import Selection, select_sources
from firebuild.build.filters import parse_parents_source
from firebuild.dockerfile.ignore import parse_excludes
from firebuild.errors import ContextError, FirebuildError

FILES = (
    "dir1/file-101.png", "dir1/file-102.txt", "dir1/file-103.jpeg", "dir2/file-201.pdf", "dir2/file-202.jpeg",
    "dir3/file-301.mp3", "dir3/file-302.mpeg", "dir3/deep/er/x.txt", "top.txt", "top.md",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "dir3").chmod(0o700)
    return tmp_path


def select(folder: Path, *sources: str, exclude: tuple[str, ...] = (), parents: bool = False) -> Selection:
    with BuildContext(folder) as context:
        return select_sources(context, sources, exclude=parse_excludes(exclude), parents=parents)


def names(selection: Selection) -> list[str]:
    return [selected.name for selected in selection.entries]


@pytest.mark.parametrize(
    ("sources", "exclude", "expected"),
    [
        (("dir1",), ("*.png", "*.jpeg"), ["0", "0/file-102.txt"]),
        (("dir3/",), ("*.mp3",), ["0", "0/deep", "0/deep/er", "0/deep/er/x.txt", "0/file-302.mpeg"]),
        (("dir3",), ("**/*.txt", "*.m*"), ["0", "0/deep", "0/deep/er"]),
        (("dir3",), ("deep", "*.m*"), ["0"]),
        (("dir3",), ("deep", "!deep/er/x.txt", "*.m*"), ["0", "0/deep", "0/deep/er", "0/deep/er/x.txt"]),
        (("dir[12]",), ("*.jpeg", "*.p*"), ["0", "0/file-102.txt", "1"]),
        (("dir*",), ("*",), ["0", "1", "2"]),
        (("top*",), ("*.txt",), ["0"]),
        (("top.txt", "top.md"), ("*.txt",), ["0"]),
    ],
)
def test_excludes(folder: Path, sources: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]) -> None:
    assert names(select(folder, *sources, exclude=exclude)) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("dir3/deep/er/x.txt", ["0/dir3", "0/dir3/deep", "0/dir3/deep/er", "0/dir3/deep/er/x.txt"]),
        ("./dir1/*.txt", ["0/dir1", "0/dir1/file-102.txt"]),
        ("dir3/./deep/er", ["0/deep", "0/deep/er", "0/deep/er/x.txt"]),
        ("dir3/./**/*.txt", ["0/deep", "0/deep/er", "0/deep/er/x.txt"]),
        ("dir*/./*.jpeg", ["0/file-103.jpeg", "1/file-202.jpeg"]),
        ("dir3/deep/.", ["0/dir3", "0/dir3/deep", "0/dir3/deep/er", "0/dir3/deep/er/x.txt"]),
        ("dir3/./deep/./er", ["0/deep", "0/deep/er", "0/deep/er/x.txt"]),
        ("nope*", []),
        ("*.md", ["0/top.md"]),
    ],
)
def test_parents(folder: Path, source: str, expected: list[str]) -> None:
    selection = select(folder, source, parents=True)
    assert names(selection) == expected
    assert all(item.kind == "directory" for item in selection.items)


def test_parents_bring_their_attributes_and_excludes_hold(folder: Path) -> None:
    selection = select(folder, "dir3", parents=True, exclude=("**/*.m*",))
    assert [(each.name, each.entry.mode) for each in selection.entries][:1] == [("0/dir3", 0o700)]
    assert "0/dir3/file-301.mp3" not in names(selection) and "0/dir3/deep/er/x.txt" in names(selection)


@pytest.mark.parametrize("source", ["nope", "dir1/nope", "dir1/./nope", "nope/./x*"])
def test_a_plain_source_must_be_there(folder: Path, source: str) -> None:
    with pytest.raises(ContextError, match="not in the build context"):
        select(folder, source, parents=True)


def test_what_a_parents_source_means() -> None:
    parsed = parse_parents_source("/test/a/./b/./c")
    assert (parsed.base, parsed.include, parsed.required) == ("/test/a", "b/c", True)
    assert not parse_parents_source("a/b*/./c").required
    assert parse_parents_source(".").include == "**"
    with pytest.raises(FirebuildError):
        parse_parents_source("a/[")


def test_what_is_excluded_is_not_in_the_digest(folder: Path) -> None:
    first = select(folder, "dir1", exclude=("*.txt",)).digest
    (folder / "dir1" / "file-102.txt").write_text("changed")
    assert select(folder, "dir1", exclude=("*.txt",)).digest == first
    assert select(folder, "dir1").digest != first
