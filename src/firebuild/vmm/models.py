"""The bodies of Firecracker's API, named exactly as in its OpenAPI document."""

from __future__ import annotations

from typing import Any

import msgspec


class MachineConfiguration(msgspec.Struct, frozen=True, omit_defaults=False):
    """PUT /machine-config. `mem_size_mib`: MiB."""

    vcpu_count: int
    mem_size_mib: int
    smt: bool = False
    track_dirty_pages: bool = False
    cpu_template: str | msgspec.UnsetType = msgspec.UNSET
    huge_pages: str = "None"


class BootSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """PUT /boot-source. Paths are as the VMM sees them."""

    kernel_image_path: str
    boot_args: str | None = None
    initrd_path: str | None = None


class TokenBucket(msgspec.Struct, frozen=True):
    """`size` tokens, refilled within `refill_time` milliseconds."""

    size: int
    refill_time: int = 1000


class RateLimiter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Limits of bytes and of operations."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


def make_limiter(bytes_per_s: int, ops_per_s: int) -> RateLimiter | None:
    """The limiter for these; 0: no limit."""
    if not bytes_per_s and not ops_per_s:
        return None
    return RateLimiter(TokenBucket(bytes_per_s) if bytes_per_s else None, TokenBucket(ops_per_s) if ops_per_s else None)


class Drive(msgspec.Struct, frozen=True):
    """PUT /drives/{drive_id}. The guest names drives vda, vdb … in the order in which they are put."""

    drive_id: str
    path_on_host: str
    is_root_device: bool = False
    is_read_only: bool = False
    cache_type: str = "Unsafe"
    rate_limiter: RateLimiter | None = None


class NetworkInterface(msgspec.Struct, frozen=True, omit_defaults=True):
    """PUT /network-interfaces/{iface_id}."""

    iface_id: str
    host_dev_name: str
    guest_mac: str | None = None


class Vsock(msgspec.Struct, frozen=True):
    """PUT /vsock. `guest_cid`: at least 3."""

    guest_cid: int
    uds_path: str


class MmdsConfig(msgspec.Struct, frozen=True):
    """PUT /mmds/config."""

    network_interfaces: list[str]
    version: str = "V2"
    ipv4_address: str = "169.254.169.254"


class Balloon(msgspec.Struct, frozen=True):
    """PUT /balloon. `amount_mib`: MiB that the guest gives away at its start; `stats_polling_interval_s` 0: it tells nothing."""

    amount_mib: int
    deflate_on_oom: bool = True
    stats_polling_interval_s: int = 1
    free_page_reporting: bool | msgspec.UnsetType = msgspec.UNSET


class VmmSetup(msgspec.Struct, frozen=True):
    """Everything that is put before InstanceStart, in the order in which it is put."""

    machine: MachineConfiguration
    boot: BootSource
    drives: list[Drive]
    vsock: Vsock
    interfaces: list[NetworkInterface] = []
    mmds_config: MmdsConfig | None = None
    mmds: dict[str, Any] | None = None
    cpu_config: dict[str, Any] | None = None
    balloon: Balloon | None = None


class SnapshotCreate(msgspec.Struct, frozen=True):
    """PUT /snapshot/create. Paths are as the VMM sees them; `snapshot_type`: Full or Diff."""

    snapshot_path: str
    mem_file_path: str
    snapshot_type: str = "Full"


class NetworkOverride(msgspec.Struct, frozen=True):
    """The tap that an interface of a snapshot has from now on."""

    iface_id: str
    host_dev_name: str


class SnapshotLoad(msgspec.Struct, frozen=True, omit_defaults=True):
    """PUT /snapshot/load, the memory from a file. `vsock_override`: `uds_path` and its value."""

    snapshot_path: str
    mem_backend: dict[str, str]
    network_overrides: list[NetworkOverride] = []
    vsock_override: dict[str, str] | None = None
