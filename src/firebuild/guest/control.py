"""Single requests to a guest: hello, stop, power off, copies (protocol/PROTOCOL.md, section 4)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from firebuild.errors import GuestError
from firebuild.guest.frames import FrameType, violation
from firebuild.guest.stream import GuestStream, open_stream, printable
from firebuild.host.deadline import Deadline

PROTOCOL_VERSION = 1
_CHUNK = 256 * 1024
_LONGEST_PATH = 4096
# What the kernel's random pool of a restored guest is given: twice as much as its generator's state.
SEED_BYTES = 64


class LayerCounts(msgspec.Struct, frozen=True):
    """What a transfer moved: `entries` of an archive, `bytes` of file content."""

    entries: int
    bytes: int


class PathFacts(msgspec.Struct, frozen=True):
    """What stands at a path of a guest, and where it leads. `real_path`: with links followed; of what is missing its name in
    its folder, or None where that is missing too. `size`: bytes of what is there."""

    kind: Literal["file", "directory", "symlink", "other", "missing"]
    real_path: str | None
    real_kind: Literal["file", "directory", "symlink", "other", "missing"]
    size: int = 0


def ask(vsock: Path, request: dict[str, Any], deadline: Deadline | None = None) -> dict[str, Any]:
    """Send one request and return its one REPLY. Raises GuestError, DeadlineError."""
    with open_stream(vsock, request, deadline) as stream:
        return stream.expect(FrameType.REPLY, deadline).json()


class GuestProcess(msgspec.Struct, frozen=True):
    """A process in a guest, as the guest says. `state`: one letter, as proc(5) has it."""

    pid: int
    ppid: int
    user: str
    state: str
    cpu_ms: int
    elapsed_ms: int
    memory_kib: int
    command: str


class GuestProcesses(msgspec.Struct, frozen=True):
    """`more`: there are more of them."""

    processes: list[GuestProcess]
    more: bool = False


def say_hello(vsock: Path, deadline: Deadline) -> dict[str, Any]:
    """The guest's version and features. Raises GuestError where it speaks another protocol."""
    reply = ask(vsock, {"op": "hello"}, deadline)
    if reply.get("protocol") != PROTOCOL_VERSION:
        raise GuestError(
            f"the guest speaks protocol {reply.get('protocol')!r}; this firebuild speaks {PROTOCOL_VERSION}"
        )
    return reply


def request_stop(vsock: Path, signal: int, timeout_s: float, deadline: Deadline) -> None:
    """Ask the guest to end its entrypoint with `signal`, after `timeout_s` by force, and to power off."""
    ask(vsock, {"op": "stop", "signal": signal, "timeout_ms": int(timeout_s * 1000)}, deadline)


def request_signal(vsock: Path, signal: int, deadline: Deadline) -> None:
    """Send the entrypoint a signal. Raises GuestError `not-found` where none runs."""
    ask(vsock, {"op": "signal", "signal": signal}, deadline)


def request_processes(vsock: Path, deadline: Deadline) -> GuestProcesses:
    """The guest's processes, fit to be shown. Raises GuestError."""
    try:
        found = msgspec.convert(ask(vsock, {"op": "processes"}, deadline), GuestProcesses)
    except msgspec.ValidationError as error:
        raise violation(f"a list of processes that is none ({error})") from error
    shown = [
        msgspec.structs.replace(each, user=_line(each.user), state=_line(each.state), command=_line(each.command))
        for each in found.processes
    ]
    return GuestProcesses(shown, found.more)


def _line(text: str) -> str:
    return printable(text).replace("\n", "?").replace("\t", " ")


def request_restart_policy(vsock: Path, policy: dict[str, Any], deadline: Deadline) -> None:
    """Have the guest follow another restart policy from now on."""
    ask(vsock, {"op": "restart-policy", **policy}, deadline)


def request_clock(vsock: Path, deadline: Deadline) -> None:
    """Set the guest's clock by the host's."""
    ask(vsock, {"op": "clock", "clock_ns": time.time_ns()}, deadline)


class HeldGuest(msgspec.Struct, frozen=True):
    """A guest that is ready for a snapshot. `held_by`: how its processes were stopped, `nothing` for a build machine."""

    held_by: Literal["groups", "signals", "nothing"]


class ResumeStep(msgspec.Struct, frozen=True):
    """A step of a guest's way from its snapshot to another machine, and how long it took."""

    name: str
    ms: int


