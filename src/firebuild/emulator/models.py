"""The bodies of the API's requests as types, and their parsing with serde's words for what is wrong.

Field names and bounds: Firecracker's OpenAPI document. Unknown fields are refused, as Firecracker refuses them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from firebuild.emulator.faults import Fault
from firebuild.emulator.serde import explain


def _extra(name: str) -> dict[str, str]:
    return {"expected": name}


U8 = Annotated[int, Meta(ge=0, le=255, extra=_extra("u8"))]
U16 = Annotated[int, Meta(ge=0, le=65535, extra=_extra("u16"))]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1, extra=_extra("u32"))]
# msgspec's bounds are signed; no size or time that means anything is larger.
U64 = Annotated[int, Meta(ge=0, le=2**63 - 1, extra=_extra("u64"))]
Usize = Annotated[int, Meta(ge=0, le=2**63 - 1, extra=_extra("usize"))]
PathText = Annotated[str, Meta(extra=_extra("path string"))]
IPv4Text = Annotated[str, Meta(extra=_extra("IPv4 address"))]
# msgspec sorts the values of a Literal; messages name them in Firecracker's order.
_TEMPLATES = Literal["C3", "T2", "T2S", "None", "T2CL", "T2A"]
_PAGES = Literal["None", "Transparent", "2M"]
CpuTemplate = Annotated[_TEMPLATES, Meta(extra={"variants": get_args(_TEMPLATES)})]
HugePages = Annotated[_PAGES, Meta(extra={"variants": get_args(_PAGES)})]
T = TypeVar("T")


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Refuses unknown fields."""

    rust_name: ClassVar[str] = ""


