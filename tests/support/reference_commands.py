"""The reference of all commands: each with its usage, its words and its options, from the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from firebuild.cli.main import COMMANDS, load_command
from tests.support.reference_options import describe_options

# Spellings of other commands, and what the supervisor calls.
ALIASES = {"build": "rootfs", "ps": "ls", "unpause": "resume", "profile-create": "profile create",
            "profile-ls": "profile ls", "profile-inspect": "profile inspect"}  # fmt: skip
INNER = frozenset(("machine-ended", "machine-changed"))


def list_leaves() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that somebody may type, with its words, in the order of the help; no aliases."""
    for name in COMMANDS:
        if name not in ALIASES and name not in INNER:
            yield from _walk((name,), load_command(name))


def find_command(name: str) -> click.Command:
    """The command of these words."""
    return next(command for words, command in list_leaves() if " ".join(words) == name)


def _walk(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name, child in command.commands.items():
        yield from _walk((*words, name), child)


def command_sections() -> str:
    """A section for each command."""
    from tests.support.reference import render_table

    parts = []
    for words, command in list_leaves():
        name = " ".join(words)
        context = click.Context(command, info_name=f"firebuild {name}")
        usage = " ".join(["firebuild", name, *command.collect_usage_pieces(context)])
        others = [f"`firebuild {alias}`" for alias, meant in ALIASES.items() if meant == name]
        text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help or ""))
        also = f" Also: {', '.join(others)}." if others else ""
        parts.append(f"## firebuild {name}\n\n    {usage}\n\n{text}{also}\n\n")
        rows = list(describe_options(command))
        if rows:
            parts.append(render_table(("Option", "Values", "Meaning"), rows) + "\n")
    return "".join(parts)
