"""One verb for several machines: each by itself, its name printed when it is done, its error when it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from firebuild.cli.output import note, print_error
from firebuild.engine.core import Engine
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
    """Do this with each machine, whatever happens to the others; returns the exit status."""
    status = 0
    with Engine() as engine:
        for name in names:
            try:
                act(engine, name)
                click.echo(name)
            except FirebuildError as error:
                print_error(error)
                status = 1
    return status
