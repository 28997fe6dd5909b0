"""Every folder of tests/data/dockerfile: a Dockerfile and its tree (expected.json) or its error (error.txt).

A new case needs no code: add a folder with a Dockerfile, run this file with the folder's name to write what the parser
makes of it, and read that before it is committed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from firebuild.dockerfile.errors import LocatedDockerfileError
from firebuild.dockerfile.stages import Dockerfile, parse_dockerfile

CASES = Path(__file__).parents[2] / "data" / "dockerfile"
NAMES = sorted(path.name for path in CASES.iterdir()) if CASES.is_dir() else []


def tree(value: Any) -> Any:
    """A value as plain JSON: places as `line:column-line:column`, and without what is empty or false."""
    if isinstance(value, dict):
        if value.keys() == {"start_line", "start_column", "end_line", "end_column"}:
            return "{start_line}:{start_column}-{end_line}:{end_column}".format(**value)
        pruned = {key: tree(each) for key, each in value.items()}
        return {key: each for key, each in pruned.items() if each not in (None, "", 0, False, [], {}) or key == "shell"}
    if isinstance(value, list | tuple):
        return [tree(each) for each in value]
    return value


def dump(parsed: Dockerfile) -> Any:
    whole = msgspec.to_builtins(parsed)
    for stage in whole["stages"]:
        del stage["index"]
    return tree({key: whole[key] for key in ("escape", "directives", "global_args", "stages")})


def render(error: LocatedDockerfileError) -> str:
    parts = [str(error), error.details or "", f"hint: {error.hint}" if error.hint else ""]
    return "\n".join(part for part in parts if part) + "\n"


def outcome(folder: Path) -> tuple[str, str]:
    """The name and the text of the file that the case must hold."""
    try:
        parsed = parse_dockerfile((folder / "Dockerfile").read_bytes())
    except LocatedDockerfileError as error:
        return "error.txt", render(error)
    return "expected.json", json.dumps(dump(parsed), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str) -> None:
    folder = CASES / name
    file_name, text = outcome(folder)
    held = sorted(path.name for path in folder.iterdir() if path.name != "Dockerfile")
    assert held == [file_name]
    assert text == (folder / file_name).read_text(encoding="utf-8")


def test_there_are_enough_cases() -> None:
    errors = [name for name in NAMES if (CASES / name / "error.txt").exists()]
    assert len(NAMES) >= 100
    assert len(errors) >= 45


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        written, content = outcome(CASES / argument)
        (CASES / argument / written).write_text(content, encoding="utf-8")
