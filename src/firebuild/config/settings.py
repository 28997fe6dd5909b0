"""The one table of settings: name, flag, variable, how it is read, its default; and the values that are in force."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from firebuild.config.profiles import Profile
from firebuild.errors import ConfigError, FirebuildError
from firebuild.layout import DEFAULT_PROFILE, default_run_folder, default_state_folder
from firebuild.names import ALLOW_WORDS, parse_size


class Setting(msgspec.Struct, frozen=True):
    """One setting. `key`: its flag without the dashes, and its key in a profile. `variables`: the first that is set counts.

    `parse`: from a text; raises ValueError or FirebuildError. `default`: None where it follows from other settings.
    `kind`: what `profile-create` checks of it: "folder", "folders" (separated by colons), "program", "pairs" or "".
    """

    name: str
    key: str
    variables: tuple[str, ...]
    parse: Callable[[str], Any]
    default: Any
    help: str
    kind: str = ""

    @property
    def many(self) -> bool:
        """Whether its flag may be given several times."""
        return self.kind == "pairs"


class Settings(msgspec.Struct, frozen=True):
    """The values in force. Sizes in bytes or MiB and times in seconds as the names say; paths separated by colons."""

    state: str
    run: str
    binary_jailer: str
    firecracker_releases: str
    cni_bin_dir: str
    cni_conf_dir: str
    cni_cache_dir: str
    vmm_binary: str
    without_jailer: bool
    jailer_ids: str
    vmm_cgroup_parent: str
    vmm_memory_max: str
    vmm_cpu_max: float
    vmm_pids_max: int
    vmm_io_read_bps: int
    vmm_io_write_bps: int
    vmm_io_read_iops: int
    vmm_io_write_iops: int
    storage_provider: str
    storage_strings: dict[str, str]
    storage_integers: dict[str, int]
    store_quota_bytes: int
    cache_quota_bytes: int
    boot_timeout_s: float
    build_memory_mib: int
    build_cpus: int
    build_disk_bytes: int
    build_network: str
    build_allow: str
    machine_allow: str
    root_disk_bytes: int
    cache_disk_bytes: int
    trust_host_ca: bool
    warm: bool
    profile: str = DEFAULT_PROFILE


class Resolved(msgspec.Struct, frozen=True):
    """The settings in force and, for each by its name, where its value came from, for people."""

    settings: Settings
    origins: dict[str, str]


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("it must be at least 1")
    return value


def _switch(text: str) -> bool:
    if text.lower() not in ("0", "1", "true", "false", "yes", "no"):
        raise ValueError("it must be true or false")
    return text.lower() in ("1", "true", "yes")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise ValueError("it must be between 0 and 86400 seconds")
    return value


def parse_id_range(text: str) -> tuple[int, int]:
    """The first and the last of the users and groups that jailed VMMs run as, from `FIRST-LAST`. Raises ValueError."""
    first, _, last = text.partition("-")
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise ValueError("write it as FIRST-LAST")
    low, high = int(first), int(last)
    if not 1000 <= low <= high <= _ID_LAST:
        raise ValueError(f"the ids are from 1000 to {_ID_LAST}, the first one first")
    return low, high


def _ids(text: str) -> str:
    parse_id_range(text)
    return text


def parse_memory_max(text: str) -> tuple[bool, int]:
    """Whether a limit is on top of the guest's memory (`+256m`), and its bytes; 0 for none. Raises UsageError."""
    return text.startswith("+"), parse_size(text.removeprefix("+")) if text else 0


def _memory_max(text: str) -> str:
    parse_memory_max(text)
    return text


