"""Running a program of somebody else's whose output may have no end: what it prints is bounded, and so is its time."""

from __future__ import annotations

import os
import selectors
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from firebuild.errors import DeadlineError, ProcessError
from firebuild.host.deadline import Deadline
from firebuild.host.process import start

_CHUNK = 1 << 16


def run_bounded(
    argv: Sequence[str], *, environment: Mapping[str, str], stdin: bytes, timeout_s: float, most_bytes: int
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output, of which each stream may have `most_bytes`.

    Its process group is killed at the end of the time, when it prints more, or when the caller is interrupted. Raises
    MissingProgramError, DeadlineError, ProcessError for too much output, OSError where it cannot be run.
    """
    deadline = Deadline(timeout_s, f"`{Path(argv[0]).name}`")
    with start(
        argv, environment=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process, selectors.DefaultSelector() as selector:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        read: dict[int, bytearray] = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
        for descriptor in read:
            selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin.fileno(), selectors.EVENT_WRITE)
        left = memoryview(stdin)
        while selector.get_map():
            for key, _ in selector.select(deadline.remaining_s()):
                if key.fd in read:
                    data = os.read(key.fd, _CHUNK)
                    read[key.fd] += data
                    if not data:
                        selector.unregister(key.fd)
                    if len(read[key.fd]) > most_bytes:
                        raise ProcessError(f"`{Path(argv[0]).name}` printed more than {most_bytes} bytes")
                else:
                    left = left[_write(key.fd, left) :]
                    if not left:
                        selector.unregister(key.fd)
                        process.stdin.close()
            if deadline.remaining_s() <= 0:
                raise DeadlineError(f"`{Path(argv[0]).name}` took longer than {timeout_s:g} s")
        try:
            process.wait(max(0.0, deadline.remaining_s()))
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"`{Path(argv[0]).name}` took longer than {timeout_s:g} s") from None
        out, err = (bytes(data) for data in read.values())
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def _write(descriptor: int, data: memoryview) -> int:
    """How much was taken; all of it where nobody reads any more."""
    try:
        return os.write(descriptor, data[:_CHUNK])
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(data)
