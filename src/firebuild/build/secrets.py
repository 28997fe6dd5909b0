"""The secrets and SSH agents that a caller lends to a build. What they hold is read late, and kept nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from firebuild.build.steps import Plan, PlannedStage, PlannedStep, RunAction, SecretMount, SshMount
from firebuild.errors import BuildError, UsageError

# BuildKit's limit.
MAX_SECRET_BYTES = 500 * 1024


class SecretSource(msgspec.Struct, frozen=True):
    """Where a secret is read from: a file, or a variable of the caller's environment."""

    path: Path | None = None
    env: str | None = None


def load_secret(secret_id: str, source: SecretSource) -> bytes:
    """The content of a secret. Raises UsageError, which never shows any of it."""
    if source.env is not None:
        value = os.environb.get(os.fsencode(source.env))
        if value is None:
            raise UsageError(f"the variable `{source.env}` for the secret `{secret_id}` is not set")
        data = value
    else:
        try:
            with open(os.fspath(source.path or ""), "rb") as file:
                data = file.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise UsageError(
                f"the file `{source.path}` for the secret `{secret_id}` cannot be read: {error.strerror}"
            ) from error
    if len(data) > MAX_SECRET_BYTES:
        raise UsageError(f"the secret `{secret_id}` has more than {MAX_SECRET_BYTES // 1024} KiB")
    return data


class Lent(msgspec.Struct, frozen=True):
    """What is lent, by id. `agents`: the sockets of SSH agents."""

    secrets: Mapping[str, SecretSource] = {}
    agents: Mapping[str, Path] = {}

    def check(self) -> None:
        """Raises UsageError for a secret that cannot be read, or an agent whose socket is not there."""
        for secret_id, source in self.secrets.items():
            load_secret(secret_id, source)
        for agent_id, path in self.agents.items():
            if not path.is_socket():
                raise UsageError(
                    f"`{path}` for the SSH agent `{agent_id}` is no socket",
                    hint="start an agent, and name its socket: --ssh default=$SSH_AUTH_SOCK",
                )

    def find_missing(self, step: PlannedStep) -> BuildError | None:
        """The error for the first thing that a step requires and that nobody lends, or None."""
        if not isinstance(step.action, RunAction):
            return None
        for mount in step.action.mounts:
            if isinstance(mount, SecretMount) and mount.required and mount.id not in self.secrets:
                return BuildError(
                    f"the secret `{mount.id}` is required and was not given",
                    hint=f"give it: --secret id={mount.id},src=FILE or --secret id={mount.id},env=VARIABLE",
                )
            if isinstance(mount, SshMount) and mount.required and mount.id not in self.agents:
                return BuildError(
                    f"the SSH agent `{mount.id}` is required and was not given", hint=f"lend it: --ssh {mount.id}"
                )
        return None


def list_following(plan: Plan, step_id: str) -> Iterable[PlannedStep]:
    """The step of that id and all that depend on it: those behind it in its stage, and those of stages that need it."""
    stage = next(stage for stage in plan.stages if any(step.id == step_id for step in stage.steps))
    start = next(number for number, step in enumerate(stage.steps) if step.id == step_id)
    yield from stage.steps[start:]
    needing = {stage.index}
    # A stage comes before those that need it.
    for other in plan.stages:
        if other.index not in needing and _needs(other) & needing:
            needing.add(other.index)
            yield from other.steps


def _needs(stage: PlannedStage) -> set[int]:
    return {*stage.sources, *([stage.base] if isinstance(stage.base, int) else [])}
