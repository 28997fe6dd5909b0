"""CNI configurations: what is taken, what is refused in which words, and which file wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from firebuild.errors import NetworkError, NotFoundError
from firebuild.network.conflist import NetworkSettings, find_network, get_network, list_networks, parse_network

PATH = Path("/etc/cni/conf.d/10-net.conflist")


def conflist(name: str = "net", **changes: Any) -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}]} | changes)


def settings(*folders: Path) -> NetworkSettings:
    return NetworkSettings(bin_dirs=(), conf_dirs=folders, cache_dir=Path("/nowhere"))


def test_a_list() -> None:
    ipam = {
        "type": "host-local",
        "subnet": "10.9.0.0/16",
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
    }
    bridge = {"type": "bridge", "bridge": "br7", "ipMasq": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True, "ips": False}}
    network = parse_network(conflist(plugins=[bridge, portmap]), PATH)
    assert (network.name, network.cni_version, network.path) == ("net", "1.0.0", PATH)
    assert network.plugin_types == ["bridge", "portmap"]
    assert network.bridge == "br7"
    assert network.subnets == ["10.9.0.0/16", "10.1.0.0/24", "fd00::/64"]
    assert network.has_capability("portMappings")
    assert not network.has_capability("ips")
    assert network.needs_iptables()
    assert not network.wants_tap


def test_a_single_configuration() -> None:
    text = json.dumps({"cniVersion": "0.4.0", "name": "one", "type": "ptp", "mtu": 1400})
    network = parse_network(text, PATH)
    assert network.plugins == [{"type": "ptp", "mtu": 1400}]
    assert network.bridge is None
    assert not network.needs_iptables()


def test_a_trailing_tc_redirect_tap_is_taken_off() -> None:
    network = parse_network(conflist(plugins=[{"type": "bridge"}, {"type": "tc-redirect-tap"}]), PATH)
    assert network.plugin_types == ["bridge"]
    assert network.wants_tap


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "not a JSON object"),
        (conflist(name=""), "`name` is missing"),
        (conflist(name="../etc"), "`name` is missing"),
        (conflist(cniVersion="0.2.0"), '`cniVersion` is "0.2.0"'),
        (conflist(cniVersion=None), "`cniVersion` is null"),
        (conflist(plugins={}), "`plugins` is not a list"),
        (conflist(plugins=[]), "`plugins` is empty"),
        (conflist(plugins=[{"type": "tc-redirect-tap"}]), "`plugins` is empty"),
        (conflist(plugins=[{"type": "tc-redirect-tap"}, {"type": "bridge"}]), "not its last plugin"),
        (conflist(plugins=["bridge"]), "plugin 0 is not a JSON object"),
        (conflist(plugins=[{"type": "bridge"}, {}]), "plugin 1 has no `type`"),
        (conflist(plugins=[{"type": "../../bin/sh"}]), "plugin 0 has no `type`, or one that is not a program's name"),
        (conflist(plugins=[{"type": "x", "capabilities": []}]), "`capabilities` is not an object"),
        (conflist(plugins=[{"type": "x", "ipam": []}]), "`ipam` is not an object"),
        (conflist(plugins=[{"type": "x", "ipam": {"ranges": [{}]}}]), "`ipam.ranges` is not a list of lists"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(NetworkError) as caught:
        parse_network(text, PATH)
    assert str(PATH) in caught.value.message
    assert reason in caught.value.message


def test_the_two_that_are_shipped() -> None:
    networks = {network.name: network for network in list_networks(settings())}
    assert list(networks) == ["machine-builds", "machines"]
    assert all(network.bundled for network in networks.values())
    assert (networks["machines"].bridge, networks["machines"].subnets) == ("machines0", ["192.168.127.0/24"])
    assert (networks["machine-builds"].bridge, networks["machine-builds"].subnets) == ("builds0", ["192.168.128.0/24"])
    assert networks["machines"].has_capability("portMappings")
    assert not networks["machine-builds"].has_capability("portMappings")


def test_which_file_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    single = json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "ptp"})
    (first / "00-net.conf").write_text(single)
    (first / "30-net.conflist").write_text(conflist(plugins=[{"type": "third"}]))
    (first / "20-net.conflist").write_text(conflist(plugins=[{"type": "second"}]))
    (first / "10-net.txt").write_text(conflist(plugins=[{"type": "none"}]))
    (second / "net.conflist").write_text(conflist(plugins=[{"type": "other"}]))
    (second / "machines.json").write_text(conflist("machines", plugins=[{"type": "mine"}]))
    both = settings(first, tmp_path / "absent", second)
    assert get_network(both, "net").plugin_types == ["second"]
    assert get_network(settings(second, first), "net").plugin_types == ["other"]
    mine = get_network(both, "machines")
    assert (mine.plugin_types, mine.bundled) == (["mine"], False)
    assert [network.name for network in list_networks(both)] == ["machine-builds", "machines", "net"]


def test_a_malformed_file_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "10-broken.conflist").write_text("{")
    (tmp_path / "20-wrong.conflist").write_text(conflist("wrong", cniVersion="9"))
    (tmp_path / "30-large.conflist").write_text(" " * (1 << 20) + conflist("large"))
    (tmp_path / "40-net.conflist").write_text(conflist())
    here = settings(tmp_path)
    assert find_network(here, "net") is not None
    assert find_network(here, "nothing") is None
    assert "net" in [network.name for network in list_networks(here)]
    for name in ("broken", "wrong", "large"):
        with pytest.raises(NetworkError, match=rf"{name}\.conflist"):
            find_network(here, name)


def test_an_unknown_network_tells_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no network `nothing`") as caught:
        get_network(settings(tmp_path), "nothing")
    assert (
        caught.value.hint == f"known networks: `machine-builds`, `machines`; configurations are read from `{tmp_path}`"
    )
