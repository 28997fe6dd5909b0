"""A machine's guest, asked to be held, to go on, or to become another machine: what a restore does, without one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firebuild.guest.control import ResumeStep, request_continue, request_pause_for_snapshot, request_resume
from firebuild.host.deadline import Deadline
from tests.support.cli import COMMAND_TIMEOUT_S, Cli


@dataclass(frozen=True)
class Guest:
    """A guest of a machine that runs."""

    cli: Cli
    name: str
    id: str

    @classmethod
    def of(cls, cli: Cli, name: str) -> Guest:
        """The guest of the machine with that name."""
        return cls(cli, name, cli.json("inspect", name)["VMMID"])

    @property
    def vsock(self) -> Path:
        """Where its requests go."""
        return self.cli.run_folder / "m" / self.id / "v.sock"

    def document(self, **changes: Any) -> dict[str, Any]:
        """Its boot document, with these changes."""
        document: dict[str, Any] = json.loads((self.cli.state / "machines" / self.id / "boot.json").read_text())
        return document | changes

    def pause(self) -> str:
        """Have it held; how its processes were stopped."""
        return request_pause_for_snapshot(self.vsock, _deadline()).held_by

    def go_on(self) -> None:
        """Let it go on as it was."""
        request_continue(self.vsock, _deadline())

    def resume(self, document: dict[str, Any]) -> list[ResumeStep]:
        """Make it the machine of that document."""
        return request_resume(self.vsock, document, _deadline())

    def sh(self, script: str) -> str:
        """What a script of root's prints in it."""
        return self.cli.ok("exec", "-u", "root", self.name, "--", "sh", "-c", script)


def _deadline() -> Deadline:
    return Deadline(COMMAND_TIMEOUT_S, "the guest's answer")
