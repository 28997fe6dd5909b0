"""The events of builds and machines, as data that any renderer, log or stream can show.

Times are Unix time in nanoseconds. A build numbers what it does from 1 in the order of the start; a number stands for
one line of progress for the whole build. As JSON each event is an object with the key `event`; bytes are base64.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class StepStarted(msgspec.Struct, frozen=True, tag="step-started", tag_field="event"):
    """A numbered piece of work begins. `name`: what people read, `[builder 2/5] RUN make`."""

    step: int
    name: str
    at_ns: int


class StepOutput(msgspec.Struct, frozen=True, tag="step-output", tag_field="event"):
    """Bytes that a step's command wrote. `stream`: stdout or stderr. The bytes are a guest's: never to a terminal as they are."""

    step: int
    stream: str
    data: bytes
    at_ns: int


class StepNote(msgspec.Struct, frozen=True, tag="step-note", tag_field="event"):
    """One sentence of firebuild's own about a step: why it was rebuilt, say."""

    step: int
    text: str
    at_ns: int


class StepCached(msgspec.Struct, frozen=True, tag="step-cached", tag_field="event"):
    """The step's result was in the cache; nothing ran."""

    step: int
    at_ns: int


class StepFinished(msgspec.Struct, frozen=True, tag="step-finished", tag_field="event"):
    """The step is done."""

    step: int
    at_ns: int


class StepFailed(msgspec.Struct, frozen=True, tag="step-failed", tag_field="event"):
    """The step failed. `message`: one sentence; `code`: the error's stable code."""

    step: int
    message: str
    code: str
    at_ns: int


class StepCanceled(msgspec.Struct, frozen=True, tag="step-canceled", tag_field="event"):
    """The step was given up, because of a failure elsewhere or at the user's wish."""

    step: int
    at_ns: int


class WarningRaised(msgspec.Struct, frozen=True, tag="warning", tag_field="event"):
    """Something that the user should know and that stops nothing."""

    text: str
    at_ns: int


class MachineChanged(msgspec.Struct, frozen=True, tag="machine-changed", tag_field="event"):
    """A machine entered a state. `state`: created, starting, running, …; `reason`: empty, or why."""

    machine: str
    name: str
    state: str
    at_ns: int
    reason: str = ""


Event: TypeAlias = (
    StepStarted
    | StepOutput
    | StepNote
    | StepCached
    | StepFinished
    | StepFailed
    | StepCanceled
    | WarningRaised
    | MachineChanged
)
