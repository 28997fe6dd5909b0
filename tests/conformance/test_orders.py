"""Orders of calls: what is taken when, what is refused when and in which words, before boot, after it, and while paused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import ensure_booted
from tests.conformance.vmm import Vmm, start_vmm

PREBOOT = "The requested operation is not supported before starting the microVM."
POSTBOOT = "The requested operation is not supported after starting the microVM."
NO_DEVICE = "Failed perform action on device: Device not found"
NO_PCI = "PCI is not enabled"
NO_METADATA = "MMDS error: The MMDS data store is not initialized."
BUCKET = {"size": 1000, "refill_time": 100}
DRIVE = {"drive_id": "d1", "is_root_device": False, "path_on_host": "disk"}

# (method, path, body) and the fault; None: it is taken.
Step = tuple[str, str, Any, str | None]


def play(vmm: Vmm, steps: list[Step]) -> None:
    """Ask one after the other; all that is not answered as expected is told together."""
    wrong = []
    for method, path, body, words in steps:
        answer = vmm.ask(method, path, body)
        said = answer.json["fault_message"] if answer.status_code >= 300 else None
        if said != words or (words is not None and answer.status_code != 400):
            wrong.append(f"{method} {path} {str(body)[:150]}: {answer.status_code} {said}; expected: {words}")
    assert not wrong, "\n".join(wrong)


def test_a_fresh_one(vmm: Vmm) -> None:
    described = vmm.api.get("/")
    assert (described["id"], described["state"], described["app_name"]) == ("conformance", "Not started", "Firecracker")
    assert vmm.api.get("/version")["firecracker_version"] == described["vmm_version"]
    assert vmm.api.get("/mmds") == {}
    assert vmm.api.get("/machine-config") == {
        "vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False, "huge_pages": "None",
    }  # fmt: skip
    assert vmm.config()["drives"] == [] == vmm.config()["network-interfaces"]


def test_what_comes_too_early(vmm: Vmm) -> None:
    play(vmm, [
        ("PUT", "/actions", {"action_type": "InstanceStart"},
         "Start microvm error: Cannot start microvm without kernel configuration."),
        ("PUT", "/actions", {"action_type": "FlushMetrics"}, PREBOOT),
        ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}, PREBOOT),
        ("PATCH", "/vm", {"state": "Paused"}, PREBOOT),
        ("PATCH", "/vm", {"state": "Resumed"}, PREBOOT),
        ("PATCH", "/drives/d1", {"drive_id": "d1"}, PREBOOT),
        ("PATCH", "/network-interfaces/e1", {"iface_id": "e1"}, PREBOOT),
        ("PATCH", "/pmem/p1", {"id": "p1"}, PREBOOT),
        ("GET", "/balloon", None, "Balloon config error: No balloon device found."),
        ("GET", "/balloon/statistics", None, PREBOOT),
        ("GET", "/balloon/hinting/status", None, PREBOOT),
        ("PATCH", "/balloon", {"amount_mib": 1}, PREBOOT),
        ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 1}, PREBOOT),
        ("PATCH", "/balloon/hinting/start", None, PREBOOT),
        ("PATCH", "/balloon/hinting/stop", None, PREBOOT),
        ("GET", "/hotplug/memory", None, PREBOOT),
        ("PATCH", "/hotplug/memory", {"requested_size_mib": 1}, PREBOOT),
        ("DELETE", "/drives/d1", None, PREBOOT),
        ("DELETE", "/network-interfaces/e1", None, PREBOOT),
        ("DELETE", "/pmem/p1", None, PREBOOT),
        ("PATCH", "/mmds", {"a": "b"}, NO_METADATA),
    ])  # fmt: skip


def test_what_the_configuration_refuses(vmm: Vmm) -> None:
    vcpus = (
        "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if "
        "SMT is enabled."
    )
    memory = "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."
    missing = "No such file or directory (os error 2)"
    drive = "Drive config error: Unable to create the virtio block device: "
    net = "Network config error: "
    mmds = "MMMDS config error: "
    vsock = "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: "
    machine = {"vcpu_count": 1, "mem_size_mib": 128}
    ids = "The list of network interface IDs "
    before = vmm.config()
    play(vmm, [
        ("PUT", "/machine-config", {**machine, "vcpu_count": 0}, vcpus),
        ("PUT", "/machine-config", {**machine, "vcpu_count": 33}, vcpus),
        ("PUT", "/machine-config", {**machine, "vcpu_count": 3, "smt": True}, vcpus),
        ("PUT", "/machine-config", {**machine, "mem_size_mib": 0}, memory),
        ("PUT", "/machine-config", {**machine, "mem_size_mib": 127, "huge_pages": "Transparent"}, memory),
        ("PATCH", "/machine-config", {}, "Empty PATCH request."),
        ("PATCH", "/machine-config", {"vcpu_count": 0}, vcpus),
        ("PUT", "/balloon", {"amount_mib": 129, "deflate_on_oom": False},
         "Balloon config error: Amount of pages requested is too large."),
        ("PUT", "/boot-source", {"kernel_image_path": "nope"},
         f"Boot source error: The kernel file cannot be opened: {missing}"),
        ("PUT", "/boot-source", {"kernel_image_path": "kernel", "initrd_path": "nope"},
         f"Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. {missing}"),
        ("PUT", "/boot-source", {"kernel_image_path": "x" * 5000},
         "Boot source error: The kernel file cannot be opened: File name too long (os error 36)"),
        ("PUT", "/boot-source", {"kernel_image_path": "a\0b"},
         "Boot source error: The kernel file cannot be opened: file name contained an unexpected NUL byte"),
        ("PUT", "/boot-source", {"kernel_image_path": "kernel", "boot_args": "x" * 2048},
         "Boot source error: The kernel command line is invalid: Invalid cmdline capacity provided."),
        ("PUT", "/drives/d1", {**DRIVE, "path_on_host": "nope"},
         f"{drive}Virtio backend error: Error manipulating the backing file: {missing} nope"),
        ("PUT", "/drives/d1", {"drive_id": "d1", "is_root_device": False}, f"{drive}Invalid block config."),
        ("PUT", "/drives/d1", {**DRIVE, "socket": "s"}, f"{drive}Invalid block config."),
        ("PUT", "/drives/d2", DRIVE, "The id from the path does not match the id from the body!"),
        ("PUT", "/drives", DRIVE, "The ID cannot be empty."),
        ("PUT", "/drives/a-b", DRIVE, "API Resource IDs can only contain alphanumeric characters and underscores."),
        ("PUT", "/network-interfaces/e2", {"iface_id": "e1", "host_dev_name": "x"},
         "The id from the path [e2] does not match the id from the body [e1]!"),
        ("PUT", "/network-interfaces/e1", {"iface_id": "e1", "host_dev_name": "x", "mtu": 67},
         f"{net}Could not create the network device: MTU 67 is out of range [68, 65535]"),
        ("PUT", "/network-interfaces/e1", {"iface_id": "e1", "host_dev_name": "x" * 16},
         f"{net}Could not create the network device: Open tap device failed: Invalid interface name"),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v" * 200}, f"{vsock}path must be shorter than SUN_LEN"),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "a\0b"}, f"{vsock}paths must not contain interior null bytes"),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "nope/v"},
         f"{vsock}{missing}"),
        ("PUT", "/mmds/config", {"network_interfaces": []}, f"{mmds}{ids}that allow forwarding MMDS requests is empty."),
        ("PUT", "/mmds/config", {"network_interfaces": ["e9"]},
         f"{mmds}{ids}provided contains at least one ID that does not correspond to any existing network interface."),
        ("PUT", "/mmds/config", {"network_interfaces": ["e9"], "ipv4_address": "1.2.3.4"},
         f"{mmds}The MMDS IPv4 address is not link local."),
        ("PUT", "/mmds/nope", {}, "Unrecognized PUT request path `nope`."),
        ("PUT", "/metrics", {"metrics_path": "nope/m"},
         f"Metrics error: Cannot initialize the metrics system due to bad user input: {missing}"),
        ("PUT", "/logger", {"log_path": "nope/l"}, f"Logger error: Failed to open target file: {missing}"),
        ("GET", "/balloon/nope", None, "Unrecognized GET request path `nope`."),
        ("GET", "/balloon/hinting", None, "Unrecognized GET request path `/hinting/`."),
        ("PATCH", "/balloon/hinting/nope", None, "Unrecognized PATCH request path `/hinting/nope`."),
        ("GET", "/nope", None, "Invalid request method and/or path: GET nope."),
        ("GET", "/vm", None, "Invalid request method and/or path: GET vm."),
        ("GET", "/", {}, "GET request cannot have a body."),
        ("DELETE", "/nope", None, "Invalid request method and/or path: DELETE nope."),
        ("DELETE", "/drives/d1", {}, "Empty Delete request."),
    ])  # fmt: skip
    assert vmm.config() == before


def test_drives_are_replaced_and_the_root_comes_first(vmm: Vmm) -> None:
    root = {"drive_id": "root", "is_root_device": True, "path_on_host": "other", "is_read_only": True}
    play(vmm, [
        ("PUT", "/drives/d1", DRIVE, None),
        ("PUT", "/drives/root", root, None),
        ("PUT", "/drives/d1", {**DRIVE, "is_root_device": True}, "Drive config error: A root block device already exists!"),
        ("PUT", "/drives/root", {**root, "is_root_device": False}, None),
        ("PUT", "/drives/d1", {**DRIVE, "is_root_device": True, "rate_limiter": {"bandwidth": BUCKET}}, None),
    ])  # fmt: skip
    shown = vmm.config()["drives"]
    assert [drive["drive_id"] for drive in shown] == ["d1", "root"]
    assert shown[0]["rate_limiter"] == {"bandwidth": BUCKET}


def test_the_balloon_before_boot(vmm: Vmm) -> None:
    balloon = {"amount_mib": 128, "deflate_on_oom": False, "stats_polling_interval_s": 1}
    play(vmm, [
        ("PUT", "/balloon", balloon, None),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 127},
         "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."),
    ])  # fmt: skip
    shown = {**balloon, "free_page_hinting": False, "free_page_reporting": False}
    assert vmm.api.get("/balloon") == shown == vmm.config()["balloon"]


def test_metadata(vmm: Vmm) -> None:
    vmm.api.put("/mmds", {"a": {"b": "c", "d": "e"}})
    vmm.api.patch("/mmds", {"a": {"b": None, "f": "g"}})
    assert vmm.api.get("/mmds") == {"a": {"d": "e", "f": "g"}}
    # The last of two equal keys counts: this body has no fields that anybody knows.
    assert vmm.ask("PUT", "/mmds", b'{"a": "1", "a": "2"}').status_code == 204
    assert vmm.api.get("/mmds") == {"a": "2"}


def test_metadata_that_are_too_much() -> None:
    with start_vmm("--mmds-size-limit", "100") as vmm:
        vmm.api.put("/mmds", {"a": "b"})
        for method in ("PUT", "PATCH"):
            said = vmm.fault(method, "/mmds", {"c": "x" * 100}, status=413)
            assert said == "MMDS limit exceeded error: The MMDS patch request doesn't fit."
        assert vmm.api.get("/mmds") == {"a": "b"}


def test_deprecated_fields_are_told(vmm: Vmm) -> None:
    answers = [
        vmm.ask("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "None"}),
        vmm.ask("PATCH", "/machine-config", {"cpu_template": "None"}),
        vmm.ask("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v", "vsock_id": "x"}),
    ]
    assert [(answer.status_code, answer.headers.get("deprecation")) for answer in answers] == [(204, "true")] * 3


def test_a_kernel_that_is_none(vmm: Vmm) -> None:
    vmm.api.put("/boot-source", {"kernel_image_path": "kernel"})
    said = vmm.fault("PUT", "/actions", {"action_type": "InstanceStart"})
    assert said.startswith("Start microvm error: System configuration error: Cannot load kernel due to invalid memory")
    assert vmm.api.get("/")["state"] == "Not started"


def test_metrics_are_configured_once(vmm: Vmm) -> None:
    vmm.api.put("/metrics", {"metrics_path": "metrics"})
    words = "Metrics error: Cannot initialize the metrics system due to bad user input: "
    assert (
        vmm.fault("PUT", "/metrics", {"metrics_path": "metrics"}) == f"{words}Reinitialization of metrics not allowed."
    )


def test_after_boot(vmm: Vmm) -> None:
    vmm.api.put("/drives/d1", DRIVE)
    vmm.api.put("/metrics", {"metrics_path": "metrics"})
    ensure_booted(vmm)
    assert vmm.api.get("/")["state"] == "Running"
    play(vmm, [
        ("PUT", "/actions", {"action_type": "InstanceStart"}, POSTBOOT),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}, POSTBOOT),
        ("PATCH", "/machine-config", {"vcpu_count": 1}, POSTBOOT),
        ("PUT", "/boot-source", {"kernel_image_path": "kernel"}, POSTBOOT),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v"}, POSTBOOT),
        ("PUT", "/entropy", {}, POSTBOOT),
        ("PUT", "/serial", {}, POSTBOOT),
        ("PUT", "/logger", {}, POSTBOOT),
        ("PUT", "/metrics", {"metrics_path": "m"}, POSTBOOT),
        ("PUT", "/balloon", {"amount_mib": 1, "deflate_on_oom": True}, POSTBOOT),
        ("PUT", "/cpu-config", {}, POSTBOOT),
        ("PUT", "/mmds/config", {"network_interfaces": ["e1"]}, POSTBOOT),
        ("PUT", "/hotplug/memory", {"total_size_mib": 128}, POSTBOOT),
        ("PUT", "/drives/d2", {**DRIVE, "drive_id": "d2"}, NO_PCI),
        ("PUT", "/network-interfaces/e1", {"iface_id": "e1", "host_dev_name": "x"}, NO_PCI),
        ("PUT", "/pmem/p1", {"id": "p1", "path_on_host": "disk"}, NO_PCI),
        ("DELETE", "/drives/d1", None, NO_PCI),
        ("DELETE", "/network-interfaces/e1", None, NO_PCI),
        ("DELETE", "/pmem/p1", None, NO_PCI),
        ("GET", "/mmds", None, NO_METADATA),
        ("PUT", "/mmds", {}, NO_METADATA),
        ("PATCH", "/mmds", {}, NO_METADATA),
        ("GET", "/balloon", None, f"Internal VMM error: {NO_DEVICE}"),
        ("GET", "/balloon/statistics", None, f"Internal VMM error: {NO_DEVICE}"),
        ("PATCH", "/balloon", {"amount_mib": 1}, f"Balloon update error: {NO_DEVICE}"),
        ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 1}, f"Balloon update error: {NO_DEVICE}"),
        ("GET", "/balloon/hinting/status", None, f"Balloon update error: {NO_DEVICE}"),
        ("PATCH", "/balloon/hinting/start", None, f"Balloon update error: {NO_DEVICE}"),
        ("PATCH", "/balloon/hinting/stop", None, f"Balloon update error: {NO_DEVICE}"),
        ("GET", "/hotplug/memory", None, f"Internal VMM error: {NO_DEVICE}"),
        ("PATCH", "/hotplug/memory", {"requested_size_mib": 1}, f"Memory hotplug update error: {NO_DEVICE}"),
        ("PATCH", "/pmem/p1", {"id": "p1", "rate_limiter": {"ops": BUCKET}},
         f"Pmem config error: Unable to patch the pmem device: {NO_DEVICE} Please verify the request arguments."),
        ("PATCH", "/pmem/p1", {"id": "p1"}, None),
        ("PATCH", "/network-interfaces/e1", {"iface_id": "e1"},
         f"Network config error: Unable to update the net device: {NO_DEVICE}"),
        ("PATCH", "/drives/d9", {"drive_id": "d9", "path_on_host": "disk"},
         f"Drive config error: Unable to patch the block device: {NO_DEVICE} Please verify the request arguments."),
        ("PATCH", "/drives/d1", {"drive_id": "d1"},
         "Drive config error: Unable to patch the block device: Block: Running method expected different backend. "
         "Please verify the request arguments."),
        ("PATCH", "/drives/d1", {"drive_id": "d1", "path_on_host": "nope"},
         "Drive config error: Unable to patch the block device: Block: Virtio backend error: Error manipulating the "
         "backing file: No such file or directory (os error 2) nope Please verify the request arguments."),
        ("PATCH", "/drives/d1", {"drive_id": "d1", "path_on_host": "other", "rate_limiter": {"ops": BUCKET}}, None),
        ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}, None),
        ("PUT", "/actions", {"action_type": "FlushMetrics"}, None),
    ])  # fmt: skip
    assert b"\n" in (vmm.folder / "metrics").read_bytes()
    shown = vmm.config()["drives"][0]
    assert (shown["path_on_host"], shown["rate_limiter"]["ops"]) == ("other", BUCKET)


def test_pausing(booted: Vmm) -> None:
    """Twice is once."""
    for state in ("Paused", "Resumed"):
        for _ in range(2):
            booted.api.patch("/vm", {"state": state})
            assert booted.api.get("/")["state"] == {"Paused": "Paused", "Resumed": "Running"}[state]


def test_the_balloon_of_a_guest_without_a_driver(vmm: Vmm) -> None:
    vmm.api.put("/balloon", {"amount_mib": 1, "deflate_on_oom": False, "stats_polling_interval_s": 1})
    ensure_booted(vmm)
    words = "Balloon update error: Balloon: "
    play(vmm, [
        ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 1}, None),
        ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0},
         f"{words}Statistics cannot be enabled/disabled after activation."),
        ("GET", "/balloon/hinting/status", None, f"{words}Attempting to use hinting when not enabled"),
    ])  # fmt: skip
    assert vmm.api.get("/balloon")["amount_mib"] == 1
    assert vmm.api.get("/balloon/statistics") == {
        "target_pages": 256, "actual_pages": 0, "target_mib": 1, "actual_mib": 0,
    }  # fmt: skip


def test_statistics_that_were_never_on(vmm: Vmm) -> None:
    vmm.api.put("/balloon", {"amount_mib": 0, "deflate_on_oom": False})
    ensure_booted(vmm)
    words = "Received stats query when stats are disabled."
    assert vmm.fault("GET", "/balloon/statistics") == f"Internal VMM error: Balloon: {words}"


def test_the_sockets_file_goes_with_the_machine(vmm: Vmm) -> None:
    """The vsock's socket exists from its configuration on."""
    vmm.api.put("/vsock", {"guest_cid": 3, "uds_path": "v1"})
    assert (vmm.folder / "v1").is_socket()
    vmm.api.put("/vsock", {"guest_cid": 4, "uds_path": "v2"})
    assert (vmm.folder / "v2").is_socket()
    assert vmm.config()["vsock"]["uds_path"] == "v2"


def test_the_log_tells_of_requests(vmm: Vmm) -> None:
    vmm.api.put("/logger", {"log_path": "log", "level": "Debug"})
    vmm.ask("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64})
    vmm.ask("PUT", "/mmds", {"secret": "x"})
    text = Path(vmm.folder / "log").read_text()
    assert 'The API server received a Put request on "/machine-config" with body "{' in text
    assert 'The API server received a Put request on "/mmds".' in text and "secret" not in text


@pytest.mark.parametrize("arguments", [("--nope",), ("--id",), ("--id", "a/b"), ("--level", "Nope")])
def test_arguments_that_are_refused(arguments: tuple[str, ...]) -> None:
    import subprocess
    import sys

    from tests.conformance.vmm import TIMEOUT_S, find_binary

    binary = find_binary()
    program = [str(binary)] if binary else [sys.executable, "-m", "firebuild.emulator.main"]
    ended = subprocess.run(
        [*program, "--api-sock", "/nonexistent/api.sock", *arguments],
        capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ended.returncode != 0 and ended.stderr + ended.stdout
