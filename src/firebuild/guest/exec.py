"""Running a program in a guest: `exec` with streams or a terminal (protocol/PROTOCOL.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from firebuild.errors import GuestError
from firebuild.guest.frames import FrameType, violation
from firebuild.guest.stream import GuestStream, open_stream
from firebuild.host.deadline import Deadline

Output = Callable[[str, bytes], None]
_START_S = 120.0


class ExecSpec(msgspec.Struct, frozen=True):
    """What to run. `env`: `K=V` texts added to the entrypoint's. `user`, `workdir`: empty for the entrypoint's.

    `rows`, `cols`: the terminal's size. `detach`: without input and output, and nobody waits for it.
    """

    argv: Sequence[str]
    env: Sequence[str] = ()
    user: str = ""
    workdir: str = ""
    tty: bool = False
    stdin: bool = False
    detach: bool = False
    rows: int = 24
    cols: int = 80


class ProcessEnd(msgspec.Struct, frozen=True):
    """How a program ended. `signal`: what ended it (`code` is then 128 + its number), or None."""

    code: int
    signal: int | None = None


class ExecSession:
    """A running program in the guest."""

    def __init__(self, stream: GuestStream, pid: int) -> None:
        self.stream = stream
        self.pid = pid

    def send_input(self, data: bytes) -> None:
        """Bytes for its standard input; empty: end of input."""
        self.stream.send(FrameType.STDIN, data)

    def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal its size."""
        self.stream.send_json(FrameType.RESIZE, {"rows": rows, "cols": cols})

    def send_signal(self, number: int) -> None:
        """Send it a signal, by the guest's (Linux x86-64) number."""
        self.stream.send_json(FrameType.SIGNAL, {"signal": number})

    def wait(self, output: Output, deadline: Deadline | None = None) -> int:
        """Hand on its output until it ends; returns its exit code (128 + the signal that ended it)."""
        return wait_exit(self.stream, output, deadline)

    def wait_end(self, output: Output, deadline: Deadline | None = None) -> ProcessEnd:
        """As `wait`, with the signal."""
        return wait_end(self.stream, output, deadline)


def wait_exit(stream: GuestStream, output: Output, deadline: Deadline | None = None) -> int:
    """Read STDOUT and STDERR into `output` ("stdout" or "stderr", bytes) until EXIT; returns the exit code. Raises GuestError."""
    return wait_end(stream, output, deadline).code


def wait_end(stream: GuestStream, output: Output, deadline: Deadline | None = None) -> ProcessEnd:
    """As `wait_exit`, with the signal."""
    while True:
        frame = stream.get_frame(deadline)
        if frame.type is FrameType.STDOUT:
            output("stdout", frame.payload)
        elif frame.type is FrameType.STDERR:
            output("stderr", frame.payload)
        elif frame.type is FrameType.EXIT:
            end = frame.json()
            code, number = end.get("code"), end.get("signal")
            if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code <= 255:
                raise violation(f"the exit code {code!r}")
            if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
                raise violation(f"the signal {number!r}")
            return ProcessEnd(code, number)
        else:
            raise violation(f"{frame.type.name} from a running program")


def start_exec(vsock: Path, spec: ExecSpec, deadline: Deadline) -> int:
    """Start a program in the guest and leave it alone; returns its pid there. Raises GuestError."""
    with open_exec(vsock, msgspec.structs.replace(spec, detach=True), deadline) as session:
        return session.pid


@contextmanager
def open_exec(vsock: Path, spec: ExecSpec, deadline: Deadline | None = None) -> Iterator[ExecSession]:
    """Start a program in the guest; leaving the block before it ended hangs up on it. Raises GuestError."""
    request = {"op": "exec", **msgspec.to_builtins(spec)}
    if not spec.detach:
        # Machines that were started by an earlier firebuild do not know it.
        del request["detach"]
    with open_stream(vsock, request, deadline) as stream:
        # Without a deadline the program may run for ever; but that it was started is told soon, or the guest is at fault.
        started = deadline or Deadline(_START_S, "starting a program in the guest")
        pid = stream.expect(FrameType.REPLY, started).json().get("pid")
        if not isinstance(pid, int):
            raise GuestError("the guest did not say which process it started", guest_code="protocol")
        yield ExecSession(stream, pid)
