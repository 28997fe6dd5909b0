"""How the VMM's process is started: which program, with which arguments."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec


class VmmLaunch(msgspec.Struct, frozen=True):
    """What the supervisor executes. `argv[0]` is an absolute path; `env`: `K=V` texts."""

    argv: list[str]
    env: list[str]


def plan_emulator(*, vmm_id: str, api_socket: Path, log: Path, binary: str | None = None) -> VmmLaunch:
    """Start the emulator, the drop-in for `firecracker`. `binary`: another program that takes Firecracker's arguments."""
    program = [binary] if binary else [sys.executable, "-I", "-m", "firebuild.emulator.main"]
    arguments = ["--api-sock", str(api_socket), "--id", vmm_id, "--log-path", str(log), "--level", "Info"]
    return VmmLaunch([*program, *arguments], ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
