"""Checking a disk that a guest wrote before anybody uses it: e2fsck, unprivileged and bounded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from firebuild.errors import StoreError
from firebuild.host.process import get_program, run

_NOBODY = "65534"
_MEMORY_BYTES = 2 << 30
_CPU_S = 600
_TIMEOUT_S = 1200.0


def check_disk(path: Path) -> None:
    """Raises StoreError if the ext4 file system in `path` is not clean (e2fsck(8), `-fn`), DeadlineError, MissingProgramError.

    e2fsck has had faults that a crafted file system could use, so it runs as nobody, with the disk as its standard input.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        path.chmod(0o444)
        status, output = _run_e2fsck(["-fn"], descriptor)
    finally:
        os.close(descriptor)
    if status != 0:
        raise StoreError(
            f"the file system that the build machine wrote is not clean (e2fsck: {status}), so it is not used",
            details="\n".join(output.splitlines()[-10:]),
        )


def repair_disk(path: Path) -> bool:
    """Make the ext4 file system in `path` sound, its journal replayed (e2fsck(8), `-fy`). False if that cannot be done.

    Raises DeadlineError, MissingProgramError. Run as check_disk is; the file is e2fsck's own meanwhile.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, 0o600)
        os.fchown(descriptor, int(_NOBODY), int(_NOBODY))
        status, _ = _run_e2fsck(["-fy"], descriptor)
    finally:
        os.fchown(descriptor, os.getuid(), os.getgid())
        os.close(descriptor)
    # 1: there were errors, and they are corrected.
    return status in (0, 1)


def _run_e2fsck(options: Sequence[str], descriptor: int) -> tuple[int, str]:
    e2fsck = get_program("e2fsck")
    result = run(
        ["prlimit", f"--as={_MEMORY_BYTES}", f"--cpu={_CPU_S}", "--core=0",
         "setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs",
         e2fsck, *options, f"/proc/self/fd/{descriptor}"],
        timeout_s=_TIMEOUT_S, check=False, pass_fds=[descriptor],
    )  # fmt: skip
    return result.returncode, (result.stdout + result.stderr).decode("utf-8", "replace")
