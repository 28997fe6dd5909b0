"""The table of settings, and the values that the environment and the command line give them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from firebuild.errors import ConfigError, FirebuildError
from firebuild.layout import DEFAULT_RUN, DEFAULT_STATE
from firebuild.names import parse_size


class Setting(msgspec.Struct, frozen=True):
    """One setting: its environment variable, how its text is read, its default, and what it is for."""

    name: str
    variable: str
    parse: Callable[[str], Any]
    default: Any
    help: str


class Settings(msgspec.Struct, frozen=True):
    """The values in force. Sizes in bytes or MiB and times in seconds as the names say; paths separated by colons."""

    state: str
    run: str
    cni_bin_dir: str
    cni_conf_dir: str
    cni_cache_dir: str
    vmm_binary: str
    boot_timeout_s: float
    build_memory_mib: int
    build_cpus: int
    build_disk_bytes: int
    build_network: str
    root_disk_bytes: int
    cache_disk_bytes: int
    trust_host_ca: bool


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


SETTINGS = (
    Setting("state", "FIREBUILD_STATE", str, DEFAULT_STATE, "folder for images, kernels, machines and records"),
    Setting("run", "FIREBUILD_RUN", str, DEFAULT_RUN, "folder for the sockets of running machines (keep it short)"),
    Setting("cni_bin_dir", "FIREBUILD_CNI_BIN_DIR", str, "/opt/cni/bin:/usr/lib/cni", "folders of CNI plugins"),
    Setting("cni_conf_dir", "FIREBUILD_CNI_CONF_DIR", str, "/etc/cni/conf.d:/etc/cni/net.d", "folders of CNI networks"),
    Setting("cni_cache_dir", "FIREBUILD_CNI_CACHE_DIR", str, "", "folder of CNI records; empty: `cni` in the state folder"),
    Setting("vmm_binary", "FIREBUILD_BINARY_FIRECRACKER", str, "", "a program that takes Firecracker's arguments; empty: the emulator"),
    Setting("boot_timeout_s", "FIREBUILD_BOOT_TIMEOUT", _seconds, 180.0, "seconds within which a guest must be ready"),
    Setting("build_memory_mib", "FIREBUILD_BUILD_MEM", _count, 1024, "memory of build machines, MiB"),
    Setting("build_cpus", "FIREBUILD_BUILD_CPU", _count, 2, "processors of build machines"),
    Setting("build_disk_bytes", "FIREBUILD_BUILD_DISK", parse_size, 16 << 30, "size of a build machine's work disk (sparse)"),
    Setting("build_network", "FIREBUILD_BUILD_NETWORK", str, "machine-builds", "the network of build machines"),
    Setting("root_disk_bytes", "FIREBUILD_ROOT_DISK", parse_size, 8 << 30, "size of root disks (sparse)"),
    Setting("cache_disk_bytes", "FIREBUILD_CACHE_DISK", parse_size, 16 << 30, "size of the disks of cache mounts (sparse)"),
    Setting("trust_host_ca", "FIREBUILD_TRUST_HOST_CA", _switch, False, "whether build steps trust this host's certificates"),
)  # fmt: skip


def load_settings(environment: Mapping[str, str] | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings in force, and for each its origin: "default" or "environment NAME". Raises ConfigError."""
    variables = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        text = variables.get(setting.variable)
        if not text:
            values[setting.name], origins[setting.name] = setting.default, "default"
            continue
        try:
            values[setting.name] = setting.parse(text)
        except (ValueError, FirebuildError) as error:
            raise ConfigError(f"{setting.variable}={text}: {error}", hint=setting.help) from error
        origins[setting.name] = f"environment {setting.variable}"
    return Settings(**values), origins
