"""The bodies of the API's requests as types, and their parsing with serde's words for what is wrong.

Field names and bounds: Firecracker's OpenAPI document. Unknown fields are refused, as Firecracker refuses them.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from firebuild.emulator.faults import Fault

U8 = Annotated[int, Meta(ge=0, le=255)]
U16 = Annotated[int, Meta(ge=0, le=65535)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# msgspec's bounds are signed; no size or time that means anything is larger.
U64 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
T = TypeVar("T")


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Refuses unknown fields."""


class TokenBucket(Strict):
    """`size` tokens, refilled in `refill_time` ms; `one_time_burst` more at the start."""

    size: U64
    refill_time: U64
    one_time_burst: U64 | None = None

    def per_second(self) -> int:
        """The sustained rate, 0 for no limit (a bucket without size or time limits nothing)."""
        return max(1, self.size * 1000 // self.refill_time) if self.size and self.refill_time else 0


class RateLimiter(Strict):
    """Limits of bytes and of operations."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class MachineConfig(Strict):
    """PUT /machine-config."""

    vcpu_count: U8
    mem_size_mib: U64
    smt: bool = False
    cpu_template: Literal["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"] | None = None
    track_dirty_pages: bool = False
    huge_pages: Literal["None", "Transparent", "2M"] = "None"


class MachineConfigUpdate(Strict):
    """PATCH /machine-config."""

    vcpu_count: U8 | None = None
    mem_size_mib: U64 | None = None
    smt: bool | None = None
    cpu_template: Literal["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"] | None = None
    track_dirty_pages: bool | None = None
    huge_pages: Literal["None", "Transparent", "2M"] | None = None


class BootSource(Strict):
    """PUT /boot-source."""

    kernel_image_path: str
    initrd_path: str | None = None
    boot_args: str | None = None


class Drive(Strict):
    """PUT /drives/{drive_id}."""

    drive_id: str
    is_root_device: bool
    partuuid: str | None = None
    cache_type: Literal["Unsafe", "Writeback"] = "Unsafe"
    is_read_only: bool | None = None
    path_on_host: str | None = None
    rate_limiter: RateLimiter | None = None
    io_engine: Literal["Sync", "Async"] | None = None
    socket: str | None = None


class DriveUpdate(Strict):
    """PATCH /drives/{drive_id}."""

    drive_id: str
    path_on_host: str | None = None
    rate_limiter: RateLimiter | None = None


class NetworkInterface(Strict):
    """PUT /network-interfaces/{iface_id}."""

    iface_id: str
    host_dev_name: str
    guest_mac: str | None = None
    mtu: U16 | None = None
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class NetworkInterfaceUpdate(Strict):
    """PATCH /network-interfaces/{iface_id}."""

    iface_id: str
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class Vsock(Strict):
    """PUT /vsock."""

    guest_cid: U32
    uds_path: str
    vsock_id: str | None = None


class BalloonConfig(Strict):
    """PUT /balloon."""

    amount_mib: U32
    deflate_on_oom: bool
    stats_polling_interval_s: U16 = 0
    free_page_hinting: bool = False
    free_page_reporting: bool = False


class BalloonUpdate(Strict):
    """PATCH /balloon."""

    amount_mib: U32


class BalloonStatsUpdate(Strict):
    """PATCH /balloon/statistics."""

    stats_polling_interval_s: U16


class BalloonHinting(Strict):
    """PATCH /balloon/hinting/start."""

    acknowledge_on_stop: bool = True


class CpuConfig(Strict):
    """PUT /cpu-config, x86_64: what a custom CPU template changes."""

    kvm_capabilities: list[str] = msgspec.field(default_factory=list)
    cpuid_modifiers: list[dict[str, Any]] = msgspec.field(default_factory=list)
    msr_modifiers: list[dict[str, Any]] = msgspec.field(default_factory=list)


class Pmem(Strict):
    """PUT /pmem/{id}."""

    id: str
    path_on_host: str
    root_device: bool = False
    read_only: bool = False
    rate_limiter: RateLimiter | None = None


class PmemUpdate(Strict):
    """PATCH /pmem/{id}."""

    id: str
    rate_limiter: RateLimiter | None = None


class MemoryHotplug(Strict):
    """PUT /hotplug/memory."""

    total_size_mib: U32
    block_size_mib: U32 = 2
    slot_size_mib: U32 = 128


class MemoryHotplugUpdate(Strict):
    """PATCH /hotplug/memory."""

    requested_size_mib: U32


class MmdsConfig(Strict):
    """PUT /mmds/config."""

    network_interfaces: list[str]
    version: Literal["V1", "V2"] = "V1"
    ipv4_address: str | None = None
    imds_compat: bool = False


class Entropy(Strict):
    """PUT /entropy."""

    rate_limiter: RateLimiter | None = None


class Serial(Strict):
    """PUT /serial."""

    serial_out_path: str | None = None
    rate_limiter: TokenBucket | None = None


class Logger(Strict):
    """PUT /logger."""

    log_path: str | None = None
    level: str | None = None
    show_level: bool | None = None
    show_log_origin: bool | None = None
    module: str | None = None


class MetricsConfig(msgspec.Struct, kw_only=True):
    """PUT /metrics; the one body in which Firecracker ignores unknown fields."""

    metrics_path: str
    emit_id: bool = False
    properties: dict[str, str] | None = None


class Action(Strict):
    """PUT /actions."""

    action_type: Literal["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]


class VmState(Strict):
    """PATCH /vm."""

    state: Literal["Paused", "Resumed"]


class SnapshotCreate(Strict):
    """PUT /snapshot/create."""

    snapshot_path: str
    mem_file_path: str
    snapshot_type: Literal["Diff", "Full"] = "Full"


class MemBackend(Strict):
    """Where PUT /snapshot/load finds the memory."""

    backend_path: str
    backend_type: Literal["File", "Uffd"]


class NetworkOverride(msgspec.Struct):
    """Another tap for an interface of a snapshot; Firecracker ignores unknown fields here."""

    iface_id: str
    host_dev_name: str


class VsockOverride(msgspec.Struct):
    """Another Unix socket for the vsock of a snapshot; Firecracker ignores unknown fields here."""

    uds_path: str


class SnapshotLoad(Strict):
    """PUT /snapshot/load."""

    snapshot_path: str
    mem_file_path: str | None = None
    mem_backend: MemBackend | None = None
    enable_diff_snapshots: bool = False
    track_dirty_pages: bool = False
    resume_vm: bool = False
    network_overrides: list[NetworkOverride] = msgspec.field(default_factory=list)
    vsock_override: VsockOverride | None = None
    clock_realtime: bool = False
    huge_pages: Literal["Snapshot", "None", "Transparent", "2M"] = "Snapshot"


class ConfigFile(msgspec.Struct, rename="kebab", kw_only=True):
    """The file of --config-file. Firecracker ignores unknown keys in it; sections that are not served are refused by name."""

    boot_source: BootSource
    drives: list[Drive]
    machine_config: MachineConfig | None = None
    network_interfaces: list[NetworkInterface] = msgspec.field(default_factory=list)
    vsock: Vsock | None = None
    mmds_config: MmdsConfig | None = None
    entropy: Entropy | None = None
    logger: Logger | None = None
    metrics: MetricsConfig | None = None
    balloon: BalloonConfig | None = None
    cpu_config: dict[str, Any] | str | None = None
    pmem: list[Any] = msgspec.field(default_factory=list)
    memory_hotplug: dict[str, Any] | None = None


def shown(value: Any) -> Any:
    """A configuration as the API shows it: with its defaults, without what is not set."""
    if isinstance(value, msgspec.Struct):
        return {name: shown(item) for name, item in msgspec.structs.asdict(value).items() if item is not None}
    return [shown(item) for item in value] if isinstance(value, list) else value


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>.*?)`.*", re.DOTALL)
_TYPE = re.compile(r"Expected `(?P<wanted>.*?)`, got `(?P<got>.*?)`(?P<rest>.*)", re.DOTALL)


def parse_json(data: bytes) -> Any:
    """Any JSON value; keys that stand twice in an object are refused. Raises Fault."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            raise _body_fault("duplicate field `" + next(name for name in names if names.count(name) > 1) + "`")
        return result

    def refuse(name: str) -> Any:
        raise _body_fault(f"{name} is no JSON value")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _body_fault(str(error)) from error


def parse_body(data: bytes, kind: type[T]) -> T:
    """A request's body. Raises Fault with a message as serde_json words it."""
    try:
        return msgspec.convert(parse_json(data), kind)
    except msgspec.ValidationError as error:
        raise _body_fault(_serde_text(str(error), kind)) from error


def _body_fault(text: str) -> Fault:
    return Fault(f"An error occurred when deserializing the json body of a request: {text}.")


def _serde_text(text: str, kind: type[Any]) -> str:
    if match := _UNKNOWN.fullmatch(text):
        if match["path"]:
            return f"unknown field `{match['field']}` in `{match['path']}`"
        names = [field.encode_name for field in msgspec.structs.fields(kind)]
        return f"unknown field `{match['field']}`, expected one of " + ", ".join(f"`{name}`" for name in names)
    if match := _MISSING.fullmatch(text):
        return f"missing field `{match['field']}`"
    if match := _TYPE.fullmatch(text):
        return f"invalid type: {match['got']}, expected {match['wanted']}{match['rest']}"
    return f"invalid value: {text}"
