"""What a RUN executes: its command and its heredocs turned into a program's arguments and perhaps a file."""

from __future__ import annotations

import msgspec

from firebuild.dockerfile.heredoc import parse_heredoc_word
from firebuild.dockerfile.nodes import Run

DEFAULT_SHELL = ("/bin/sh", "-c")

# Where BuildKit puts a heredoc that is a script of its own (`#!`), there for that step alone; the shell runs it.
SCRIPT_FOLDER = "/dev/pipes"
SCRIPT_MODE = 0o755


class RunProgram(msgspec.Struct, frozen=True):
    """A program to execute. `script`: the content of a read-only file that must stand at `script_path` meanwhile."""

    argv: tuple[str, ...]
    script_path: str | None = None
    script: str | None = None


def plan_run(run: Run, shell: tuple[str, ...] = DEFAULT_SHELL) -> RunProgram:
    """The program of a RUN, given the stage's SHELL.

    A heredoc alone is the shell's text, or with `#!` a script that the shell runs; heredocs behind a command are handed
    to the shell as they are written.
    """
    command = run.command
    if not run.heredocs:
        return RunProgram(command.argv(shell))
    text = " ".join(command.arguments)
    if parse_heredoc_word(text) is not None:
        first = run.heredocs[0]
        if first.text.startswith("#!"):
            path = f"{SCRIPT_FOLDER}/{first.name}"
            return RunProgram((*shell, path), path, first.text)
        return RunProgram((*shell, first.text))
    for heredoc in run.heredocs:
        text += f"\n{heredoc.content}{heredoc.name}"
    return RunProgram((*shell, text))
