"""Signals handled for a while, and clean-up that an interrupt does not stop half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handle_signals(numbers: Iterable[signal.Signals], handle: Callable[[int], object]) -> Iterator[None]:
    """While the block runs, these signals call `handle` with their number; then what they did before. Main thread only."""

    def handler(number: int, frame: FrameType | None) -> None:
        handle(number)

    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP that come during the block have their effect when it has ended.

    Python delivers signals to the main thread only: in others the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    try:
        with handle_signals(_INTERRUPTS, came.append):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])
