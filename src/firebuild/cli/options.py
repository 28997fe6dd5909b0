"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from firebuild.errors import UsageError

# Docker's statuses for a command that does not exist and for one that cannot be executed, by the guest's code.
START_FAILURES = {"not-found": 127, "not-executable": 126, "no-such-directory": 126, "no-such-user": 126}

F = TypeVar("F", bound=Callable[..., Any])


def format_option(function: F) -> F:
    """--format table|json."""
    return click.option(
        "--format", "format_name", default="table", show_default=True, help="table, or json: one object a line."
    )(function)


def machine_arguments(function: F) -> F:
    """A machine by position or by --vmm-id."""
    function = click.argument("machine", required=False)(function)
    return click.option("--vmm-id", "vmm_id", help="The machine: id, beginning of its id, or name.")(function)


def machine_name(machine: str | None, vmm_id: str | None) -> str:
    """The one machine that was named. Raises UsageError."""
    if machine and vmm_id:
        raise UsageError("name the machine once: as an argument or with --vmm-id")
    name = machine or vmm_id
    if not name:
        raise UsageError("name a machine", hint="list them with `firebuild ls`")
    return name


def machine_names(machines: Iterable[str], vmm_ids: Iterable[str]) -> list[str]:
    """The machines that were named. Raises UsageError if there are none."""
    names = [*machines, *vmm_ids]
    if not names:
        raise UsageError("name a machine", hint="list them with `firebuild ls`")
    return names


def parse_environment(files: Iterable[str], pairs: Iterable[str]) -> dict[str, str]:
    """Variables from --env-file files, in order, then --env pairs; a bare name takes the caller's value, as Docker does."""
    variables: dict[str, str] = {}
    lines: list[str] = []
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                lines += [line.strip() for line in file.read().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the environment file `{path}`: {error}") from error
    for line in [line for line in lines if line and not line.startswith("#")] + list(pairs):
        name, separator, value = line.partition("=")
        if separator:
            variables[name] = value
        elif name in os.environ:
            variables[name] = os.environ[name]
    return variables
