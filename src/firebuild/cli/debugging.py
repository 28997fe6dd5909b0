"""The terminal of somebody who debugs a build: lent to shells in the build machine, and taken back from them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from firebuild.build.debug.model import Debugging
from firebuild.cli import terminal
from firebuild.cli.renderers import Pausable
from firebuild.errors import UsageError

if TYPE_CHECKING:
    from firebuild.events.progress import ProgressSink
    from firebuild.guest.exec import ExecSession, ProcessEnd

ON_FAILURE = ("error", "shell")
_LINE_BYTES = 4096
# What a full-screen program that was cut off may have left: its screen, no cursor, odd keys, mouse reports, colours.
_SOFT_RESET = b"\x1b[?1049l\x1b[?25h\x1b[?1l\x1b>\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[0m\r\n"


def check_debugging(on_failure: str, lines: Sequence[int]) -> bool:
    """Whether --on-failure and --debug-at ask for shells. Raises UsageError for other values, and without a terminal."""
    if on_failure not in ON_FAILURE:
        raise UsageError(f"`{on_failure}` is nothing to do on a failure", hint="--on-failure shell, or error")
    if on_failure != "shell" and not lines:
        return False
    if not (os.isatty(sys.stdin.fileno()) and os.isatty(sys.stderr.fileno())):
        option = "--on-failure shell" if on_failure == "shell" else "--debug-at"
        raise UsageError(
            f"{option} opens a shell, and needs a terminal on standard input and standard error",
            hint="leave it out where nobody types: the error shows the step's last output",
        )
    return True


def make_debugging(on_failure: str, lines: Sequence[int], sink: ProgressSink) -> Debugging:
    """What the build is given. `sink`: what else writes to the terminal."""
    return Debugging(TerminalConsole(sink), on_failure=on_failure == "shell", lines=tuple(lines))


class TerminalConsole:
    """The terminal on standard input and standard error."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink

    @contextmanager
    def take(self) -> Iterator[None]:
        """See Console."""
        if not isinstance(self._sink, Pausable):
            yield
            return
        self._sink.pause()
        try:
            yield
        finally:
            self._sink.resume()

    def say(self, text: str) -> None:
        """See Console."""
        click.echo(text, err=True)

    def ask(self, prompt: str) -> str | None:
        """See Console. Ctrl-C is KeyboardInterrupt."""
        click.echo(prompt, err=True, nl=False)
        # The descriptor and not the file: nothing may stay in a buffer that a shell could not read.
        line = os.read(sys.stdin.fileno(), _LINE_BYTES)
        if not line:
            click.echo("", err=True)
            return None
        return line.decode("utf-8", "replace").rstrip("\r\n")

    def size(self) -> tuple[int, int]:
        """See Console."""
        return terminal.terminal_size()

    def attach(self, session: ExecSession) -> ProcessEnd:
        """See Console."""
        try:
            with terminal.raw_terminal(), terminal.follow_resizes(session), terminal.forward_input(session):
                # The window may have changed between the request and now.
                session.resize(*terminal.terminal_size())
                return session.wait_end(_write)
        except BaseException:
            with suppress(OSError):
                os.write(sys.stderr.fileno(), _SOFT_RESET)
            raise


def _write(stream: str, data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