class TokenBucket(msgspec.Struct):
    """`size` tokens, refilled in `refill_time` ms; `one_time_burst` more at the start. Unknown fields are ignored."""

    rust_name: ClassVar[str] = "TokenBucketConfig"

    size: U64
    refill_time: U64
    one_time_burst: U64 | None = None

    def per_second(self) -> int:
        """The sustained rate, 0 for no limit (a bucket without size or time limits nothing)."""
        return max(1, self.size * 1000 // self.refill_time) if self.size and self.refill_time else 0


class RateLimiter(Strict):
    """Limits of bytes and of operations."""

    rust_name = "RateLimiterConfig"

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class MachineConfig(Strict):
    """PUT /machine-config."""

    rust_name = "MachineConfig"

    vcpu_count: U8
    mem_size_mib: Usize
    smt: bool = False
    cpu_template: CpuTemplate | None = None
    track_dirty_pages: bool = False
    huge_pages: HugePages = "None"


class MachineConfigUpdate(Strict):
    """PATCH /machine-config."""

    rust_name = "MachineConfigUpdate"

    vcpu_count: U8 | None = None
    mem_size_mib: Usize | None = None
    smt: bool | None = None
    cpu_template: CpuTemplate | None = None
    track_dirty_pages: bool | None = None
    huge_pages: HugePages | None = None


class BootSource(Strict):
    """PUT /boot-source."""

    rust_name = "BootSourceConfig"

    kernel_image_path: str
    initrd_path: str | None = None
    boot_args: str | None = None


class Drive(Strict, kw_only=True):
    """PUT /drives/{drive_id}."""

    rust_name = "BlockDeviceConfig"

    drive_id: str
    partuuid: str | None = None
    is_root_device: bool
    cache_type: Literal["Unsafe", "Writeback"] = "Unsafe"
    is_read_only: bool | None = None
    path_on_host: str | None = None
    rate_limiter: RateLimiter | None = None
    io_engine: Literal["Async", "Sync"] | None = None
    socket: str | None = None


class DriveUpdate(Strict):
    """PATCH /drives/{drive_id}."""

    rust_name = "BlockDeviceUpdateConfig"

    drive_id: str
    path_on_host: str | None = None
    rate_limiter: RateLimiter | None = None


class NetworkInterface(Strict):
    """PUT /network-interfaces/{iface_id}."""

    rust_name = "NetworkInterfaceConfig"

    iface_id: str
    host_dev_name: str
    guest_mac: str | None = None
    mtu: U16 | None = None
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class NetworkInterfaceUpdate(Strict):
    """PATCH /network-interfaces/{iface_id}."""

    rust_name = "NetworkInterfaceUpdateConfig"

    iface_id: str
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class Vsock(Strict, kw_only=True):
    """PUT /vsock."""

    rust_name = "VsockDeviceConfig"

    vsock_id: str | None = None
    guest_cid: U32
    uds_path: str


class BalloonConfig(Strict):
    """PUT /balloon."""

    rust_name = "BalloonDeviceConfig"

    amount_mib: U32
    deflate_on_oom: bool
    stats_polling_interval_s: U16 = 0
    free_page_hinting: bool = False
    free_page_reporting: bool = False


class BalloonUpdate(Strict):
    """PATCH /balloon."""

    rust_name = "BalloonUpdateConfig"

    amount_mib: U32


class BalloonStatsUpdate(Strict):
    """PATCH /balloon/statistics."""

    rust_name = "BalloonUpdateStatsConfig"

    stats_polling_interval_s: U16


class BalloonHinting(msgspec.Struct):
    """PATCH /balloon/hinting/start; unknown fields are ignored."""

    rust_name: ClassVar[str] = "StartHintingCmd"

    acknowledge_on_stop: bool = True


class CpuConfig(Strict):
    """PUT /cpu-config, x86_64: what a custom CPU template changes."""

    rust_name = "CustomCpuTemplate"

    kvm_capabilities: list[str] = msgspec.field(default_factory=list)
    cpuid_modifiers: list[dict[str, Any]] = msgspec.field(default_factory=list)
    msr_modifiers: list[dict[str, Any]] = msgspec.field(default_factory=list)


class Pmem(Strict):
    """PUT /pmem/{id}."""

    rust_name = "PmemConfig"

    id: str
    path_on_host: str
    root_device: bool = False
    read_only: bool = False
    rate_limiter: RateLimiter | None = None


class PmemUpdate(Strict):
    """PATCH /pmem/{id}."""

    rust_name = "PmemDeviceUpdateConfig"

    id: str
    rate_limiter: RateLimiter | None = None


class MemoryHotplug(Strict):
    """PUT /hotplug/memory."""

    rust_name = "MemoryHotplugConfig"

    total_size_mib: U32
    block_size_mib: U32 = 2
    slot_size_mib: U32 = 128


class MemoryHotplugUpdate(Strict):
    """PATCH /hotplug/memory."""

    rust_name = "MemoryHotplugSizeUpdate"

    requested_size_mib: U32


class MmdsConfig(Strict, kw_only=True):
    """PUT /mmds/config."""

    rust_name = "MmdsConfig"

    version: Literal["V1", "V2"] = "V1"
    network_interfaces: list[str]
    ipv4_address: IPv4Text | None = None
    imds_compat: bool = False


class Entropy(Strict):
    """PUT /entropy."""

    rust_name = "EntropyDeviceConfig"

    rate_limiter: RateLimiter | None = None


class Serial(Strict):
    """PUT /serial."""

    rust_name = "SerialConfig"

    serial_out_path: PathText | None = None
    rate_limiter: TokenBucket | None = None


class Logger(Strict):
    """PUT /logger."""

    rust_name = "LoggerConfig"

    log_path: PathText | None = None
    level: str | None = None
    show_level: bool | None = None
    show_log_origin: bool | None = None
    module: str | None = None


class MetricsConfig(msgspec.Struct, kw_only=True):
    """PUT /metrics; unknown fields are ignored."""

    rust_name: ClassVar[str] = "MetricsConfig"

    metrics_path: PathText
    emit_id: bool = False
    properties: dict[str, str] | None = None


class Action(Strict):
    """PUT /actions."""

    rust_name = "ActionBody"

    action_type: Literal["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]


class VmState(Strict):
    """PATCH /vm."""

    rust_name = "Vm"

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


def parse_json(data: bytes, *, strict: bool = True) -> Any:
    """Any JSON value; where `strict`, keys that stand twice in an object are refused, else the last counts. Raises Fault."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if strict and len(result) != len(pairs):
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
    value = parse_json(data)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _body_fault(explain(value, kind) or str(error)) from error


def _body_fault(text: str) -> Fault:
    return Fault(f"An error occurred when deserializing the json body of a request: {text}.")
