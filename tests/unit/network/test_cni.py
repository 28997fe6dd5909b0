"""What plugins are told, and what their results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firebuild.errors import MissingProgramError, NetworkError
from firebuild.names import parse_port_mappings
from firebuild.network.cni import Invocation, RuntimeArguments, check_plugins, plan_plugin_config, plan_runtime_config
from firebuild.network.result import parse_result

ALL = RuntimeArguments(
    ports=(*parse_port_mappings("127.0.0.1:6399:6379"), *parse_port_mappings("53:5353/udp")),
    ips=("10.1.0.7/24",),
    mac="02:00:00:00:00:01",
    nameservers=("9.9.9.9",),
    search=("example.org",),
    options=("ndots:2",),
)
PORTS = [
    {"hostPort": 6399, "containerPort": 6379, "protocol": "tcp", "hostIP": "127.0.0.1"},
    {"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
]


def capabilities(*names: str) -> dict[str, Any]:
    return {"type": "x", "capabilities": dict.fromkeys(names, True)}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ((), {}),
        (("bandwidth",), {}),
        (("portMappings",), {"portMappings": PORTS}),
        (("ips", "mac"), {"ips": ["10.1.0.7/24"], "mac": "02:00:00:00:00:01"}),
        (("dns",), {"dns": {"servers": ["9.9.9.9"], "searches": ["example.org"], "options": ["ndots:2"]}}),
    ],
)
def test_only_declared_capabilities_are_given(declared: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert plan_runtime_config(capabilities(*declared), ALL) == expected


def test_a_capability_set_to_false_is_not_declared() -> None:
    assert plan_runtime_config({"capabilities": {"portMappings": False, "mac": True}}, ALL) == {
        "mac": "02:00:00:00:00:01"
    }


def test_what_is_not_asked_for_is_not_given() -> None:
    assert plan_runtime_config(capabilities("portMappings", "ips", "mac", "dns"), RuntimeArguments()) == {}


def test_a_plugins_configuration() -> None:
    invocation = Invocation("net", "1.0.0", "id", "/run/netns/fb-id", (), ALL)
    plugin = {"type": "bridge", "name": "old", "cniVersion": "0.3.0", "mtu": 1400, "capabilities": {"mac": True}}
    config = plan_plugin_config(invocation, plugin, {"ips": []})
    assert config == {
        "type": "bridge",
        "name": "net",
        "cniVersion": "1.0.0",
        "mtu": 1400,
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "prevResult": {"ips": []},
    }
    assert "capabilities" in plugin
    first = plan_plugin_config(invocation, {"type": "tuning"}, None)
    assert first == {"type": "tuning", "name": "net", "cniVersion": "1.0.0"}


def test_a_missing_ipam_plugin_is_named(tmp_path: Path) -> None:
    (tmp_path / "bridge").touch(mode=0o755)
    (tmp_path / "host-local").touch(mode=0o644)
    check_plugins([tmp_path], [{"type": "bridge"}])
    with pytest.raises(MissingProgramError, match="the CNI plugin `host-local` is not in"):
        check_plugins([tmp_path], [{"type": "bridge", "ipam": {"type": "host-local"}}])


BRIDGE = [{"name": "br0", "mac": "a"}, {"name": "veth1", "mac": "b"}, {"name": "eth0", "sandbox": "/run/netns/x"}]


def test_a_result_of_two_ip_versions() -> None:
    interface = parse_result(
        "net",
        {
            "interfaces": BRIDGE,
            "ips": [
                {"version": "6", "address": "fd00::5/64", "gateway": "fd00::1", "interface": 2},
                {"version": "4", "address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 2},
                {"version": "4", "address": "10.0.0.1/24", "interface": 0},
            ],
            "dns": {"nameservers": ["10.0.0.53"]},
        },
    )
    assert interface.addresses == ["10.0.0.5/24", "fd00::5/64"]
    assert (interface.gateway, interface.gateway6) == ("10.0.0.1", "fd00::1")
    assert interface.host_interface == "veth1"
    assert interface.names.nameservers == ["10.0.0.53"]


def test_a_gateway_from_the_routes() -> None:
    routes = [{"dst": "10.9.0.0/16", "gw": "10.0.0.9"}, {"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]
    interface = parse_result("net", {"ips": [{"address": "10.0.0.5/24"}], "routes": routes})
    assert interface.gateway == "10.0.0.1"
    assert interface.gateway6 is None
    assert interface.host_interface == ""


@pytest.mark.parametrize(
    "document",
    [
        {"ips": 7},
        {"ips": [{"address": "ten"}]},
        {"ips": [{"address": "10.0.0.5/24", "gateway": "x"}]},
        {"ips": [{"address": "10.0.0.5/24", "interface": 3}], "interfaces": BRIDGE},
        {"ips": [{"address": "10.0.0.5/24", "interface": -1}], "interfaces": BRIDGE},
        {"ips": [{"address": "10.0.0.5/24"}], "routes": [{"dst": "everything", "gw": "10.0.0.1"}]},
    ],
)
def test_malformed_results(document: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match="the network `net`: its plugins returned a malformed result"):
        parse_result("net", document)


def test_a_result_without_an_address() -> None:
    with pytest.raises(NetworkError, match="gave the machine no IP address"):
        parse_result("net", {"interfaces": BRIDGE, "ips": [{"address": "10.0.0.1/24", "interface": 0}]})
