"""Firecracker's command line, with its refusals and exit codes."""

from __future__ import annotations

import pytest

from firebuild.emulator.arguments import ArgumentError, parse_arguments


def test_what_the_jailer_passes_is_taken() -> None:
    arguments = parse_arguments(
        [
            "--id",
            "a-1",
            "--start-time-us",
            "1",
            "--start-time-cpu-us",
            "2",
            "--parent-cpu-time-us",
            "3",
            "--api-sock",
            "s",
        ]
    )
    assert arguments.values["api-sock"] == "s"
    assert arguments.number("mmds-size-limit", 51200) == 51200


def test_help_and_version_win_over_errors() -> None:
    assert parse_arguments(["--nonsense", "--version"]).flags == {"version"}
    assert parse_arguments(["--version", "-h"]).flags == {"help"}


def test_what_follows_a_separator_is_not_ours() -> None:
    assert parse_arguments(["--no-seccomp", "--", "--nonsense"]).flags == {"no-seccomp"}


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--nonsense"], 153, "Found argument 'nonsense'"),
        (["stray"], 153, "Found argument 'stray'"),
        (["--id"], 153, "requires a value"),
        (["--id", "--no-seccomp"], 153, "requires a value"),
        (["--id", "a", "--id", "b"], 153, "more than once"),
        (["--no-seccomp", "--no-seccomp"], 153, "more than once"),
        (["--no-api"], 153, "'config-file' required"),
        (["--boot-timer"], 153, "'boot-timer' is not served"),
        (["--seccomp-filter", "x"], 153, "'seccomp-filter' is not served"),
        (["--enable-pci"], 153, "'enable-pci' is not served"),
        (["--qemu-uid", "nobody"], 153, "a number"),
        (["--level", "loud"], 152, "loud"),
        (["--id", "a_b"], 1, "Invalid char (_) at position 1"),
        (["--id", "a" * 65], 1, "Invalid len (65)"),
        (["--id", "a,b"], 1, "Invalid char"),
    ],
)
def test_refusals(argv: list[str], code: int, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_arguments(argv)
    assert words in str(caught.value)
    assert caught.value.exit_code == code
