"""Pages of promises tell the truth about their tests: each row names some, and each of those exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs"
ROW = re.compile(r"^\| (?P<id>[A-Z]\d+) \|(?P<cells>.*)\|$", re.MULTILINE)
TEST = re.compile(r"`(?P<path>(?:tests|crates)/[\w./-]+\.(?:py|rs))::(?P<name>\w+)`")
# How many rows each part of a page has (one that is lost is seen), and how many cells a row besides its id.
_THREATS = {"I": 12, "B": 9, "S": 8, "R": 8, "N": 7, "G": 5, "H": 3, "C": 2, "X": 4}
PARTS = {"design/threats.md": (_THREATS, 3), "reference/clones.md": ({"C": 15}, 2)}


@cache
def find_tests(path: str) -> frozenset[str]:
    """The names of a file's tests."""
    text = (ROOT / path).read_text()
    if path.endswith(".rs"):
        return frozenset(re.findall(r"#\[test\]\s+fn (\w+)\(", text))
    functions = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


@pytest.mark.parametrize("page", PARTS)
def test_every_row_names_tests_that_exist(page: str) -> None:
    rows = list(ROW.finditer((PAGES / page).read_text()))
    missing = []
    for row in rows:
        cells = row["cells"].split(" | ")
        assert len(cells) == PARTS[page][1], f"{row['id']} has {len(cells)} cells besides its id"
        named = TEST.findall(cells[-1])
        assert named and len(named) == cells[-1].count("::"), f"{row['id']} names no test, or names one in another form"
        missing += [
            f"{row['id']}: {path}::{name}"
            for path, name in named
            if not (ROOT / path).is_file() or name not in find_tests(path)
        ]
    assert not missing, "no such tests:\n" + "\n".join(missing)


@pytest.mark.parametrize("page", PARTS)
def test_no_row_is_lost_and_none_is_there_twice(page: str) -> None:
    ids = [row["id"] for row in ROW.finditer((PAGES / page).read_text())]
    assert len(ids) == len(set(ids))
    for part, count in PARTS[page][0].items():
        assert [name for name in ids if name[0] == part] == [f"{part}{number}" for number in range(1, count + 1)]
