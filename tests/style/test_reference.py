"""The reference pages say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.cli.main import COMMANDS, load_command
from firebuild.dockerfile.flags import FLAGS
from firebuild.dockerfile.mounts import MOUNT_KEYS, MOUNT_TYPES
from firebuild.dockerfile.parser import INSTRUCTION_NAMES
from tests.support import reference
from tests.support.reference_commands import ALIASES, INNER, find_command
from tests.support.reference_samples import FLAG_NOTES, INSTRUCTIONS, MOUNT_KEY_NOTES, MOUNT_NOTES


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_code(page: Path) -> None:
    text = (reference.ROOT / page).read_text(encoding="utf-8")
    assert text == reference.fill(text), "run: .venv/bin/python -m tests.support.reference"


def test_every_table_stands_on_one_page() -> None:
    found = [name for page in reference.PAGES for name in reference.list_tables((reference.ROOT / page).read_text())]
    assert sorted(found) == sorted(reference.TABLES)


def test_every_command_is_on_its_page() -> None:
    titles = [
        line[3:] for line in (reference.ROOT / "docs/reference/cli.md").read_text().splitlines() if line[:3] == "## "
    ]
    assert len(titles) == len(set(titles))
    for name in COMMANDS:
        own = ALIASES.get(name, name)
        assert name in INNER or any(f"{title} ".startswith(f"firebuild {own} ") for title in titles), name
        assert name not in ALIASES or load_command(name).help == find_command(own).help, name


def test_there_is_a_note_for_every_entry_and_for_nothing_else() -> None:
    assert set(INSTRUCTIONS) == set(INSTRUCTION_NAMES)
    assert set(FLAG_NOTES) == {(name, flag) for name, flags in FLAGS.items() for flag in flags}
    assert set(MOUNT_NOTES) == set(MOUNT_TYPES)
    assert set(MOUNT_KEY_NOTES) == set(MOUNT_KEYS.values())


def test_a_table_that_differs_is_made_anew() -> None:
    page = "before\n<!-- table: limits -->\nold\n<!-- end -->\nbehind\n"
    filled = reference.fill(page)
    assert "old" not in filled and filled.startswith("before\n") and filled.endswith("<!-- end -->\nbehind\n")
    assert "| instructions | 1000 |" in filled
    assert reference.fill(filled) == filled


def test_a_refusal_is_seen() -> None:
    assert reference.find_refusal("FROM debian\nRUN true\n") is None
    assert reference.find_refusal("FROM debian\nCOPY --from=7 a b\n") == "there is no stage with the index `7`"


def test_a_table_that_nobody_makes_is_a_fault() -> None:
    with pytest.raises(KeyError):
        reference.fill("<!-- table: nonsense -->\n<!-- end -->\n")
