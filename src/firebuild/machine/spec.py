"""What a machine is: the frozen description that is recorded before anything exists."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import UsageError
from firebuild.host.cgroups import Limits
from firebuild.host.identity import ProcessIdentity
from firebuild.names import MachineId, PortMapping

DEFAULT_KERNEL_ARGS = "console=ttyS0 reboot=k panic=1 quiet cryptomgr.notests random.trust_cpu=on"
# Every process of a build at the same addresses: QEMU's software CPU then translates a program once, and not each time
# that a step starts it. The machine is the build's alone, and gone with it.
BUILD_KERNEL_ARGS = f"{DEFAULT_KERNEL_ARGS} norandmaps"
DEFAULT_MEMORY_MIB = 256
DEFAULT_NETWORK = "machines"
BUILD_NETWORK = "machine-builds"
DEFAULT_BOOT_TIMEOUT_S = 180.0
DEFAULT_STOP_TIMEOUT_S = 10.0


class Boot(msgspec.Struct, frozen=True):
    """What a machine boots: the kernel and the initramfs, as files on the host."""

    kernel: Path
    initramfs: Path


class Restore(msgspec.Struct, frozen=True):
    """What a machine goes on from: a saved machine's files, the version of the VMM that wrote them, and what it boots when it
    is started another time."""

    state: Path
    memory: Path
    vmm_version: str
    boot: Boot


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


class HealthCheck(msgspec.Struct, frozen=True):
    """How the guest finds out whether the entrypoint is well: `argv` every `interval_ms`, in the start period every
    `start_interval_ms`; `retries` failures in a row are unhealthy. `test`: as the image or the user wrote it."""

    argv: list[str]
    interval_ms: int
    timeout_ms: int
    start_period_ms: int
    start_interval_ms: int
    retries: int
    test: list[str] = []


_RESTART = r"(no|always|unless-stopped|on-failure(?::([1-9][0-9]{0,8}))?)"


def parse_restart_policy(text: str) -> RestartPolicy:
    """The policy from Docker's words: `no`, `on-failure`, `on-failure:3`, `always`, `unless-stopped`. Raises UsageError."""
    match = re.fullmatch(_RESTART, text)
    if match is None:
        raise UsageError(
            f"`{text}` is not a restart policy", hint="choose no, on-failure, on-failure:N, always or unless-stopped"
        )
    return RestartPolicy(text.partition(":")[0], int(match[2] or 0))


class DriveSpec(msgspec.Struct, frozen=True):
    """A drive, in the order in which the guest names them. `path`: absolute, on the host. `durable`: what the guest flushes is
    on the host's disk then: for what outlives the machine."""

    drive_id: str
    path: str
    read_only: bool
    durable: bool = False


class DiskLimits(msgspec.Struct, frozen=True):
    """What each of a machine's disks may do in a second; 0: no limit. `iops`: reads and writes; `bytes`: of both."""

    iops: int = 0
    bytes: int = 0


class MountSpec(msgspec.Struct, frozen=True):
    """A drive that the guest mounts on the folder `target`. `volume`: the named volume that it is, or empty; `folder`: the
    folder of the host that it is a copy of, or empty. `seed`: while it is empty it gets what the image has there."""

    drive_id: str
    target: str
    read_only: bool = False
    seed: bool = False
    volume: str = ""
    folder: str = ""


class NetworkJoin(msgspec.Struct, frozen=True, omit_defaults=True):
    """A network that a machine is to be in. `addresses`: static ones, at most one of each IP version; `aliases`: names that
    the others in the network know it by, beside its own."""

    network: str
    addresses: list[str] = []
    aliases: list[str] = []


_ALIAS = r"(?=.{1,63}\Z)[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9_])?"


def parse_network_join(text: str) -> NetworkJoin:
    """A network from `NAME[:ip=ADDRESS][,ip6=ADDRESS][,alias=NAME]` or `name=NAME,ip=…`, as podman and docker write them.

    Raises UsageError."""
    name, _, rest = ("", "", text) if text.startswith("name=") else text.partition(":")
    addresses: list[str] = []
    aliases: list[str] = []
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if not value or (key == "name" and name) or key not in ("name", "ip", "ip6", "alias"):
            raise UsageError(
                f"`{text}` is not a network: `{part}`", hint="write NAME:ip=ADDRESS,ip6=ADDRESS,alias=NAME"
            )
        if key == "name":
            name = value
        elif key == "alias":
            aliases.append(parse_alias(value))
        else:
            addresses.append(parse_address(value, version=4 if key == "ip" else 6))
    if not name:
        raise UsageError(f"`{text}` names no network")
    versions = [":" in address for address in addresses]
    if len(set(versions)) != len(versions):
        raise UsageError(f"`{text}`: a machine has one address of each IP version in a network")
    return NetworkJoin(name, addresses, aliases)


