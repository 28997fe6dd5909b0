"""Checking a disk that a guest wrote before anybody uses it: e2fsck, unprivileged, bounded, changing nothing."""

from __future__ import annotations

import os
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
    e2fsck = get_program("e2fsck")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        path.chmod(0o444)
        result = run(
            ["prlimit", f"--as={_MEMORY_BYTES}", f"--cpu={_CPU_S}", "--core=0",
             "setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs",
             e2fsck, "-fn", f"/proc/self/fd/{descriptor}"],
            timeout_s=_TIMEOUT_S, check=False, pass_fds=[descriptor],
        )  # fmt: skip
    finally:
        os.close(descriptor)
    if result.returncode != 0:
        text = (result.stdout + result.stderr).decode("utf-8", "replace")
        raise StoreError(
            f"the file system that the build machine wrote is not clean (e2fsck: {result.returncode}), so it is not used",
            details="\n".join(text.splitlines()[-10:]),
        )
