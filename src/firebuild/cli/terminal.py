"""A terminal lent to a program in a guest: raw, resized with the window, and restored on every way out."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from firebuild.errors import DeadlineError, GuestError, UsageError
from firebuild.host.interrupts import handle_signals

_CHUNK = 65536
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Session(Protocol):
    """A program in a guest that takes input and has a terminal."""

    def send_input(self, data: bytes) -> None:
        """Bytes for its input; empty: the end of it. Raises GuestError."""

    def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal its size. Raises GuestError."""


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal on standard input, 24 by 80 where there is none."""
    return find_terminal_size() or (24, 80)


def find_terminal_size() -> tuple[int, int] | None:
    """Rows and columns of the terminal on standard input, if it is one."""
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return None
    return size.lines or 24, size.columns or 80


def require_terminal() -> None:
    """Raises UsageError where standard input is not a terminal, as Docker does for -t with -i."""
    if not os.isatty(sys.stdin.fileno()):
        raise UsageError("the input device is not a TTY", hint="leave out -t")


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Standard input in raw mode for the block; its old mode comes back however the block ends."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        # What was typed ahead is the program's.
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        # A terminal that has gone needs it no more.
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def follow_resizes(session: Session) -> Iterator[None]:
    """Tell the guest's terminal when the window changes its size."""

    def resized(number: int) -> None:
        # A program that has ended needs no size; its exit status is on the way to the reader.
        with suppress(GuestError):
            session.resize(*terminal_size())

    with handle_signals((signal.SIGWINCH,), resized):
        yield


@contextmanager
def forward_input(
    session: Session, *, take: Callable[[bytes], bytes] = lambda data: data, ends: bool = True
) -> Iterator[None]:
    """Hand standard input on to the guest's program for the block, in a thread that ends with it.

    `take` says what of it goes on; `ends`: whether its end does.
    """
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC)
    source = sys.stdin.fileno()

    def pump() -> None:
        while True:
            ready, _, _ = select.select([source, wake_read], [], [])
            if wake_read in ready:
                return
            try:
                data = os.read(source, _CHUNK)
            except OSError:
                data = b""  # the terminal has gone
            if not data and not ends:
                return
            passed = take(data)
            if data and not passed:
                continue
            try:
                session.send_input(passed)
            except GuestError:
                # The program has ended; its exit status is on the way to the reader.
                return
            if not data:
                return

    thread = threading.Thread(target=pump, name="stdin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.write(wake_write, b"x")
        thread.join()
        os.close(wake_read)
        os.close(wake_write)


@contextmanager
def pass_signals(numbers: Iterable[signal.Signals], send: Callable[[int], object]) -> Iterator[None]:
    """Hand the guest's program those signals that this process gets. `send` may raise GuestError or DeadlineError: the program
    may be ending this moment, and its exit status is on the way."""

    def pass_on(number: int) -> None:
        with suppress(GuestError, DeadlineError):
            send(number)

    with handle_signals(numbers, pass_on):
        yield
