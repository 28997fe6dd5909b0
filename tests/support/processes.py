"""What the kernel says of a process."""

from __future__ import annotations

from pathlib import Path


def runs(pid: int) -> bool:
    """Whether it runs: one that has ended, and that the host's init has not looked at yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
