"""What a console says of a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.machine.console import find_crash, find_killed

OOM = "[    9.1] Out of memory: Killed process 71 (tail) total-vm:1kB, anon-rss:1kB"


@pytest.mark.parametrize(
    ("text", "crash", "killed"),
    [
        ("", None, None),
        ("login: \n", None, None),
        ("[ 1.0] Kernel panic - not syncing: VFS: no root\n[ 1.1] ---[ end\n", "kernel panic: VFS: no root", None),
        (OOM + "\n", None, "tail"),
        (OOM + "\nKernel panic - not syncing: dead\n", "kernel panic: dead (out of memory: tail was killed)", "tail"),
        ("[ 3.0] sysrq: Resetting\n", "the guest restarted", None),
        ("Kernel panic - not syncing: \x1b[2J\x07\n", "kernel panic: ?[2J?", None),
        ("Kernel panic - not syncing: " + "x" * 9000 + "\n", "kernel panic: " + "x" * 200, None),
    ],
)
def test_consoles(tmp_path: Path, text: str, crash: str | None, killed: str | None) -> None:
    console = tmp_path / "console.log"
    console.write_text(text)
    assert find_crash(console) == crash
    assert find_killed(console) == killed


def test_no_console(tmp_path: Path) -> None:
    assert find_crash(tmp_path / "none") is None
