"""What a machine is: the frozen description that is recorded before anything exists."""

from __future__ import annotations

import re

import msgspec

from firebuild.errors import UsageError
from firebuild.host.identity import ProcessIdentity
from firebuild.names import MachineId, PortMapping

DEFAULT_KERNEL_ARGS = "console=ttyS0 reboot=k panic=1 quiet cryptomgr.notests random.trust_cpu=on"
DEFAULT_MEMORY_MIB = 256
DEFAULT_NETWORK = "machines"
BUILD_NETWORK = "machine-builds"
DEFAULT_BOOT_TIMEOUT_S = 180.0
DEFAULT_STOP_TIMEOUT_S = 10.0


class Entrypoint(msgspec.Struct, frozen=True):
    """What runs in the machine: the image's configuration with the user's changes. `env`: the image's variables."""

    entrypoint: list[str] = []
    cmd: list[str] = []
    env: dict[str, str] = {}
    shell: list[str] = msgspec.field(default_factory=lambda: ["/bin/sh", "-c"])
    user: str = ""
    workdir: str = "/"
    stop_signal: str = "SIGTERM"


class RestartPolicy(msgspec.Struct, frozen=True):
    """When the guest starts the entrypoint again after its end. `name`: no, on-failure, always or unless-stopped.

    `most`: how often, for on-failure; 0: without limit."""

    name: str = "no"
    most: int = 0


_RESTART = re.compile(r"(no|always|unless-stopped|on-failure(?::([1-9][0-9]{0,8}))?)")


def parse_restart_policy(text: str) -> RestartPolicy:
    """The policy from Docker's words: `no`, `on-failure`, `on-failure:3`, `always`, `unless-stopped`. Raises UsageError."""
    match = _RESTART.fullmatch(text)
    if match is None:
        raise UsageError(
            f"`{text}` is not a restart policy", hint="choose no, on-failure, on-failure:N, always or unless-stopped"
        )
    return RestartPolicy(text.partition(":")[0], int(match[2] or 0))


class DriveSpec(msgspec.Struct, frozen=True):
    """A drive, in the order in which the guest names them. `path`: absolute, on the host."""

    drive_id: str
    path: str
    read_only: bool


class MachineSpec(msgspec.Struct, frozen=True):
    """One machine.

    `kind`: "run" or "build". `image`: the familiar reference; `image_digest`: its manifest's. `memory_mib`: MiB.
    `init`: direct (vminit is PID 1) or system (the image's own init is).
    `disk_size_bytes`: of the upper disk. `network`: a network's name, or None for none. `env`: of the run; wins over the image's.
    `volumes`: folders that the image calls so. `users`: SSH public keys by user name.
    `auto_remove`: removed with everything once it has ended.
    `remover`: the command that follows it and removes it then; where that has died, it is as with `auto_remove`.
    `profile`: the profile that it belongs to.
    """

    id: MachineId
    name: str
    kind: str
    hostname: str
    kernel: str
    cpus: int
    memory_mib: int
    network: str | None
    image: str = ""
    image_digest: str = ""
    kernel_args: str = DEFAULT_KERNEL_ARGS
    disk_size_bytes: int = 0
    root_mode: str = "overlay"
    init: str = "direct"
    drives: list[DriveSpec] = []
    ports: list[PortMapping] = []
    address: str | None = None
    env: dict[str, str] = {}
    users: dict[str, str] = {}
    entrypoint: Entrypoint = Entrypoint()
    restart: RestartPolicy = RestartPolicy()
    mmds: bool = True
    auto_remove: bool = False
    remover: ProcessIdentity | None = None
    boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S
    stop_timeout_s: float = DEFAULT_STOP_TIMEOUT_S
    volumes: list[str] = []
    labels: dict[str, str] = {}
    profile: str = ""
