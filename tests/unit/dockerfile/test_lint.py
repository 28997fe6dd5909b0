"""The linter: every folder of tests/data/lint is a Dockerfile and what is said of it.

`<Rule>-bad` shows what a rule is about and nothing else, `<Rule>-good` how to write it; the reference page shows both.
A case may have a `dockerignore`, and an `options.json` with arguments of lint_dockerfile. To add one, run this file with
the folder's name, and read the expected.txt that it writes before it is committed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from firebuild.dockerfile.errors import LocatedDockerfileError
from firebuild.dockerfile.ignore import parse_ignore
from firebuild.dockerfile.lint.flow import BaseFacts
from firebuild.dockerfile.lint.linter import lint_dockerfile, refuse_warnings
from firebuild.dockerfile.lint.options import CheckOptions, parse_check_options
from firebuild.dockerfile.lint.rules import RULES, Rule
from firebuild.dockerfile.lint.warnings import LintWarning
from firebuild.dockerfile.scope import Platform
from firebuild.dockerfile.stages import parse_dockerfile
from firebuild.errors import DockerfileError

CASES = Path(__file__).parents[2] / "data" / "lint"
NAMES = sorted(path.name for path in CASES.iterdir()) if CASES.is_dir() else []
AMD64 = Platform("linux", "amd64")


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """What a case hands to lint_dockerfile."""

    build_args: dict[str, str] = {}
    bases: dict[int, BaseFacts] = {}
    stages: list[int] | None = None
    context_names: list[str] = []


def lint_case(name: str) -> list[LintWarning]:
    folder = CASES / name
    options, ignore = folder / "options.json", folder / "dockerignore"
    chosen = msgspec.convert(json.loads(options.read_text()), Options, strict=False) if options.exists() else Options()
    return lint_dockerfile(
        parse_dockerfile((folder / "Dockerfile").read_bytes()),
        build_args=chosen.build_args,
        platform=AMD64,
        bases=chosen.bases,
        stages=chosen.stages,
        ignore=parse_ignore(ignore.read_bytes()) if ignore.exists() else None,
        context_names=chosen.context_names,
    )


def outcome(name: str) -> str:
    return "".join(f"{warning}\n" for warning in lint_case(name))


def lint(text: str, **options: Any) -> list[str]:
    found = lint_dockerfile(parse_dockerfile(text.encode()), build_args={}, platform=AMD64, **options)
    return [str(warning) for warning in found]


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str) -> None:
    assert outcome(name) == (CASES / name / "expected.txt").read_text(encoding="utf-8")
    known = {"Dockerfile", "dockerignore", "expected.txt", "options.json"}
    assert not {path.name for path in (CASES / name).iterdir()} - known


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_bad_case_of_its_own_and_a_good_one(rule: str) -> None:
    assert {warning.rule.name for warning in lint_case(f"{rule}-bad")} == {rule}
    assert lint_case(f"{rule}-good") == []


def test_the_rules_are_those_of_buildkit() -> None:
    # frontend/dockerfile/linter/ruleset.go of moby/buildkit: the names are what `skip` takes.
    assert set(RULES) == {
        "ConsistentInstructionCasing",
        "CopyIgnoredFile",
        "DuplicateStageName",
        "ExposeInvalidFormat",
        "ExposeProtoCasing",
        "FromAsCasing",
        "FromPlatformFlagConstDisallowed",
        "InvalidBaseImagePlatform",
        "InvalidDefaultArgInFrom",
        "InvalidDefinitionDescription",
        "JSONArgsRecommended",
        "LegacyKeyValueFormat",
        "MaintainerDeprecated",
        "MultipleInstructionsDisallowed",
        "NoEmptyContinuation",
        "RedundantTargetPlatform",
        "ReservedStageName",
        "SecretsUsedInArgOrEnv",
        "StageNameCasing",
        "UndefinedArgInFrom",
        "UndefinedVar",
        "WorkdirRelativePath",
    }
    assert [name for name, rule in RULES.items() if rule.experimental] == ["InvalidDefinitionDescription"]


def test_warnings_come_by_lines() -> None:
    found = lint("FROM scratch as a\nwork\\\ndir /x\nFROM scratch AS a\nENV x y\nCMD true\n")
    lines = [int(text.rpartition("line ")[2].rstrip(")")) for text in found]
    assert lines == sorted(lines)
    assert len(found) == 5


def test_a_warning_knows_its_place() -> None:
    found = lint_case("NoEmptyContinuation-bad")[0]
    assert (found.line, found.location.end_line) == (3, 3)
    assert found.rule.anchor == "docs/reference/lint-rules.md#noemptycontinuation"


def test_names_of_the_file_reach_no_terminal_as_they_are() -> None:
    found = lint(
        "FROM scratch\nENV a\x1b[31m_key=1\nWORKDIR \x1b[2J\nEXPOSE 80/T\x1b[2J\nLABEL a=$\u202eevil\nCOPY \x07 .\n"
    )
    assert len(found) >= 3
    assert all(text.isprintable() for text in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", CheckOptions()),
        ("skip=all", CheckOptions(skip=frozenset({"all"}))),
        ("skip=A,B", CheckOptions(skip=frozenset({"A", "B"}))),
        ("skip=A;error=true", CheckOptions(skip=frozenset({"A"}), error=True)),
        ("error=0;experimental=C;skip=A", CheckOptions(frozenset({"A"}), frozenset({"C"}))),
        ("skip=A // and B", CheckOptions(skip=frozenset({"A"}))),
    ],
)
def test_check_options(text: str, expected: CheckOptions) -> None:
    assert parse_check_options(text) == expected


@pytest.mark.parametrize("text", ["skip", "error=maybe", "skipp=A", "skip=A;", "skip=A;b", "=", "error="])
def test_malformed_check_options(text: str) -> None:
    with pytest.raises(DockerfileError):
        parse_check_options(text)


def test_a_malformed_directive_is_an_error_at_its_line() -> None:
    dockerfile = parse_dockerfile(b"# syntax=docker/dockerfile:1\n# check=slip=All\nFROM scratch\n")
    with pytest.raises(LocatedDockerfileError) as raised:
        lint_dockerfile(dockerfile, build_args={}, platform=AMD64)
    assert raised.value.line == 2
    assert "`slip=All` is no option of `check`" in raised.value.message


def test_a_malformed_build_argument_is_an_error() -> None:
    dockerfile = parse_dockerfile(b"FROM scratch\n")
    with pytest.raises(DockerfileError, match="BUILDKIT_DOCKERFILE_CHECK"):
        lint_dockerfile(dockerfile, build_args={"BUILDKIT_DOCKERFILE_CHECK": "x"}, platform=AMD64)


def test_warnings_are_errors_where_the_file_says_so() -> None:
    dockerfile = parse_dockerfile(b"# check=error=true\nFROM scratch AS a\nENV x y\nFROM scratch as b\n")
    found = lint_dockerfile(dockerfile, build_args={}, platform=AMD64)
    with pytest.raises(LocatedDockerfileError) as raised:
        refuse_warnings(dockerfile, found, {})
    assert raised.value.line == 3
    assert "2 warnings (FromAsCasing, LegacyKeyValueFormat)" in raised.value.message
    refuse_warnings(dockerfile, [], {})
    refuse_warnings(dockerfile, found, {"BUILDKIT_DOCKERFILE_CHECK": "error=false"})


def test_without_error_true_warnings_are_no_errors() -> None:
    dockerfile = parse_dockerfile(b"FROM scratch as a\n")
    found = lint_dockerfile(dockerfile, build_args={}, platform=AMD64)
    assert found
    refuse_warnings(dockerfile, found, {})


def test_a_message_without_its_fields_is_a_fault() -> None:
    with pytest.raises(KeyError):
        Rule("X", "", "{missing}", "").render(name="x")


def test_a_file_full_of_warnings_is_done_at_once() -> None:
    lines = ["FROM scratch", *(f"ENV key a{number} ${{b{number}:-$c}}" for number in range(998))]
    # The old form and two undefined variables each; `key` alone is the name that looks like a secret.
    assert len(lint("\n".join(lines))) == 998 * 4


@pytest.mark.parametrize(
    "text",
    [
        "FROM scratch\nARG " + " ".join(f"a{number}=$b{number}" for number in range(4000)),
        "FROM scratch\nARG " + " ".join(f"n{number}" for number in range(9000)) + "\n" + "ENV x=$y\n" * 990,
        "FROM scratch\n" + "# a comment\n" * 20_000 + "ENV " + " ".join(f"a{n}=$b{n}" for n in range(4000)) + "\n",
    ],
    ids=["many arguments", "many names", "many comments"],
)
def test_the_work_does_not_multiply(text: str) -> None:
    assert len(lint(text)) >= 990


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        (CASES / argument / "expected.txt").write_text(outcome(argument), encoding="utf-8")
