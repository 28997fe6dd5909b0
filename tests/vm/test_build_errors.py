"""Bad input to `rootfs`: each a clear error that names the place, and nothing is left: no machine, no image, no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import BUILD_TIMEOUT_S, Cli, Result
from tests.vm.conftest import BASE

TAG = "tests/bad:1"


def build(cli: Cli, context: Path, text: str) -> Result:
    """Build a Dockerfile that must be refused; its tag must not exist afterwards."""
    (context / "Dockerfile").write_text(text)
    result = cli.refused("rootfs", "--dockerfile", context / "Dockerfile", "--tag", TAG, timeout_s=BUILD_TIMEOUT_S)
    cli.refused("image", "inspect", TAG)
    return result


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"FROM {BASE}\nFETCH x /x\n", ["FETCH", "2"]),
        (f"FROM {BASE}\nCOPY --wat=1 x /x\n", ["--wat", "2"]),
        ("RUN true\n", ["RUN", "1"]),
        ("FROM\n", ["FROM", "1"]),
        (f"FROM {BASE}\nRUN <<END\ntrue\n", ["END", "2"]),
        (f"FROM {BASE}\nENV\n", ["ENV", "2"]),
        ("", []),
    ],
    ids=[
        "unknown instruction",
        "unknown flag",
        "no FROM",
        "FROM of nothing",
        "open heredoc",
        "ENV of nothing",
        "empty",
    ],
)
def test_a_dockerfile_that_means_nothing(cli: Cli, context: Path, text: str, names: list[str]) -> None:
    stderr = build(cli, context, text).stderr
    for name in names:
        assert name in stderr, stderr


def test_a_source_that_is_missing(cli: Cli, context: Path) -> None:
    stderr = build(cli, context, f"FROM {BASE}\nCOPY missing.txt /\n").stderr
    assert "missing.txt" in stderr and "2" in stderr


@pytest.mark.parametrize("source", ["../secret.txt", "link/secret.txt", "/../secret.txt"])
def test_a_source_outside_the_context(cli: Cli, context: Path, source: str) -> None:
    (context.parent / "secret.txt").write_text("not yours")
    (context / "link").symlink_to(context.parent)
    stderr = build(cli, context, f"FROM {BASE}\nCOPY {source} /\n").stderr
    assert "secret.txt" in stderr
    assert "not yours" not in stderr


def test_a_step_that_fails_tells_status_output_and_line(cli: Cli, context: Path) -> None:
    stderr = build(cli, context, f"FROM {BASE}\n\nRUN echo first words \\\n && echo last words >&2 && exit 42\n").stderr
    assert "42" in stderr
    assert "last words" in stderr
    assert "Dockerfile:3" in stderr or "line 3" in stderr, stderr


def test_a_base_that_nobody_has(cli: Cli, context: Path) -> None:
    assert "nobody/nothing" in build(cli, context, "FROM nobody/nothing:1\nRUN true\n").stderr


def test_a_dockerfile_that_is_not_there(cli: Cli, context: Path) -> None:
    stderr = cli.refused("rootfs", "--dockerfile", context / "Dockerfile", "--tag", TAG).stderr
    assert str(context / "Dockerfile") in stderr


def test_a_tag_that_is_none(cli: Cli, context: Path) -> None:
    (context / "Dockerfile").write_text(f"FROM {BASE}\n")
    assert "UPPER" in cli.refused("rootfs", "--dockerfile", context / "Dockerfile", "--tag", "UPPER case!").stderr


def test_what_succeeded_before_the_failure_is_kept_and_the_build_can_go_on(cli: Cli, context: Path) -> None:
    first = "RUN head -c 16 /dev/urandom | od -An -tx1 >/stamp"
    build(cli, context, f"FROM {BASE}\n{first}\nRUN exit 1\n")
    (context / "Dockerfile").write_text(f"FROM {BASE}\n{first}\nRUN true\n")
    done = cli.run("rootfs", "--dockerfile", context / "Dockerfile", "--tag", "tests/good:1", timeout_s=BUILD_TIMEOUT_S)
    assert done.status == 0, done.describe()
    assert "CACHED" in done.stderr
    cli.ok("image", "rm", "tests/good:1")
