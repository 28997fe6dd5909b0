"""What git may use of the caller and of this host: told before git is needed, so it imports next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec


class GitLimits(msgspec.Struct, frozen=True):
    """`pack_bytes`: of one fetch; `bytes`, `files`: of the checked-out files; `submodules`, `depth`: in all, and nested."""

    pack_bytes: int = 8 << 30
    bytes: int = 16 << 30
    files: int = 1_000_000
    timeout_s: float = 1800.0
    submodules: int = 100
    depth: int = 8


class SshAccess(msgspec.Struct, frozen=True):
    """What ssh may use of the caller's. `agent`: its socket, or None; `known_hosts`: files that are read, in this order."""

    agent: Path | None = None
    known_hosts: tuple[Path, ...] = ()


def caller_ssh_access(environment: Mapping[str, str]) -> SshAccess:
    """The agent and the known hosts of whoever runs this."""
    agent = environment.get("SSH_AUTH_SOCK")
    home = environment.get("HOME")
    known = [Path(home) / ".ssh/known_hosts"] if home else []
    return SshAccess(Path(agent) if agent else None, (*known, Path("/etc/ssh/ssh_known_hosts")))
