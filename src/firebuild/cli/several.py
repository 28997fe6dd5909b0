"""One verb for several objects: each by itself, what came of it printed when it is done, its error when it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from firebuild.cli.output import note, print_error
from firebuild.engine.core import Engine
from firebuild.engine.space import spare_room
from firebuild.errors import FirebuildError

if TYPE_CHECKING:
    from firebuild.engine.folders import Synced


def note_synced(results: Iterable[Synced]) -> None:
    """Say what was copied back."""
    from firebuild.engine.folders import describe_synced

    for result in results:
        for line in describe_synced(result):
            note(line)


def each_machine(names: Iterable[str], act: Callable[[Engine, str], object]) -> int:
    """Do this with each machine, whatever happens to the others, and print its name; returns the exit status."""

    def act_on(engine: Engine, name: str) -> str:
        act(engine, name)
        return name

    return each_object(names, act_on)


def each_object(names: Iterable[str], act: Callable[[Engine, str], str]) -> int:
    """Do this with each object, whatever happens to the others, and print what it answers; returns the exit status."""
    status = 0
    # What ends and is removed must be recorded also on a full disk.
    with Engine() as engine, spare_room(engine):
        for name in names:
            try:
                click.echo(act(engine, name))
            except FirebuildError as error:
                print_error(error)
                status = 1
    return status