def _cpus(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 4096:
        raise ValueError("it must be between 0.01 and 4096 processors")
    return value


def _group(text: str) -> str:
    if not text or any(part in ("", ".", "..") for part in text.split("/")) or "\0" in text or "=" in text:
        raise ValueError("it is a path below the root of the control groups, without a leading `/`")
    return text


def split_words(text: str) -> list[str]:
    """The words of a setting that has several, with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _permits(text: str) -> str:
    words = split_words(text)
    for word in words:
        if word not in ALLOW_WORDS:
            ipaddress.ip_network(word, strict=False)
    return ",".join(words)


def _folder(text: str) -> str:
    if "\0" in text or "\n" in text:
        raise ValueError("a path has no NUL and no line break")
    return os.path.abspath(text)


def parse_pairs(text: str) -> dict[str, str]:
    """`K=V` pairs, one a line, later ones win. Raises ValueError."""
    pairs: dict[str, str] = {}
    for part in text.splitlines():
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise ValueError(f"`{part}` is not K=V")
        pairs[name] = value
    return pairs


def _integer_pairs(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in parse_pairs(text).items()}


# Ids that no distribution, container engine or systemd gives out (systemd's docs/UIDS-GIDS.md).
_JAILER_IDS = "1879100000-1879165535"
_ID_LAST = (1 << 31) - 2
_STRINGS = "storage-provider-property-string"
_RELEASES = "https://github.com/firecracker-microvm/firecracker/releases"

SETTINGS: tuple[Setting, ...] = (
    Setting("state", "run-cache", ("FIREBUILD_STATE", "FIREBUILD_RUN_CACHE"), _folder, None,
            "folder of images, machines and records", "folder"),
    Setting("run", "chroot-base", ("FIREBUILD_RUN", "FIREBUILD_CHROOT_BASE"), _folder, None,
            "folder of what machines have while they run: sockets, jails (keep its path short)", "folder"),
    Setting("vmm_binary", "binary-firecracker", ("FIREBUILD_BINARY_FIRECRACKER",), str, "",
            "a program that takes Firecracker's arguments; empty: the emulator", "program"),
    Setting("binary_jailer", "binary-jailer", ("FIREBUILD_BINARY_JAILER",), str, "",
            "Firecracker's jailer", "program"),
    Setting("without_jailer", "without-jailer", ("FIREBUILD_WITHOUT_JAILER",), _switch, False,
            "whether Firecracker is started without its jailer, as root: for trying things out"),
    Setting("jailer_ids", "jailer-ids", ("FIREBUILD_JAILER_IDS",), _ids, _JAILER_IDS,
            "the users and groups that jailed VMMs run as, FIRST-LAST; each has one of its own"),
    Setting("vmm_cgroup_parent", "vmm-cgroup-parent", ("FIREBUILD_VMM_CGROUP_PARENT",), _group, "firebuild",
            "the control group that machines have theirs in"),
    Setting("vmm_memory_max", "vmm-memory-max", ("FIREBUILD_VMM_MEMORY_MAX",), _memory_max, "",
            "memory that a VMM may use, the guest's in it; `+256m`: so much beside the guest's; empty: no limit"),
    Setting("vmm_cpu_max", "vmm-cpu-max", ("FIREBUILD_VMM_CPU_MAX",), _cpus, 0.0,
            "processors that a VMM may use, such as 1.5; without it no limit"),
    Setting("vmm_pids_max", "vmm-pids-max", ("FIREBUILD_VMM_PIDS_MAX",), _count, 0,
            "processes and threads that a VMM may have; without it no limit"),
    Setting("vmm_io_read_bps", "vmm-io-read-bps", ("FIREBUILD_VMM_IO_READ_BPS",), parse_size, 0,
            "bytes that a VMM may read from the host's disk in a second; 0: no limit"),
    Setting("vmm_io_write_bps", "vmm-io-write-bps", ("FIREBUILD_VMM_IO_WRITE_BPS",), parse_size, 0,
            "bytes that a VMM may write to it in a second; 0: no limit"),
    Setting("vmm_io_read_iops", "vmm-io-read-iops", ("FIREBUILD_VMM_IO_READ_IOPS",), _count, 0,
            "reads that a VMM may do on it in a second; without it no limit"),
    Setting("vmm_io_write_iops", "vmm-io-write-iops", ("FIREBUILD_VMM_IO_WRITE_IOPS",), _count, 0,
            "writes that a VMM may do on it in a second; without it no limit"),
    Setting("firecracker_releases", "firecracker-releases", ("FIREBUILD_FIRECRACKER_RELEASES",), str, _RELEASES,
            "the address below which `firecracker install` finds releases"),
    Setting("cni_bin_dir", "cni-bin-dir", ("FIREBUILD_CNI_BIN_DIR",), str, "/opt/cni/bin:/usr/lib/cni",
            "folders of CNI plugins", "folders"),
    Setting("cni_conf_dir", "cni-conf-dir", ("FIREBUILD_CNI_CONF_DIR",), str, "/etc/cni/conf.d:/etc/cni/net.d",
            "folders of CNI networks", "folders"),
    Setting("cni_cache_dir", "cni-cache-dir", ("FIREBUILD_CNI_CACHE_DIR",), str, "",
            "folder of CNI records; empty: `cni` in the run cache", "folder"),
    Setting("storage_provider", "storage-provider", ("FIREBUILD_STORAGE_PROVIDER",), str, "directory",
            "who keeps rootfs files and kernels"),
    Setting("storage_strings", _STRINGS, ("FIREBUILD_STORAGE_PROVIDER_PROPERTY_STRING",), parse_pairs, {},
            "a property K=V of the storage provider", "pairs"),
    Setting("storage_integers", "storage-provider-property-int64", ("FIREBUILD_STORAGE_PROVIDER_PROPERTY_INT64",),
            _integer_pairs, {}, "a whole-numbered property K=V of the storage provider", "pairs"),
    Setting("store_quota_bytes", "store-quota", ("FIREBUILD_STORE_QUOTA",), parse_size, 0,
            "bytes that images and disks may take together; 0: as much as there is"),
    Setting("cache_quota_bytes", "build-cache-quota", ("FIREBUILD_BUILD_CACHE_QUOTA",), parse_size, 0,
            "bytes that cached build steps may take; 0: no limit"),
    Setting("boot_timeout_s", "boot-timeout", ("FIREBUILD_BOOT_TIMEOUT",), _seconds, 180.0,
            "seconds within which a guest must be ready"),
    Setting("build_memory_mib", "build-mem", ("FIREBUILD_BUILD_MEM",), _count, 1024, "memory of build machines, MiB"),
    Setting("build_cpus", "build-cpu", ("FIREBUILD_BUILD_CPU",), _count, 2, "processors of build machines"),
    Setting("build_disk_bytes", "build-disk", ("FIREBUILD_BUILD_DISK",), parse_size, 16 << 30,
            "size of a build machine's work disk (sparse)"),
    Setting("build_network", "build-network", ("FIREBUILD_BUILD_NETWORK",), str, "machine-builds",
            "the network of build machines"),
    Setting("build_allow", "build-allow", ("FIREBUILD_BUILD_ALLOW",), _permits, "",
            "what build machines may reach beside: host, private, networks, metadata, ranges; with commas"),
    Setting("machine_allow", "machine-allow", ("FIREBUILD_MACHINE_ALLOW",), _permits, "",
            "what machines may reach beside: host, networks, metadata, spoofing, ranges; with commas"),
    Setting("root_disk_bytes", "root-disk", ("FIREBUILD_ROOT_DISK",), parse_size, 8 << 30,
            "size of root disks (sparse)"),
    Setting("cache_disk_bytes", "cache-disk", ("FIREBUILD_CACHE_DISK",), parse_size, 16 << 30,
            "size of the disks of cache mounts (sparse)"),
    Setting("trust_host_ca", "trust-host-ca", ("FIREBUILD_TRUST_HOST_CA",), _switch, False,
            "whether build steps trust this host's certificates"),
    Setting("warm", "warm", ("FIREBUILD_WARM",), _switch, False,
            "whether machines start from a snapshot of a guest that is ready, which is made by the first of them"),
)  # fmt: skip

# Flags of the built-in storage provider that are short for one of its properties: flag → property.
PROPERTY_FLAGS = {
    "storage-provider.directory.rootfs-storage-root": "rootfs-storage-root",
    "storage-provider.directory.kernel-storage-root": "kernel-storage-root",
}

Flags = Mapping[str, Sequence[str]]
KEYS = frozenset(setting.key for setting in SETTINGS)


def load_settings(environment: Mapping[str, str] | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings that the environment alone gives, and for each its origin. Raises ConfigError."""
    resolved = resolve_settings({}, os.environ if environment is None else environment, None)
    return resolved.settings, resolved.origins


def resolve_settings(flags: Flags, environment: Mapping[str, str], profile: Profile | None) -> Resolved:
    """The settings in force: a flag wins over the environment, that over the profile, that over the default.

    `flags`: the texts given, by key. Raises ConfigError that names where the bad value stands.
    """
    values: dict[str, Any] = {"profile": profile.name if profile else DEFAULT_PROFILE}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        found = _find_text(setting, flags, environment, profile)
        if found is None:
            values[setting.name], origins[setting.name] = setting.default, "default"
            continue
        text, origin = found
        values[setting.name], origins[setting.name] = parse_value(setting, text, origin), origin
    if values["state"] is None:
        values["state"] = default_state_folder(values["profile"])
    if values["run"] is None:
        values["run"] = default_run_folder(values["state"])
    return Resolved(Settings(**values), origins)


def parse_value(setting: Setting, text: str, origin: str) -> Any:
    """The value of a setting from its text. `origin`: where that stands. Raises ConfigError."""
    try:
        return setting.parse(text)
    except (ValueError, FirebuildError) as error:
        raise ConfigError(f"{origin}: `{text}` will not do as {setting.key}: {error}", hint=setting.help) from error


def _find_text(
    setting: Setting, flags: Flags, environment: Mapping[str, str], profile: Profile | None
) -> tuple[str, str] | None:
    if given := flags.get(setting.key):
        return "\n".join(given), f"flag --{setting.key}"
    for variable in setting.variables:
        if text := environment.get(variable):
            return "\n".join(text.split()) if setting.many else text, f"environment {variable}"
    if profile is not None and setting.key in profile.settings:
        return profile.settings[setting.key], profile.locate(setting.key)
    return None
