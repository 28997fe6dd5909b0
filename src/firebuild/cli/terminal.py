"""A terminal lent to a program in a guest: raw, resized with the window, and restored on every way out."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from firebuild.errors import GuestError, UsageError
from firebuild.guest.exec import ExecSession

_CHUNK = 65536


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal on standard input, 24 by 80 where there is none."""
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return 24, 80
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
def follow_resizes(session: ExecSession) -> Iterator[None]:
    """Tell the guest's terminal when the window changes its size."""

    def resized(number: int, frame: FrameType | None) -> None:
        session.resize(*terminal_size())

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextmanager
def forward_input(session: ExecSession) -> Iterator[None]:
    """Hand standard input on to the guest's program for the block, in a thread that ends with it."""
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
            try:
                session.send_input(data)
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
def forward_signals(session: ExecSession) -> Iterator[None]:
    """Send the guest's program the SIGINT, SIGTERM, SIGHUP and SIGQUIT that this process gets."""

    def forward(number: int, frame: FrameType | None) -> None:
        try:
            session.send_signal(number)
        except GuestError:
            return

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
