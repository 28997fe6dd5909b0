"""`--secret` and `--ssh`: what a caller lends to a build, in the words of docker's command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from firebuild.build.secrets import Lent, SecretSource
from firebuild.dockerfile.mounts import split_csv
from firebuild.errors import DockerfileError, UsageError

_SECRET_HINT = "write --secret id=NAME,src=FILE or --secret id=NAME,env=VARIABLE"


def parse_lent(secrets: Iterable[str], agents: Iterable[str], environment: Mapping[str, str] = os.environ) -> Lent:
    """All that is lent; nothing is read yet. Raises UsageError, which shows no value of a variable."""
    found: dict[str, SecretSource] = {}
    for text in secrets:
        name, source = _parse_secret(text, environment)
        found[name] = source
    return Lent(found, dict(_parse_agent(text, environment) for text in agents))


def _parse_secret(text: str, environment: Mapping[str, str]) -> tuple[str, SecretSource]:
    fields: dict[str, str] = {}
    for field in _split(text):
        name, equals, value = field.partition("=")
        name = {"source": "src"}.get(name.lower(), name.lower())
        if name not in ("id", "src", "env", "type") or not equals:
            raise UsageError(f"`{name}` does not belong into --secret", hint=_SECRET_HINT)
        fields[name] = value
    secret_id, kind = fields.get("id", ""), fields.get("type", "")
    path, env = fields.get("src"), fields.get("env")
    if not secret_id:
        raise UsageError("--secret needs an `id`", hint=_SECRET_HINT)
    if kind not in ("", "file", "env"):
        raise UsageError(f"`{kind}` is not a type of secret", hint="it is file or env")
    if kind == "env" and env is None:
        path, env = None, path
    if path is None and env is None:
        # As docker has it: a variable of that name, else a file.
        if kind == "env" or (kind == "" and secret_id in environment):
            env = secret_id
        else:
            path = secret_id
    if path is not None:
        return secret_id, SecretSource(path=Path(path).absolute())
    return secret_id, SecretSource(env=env)


def _parse_agent(text: str, environment: Mapping[str, str]) -> tuple[str, Path]:
    agent_id, equals, path = text.partition("=")
    if not agent_id:
        raise UsageError("--ssh needs an id", hint="write --ssh default, or --ssh ID=SOCKET")
    if not equals:
        path = environment.get("SSH_AUTH_SOCK", "")
        if not path:
            raise UsageError(
                f"--ssh {agent_id}: SSH_AUTH_SOCK is not set", hint="start an agent and `ssh-add` the key (sudo -E)"
            )
    elif Path(path).is_file() or "," in path:
        raise UsageError(
            f"--ssh {agent_id}: key files are not read", hint="`ssh-add` the key, and name the agent's socket"
        )
    return agent_id, Path(path).absolute()


def _split(text: str) -> list[str]:
    try:
        return split_csv(text)
    except DockerfileError as error:
        raise UsageError(f"--secret: {error.message}", hint=_SECRET_HINT) from error