def parse_alias(text: str) -> str:
    """A name for a machine in a network. Raises UsageError."""
    if not re.fullmatch(_ALIAS, text):
        raise UsageError(f"`{text}` is not a name for a machine in a network", hint="letters, digits, `-`, `_` and `.`")
    return text


def parse_address(text: str, *, version: int | None = None) -> str:
    """An IP address, of that version if one is named; a prefix length may follow. Raises UsageError."""
    try:
        found = ipaddress.ip_interface(text).version
    except ValueError:
        raise UsageError(f"`{text}` is not an IP address") from None
    if version not in (None, found):
        raise UsageError(f"`{text}` is not an IPv{version} address")
    return text


class VmmExtras(msgspec.Struct, frozen=True, omit_defaults=True):
    """`cpu_template`: a static one's name; `cpu_config`: a custom one; `huge_pages`: None, Transparent or 2M; `balloon_mib`:
    what the balloon takes at the start, None without a balloon."""

    cpu_template: str = ""
    cpu_config: dict[str, Any] | None = None
    huge_pages: str = "None"
    balloon_mib: int | None = None


class MachineSpec(msgspec.Struct, frozen=True):
    """One machine.

    `kind`: "run"; "build"; or "helper": the root of an ended machine, for a copy, without its entrypoint.
    `image`: the familiar reference; `image_digest`: its manifest's. `memory_mib`: MiB.
    `init`: direct (vminit is PID 1) or system (the image's own init is).
    `disk_size_bytes`: of the upper disk. `network`: a network's name, or None for none; `address`: its first static address.
    `joins`: all networks, that one first. `allow`: what it may reach beside what they allow. `env`: of the run; wins over the image's.
    `read_only`: nobody in the guest can write to its root.
    `volumes`: folders that the image calls so. `users`: SSH public keys by user name.
    `tty`: the entrypoint has a terminal. `stdin`: its input is open to those who attach; `stdin_once`: the end of theirs is
    its end. `auto_remove`: removed with everything once it has ended.
    `remover`: the command that follows it and removes it then; where that has died, it is as with `auto_remove`.
    `profile`: the profile that it belongs to. `mounts`: in the order in which they are mounted.
    `sync_back`: its folders of the host are copied back when it has ended.
    `net_bytes_per_s`: what each of its interfaces may send, and be sent, in a second; 0: no limit.
    `template`: it is made to be saved when its guest is ready, and has no entrypoint.
    `snapshot`, `snapshot_id`: the snapshot that it was started from, if any.
    `disk_limits`: of each drive; those whose id begins with `disk` are the user's own files and devices.
    `limits`: of the VMM with its guest. `extras`: what else is asked of the VMM.
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
    read_only: bool = False
    init: str = "direct"
    drives: list[DriveSpec] = []
    ports: list[PortMapping] = []
    address: str | None = None
    env: dict[str, str] = {}
    users: dict[str, str] = {}
    entrypoint: Entrypoint = Entrypoint()
    restart: RestartPolicy = RestartPolicy()
    health: HealthCheck | None = None
    mmds: bool = True
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    auto_remove: bool = False
    remover: ProcessIdentity | None = None
    boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S
    stop_timeout_s: float = DEFAULT_STOP_TIMEOUT_S
    volumes: list[str] = []
    labels: dict[str, str] = {}
    profile: str = ""
    joins: list[NetworkJoin] = []
    mounts: list[MountSpec] = []
    allow: list[str] = []
    sync_back: bool = False
    disk_limits: DiskLimits = DiskLimits()
    limits: Limits = Limits()
    net_bytes_per_s: int = 0
    template: bool = False
    snapshot: str = ""
    snapshot_id: str = ""
    extras: VmmExtras = VmmExtras()

    @property
    def networks(self) -> list[NetworkJoin]:
        """All networks in order; of a record that an earlier version wrote, the one."""
        if self.joins or self.network is None:
            return self.joins
        return [NetworkJoin(self.network, [self.address] if self.address else [])]
