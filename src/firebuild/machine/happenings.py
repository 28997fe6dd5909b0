"""What the changes of a machine's record are as events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firebuild.events.journal import Statements, note_event

if TYPE_CHECKING:
    from firebuild.machine.spec import MachineSpec
    from firebuild.machine.state import Progress, State

# (the state before, the state after) → the action.
_ACTIONS = {
    ("starting", "running"): "ready",
    ("running", "paused"): "paused",
    ("paused", "running"): "resumed",
}
_ENDED = ("stopped", "failed", "lost")


def note_machine(database: Statements, spec: MachineSpec, action: str, **attributes: object) -> None:
    """Note what has happened to a machine that runs; build machines are a build's own business."""
    if spec.kind == "run":
        known = {"name": spec.name, "image": spec.image or None}
        note_event(database, "machine", action, spec.id, {**known, **attributes}, spec.labels)


def note_transition(database: Statements, spec: MachineSpec, before: str, after: State, progress: Progress) -> None:
    """Note that a machine's state has changed, if that is something to tell."""
    if before == after:
        return
    if after in _ENDED and before not in _ENDED:
        note_machine(
            database, spec, "exited", state=str(after), exit_code=progress.exit_code, reason=progress.reason,
            restarts=progress.restarts or None,
        )  # fmt: skip
    elif after == "starting":
        note_machine(database, spec, "started")
    elif (before, str(after)) in _ACTIONS:
        note_machine(database, spec, _ACTIONS[before, str(after)])
