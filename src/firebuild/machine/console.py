"""What a machine's console says of its end: the guest's kernel has no other way to tell."""

from __future__ import annotations

import re
from pathlib import Path

from firebuild.machine.supervisor import read_tail

_TAIL_LINES = 400
# Linux, kernel/panic.c, mm/oom_kill.c and kernel/reboot.c; a line may begin with its time in brackets.
_PANIC = re.compile(r"Kernel panic - not syncing: (?P<why>.*)")
_OUT_OF_MEMORY = re.compile(r"Out of memory: Killed process \d+ \((?P<name>[^)]*)\)")
_RESTART = re.compile(r"sysrq: Resetting|reboot: Restarting system")


def find_crash(console: Path) -> str | None:
    """Why the guest's kernel ended, in a few words, or None where its console shows no crash.

    The guest wrote the console: what it says is evidence for a reader and decides nothing.
    """
    panic = memory = restart = None
    for line in read_tail(console, _TAIL_LINES).splitlines():
        if match := _PANIC.search(line):
            panic = match["why"].strip()[:200] or "no reason given"
        elif match := _OUT_OF_MEMORY.search(line):
            memory = match["name"][:60]
        elif _RESTART.search(line):
            restart = "the guest restarted"
    if panic is not None:
        return f"kernel panic: {panic}" + (f" (out of memory: {memory} was killed)" if memory is not None else "")
    return restart


def find_killed(console: Path) -> str | None:
    """The program that the guest's kernel killed last for want of memory, or None."""
    killed = None
    for line in read_tail(console, _TAIL_LINES).splitlines():
        if match := _OUT_OF_MEMORY.search(line):
            killed = match["name"][:60]
    return killed
