"""A guest boots, again and again, while both cores are kept busy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.cli import Cli
from tests.vm.conftest import BASE

BOOTS = 10
SPIN = "while True: pass"


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """One endless loop for each core."""
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-I", "-c", SPIN]))
            stack.callback(process.kill)
        yield


def test_ten_boots_in_a_row_succeed(cli: Cli, busy_cores: None) -> None:
    for number in range(BOOTS):
        name = f"busy{number}"
        cli.ok("run", "-d", "--name", name, "--from", BASE, "--", "/bin/sleep", "infinity")
        assert cli.ok("exec", name, "--", "echo", "awake") == "awake\n"
        cli.ok("kill", name)
        cli.ok("purge")
