"""How far a long command has come: one line that is redrawn on a terminal, now and then a line anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from firebuild.cli.output import format_size

_FIRST_S = 1.0
_TERMINAL_S = 0.2
_LOG_S = 5.0


class _Meter:
    """Shows bytes done of a total, where that is known. What takes less than a second shows nothing."""

    def __init__(self, title: str, terminal: bool, clock: Callable[[], float]) -> None:
        self._title = title
        self._terminal = terminal
        self._clock = clock
        self._started = clock()
        self._next = self._started + _FIRST_S
        self._drawn = False

    def update(self, done: int, total: int | None = None) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (_TERMINAL_S if self._terminal else _LOG_S)
        amount = format_size(done) + (f" of {format_size(total)}" if total else "")
        line = f"{self._title}: {amount}, {now - self._started:.0f} s"
        self._drawn = True
        click.echo(f"\r{line}\x1b[K" if self._terminal else line, err=True, nl=not self._terminal)

    def close(self) -> None:
        if self._drawn and self._terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


@contextmanager
def open_meter(
    title: str, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int | None], None]]:
    """A function to be told of bytes done and bytes in all; what it shows goes to standard error. `quiet`: it shows nothing."""
    if quiet:
        yield lambda done, total: None
        return
    meter = _Meter(title, sys.stderr.isatty(), clock)
    try:
        yield meter.update
    finally:
        meter.close()
