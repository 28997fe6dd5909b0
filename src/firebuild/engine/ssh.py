"""The use case of `ssh`: the host's own ssh client to a machine's own sshd, whose keys the guest itself tells beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firebuild.engine.core import Engine
from firebuild.engine.machines import get_running
from firebuild.errors import GuestError, MachineError
from firebuild.guest.exec import ExecSpec, open_exec
from firebuild.host.deadline import Deadline
from firebuild.host.files import write_atomic

_KEYS_S = 60.0
_KEYS_LIMIT = 64 << 10
_LIST_KEYS = "cat /etc/ssh/ssh_host_*_key.pub"


def plan_ssh(
    engine: Engine,
    name: str,
    *,
    user: str | None,
    identities: Sequence[Path],
    options: Sequence[str],
    command: Sequence[str],
) -> list[str]:
    """The ssh command for a running machine. `user`: None for the one whose keys the machine was given, else root.

    The machine's host keys are asked for over its private channel and kept beside it, so that no key is taken on trust and
    the caller's known_hosts stays as it is. Raises NotFoundError, MachineError, GuestError.
    """
    record = get_running(engine, name)
    spec = record.spec
    if not record.progress.addresses:
        raise MachineError(f"the machine {spec.name} has no network", hint=f"firebuild exec -it {spec.name} -- sh")
    paths = engine.layout.machine(spec.id)
    address = record.progress.addresses[0].partition("/")[0]
    keys = _load_host_keys(paths.vsock, spec.name)
    write_atomic(paths.known_hosts, "".join(f"{spec.id} {key}\n" for key in keys).encode())
    known = [f"UserKnownHostsFile={paths.known_hosts}", "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=yes"]
    known += [f"HostKeyAlias={spec.id}", "CheckHostIP=no"]
    argv = ["ssh", *(word for option in known for word in ("-o", option)), *options]
    for file in identities:
        argv += ["-i", str(file)]
    return [*argv, "-l", user or next(iter(spec.users), "root"), "--", address, *command]


def _load_host_keys(vsock: Path, name: str) -> list[str]:
    """The public host keys, type and key of each. What the guest says is only ever compared with what its sshd says."""
    output = bytearray()

    def take(stream: str, data: bytes) -> None:
        if stream == "stdout" and len(output) + len(data) <= _KEYS_LIMIT:
            output.extend(data)

    deadline = Deadline(_KEYS_S, f"asking {name} for its host keys")
    spec = ExecSpec(argv=["/bin/sh", "-c", _LIST_KEYS], user="0:0", workdir="/")
    try:
        with open_exec(vsock, spec, deadline) as session:
            session.wait(take, deadline)
    except GuestError as error:
        if error.guest_code not in ("not-found", "not-executable"):
            raise
    lines = (line.split() for line in output.decode("ascii", "replace").splitlines())
    keys = [f"{words[0]} {words[1]}" for words in lines if len(words) >= 2 and all(map(str.isprintable, words))]
    if not keys:
        raise MachineError(
            f"the machine {name} has no SSH host keys: no sshd has been started in it",
            hint=f"start an image of a base operating system; or: firebuild exec -it {name} -- sh",
        )
    return keys
