"""Starting a long-lived child that has no privileges and never outlives this process."""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence

from firebuild.errors import HostError
from firebuild.host.process import child_environment, get_program

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


class Child:
    """A started program. `pid` stays its own until `wait` has returned a status."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit status, negative for a signal; None if it has not ended after `timeout_s`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it now and wait for it; twice is fine."""
        self._process.kill()
        self._process.wait()


def start_unprivileged(
    argv: Sequence[str],
    *,
    uid: int | None,
    gid: int | None,
    groups: Sequence[int] = (),
    pass_fds: Sequence[int] = (),
    output_fd: int,
) -> Child:
    """Start a program as another user, in its own session, with its output on `output_fd` and nothing on its input.

    With `uid` None it keeps this process's user (which is then not root). The kernel kills it when the calling thread
    ends (PR_SET_PDEATHSIG, prctl(2)); it can gain no privileges by executing a set-user-ID program (PR_SET_NO_NEW_PRIVS).
    The caller owns its end. Raises MissingProgramError, HostError.
    """
    program = get_program(argv[0])
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def prepare() -> None:
        # After the change of user, which clears the signal. A parent that died meanwhile sends none.
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(126)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            os._exit(126)

    logger.debug("start: %s", shlex.join(argv))
    try:
        process = subprocess.Popen(
            [program, *argv[1:]],
            env=child_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output_fd,
            stderr=output_fd,
            pass_fds=pass_fds,
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=list(groups) if uid is not None else None,
            preexec_fn=prepare,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"cannot start `{program}` as user {uid}: {error}") from error
    return Child(process)
