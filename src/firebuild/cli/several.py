"""One verb for several machines: each by itself, its name printed when it is done, its error when it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from firebuild.cli.output import print_error
from firebuild.engine.core import Engine
from firebuild.errors import FirebuildError


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
