"""The API before boot, without a socket: what is accepted, what is refused and in which words. All checked against OpenAPI."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firebuild.emulator.api import Api
from firebuild.emulator.faults import NOT_PREBOOT
from firebuild.emulator.http import Request
from firebuild.emulator.instance import Instance
from firebuild.emulator.log import Log
from firebuild.emulator.loop import Loop
from firebuild.emulator.runtime import LaunchOptions
from tests.support.openapi import Answer, Exchange, check_exchange


class Client:
    """Asks an API in this process, and checks each exchange."""

    def __init__(self) -> None:
        self.loop = Loop()
        log = Log("t1")
        self.lines: list[str] = []
        log._write = lambda level, message: self.lines.append(message)  # type: ignore[method-assign]
        self.instance = Instance(
            self.loop, log, instance_id="t1", mmds_limit_bytes=200, options=LaunchOptions(), on_exit=lambda status: None
        )
        self.api = Api(self.instance)

    def ask(self, method: str, path: str, body: Any = None, *, check_request: bool = True) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        response = self.api.answer(Request(method, path, {}, data, True))
        answer = Answer(response.status, response.body or None, response.content_type, response.headers)
        check_exchange(Exchange(method.lower(), path, data or None), answer, check_request=check_request)
        return answer

    def put(self, path: str, body: Any) -> None:
        answer = self.ask("PUT", path, body)
        assert answer.status_code == 204, answer

    def fault(self, method: str, path: str, body: Any = None, status: int = 400) -> str:
        answer = self.ask(method, path, body, check_request=False)
        assert answer.status_code == status, answer
        return str(answer.json["fault_message"])


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.chdir(tmp_path)
    for name in ("kernel", "initrd", "disk", "other"):
        Path(name).write_bytes(b"x" * 512)
    before = len(os.listdir("/proc/self/fd"))
    subject = Client()
    yield subject
    subject.instance.close()
    subject.instance.log.close()
    subject.loop.close()
    assert len(os.listdir("/proc/self/fd")) == before


DRIVE = {"drive_id": "d1", "is_root_device": False, "path_on_host": "disk", "is_read_only": True}


def test_a_fresh_instance(client: Client) -> None:
    assert client.ask("GET", "/").json == {
        "app_name": "Firecracker", "id": "t1", "state": "Not started", "vmm_version": "1.17.0-dev",
    }  # fmt: skip
    assert client.ask("GET", "/version").json == {"firecracker_version": "1.17.0-dev"}
    assert client.ask("GET", "/machine-config").json == {
        "vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False, "huge_pages": "None",
    }  # fmt: skip
    assert client.ask("GET", "/mmds").json == {}
    assert client.ask("GET", "/vm/config").json["drives"] == []


def test_the_configuration_is_shown_as_it_was_given(client: Client) -> None:
    boot = {"kernel_image_path": "kernel", "initrd_path": "initrd", "boot_args": "console=ttyS0"}
    client.put("/boot-source", boot)
    client.put("/machine-config", {"vcpu_count": 2, "mem_size_mib": 256, "smt": True})
    client.put("/drives/d1", DRIVE)
    client.put("/drives/root", {"drive_id": "root", "is_root_device": True, "path_on_host": "other"})
    client.put("/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
    client.put("/entropy", {"rate_limiter": {"bandwidth": {"size": 5, "refill_time": 100}}})
    client.put("/serial", {"serial_out_path": "console"})
    client.put("/logger", {"log_path": "log", "level": "Debug", "show_level": True})
    client.put("/metrics", {"metrics_path": "metrics"})
    shown = client.ask("GET", "/vm/config").json
    assert shown["boot-source"] == boot
    assert [drive["drive_id"] for drive in shown["drives"]] == ["root", "d1"]
    assert shown["machine-config"]["smt"] is True
    assert shown["vsock"] == {"guest_cid": 3, "uds_path": "v.sock"}
    assert shown["entropy"] == {"rate_limiter": {"bandwidth": {"size": 5, "refill_time": 100}}}
    assert (shown["logger"]["level"], shown["metrics"]["metrics_path"]) == ("Debug", "metrics")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/boot-source", {"kernel_image_path": "kernel", "extra": 1}, "unknown field `extra`"),
        ("/boot-source", {}, "missing field `kernel_image_path`"),
        ("/boot-source", {"kernel_image_path": 5}, "invalid type: integer `5`, expected a string"),
        ("/boot-source", b"{", "deserializing"),
        ("/boot-source", b"\xff", "deserializing"),
        ("/boot-source", b'{"kernel_image_path": "a", "kernel_image_path": "b"}', "duplicate field `kernel_image_path`"),
        ("/boot-source", b"[" * 100_000, "deserializing"),
        ("/boot-source", {"kernel_image_path": "nope"},
         "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"),
        ("/boot-source", {"kernel_image_path": "a\0b"}, "The kernel file cannot be opened"),
        ("/boot-source", {"kernel_image_path": "kernel", "initrd_path": "nope"}, "The initrd file cannot be opened"),
        ("/boot-source", {"kernel_image_path": "kernel", "boot_args": "x" * 2048}, "Invalid cmdline capacity"),
        ("/boot-source", {"kernel_image_path": "kernel", "boot_args": "a\nb"}, "command line is invalid"),
        ("/machine-config", {"vcpu_count": 1}, "missing field `mem_size_mib`"),
        ("/machine-config", {"vcpu_count": 0, "mem_size_mib": 1}, "number of vCPUs"),
        ("/machine-config", {"vcpu_count": 33, "mem_size_mib": 1}, "number of vCPUs"),
        ("/machine-config", {"vcpu_count": 3, "mem_size_mib": 1, "smt": True}, "number of vCPUs"),
        ("/machine-config", {"vcpu_count": 300, "mem_size_mib": 1}, "deserializing"),
        ("/machine-config", {"vcpu_count": "2", "mem_size_mib": 1}, "invalid type"),
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 0}, "memory size"),
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "T2"}, "does not serve the CPU template T2"),
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "2M"}, "does not serve hugetlbfs"),
        ("/drives/d2", DRIVE, "The id from the path does not match the id from the body!"),
        ("/drives", DRIVE, "The ID cannot be empty."),
        ("/drives/a-b", {**DRIVE, "drive_id": "a-b"}, "alphanumeric characters and underscores"),
        ("/drives/d1", {**DRIVE, "path_on_host": "nope"},
         "Error manipulating the backing file: No such file or directory (os error 2) nope"),
        ("/drives/d1", {**DRIVE, "path_on_host": "/dev/null"}, "Neither a regular file nor a block device"),
        ("/drives/d1", {"drive_id": "d1", "is_root_device": False}, "Invalid block config"),
        ("/drives/d1", {"drive_id": "d1", "is_root_device": False, "socket": "s"}, "does not serve vhost-user"),
        ("/drives/d1", {**DRIVE, "rate_limiter": {"nope": 1}}, "unknown field `nope`"),
        ("/network-interfaces/e1", {"iface_id": "e2", "host_dev_name": "t"}, "[e1] does not match the id from the body [e2]"),
        ("/network-interfaces/e1", {"iface_id": "e1", "host_dev_name": "t", "guest_mac": "zz"}, "MAC address is invalid"),
        ("/network-interfaces/e1", {"iface_id": "e1", "host_dev_name": "t", "mtu": 60}, "MTU 60 is out of range"),
        ("/network-interfaces/e1", {"iface_id": "e1", "host_dev_name": "x" * 16}, "Invalid interface name"),
        ("/vsock", {"guest_cid": 2, "uds_path": "v"}, "guest CID"),
        ("/vsock", {"guest_cid": 3, "uds_path": "nope/v"}, "No such file or directory (os error 2)"),
        ("/vsock", {"guest_cid": 3, "uds_path": "v" * 200}, "shorter than SUN_LEN"),
        ("/mmds/config", {"network_interfaces": []}, "is empty"),
        ("/mmds/config", {"network_interfaces": ["e1"]}, "does not correspond to any existing"),
        ("/mmds/config", {"network_interfaces": ["e1"], "ipv4_address": "1.2.3.4"}, "not link local"),
        ("/mmds/config", {"network_interfaces": ["e1"], "ipv4_address": "x"}, "invalid IPv4"),
        ("/mmds/other", {}, "Unrecognized PUT request path `other`."),
        ("/balloon", {"amount_mib": 129, "deflate_on_oom": True}, "Amount of pages requested is too large."),
        ("/balloon", {"amount_mib": 1, "deflate_on_oom": True, "free_page_hinting": True}, "serve the field `free_page_h"),
        ("/cpu-config", {"kvm_capabilities": ["171"]}, "does not serve custom CPU templates"),
        ("/cpu-config", {"cpuid_modifiers": 1}, "invalid type"),
        ("/pmem/p1", {"id": "p1", "path_on_host": "x"}, "does not serve pmem devices"),
        ("/pmem/p2", {"id": "p1", "path_on_host": "x"}, "does not match"),
        ("/hotplug/memory", {"total_size_mib": 128}, "does not serve memory hotplug"),
        ("/hotplug/memory", {}, "missing field `total_size_mib`"),
        ("/hotplug/nope", {}, "Invalid request method and/or path: PUT hotplug."),
        ("/logger", {"level": "loud"}, "Invalid LevelFilter"),
        ("/logger", {"log_path": "nope/log"}, "Logger error: Failed to open target file"),
        ("/metrics", {"metrics_path": "nope/m"}, "Cannot initialize the metrics system"),
        ("/actions", {"action_type": "Explode"}, "deserializing"),
        ("/actions", {"action_type": "InstanceStart"}, "Cannot start microvm without kernel configuration."),
        ("/actions", {"action_type": "FlushMetrics"}, NOT_PREBOOT),
        ("/actions", {"action_type": "SendCtrlAltDel"}, NOT_PREBOOT),
    ],
)  # fmt: skip
def test_refused_bodies(client: Client, path: str, body: Any, words: str) -> None:
    before = client.ask("GET", "/vm/config").json
    assert words in client.fault("PUT", path, body)
    assert client.ask("GET", "/vm/config").json == before


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("GET", "/nope", None, "Invalid request method and/or path: GET nope."),
        ("GET", "/vm", None, "Invalid request method and/or path: GET vm."),
        ("GET", "/", b"{}", "GET request cannot have a body."),
        ("PUT", "/boot-source", None, "Empty PUT request."),
        ("PUT", "/nope", {}, "Invalid request method and/or path: PUT nope."),
        ("PATCH", "/machine-config", None, "Empty PATCH request."),
        ("PATCH", "/machine-config", {}, "Empty PATCH request."),
        ("PATCH", "/boot-source", {}, "Invalid request method and/or path: PATCH boot-source."),
        ("PATCH", "/logger", {}, "Invalid request method and/or path: PATCH logger."),
        ("PATCH", "/vm", {"state": "Paused"}, NOT_PREBOOT),
        ("PATCH", "/vm", {"state": "Off"}, "deserializing"),
        ("PATCH", "/drives/d1", {"drive_id": "d1", "path_on_host": "x"}, NOT_PREBOOT),
        ("PATCH", "/drives/d1", {"drive_id": "d1", "is_read_only": True}, "unknown field `is_read_only`"),
        ("PATCH", "/network-interfaces/e1", {"iface_id": "e1"}, NOT_PREBOOT),
        ("PATCH", "/mmds", {"a": "b"}, "MMDS error: The MMDS data store is not initialized."),
        ("DELETE", "/drives/d1", None, NOT_PREBOOT),
        ("DELETE", "/vm", None, "Invalid request method and/or path: DELETE vm."),
        ("GET", "/balloon", None, "Balloon config error: No balloon device found."),
        ("GET", "/balloon/nope", None, "Unrecognized GET request path `nope`."),
        ("GET", "/balloon/hinting", None, "Unrecognized GET request path `/hinting/`."),
        ("GET", "/balloon/hinting/status", None, NOT_PREBOOT),
        ("GET", "/balloon/statistics", None, NOT_PREBOOT),
        ("PATCH", "/balloon", {"amount_mib": 1}, NOT_PREBOOT),
        ("PATCH", "/balloon", None, "Empty PATCH request."),
        ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 1}, NOT_PREBOOT),
        ("PATCH", "/balloon/hinting/start", {"acknowledge_on_stop": 1}, "invalid type"),
        ("PATCH", "/balloon/hinting/stop", None, NOT_PREBOOT),
        ("PATCH", "/balloon/hinting/nope", None, "Unrecognized PATCH request path `/hinting/nope`."),
        ("PATCH", "/pmem/p1", {"id": "p1"}, NOT_PREBOOT),
        ("PATCH", "/pmem/p1", {"id": "p2"}, "does not match"),
        ("DELETE", "/pmem/p1", None, NOT_PREBOOT),
        ("PATCH", "/hotplug/memory", {"requested_size_mib": 1}, NOT_PREBOOT),
        ("PUT", "/snapshot/create", {"mem_file_path": "m", "snapshot_path": "s"}, NOT_PREBOOT),
        ("PUT", "/snapshot/create", {"snapshot_path": "s"}, "missing field `mem_file_path`"),
        ("PUT", "/snapshot/load", {"snapshot_path": "s"}, "either `mem_backend` or `mem_file_path` is required"),
        (
            "PUT",
            "/snapshot/load",
            {"snapshot_path": "s", "mem_file_path": "m"},
            "Failed to open snapshot file: No such",
        ),
        ("PUT", "/snapshot/other", {"snapshot_path": "s"}, "Invalid request method and/or path"),
        ("PUT", "/snapshot", {"snapshot_path": "s"}, "Missing snapshot operation type."),
        ("GET", "/hotplug/memory", None, NOT_PREBOOT),
    ],
)
def test_refused_requests(client: Client, method: str, path: str, body: Any, words: str) -> None:
    assert words in client.fault(method, path, body)


def test_every_operation_of_the_document_has_an_answer(client: Client) -> None:
    from tests.support.openapi import load_document

    document = load_document()
    if document is None:
        pytest.skip("Firecracker's OpenAPI document is absent")
    for pattern, item in document.paths.items():
        for method in item:
            path = pattern.replace("{drive_id}", "x").replace("{iface_id}", "x").replace("{id}", "x")
            answer = client.ask(method.upper(), path, b"null" if method != "get" else None, check_request=False)
            assert answer.status_code in (200, 400) or path == "/mmds", (method, path, answer)


def test_a_second_root_is_refused_and_a_drive_can_be_replaced(client: Client) -> None:
    client.put("/drives/d1", DRIVE)
    client.put("/drives/root", {**DRIVE, "drive_id": "root", "is_root_device": True})
    assert "A root block device already exists!" in client.fault("PUT", "/drives/d1", {**DRIVE, "is_root_device": True})
    client.put("/drives/root", {**DRIVE, "drive_id": "root", "is_root_device": False})
    client.put("/drives/d1", {**DRIVE, "is_root_device": True, "path_on_host": "other"})
    drives = client.ask("GET", "/vm/config").json["drives"]
    assert [(drive["drive_id"], drive["path_on_host"]) for drive in drives] == [("d1", "other"), ("root", "disk")]


def test_devices_beyond_the_machines_slots_are_refused(client: Client) -> None:
    for number in range(24):
        client.put(f"/drives/d{number}", {**DRIVE, "drive_id": f"d{number}"})
    assert "more than 24 devices" in client.fault("PUT", "/drives/d24", {**DRIVE, "drive_id": "d24"})
    assert "more than 24 devices" in client.fault("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v"})
    client.put("/drives/d3", {**DRIVE, "drive_id": "d3"})


def test_machine_config_is_patched(client: Client) -> None:
    assert client.ask("PATCH", "/machine-config", {"vcpu_count": 4}, check_request=False).status_code == 204
    assert client.ask("GET", "/machine-config").json["vcpu_count"] == 4
    assert client.ask("GET", "/machine-config").json["mem_size_mib"] == 128
    answer = client.ask("PATCH", "/machine-config", {"cpu_template": "None"}, check_request=False)
    assert (answer.status_code, answer.headers) == (204, {"Deprecation": "true"})


def test_the_balloon_and_the_memory_fit_each_other(client: Client) -> None:
    client.put("/balloon", {"amount_mib": 128, "deflate_on_oom": False, "stats_polling_interval_s": 1})
    client.put("/cpu-config", {})
    shown = {"amount_mib": 128, "deflate_on_oom": False, "stats_polling_interval_s": 1}
    shown |= {"free_page_hinting": False, "free_page_reporting": False}
    assert client.ask("GET", "/balloon").json == shown == client.ask("GET", "/vm/config").json["balloon"]
    words = "The memory size (MiB) is smaller than the previously set balloon device target size."
    assert words in client.fault("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 64})
    client.put("/balloon", {"amount_mib": 64, "deflate_on_oom": False})
    client.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 64})


def test_limits_that_are_not_kept_are_taken_and_told(client: Client) -> None:
    bucket = {"size": 1, "refill_time": 1}
    client.put("/entropy", {"rate_limiter": {"ops": bucket}})
    client.put("/serial", {"serial_out_path": "console", "rate_limiter": bucket})
    told = [line for line in client.lines if "not kept by the emulator" in line]
    assert len(told) == 2


def test_a_vsock_can_be_moved(client: Client) -> None:
    client.put("/vsock", {"guest_cid": 3, "uds_path": "v1"})
    client.put("/vsock", {"guest_cid": 4, "uds_path": "v2"})
    assert not Path("v1").exists() and Path("v2").exists()
    assert "Address already in use" in client.fault("PUT", "/vsock", {"guest_cid": 3, "uds_path": "disk"})
    assert not Path("v2").exists() and "vsock" not in client.ask("GET", "/vm/config").json
    answer = client.ask("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v3", "vsock_id": "x"})
    assert answer.headers == {"Deprecation": "true"}


def test_metadata(client: Client) -> None:
    client.put("/mmds", {"latest": {"a": "b", "c": "d"}})
    assert client.ask("PATCH", "/mmds", {"latest": {"a": None, "e": "f"}}).status_code == 204
    assert client.ask("GET", "/mmds").json == {"latest": {"c": "d", "e": "f"}}
    assert "MMDS limit exceeded error" in client.fault("PUT", "/mmds", {"a": "x" * 200}, status=413)
    assert "MMDS limit exceeded error" in client.fault("PATCH", "/mmds", {"a": "x" * 200}, status=413)
    assert client.ask("GET", "/mmds").json == {"latest": {"c": "d", "e": "f"}}


def test_metrics_are_initialized_once(client: Client) -> None:
    client.put("/metrics", {"metrics_path": "m", "emit_id": True, "properties": {"zone": "z"}})
    assert "Reinitialization of metrics not allowed." in client.fault("PUT", "/metrics", {"metrics_path": "m"})
    client.instance.metrics.write()
    line = json.loads(Path("m").read_text())
    assert (line["id"], line["properties"], line["api_server"]["put_fails"]) == ("t1", {"zone": "z"}, 1)


def test_metadata_never_reaches_the_log(client: Client) -> None:
    client.put("/mmds", {"secret": "s3same"})
    client.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
    assert any("mem_size_mib" in line for line in client.lines)
    assert not any("s3same" in line for line in client.lines)


def test_a_fault_of_its_own_is_answered(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(client.instance, "describe", broken)
    assert "boom" in client.fault("GET", "/", status=500)
    assert any("Traceback" in line for line in client.lines)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["/boot-source", "/machine-config", "/drives/d1", "/network-interfaces/e1", "/mmds/config", "/entropy", "/actions"]
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["vcpu_count", "mem_size_mib", "drive_id", "is_root_device", "iface_id", "rate_limiter", "action_type"]
    ),
    JSON_VALUES,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(NAMES, JSON_VALUES | FIELDS, st.sampled_from(["PUT", "PATCH"]))
def test_any_json_has_an_answer(client: Client, path: str, body: Any, method: str) -> None:
    assert client.ask(method, path, body, check_request=False).status_code in (204, 400)
