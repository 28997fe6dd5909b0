"""Where the program `firebuild` begins: signals are ours before anything else is imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

INTERRUPTED_STATUS = 130
# Python's own limit (700) is reached some eighty times while a command is imported, and nothing is found.
_GARBAGE_LIMIT = 50_000
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def main() -> NoReturn:
    """Entry point of the console script."""
    # A terminated command, or one whose terminal has gone, undoes what it began, as an interrupted one does. SIGINT too is
    # set: a shell starts background commands with it ignored, and Python would leave it so.
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    gc.set_threshold(_GARBAGE_LIMIT)
    try:
        from firebuild.cli.main import run_cli

        status = run_cli(sys.argv[1:])
    except KeyboardInterrupt:  # while it was imported, or while it was about to end
        sys.stderr.write("error: interrupted\n")
        status = INTERRUPTED_STATUS
    # It is done: what comes now changes nothing, and the interpreter would only complain of it.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Nothing is left to do at exit: taking the interpreter down piece by piece would cost a short command a fifth of its time.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # it may be closed, or may never have been there
            stream.flush()
    os._exit(status)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
