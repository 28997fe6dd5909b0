"""What a debugged build is asked for and stopped with: the wish, the person's console, a stop, and what comes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import msgspec

from firebuild.build.steps import PlannedStep, ResultLayer
from firebuild.events.progress import Canceled

if TYPE_CHECKING:
    from firebuild.errors import FirebuildError
    from firebuild.guest.exec import ExecSession, ProcessEnd


class Console(Protocol):
    """The terminal of the person who debugs. All of it is for the main thread."""

    def take(self) -> AbstractContextManager[None]:
        """Have the terminal for the block: progress waits, and the terminal is as it was when the block ends."""

    def say(self, text: str) -> None:
        """Show lines of text. Control characters of strangers were taken out of it."""

    def ask(self, prompt: str) -> str | None:
        """A line of input; None at its end."""

    def size(self) -> tuple[int, int]:
        """Rows and columns."""

    def attach(self, session: ExecSession) -> ProcessEnd:
        """Give the whole terminal to a program until it ends. Raises GuestError where the guest is lost."""


class Debugging(msgspec.Struct, frozen=True):
    """What is wanted. `on_failure`: a shell in the step that fails; `lines`: shells before the steps of these lines."""

    console: Console
    on_failure: bool = False
    lines: tuple[int, ...] = ()


class Attempt(msgspec.Struct):
    """What a step that failed has left in the guest. `stack`: what a shell stands on, topmost first, or None if the step
    did not get that far; `layer`: its own layer, to be dropped."""

    stack: list[str] | None = None
    layer: str | None = None


class Stop(msgspec.Struct):
    """A stage's thread that waits at a step for a person. `error`: of the step that failed, None before one; `below`: the
    layers that the step stands on; `mounted`: what its mounts read."""

    step: PlannedStep
    below: Sequence[ResultLayer]
    mounted: Mapping[int, Sequence[ResultLayer]]
    attempt: Attempt = msgspec.field(default_factory=Attempt)
    error: FirebuildError | None = None
    _decided: threading.Event = msgspec.field(default_factory=threading.Event)
    _goes_on: bool = False

    def wait(self) -> None:
        """Wait for the decision. Raises Canceled unless the stage goes on."""
        self._decided.wait()
        if not self._goes_on:
            raise Canceled

    def decide(self, *, go_on: bool) -> None:
        """The first decision counts."""
        if not self._decided.is_set():
            self._goes_on = go_on
            self._decided.set()


class Retry(Exception):
    """The build begins a new round, with what was prepared for it. It never leaves the build."""

    def __init__(self, prepared: object) -> None:
        super().__init__("a new round")
        self.prepared = prepared


# Reads the inputs again and plans anew: what the new round is made of, and sentences about what changed.
PrepareAgain = Callable[[PlannedStep], tuple[object, list[str]]]
