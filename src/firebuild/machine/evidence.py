"""Why a start came to nothing: what the guest says of the request, and the last lines of the logs."""

from __future__ import annotations

from firebuild.errors import DeadlineError, GuestError, MachineError
from firebuild.layout import MachineLayout
from firebuild.machine.supervisor import read_tail

_LINE_MAX = 240

# What a guest may say that is a fault of the request or the image, and what to do about it.
REQUEST_FAULTS = {
    "not-found": "the program must exist in the image: see `firebuild image inspect`, or give another command",
    "not-executable": "the program must be executable for that user",
    "no-such-user": "the user must be in the image's /etc/passwd: see --user and the image's USER",
    "busy": "a machine that may write to the volume replays its journal: start one that has it without `:ro`",
}


def wants_evidence(error: BaseException) -> bool:
    """Not where the guest said what was wrong with the request: the logs would only bury that."""
    if isinstance(error, GuestError):
        return error.guest_code not in REQUEST_FAULTS
    return isinstance(error, (MachineError, DeadlineError))


def _shorten(line: str) -> str:
    """A VMM's whole command line helps nobody here; the log itself has it."""
    return line if len(line) <= _LINE_MAX else f"{line[:_LINE_MAX]} …"


def collect_evidence(paths: MachineLayout) -> str:
    """The last lines of a machine's logs, each with a title; empty where there are none."""
    parts = []
    for title, path in (
        ("console", paths.console_log),
        ("VMM log", paths.vmm_log),
        ("supervisor", paths.supervisor_log),
    ):
        tail = [_shorten(line) for line in read_tail(path, 15).splitlines()]
        if tail:
            parts.append("\n".join((f"last lines of the {title}:", *tail)))
    return "\n".join(parts)
