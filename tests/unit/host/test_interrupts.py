"""An interrupt during clean-up has its effect after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from firebuild.host.interrupts import hold_interrupts


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_comes_during_the_block_comes_after_it(number: signal.Signals) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), hold_interrupts():
        signal.raise_signal(number)
        signal.raise_signal(number)
        done.append("cleaned up")
    assert done == ["cleaned up"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_nothing_comes_where_nothing_came() -> None:
    with hold_interrupts():
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_an_error_of_the_block_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, hold_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of the clean-up")
    assert isinstance(caught.value.__context__, ValueError)


def test_other_threads_are_left_alone() -> None:
    ran = []

    def work() -> None:
        with hold_interrupts():
            ran.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [signal.default_int_handler]
