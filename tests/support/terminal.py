"""A person at a terminal: a program on a pty of its own, what it shows, what is typed, the window's size."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.cli import PROGRAM, Cli

EXPECT_TIMEOUT_S = 300.0
END_TIMEOUT_S = 120.0


def at_terminal(cli: Cli, *arguments: str, rows: int = 30, cols: int = 90) -> Terminal:
    """firebuild with a terminal of its own."""
    cli.started += [arguments[arguments.index("--name") + 1]] if "--name" in arguments else []
    return Terminal([PROGRAM, *arguments], cli.environment(), rows=rows, cols=cols)


class Terminal:
    """Runs a program as the leader of a session with this terminal. Leaving the block kills what still runs of it."""

    def __init__(
        self, argv: Sequence[str | Path], environment: Mapping[str, str], *, rows: int = 24, cols: int = 100
    ) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(rows, cols)
        self.before = self.modes()
        self.shown = ""
        self._seen = 0
        self.process = subprocess.Popen(
            [str(word) for word in argv], env=dict(environment), stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.hang_up()

    def modes(self) -> list[Any]:
        """The terminal's modes as termios has them."""
        return termios.tcgetattr(self._ours)

    def resize(self, rows: int, cols: int) -> None:
        """Change the window's size; the kernel tells the foreground processes."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, text: str) -> None:
        """Type text; Enter is a newline, Ctrl-C `\\x03`."""
        os.write(self._ours, text.encode())

    def hang_up(self) -> None:
        """The terminal goes away."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def expect(self, text: str, *, timeout_s: float = EXPECT_TIMEOUT_S) -> str:
        """Read until `text` is shown behind what was expected last; returns what was shown before it."""
        deadline = time.monotonic() + timeout_s
        while (at := self.shown.find(text, self._seen)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"`{text}` was not shown, but:\n{self.shown[self._seen :]}")
        found = self.shown[self._seen : at]
        self._seen = at + len(text)
        return found

    def wait(self, *, timeout_s: float = END_TIMEOUT_S) -> int:
        """Read to the end of the program; returns its status."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self.process.wait(timeout=max(1.0, deadline - time.monotonic()))

    def rest(self) -> str:
        """What was shown behind what was expected last."""
        return self.shown[self._seen :]

    def _read(self, deadline: float) -> bool:
        """More of the output; False at its end or the deadline's."""
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            return False  # EIO: nobody has the other side open any more
        self.shown += data.decode("utf-8", "replace")
        return bool(data)
