"""firebuild's commands in forked processes that SIGKILL themselves before the Nth thing they would do to the host.

Forked from one interpreter that has everything imported, so that hundreds of them are cheap. What counts as a thing: what
Python's audit events tell of files, programs, sockets and system calls, and writes of bytes, frames and facts.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firebuild.cli.main import run_cli
from firebuild.store.database import Database

# https://docs.python.org/3/library/audit_events.html; `open` counts where it may write.
EFFECTS = frozenset((
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate",
    "os.utime", "subprocess.Popen", "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "fcntl.flock",
    "ctypes.dlsym",
))  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_FAILED = 99


@dataclass
class Victim:
    """A command at work. `process`: its number. What it prints is in `output`."""

    process: int
    output: Path
    status: int | None = None

    def wait(self) -> int:
        """Its exit status; negative for the signal that ended it. Anything but a fault of the tests' own."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        assert self.status not in (2, _FAILED), self.output.read_text()
        return self.status

    @property
    def killed(self) -> bool:
        """Whether it came to its point."""
        return self.wait() == -signal.SIGKILL


def start(argv: Sequence[str], environment: Mapping[str, str], output: Path, *, at: int = 0) -> Victim:
    """Fork a command that dies before its effect number `at`; 0: it lives, and its last line is `effects: N`."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        status = _FAILED
        try:
            status = _run(list(argv), environment, output, at)
        except Exception:  # noqa: BLE001 - a fault of the tests' own becomes a report
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return Victim(process, output)


def count_effects(victim: Victim) -> int:
    """How many effects a command that was not killed had. It must have succeeded."""
    text = victim.output.read_text()
    assert victim.wait() == 0, text
    return int(text.rsplit("effects: ", 1)[1])


def _run(argv: list[str], environment: Mapping[str, str], output: Path, at: int) -> int:
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, descriptor), (2, descriptor)):
        os.dup2(source, target)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
    count = 0

    def note() -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(home: Any, name: str, counts: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(home, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if counts(*arguments):
                note()
            return original(*arguments, **options)

        setattr(home, name, wrapped)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EFFECTS or (event == "open" and (arguments[2] or 0) & _WRITING):
            note()

    for name in ("write", "fsync", "fdatasync", "posix_fallocate", "copy_file_range"):
        wrap(os, name)
    wrap(socket.socket, "sendall")
    wrap(Database, "execute", lambda _, statement, *more: not statement.lstrip().startswith(("SELECT", "PRAGMA")))
    sys.addaudithook(hook)
    status = run_cli(argv)
    print(f"effects: {count}")
    return status
