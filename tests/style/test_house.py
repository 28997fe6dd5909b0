"""The house rules hold in every file of the project."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import rules

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "firebuild"

Rule = Callable[[str, str], Iterator[str]]


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def project_files() -> list[Path]:
    """What belongs to the project: what git tracks, or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    paths = (ROOT / name for name in listing.decode().split("\0") if name)
    return sorted(path for path in paths if path.is_file())


@pytest.mark.parametrize(
    "rule",
    [rules.check_layers, rules.check_processes, rules.check_prints, rules.check_paths],
    ids=lambda rule: rule.__name__,
)
def test_the_package(rule: Rule) -> None:
    found = [line for path in modules(PACKAGE) for line in rule(path.read_text(), str(path.relative_to(PACKAGE)))]
    assert modules(PACKAGE)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "rule",
    [rules.check_size, rules.check_docstring, rules.check_handlers, rules.check_shells],
    ids=lambda rule: rule.__name__,
)
def test_every_python_module(rule: Rule) -> None:
    paths = [path for path in project_files() if path.suffix == ".py"]
    found = [line for path in paths for line in rule(path.read_text(), str(path.relative_to(ROOT)))]
    assert paths
    assert not found, "\n".join(found)


def test_every_rust_module() -> None:
    paths = [path for path in project_files() if path.suffix == ".rs"]
    found = [line for path in paths for line in rules.check_rust(path.read_text(), str(path.relative_to(ROOT)))]
    assert paths
    assert not found, "\n".join(found)


def test_no_crate_allows_unsafe_code_in_more_than_one_module() -> None:
    for crate in sorted((ROOT / "crates").iterdir()):
        allowing = [path for path in crate.rglob("*.rs") if re.search(r"allow\(unsafe_code\)", path.read_text())]
        assert len(allowing) <= 1, allowing


def test_no_forbidden_words() -> None:
    # The checkout's own place tells where it was made; one folder below the root (`/src`) may be a word of a document.
    here = [str(ROOT)] if len(ROOT.parts) > 2 else []
    forbidden = [*here, *rules.REGISTRY_HOSTS]
    found: list[str] = []
    for path in project_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # data, not text
        found += rules.check_words(text, str(path.relative_to(ROOT)), forbidden)
    assert not found, "\n".join(found)


def test_the_changelog() -> None:
    assert not list(rules.check_changelog((ROOT / "CHANGELOG.md").read_text()))


def test_the_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_lock_file_pins_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"], "editables"]
    names = [re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in wanted]
    found = list(rules.check_lock((ROOT / "requirements" / "dev.txt").read_text(), names))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/tutorial.md"])
def test_documents_name_real_commands_of_dev(document: str) -> None:
    usage = subprocess.run([ROOT / "dev", "help"], check=True, capture_output=True, text=True).stdout
    offered = set(re.findall(r"^  ([a-z]+) ", usage, re.MULTILINE))
    shown = rules.find_commands((ROOT / document).read_text(), "./dev")
    assert shown, f"{document} shows no command of ./dev"
    assert shown <= offered


def test_the_readme_shows_the_two_commands_first() -> None:
    commands = re.findall(r"^ {4}(.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [command.split("#")[0].strip() for command in commands[:2]] == ["./dev demo", "./dev test"]


def test_dev_is_a_strict_script() -> None:
    for script in ("dev", ".ci/run", "examples/debian/make-base"):
        lines = (ROOT / script).read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines, script
        assert (ROOT / script).stat().st_mode & 0o100, f"{script} is not executable"
        assert max(map(len, lines)) <= 160, script
