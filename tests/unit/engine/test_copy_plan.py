"""Docker's rules for `cp`: where what goes, and what means nothing."""

from __future__ import annotations

import pytest

from firebuild.engine.copy_plan import End, Place, Side, clean_guest_path, parse_end, plan_place
from firebuild.errors import UsageError

FILE = Side("file", "/src/f", "f")
FOLDER = Side("directory", "/src/d", "d")
CONTENTS = Side("directory", "/src/d", "d/.", is_folder=True, contents=True)
TO_FILE = Side("file", "/dst/x", "x")
TO_FOLDER = Side("directory", "/dst/x", "x")
TO_NOTHING = Side("missing", "/dst/x", "x")
TO_NO_FOLDER = Side("missing", "/dst/x", "x/", is_folder=True)


@pytest.mark.parametrize(
    ("source", "target", "place"),
    [
        (FILE, TO_NOTHING, Place("/dst", "x")),
        (FILE, TO_FILE, Place("/dst", "x")),
        (FILE, TO_FOLDER, Place("/dst/x", "f")),
        (FOLDER, TO_NOTHING, Place("/dst", "x")),
        (FOLDER, TO_NO_FOLDER, Place("/dst", "x")),
        (FOLDER, TO_FOLDER, Place("/dst/x", "d")),
        (CONTENTS, TO_NOTHING, Place("/dst", "x")),
        (CONTENTS, TO_FOLDER, Place("/dst/x", "")),
        (Side("symlink", "/src/l", "l"), TO_FOLDER, Place("/dst/x", "l")),
    ],
)
def test_where_it_goes(source: Side, target: Side, place: Place) -> None:
    assert plan_place(source, target) == place


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (FOLDER, TO_FILE, "over the file"),
        (FILE, TO_NO_FOLDER, "does not exist"),
        (FILE, Side("file", "/dst/x", "x/", is_folder=True), "is not a folder"),
        (Side("file", "/src/f", "f/", is_folder=True), TO_FOLDER, "is not a folder"),
    ],
)
def test_what_has_no_place(source: Side, target: Side, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_place(source, target)


def test_ends() -> None:
    assert parse_end("web:/etc") == End("web", "/etc")
    assert parse_end("web:a:b") == End("web", "a:b")
    for text in ("./a:b", "/a:b", "-", "plain"):
        assert parse_end(text) == End("", text)
    for text in ("", ":x", "web:"):
        with pytest.raises(UsageError):
            parse_end(text)


def test_guest_paths_are_absolute_and_clean() -> None:
    assert [clean_guest_path(path) for path in ("etc/x", "//etc/", "/a/../../b/.", "/", ".")] == [
        "/etc/x", "/etc", "/b", "/", "/",
    ]  # fmt: skip
