"""This command's terminal, or its pipes, tied to a machine's entrypoint."""

from __future__ import annotations

import contextlib
import signal
from contextlib import ExitStack
from pathlib import Path

import msgspec

from firebuild.cli import terminal
from firebuild.cli.detach_keys import DetachKeys
from firebuild.cli.output import write_output
from firebuild.errors import GuestError
from firebuild.guest.attach import AttachSession, open_attach
from firebuild.guest.control import request_signal
from firebuild.host.deadline import Deadline

_SIGNAL_S = 5.0
_ANSWER_S = 30.0
# They mean nothing to firebuild itself.
PLAIN_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
ALL_SIGNALS = (*PLAIN_SIGNALS, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class AttachPlan(msgspec.Struct, frozen=True):
    """How to attach. `stdin`: hand standard input on; `ends_input`: its end too; `keys`: those that detach, at a terminal.

    `signals`: pass on all signals, where no terminal does.
    """

    stdin: bool
    keys: bytes
    ends_input: bool = True
    signals: bool = True


class Detached(Exception):
    """The keys were typed; the entrypoint goes on."""


def attach(vsock: Path, plan: AttachPlan, *, tty: bool) -> int:
    """Show the entrypoint's output and hand it what is typed until it has ended; returns its exit code.

    `tty`: it has a terminal; then this command's becomes raw, if its input is handed on. Raises Detached, GuestError.
    """
    size = terminal.find_terminal_size() if tty else None
    with ExitStack() as stack:
        session = stack.enter_context(open_attach(vsock, size, Deadline(_ANSWER_S, "attaching to the entrypoint")))
        typed = plan.stdin and session.stdin
        raw = tty and typed and size is not None
        numbers = ALL_SIGNALS if plan.signals and not raw else PLAIN_SIGNALS
        stack.enter_context(pass_signals(vsock, numbers if plan.signals else ()))
        if raw:
            stack.enter_context(terminal.raw_terminal())
        if tty and size is not None:
            stack.enter_context(terminal.follow_resizes(session))
            _redraw(session, size)
        left: list[bool] = []
        if typed:
            stack.enter_context(_forward_input(session, plan, left, raw=raw))
        try:
            return session.wait(write_output)
        except GuestError:
            if left:
                raise Detached from None
            raise


def _forward_input(
    session: AttachSession, plan: AttachPlan, left: list[bool], *, raw: bool
) -> contextlib.AbstractContextManager[None]:
    keys = DetachKeys(plan.keys if raw else b"")

    def take(data: bytes) -> bytes:
        data, detach = keys.take(data)
        if detach:
            left.append(True)
            session.leave()
        return data

    return terminal.forward_input(session, take=take, ends=plan.ends_input)


def _redraw(session: AttachSession, size: tuple[int, int]) -> None:
    """A program that was drawn for nobody, or for another, draws anew when its terminal changes its size."""
    with contextlib.suppress(GuestError):  # its end is on the way to the reader
        session.resize(size[0] + 1, size[1])
        session.resize(*size)


def pass_signals(
    vsock: Path, numbers: tuple[signal.Signals, ...] = PLAIN_SIGNALS
) -> contextlib.AbstractContextManager[None]:
    """Send the entrypoint the signals that this process gets."""
    return terminal.pass_signals(
        numbers, lambda number: request_signal(vsock, number, Deadline(_SIGNAL_S, "passing a signal on"))
    )
