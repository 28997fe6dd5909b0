"""The bodies of Firecracker's API as a table of fields, and from it every field's bad values with the words that refuse them.

The table holds what Firecracker's OpenAPI document says (a test compares the two where the document is at hand), and what it
does not say: the integers' widths, which fields take null, and the names that appear in messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

WIDTHS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "usize": 64}


@dataclass(frozen=True)
class Field:
    """One field. `kind`: a width, `string`, `bool`, `enum`, `strings` or `object`; `body`: what an object holds."""

    kind: str
    required: bool = False
    nullable: bool = False
    variants: tuple[str, ...] = ()
    body: Body | None = None
    expected: str = ""
    """What a value of another type is told to be expected, where that is not said by `kind`."""


@dataclass(frozen=True)
class Body:
    """An object: its name in messages, its fields in the order in which messages name them."""

    name: str
    fields: dict[str, Field]
    open: bool = False
    """Whether unknown fields are ignored."""


@dataclass(frozen=True)
class Request:
    """A request with a body that is well formed. `before`, `after`: whether it may be accepted before and after boot."""

    method: str
    path: str
    body: Body
    valid: dict[str, Any] = field(default_factory=dict)


STRING, BOOL = Field("string"), Field("bool")
NEEDED, MAYBE = Field("string", required=True), Field("string", nullable=True)
BUCKET = Body(
    "TokenBucketConfig",
    {
        "size": Field("u64", required=True),
        "one_time_burst": Field("u64", nullable=True),
        "refill_time": Field("u64", required=True),
    },
    open=True,
)
LIMITER = Body(
    "RateLimiterConfig",
    {name: Field("object", nullable=True, body=BUCKET) for name in ("bandwidth", "ops")},
)
LIMITS = Field("object", nullable=True, body=LIMITER)
TEMPLATES = ("C3", "T2", "T2S", "None", "T2CL", "T2A")
PAGES = ("None", "Transparent", "2M")

REQUESTS = [
    Request("PUT", "/actions", Body("ActionBody", {
        "action_type": Field("enum", required=True, variants=("FlushMetrics", "InstanceStart", "SendCtrlAltDel")),
    }), {"action_type": "FlushMetrics"}),
    Request("PUT", "/balloon", Body("BalloonDeviceConfig", {
        "amount_mib": Field("u32", required=True), "deflate_on_oom": Field("bool", required=True),
        "stats_polling_interval_s": Field("u16"), "free_page_hinting": BOOL, "free_page_reporting": BOOL,
    }), {"amount_mib": 1, "deflate_on_oom": True}),
    Request("PATCH", "/balloon", Body("BalloonUpdateConfig", {"amount_mib": Field("u32", required=True)}), {"amount_mib": 1}),
    Request("PATCH", "/balloon/statistics", Body("BalloonUpdateStatsConfig", {
        "stats_polling_interval_s": Field("u16", required=True),
    }), {"stats_polling_interval_s": 1}),
    Request("PATCH", "/balloon/hinting/start", Body("StartHintingCmd", {"acknowledge_on_stop": BOOL}, open=True), {}),
    Request("PUT", "/boot-source", Body("BootSourceConfig", {
        "kernel_image_path": NEEDED, "initrd_path": MAYBE, "boot_args": MAYBE,
    }), {"kernel_image_path": "kernel"}),
    Request("PUT", "/drives/d1", Body("BlockDeviceConfig", {
        "drive_id": NEEDED, "partuuid": MAYBE, "is_root_device": Field("bool", required=True),
        "cache_type": Field("enum", variants=("Unsafe", "Writeback")), "is_read_only": Field("bool", nullable=True),
        "path_on_host": MAYBE, "rate_limiter": LIMITS,
        "io_engine": Field("enum", nullable=True, variants=("Async", "Sync")), "socket": MAYBE,
    }), {"drive_id": "d1", "is_root_device": False, "path_on_host": "disk"}),
    Request("PATCH", "/drives/d1", Body("BlockDeviceUpdateConfig", {
        "drive_id": NEEDED, "path_on_host": MAYBE, "rate_limiter": LIMITS,
    }), {"drive_id": "d1"}),
    Request("PUT", "/entropy", Body("EntropyDeviceConfig", {"rate_limiter": LIMITS}), {}),
    Request("PUT", "/hotplug/memory", Body("MemoryHotplugConfig", {
        "total_size_mib": Field("u32", required=True), "block_size_mib": Field("u32"), "slot_size_mib": Field("u32"),
    }), {"total_size_mib": 128}),
    Request("PATCH", "/hotplug/memory", Body("MemoryHotplugSizeUpdate", {
        "requested_size_mib": Field("u32", required=True),
    }), {"requested_size_mib": 128}),
    Request("PUT", "/logger", Body("LoggerConfig", {
        "log_path": Field("string", nullable=True, expected="path string"), "level": MAYBE,
        "show_level": Field("bool", nullable=True), "show_log_origin": Field("bool", nullable=True), "module": MAYBE,
    }), {}),
    Request("PUT", "/machine-config", Body("MachineConfig", {
        "vcpu_count": Field("u8", required=True), "mem_size_mib": Field("usize", required=True), "smt": BOOL,
        "cpu_template": Field("enum", nullable=True, variants=TEMPLATES), "track_dirty_pages": BOOL,
        "huge_pages": Field("enum", variants=PAGES),
    }), {"vcpu_count": 1, "mem_size_mib": 128}),
    Request("PATCH", "/machine-config", Body("MachineConfigUpdate", {
        "vcpu_count": Field("u8", nullable=True), "mem_size_mib": Field("usize", nullable=True), "smt": Field("bool", nullable=True),
        "cpu_template": Field("enum", nullable=True, variants=TEMPLATES), "track_dirty_pages": Field("bool", nullable=True),
        "huge_pages": Field("enum", nullable=True, variants=PAGES),
    }), {"vcpu_count": 1}),
    Request("PUT", "/metrics", Body("MetricsConfig", {
        "metrics_path": Field("string", required=True, expected="path string"), "emit_id": BOOL,
        "properties": Field("object", nullable=True, expected="a map"),
    }, open=True), {"metrics_path": "metrics"}),
    Request("PUT", "/mmds/config", Body("MmdsConfig", {
        "version": Field("enum", variants=("V1", "V2")), "network_interfaces": Field("strings", required=True),
        "ipv4_address": Field("string", nullable=True, expected="IPv4 address"), "imds_compat": BOOL,
    }), {"network_interfaces": []}),
    Request("PUT", "/network-interfaces/e1", Body("NetworkInterfaceConfig", {
        "iface_id": NEEDED, "host_dev_name": NEEDED, "guest_mac": MAYBE, "mtu": Field("u16", nullable=True),
        "rx_rate_limiter": LIMITS, "tx_rate_limiter": LIMITS,
    }), {"iface_id": "e1", "host_dev_name": "none0"}),
    Request("PATCH", "/network-interfaces/e1", Body("NetworkInterfaceUpdateConfig", {
        "iface_id": NEEDED, "rx_rate_limiter": LIMITS, "tx_rate_limiter": LIMITS,
    }), {"iface_id": "e1"}),
    Request("PUT", "/pmem/p1", Body("PmemConfig", {
        "id": NEEDED, "path_on_host": NEEDED, "root_device": BOOL, "read_only": BOOL, "rate_limiter": LIMITS,
    }), {"id": "p1", "path_on_host": "disk"}),
    Request("PATCH", "/pmem/p1", Body("PmemDeviceUpdateConfig", {"id": NEEDED, "rate_limiter": LIMITS}), {"id": "p1"}),
    Request("PUT", "/serial", Body("SerialConfig", {
        "serial_out_path": Field("string", nullable=True, expected="path string"),
        "rate_limiter": Field("object", nullable=True, body=BUCKET),
    }), {}),
    Request("PATCH", "/vm", Body("Vm", {"state": Field("enum", required=True, variants=("Paused", "Resumed"))}), {"state": "Paused"}),
    Request("PUT", "/vsock", Body("VsockDeviceConfig", {
        "vsock_id": MAYBE, "guest_cid": Field("u32", required=True), "uds_path": NEEDED,
    }), {"guest_cid": 3, "uds_path": "v.sock"}),
]  # fmt: skip

# Values of every JSON type, and what they are called.
SAMPLES: list[tuple[Any, str]] = [
    ("x", 'string "x"'), (7, "integer `7`"), (1.5, "floating point `1.5`"), (True, "boolean `true`"),
    ([], "sequence"), ({}, "map"), (None, "null"),
]  # fmt: skip
_TAKEN = {"string": "string", "bool": "boolean", "strings": "sequence", "object": "map", "enum": "string"}
_EXPECTED = {"string": "a string", "bool": "a boolean", "strings": "a sequence"}


@dataclass(frozen=True)
class BadValue:
    """A body that is refused. `words`: the reason, without the place in the text that follows it."""

    about: str
    body: dict[str, Any]
    words: str


def list_bad_values(request: Request) -> Iterator[BadValue]:
    """Each field with values of wrong types and out of range, missing, and beside one that nobody knows."""
    yield from _in_body(request.body, request.valid, lambda body: body, "")


def _in_body(body: Body, valid: dict[str, Any], wrap: Any, path: str) -> Iterator[BadValue]:
    if not body.open:
        names = [f"`{name}`" for name in body.fields]
        words = f"unknown field `nobody`, expected {one_of(names)}"
        yield BadValue(f"{path}nobody", wrap({**valid, "nobody": 1}), words)
    for name, one in body.fields.items():
        about = path + name
        if one.required:
            yield BadValue(
                f"{about} missing", wrap({k: v for k, v in valid.items() if k != name}), f"missing field `{name}`"
            )
        for value, words in _bad_values(one):
            yield BadValue(f"{about} {json.dumps(value)}", wrap({**valid, name: value}), words)
        if one.body is not None:
            inner = {key: 1000 for key, item in one.body.fields.items() if item.required}
            yield from _in_body(one.body, inner, lambda body, n=name: wrap({**valid, n: body}), f"{about}.")


def _bad_values(one: Field) -> Iterator[tuple[Any, str]]:
    if one.kind == "enum":
        yield "nope", f"unknown variant `nope`, expected {one_of([f'`{name}`' for name in one.variants])}"
        return
    taken = "integer" if one.kind in WIDTHS else _TAKEN[one.kind]
    expected = one.expected or (f"struct {one.body.name}" if one.body else _EXPECTED.get(one.kind, one.kind))
    for value, called in SAMPLES:
        if called.startswith(taken) or (value is None and one.nullable) or (one.body and value == []):
            continue
        yield value, f"invalid type: {called}, expected {expected}"
    if one.kind in WIDTHS:
        for number in {-1, 2 ** WIDTHS[one.kind]} - {2**64}:
            yield number, f"invalid value: integer `{number}`, expected {expected}"


def one_of(names: list[str]) -> str:
    """Names as messages list them."""
    if len(names) <= 2:
        return " or ".join(names)
    return "one of " + ", ".join(names)
