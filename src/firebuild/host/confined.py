"""Running a program that handles what strangers made: as nobody, with an environment of its own, and bounded."""

from __future__ import annotations

import logging
import os
import pwd
import resource
import selectors
import shlex
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from firebuild.errors import HostError
from firebuild.host.deadline import Deadline
from firebuild.host.process import end_process, get_program

logger = logging.getLogger(__name__)

_TAIL = 64 * 1024
_CHUNK = 64 * 1024
_CANCEL_CHECK_S = 0.5


class Finished(NamedTuple):
    """How a program ended. `returncode`: negative for a signal; `stdout`: whole; `stderr`: its end."""

    returncode: int
    stdout: bytes
    stderr: bytes


def find_nobody() -> tuple[int, int] | None:
    """The user and group that strangers' data is handled as; None if this process is not root, and has no other user."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return entry.pw_uid, entry.pw_gid


def give_folder(path: Path, user: tuple[int, int] | None) -> None:
    """Make a folder the user's own. Raises HostError."""
    if user is not None:
        try:
            os.chown(path, *user, follow_symlinks=False)
        except OSError as error:
            raise HostError(f"cannot give `{path}` to user {user[0]}: {error.strerror}") from error


def run_confined(
    argv: Sequence[str],
    *,
    user: tuple[int, int] | None,
    environment: Mapping[str, str],
    cwd: Path,
    deadline: Deadline,
    file_limit_bytes: int,
    output_limit_bytes: int = 1 << 20,
    canceled: threading.Event | None = None,
) -> Finished:
    """Run a program to its end; its status is not checked. The output is whole, of the errors the last 64 KiB are kept.

    `environment` is all that it gets; no file that it writes may have more than `file_limit_bytes`; its process group is
    killed when the deadline passes, when it prints more than `output_limit_bytes`, when `canceled` is set, and when the
    caller is interrupted. Raises MissingProgramError, DeadlineError, HostError.
    """
    program = get_program(argv[0])
    logger.debug("run: %s", shlex.join(argv))

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    try:
        process = subprocess.Popen(
            [program, *argv[1:]],
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            user=user[0] if user else None,
            group=user[1] if user else None,
            extra_groups=[] if user else None,
            umask=0o022,
            preexec_fn=prepare,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"cannot start `{program}`: {error}") from error
    try:
        out, err = _collect(Path(program).name, process, deadline, output_limit_bytes, canceled or threading.Event())
        with suppress(subprocess.TimeoutExpired):
            process.wait(deadline.remaining_s())
        if process.poll() is None:
            raise deadline.error()
        return Finished(process.returncode, out, err)
    finally:
        end_process(process, grace_s=0.0)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _collect(
    name: str, process: subprocess.Popen[bytes], deadline: Deadline, limit: int, canceled: threading.Event
) -> tuple[bytes, bytes]:
    out, err = bytearray(), bytearray()
    assert process.stdout is not None and process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        while selector.get_map():
            ready = selector.select(min(_CANCEL_CHECK_S, deadline.check()))
            if canceled.is_set():
                raise HostError(f"`{name}` was ended, since its result is no longer wanted")
            for key, _ in ready:
                data = os.read(key.fd, _CHUNK)
                if not data:
                    selector.unregister(key.fileobj)
                key.data.extend(data)
            if len(out) > limit:
                raise HostError(f"`{name}` printed more than {limit} bytes")
            del err[:-_TAIL]
    return bytes(out), bytes(err)
