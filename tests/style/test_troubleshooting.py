"""The troubleshooting guide has every error code of the code, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "firebuild"
GUIDE = ROOT / "docs" / "guides" / "troubleshooting.md"


def read_table(title: str) -> dict[str, tuple[str, str]]:
    """Code → cause and remedy, of the table under that heading."""
    section = GUIDE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \| (.+) \|$", section, re.MULTILINE)
    codes = [code for code, _, _ in rows]
    assert len(codes) == len(set(codes)), "a code has two rows"
    return {code: (cause, remedy) for code, cause, remedy in rows}


def find_in_package(pattern: str) -> set[str]:
    sources = (path.read_text() for path in PACKAGE.rglob("*.py"))
    return {found for source in sources for found in re.findall(pattern, source)}


def test_every_error_code_has_its_cause_and_remedy() -> None:
    # The class attribute of an error: nothing else stands so.
    made = find_in_package(r'(?m)^    code = "([a-z-]+)"$')
    assert len(made) > 25
    assert set(read_table("Error codes")) == made


def test_every_code_of_the_guest_has_its_cause_and_remedy() -> None:
    source = (ROOT / "crates" / "protocol" / "src" / "error.rs").read_text()
    names = source.split("pub fn as_str")[1].split("impl fmt::Display for ErrorCode")[0]
    made = set(re.findall(r'Self::\w+ => "([a-z-]+)"', names)) | find_in_package(r'guest_code="([a-z-]+)"')
    assert len(made) > 15
    assert set(read_table("The guest's codes")) == made
    protocol = (ROOT / "protocol" / "PROTOCOL.md").read_text().split("\nError codes: ")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", protocol)) == made - {"lost"}


def test_every_reason_of_a_registry_has_its_cause_and_remedy() -> None:
    documented = (PACKAGE / "errors.py").read_text().split("`reason`: ")[1].split('."""')[0]
    made = set(re.findall(r"[a-z-]+", documented)) - {"or"}
    assert find_in_package(r'RegistryError\([^)]*?reason="([a-z-]+)"') <= made
    assert set(read_table("Why a registry failed")) == made


def test_what_it_tells_to_type_exists() -> None:
    from firebuild.cli.main import COMMANDS, load_command

    for name, rest in re.findall(r"`firebuild ([a-z]+)((?: [^`]*)?)`", GUIDE.read_text()):
        assert name in COMMANDS, name
        options = {option for parameter in load_command(name).params for option in parameter.opts}
        words = rest.split(" -- ")[0].split()
        commands = getattr(load_command(name), "commands", None)
        if commands is not None:
            assert words[0] in commands, f"{name} {rest}"
            options = {option for parameter in commands[words[0]].params for option in parameter.opts}
        for flag in (word for word in words if word.startswith("-")):
            assert flag in options, f"{name}{rest}"