def request_pause_for_snapshot(vsock: Path, deadline: Deadline) -> HeldGuest:
    """Have the guest stop its processes, write everything to its disks and open no stream, until `request_continue` or, after a
    restore, `request_resume`. Raises GuestError `busy` where something does not stand still; then the guest goes on."""
    reply = ask(vsock, {"op": "pause-for-snapshot"}, deadline)
    try:
        return msgspec.convert(reply, HeldGuest)
    except msgspec.ValidationError as error:
        raise violation(f"a REPLY to pause-for-snapshot that does not fit ({error})") from error


def request_continue(vsock: Path, deadline: Deadline) -> None:
    """Let a guest that is held go on as the machine that it was."""
    ask(vsock, {"op": "continue", "clock_ns": time.time_ns()}, deadline)


def request_resume(vsock: Path, document: dict[str, Any], deadline: Deadline) -> list[ResumeStep]:
    """Make a restored guest the machine of this boot document, and let it go on; `ready` is pushed after that.

    Whoever takes the guest's pushes must listen already. Raises GuestError naming the step that failed: the guest stands still
    then, and may be asked again."""
    request = {
        "op": "resume", "clock_ns": time.time_ns(), "seed": os.urandom(SEED_BYTES).hex(), "boot": document,
    }  # fmt: skip
    reply = ask(vsock, request, deadline)
    try:
        return [
            msgspec.structs.replace(step, name=printable(step.name))
            for step in msgspec.convert(reply.get("steps"), list[ResumeStep])
        ]
    except msgspec.ValidationError as error:
        raise violation(f"a REPLY to resume that does not fit ({error})") from error


def request_poweroff(vsock: Path, deadline: Deadline) -> None:
    """Ask the guest to end everything, sync, unmount and power off."""
    ask(vsock, {"op": "poweroff"}, deadline)


def copy_in(vsock: Path, path: str, chunks: Iterable[bytes], deadline: Deadline | None = None) -> LayerCounts:
    """Unpack a tar stream below the guest's folder `path`."""
    with open_stream(vsock, {"op": "copy-in", "path": path}, deadline) as stream:
        send_data(stream, chunks)
        return get_counts(stream, deadline)


def stat_path(vsock: Path, path: str, deadline: Deadline) -> PathFacts:
    """What stands at an absolute path of the guest. Raises GuestError, DeadlineError."""
    reply = ask(vsock, {"op": "path-stat", "path": path}, deadline)
    try:
        facts = msgspec.convert(reply, PathFacts)
    except msgspec.ValidationError as error:
        raise violation(f"a REPLY to path-stat that does not fit ({error})") from error
    real = facts.real_path
    if facts.size < 0 or (real is not None and (not real.startswith("/") or "\0" in real or len(real) > _LONGEST_PATH)):
        raise violation("a path that is none")
    return facts


@contextmanager
def open_copy_out(vsock: Path, path: str, patience_s: float) -> Iterator[Iterator[bytes]]:
    """The tar of the guest's `path` in pieces, as they come. Between two of them the guest may take `patience_s`.

    Raises GuestError, DeadlineError, also from the iterator. Its end is that of the data."""

    def deadline() -> Deadline:
        return Deadline(patience_s, "waiting for what the guest sends")

    with open_stream(vsock, {"op": "copy-out", "path": path}, deadline()) as stream:
        stream.expect(FrameType.REPLY, deadline())

        def pieces() -> Iterator[bytes]:
            while payload := stream.expect(FrameType.DATA, deadline()).payload:
                yield payload

        yield pieces()


def send_data(stream: GuestStream, chunks: Iterable[bytes]) -> None:
    """Send bulk data as DATA frames, and its end.

    A guest that refuses says why and closes: if sending fails, what it said is raised in place of the lost connection.
    """
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), _CHUNK):
                stream.send(FrameType.DATA, view[start : start + _CHUNK])
        stream.send(FrameType.DATA)
    except GuestError as lost:
        try:
            stream.get_frame(Deadline(5, "the guest's answer"))
        except GuestError as reason:
            if reason.guest_code != "lost":
                raise reason from lost
        raise


def take_data(stream: GuestStream, write: Callable[[bytes], object], deadline: Deadline | None = None) -> int:
    """Hand DATA frames to `write` until the end of the data; returns the number of bytes."""
    total = 0
    while True:
        payload = stream.expect(FrameType.DATA, deadline).payload
        if not payload:
            return total
        write(payload)
        total += len(payload)


def get_counts(stream: GuestStream, deadline: Deadline | None = None) -> LayerCounts:
    """The REPLY that ends a transfer. Raises GuestError."""
    frame = stream.expect(FrameType.REPLY, deadline)
    try:
        return msgspec.json.decode(frame.payload, type=LayerCounts)
    except msgspec.DecodeError as error:
        raise violation(f"a REPLY without counts ({error})") from error
