"""Attaching and detaching: what is there, what is refused before anything is done, and that nothing is left."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from firebuild.errors import CniError, ConflictError, MissingProgramError, NetworkError, NotFoundError, UsageError
from firebuild.host.deadline import Deadline
from firebuild.names import parse_port_mappings
from firebuild.network import cni
from firebuild.network.attach import attach_network, find_attachments, list_attachments
from tests.support.network_guest import ip

from .conftest import Host


@pytest.mark.parametrize("network", ["machines", "machine-builds"])
def test_nothing_is_left_of_an_attachment(host: Host, network: str) -> None:
    before = host.warm_up(network)
    ports = parse_port_mappings("127.0.0.1:6399:6379") if network == "machines" else []
    attachment = host.attach(network, ports=ports)
    assert host.snapshot() != before
    assert list_attachments(host.settings) == [attachment.machine_id]
    assert find_attachments(host.settings, attachment.machine_id) == [attachment]
    host.detach(attachment.machine_id)
    assert host.snapshot() == before
    assert list_attachments(host.settings) == []
    host.detach(attachment.machine_id)


def test_an_attachment_tells_what_is_there(host: Host) -> None:
    attachment = host.attach(tap_owner=(4711, 4712))
    links = {link["ifname"]: link for link in json.loads(ip("-n", attachment.netns, "-j", "-d", "link"))}
    assert links["eth0"]["address"] == attachment.mac
    assert links["eth0"]["mtu"] == links["tap0"]["mtu"] == attachment.mtu == 1500
    tap = links["tap0"]["linkinfo"]["info_data"]
    assert (tap["type"], tap["vnet_hdr"], tap["user"], tap["group"]) == ("tap", True, 4711, 4712)
    assert attachment.addresses[0].startswith("192.168.127.")
    assert attachment.gateway == "192.168.127.1"
    assert attachment.netns == f"fb-{attachment.machine_id}"
    assert Path(attachment.netns_path).exists()
    assert attachment.host_interface in {link["ifname"] for link in json.loads(ip("-j", "link"))}


def test_twenty_at_once_share_nothing(host: Host) -> None:
    before = host.warm_up()
    ids = [host.new_id() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        ports = parse_port_mappings("127.0.0.1::80")
        attachments = list(pool.map(lambda machine_id: host.attach(machine_id=machine_id, ports=ports), ids))
        for values in (
            {attachment.addresses[0] for attachment in attachments},
            {attachment.mac for attachment in attachments},
            {attachment.host_interface for attachment in attachments},
            {attachment.ports[0].host_port for attachment in attachments},
        ):
            assert len(values) == 20
        list(pool.map(host.detach, ids))
    assert host.snapshot() == before


def test_one_port_goes_to_one_of_many(host: Host) -> None:
    ports = parse_port_mappings("6399:6379")

    def attempt(_: int) -> bool:
        try:
            host.attach(ports=ports)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_two_networks_of_both_ip_versions(host: Host) -> None:
    plugins = host.bundled_plugins("machines")
    plugins[0] |= {"bridge": "dual0"}
    plugins[0]["ipam"]["ranges"] = [[{"subnet": "10.91.0.0/24"}], [{"subnet": "fd91::/64"}]]
    host.write_network("dual", plugins)
    before = host.warm_up("dual")
    attachment = host.attach("dual", ports=parse_port_mappings("6399:6379"))
    assert [address.partition("/")[2] for address in attachment.addresses] == ["24", "64"]
    assert (attachment.gateway, attachment.gateway6) == ("10.91.0.1", "fd91::1")
    host.detach(attachment.machine_id)
    assert host.snapshot() == before


def test_a_users_tc_redirect_tap_is_done_by_firebuild(host: Host) -> None:
    host.write_network("machines", [*host.bundled_plugins("machines"), {"type": "tc-redirect-tap"}], version="0.4.0")
    attachment = host.attach()
    assert attachment.cni_version == "0.4.0"
    assert "tap0" in ip("-n", attachment.netns, "link")


def test_a_single_configuration_is_wrapped(host: Host) -> None:
    bridge = host.bundled_plugins("machines")[0]
    bridge |= {"cniVersion": "1.0.0", "name": "single", "bridge": "single0"}
    (host.folder / "net.d" / "10-single.conf").write_text(json.dumps(bridge))
    assert host.attach("single").addresses


def test_a_static_address(host: Host) -> None:
    before = host.warm_up()
    attachment = host.attach(addresses=["192.168.127.77"])
    assert attachment.addresses == ["192.168.127.77/24"]
    with pytest.raises(CniError, match=r"`bridge` failed on ADD: .*192\.168\.127\.77"):
        host.attach(addresses=["192.168.127.77"])
    host.detach(attachment.machine_id)
    assert (
        host.attach(addresses=["192.168.127.77/24"], machine_id=attachment.machine_id).addresses == attachment.addresses
    )
    host.detach(attachment.machine_id)
    assert host.snapshot() == before
    with pytest.raises(NetworkError, match="not in the network"):
        host.attach(addresses=["10.0.0.7"])
    with pytest.raises(UsageError, match="`seven` is not an IP address"):
        host.attach(addresses=["seven"])
    assert host.snapshot() == before


def test_a_static_address_without_the_capability(host: Host) -> None:
    plugins = host.bundled_plugins("machines")
    del plugins[0]["capabilities"]
    host.write_network("machines", plugins)
    assert host.attach(addresses=["192.168.127.78"]).addresses == ["192.168.127.78/24"]


def test_a_network_that_cannot_publish(host: Host) -> None:
    with pytest.raises(NetworkError, match="the network `machine-builds` cannot publish ports"):
        host.attach("machine-builds", ports=parse_port_mappings("80"))


def test_an_unknown_network(host: Host) -> None:
    with pytest.raises(NotFoundError, match="there is no network `nowhere`") as caught:
        host.attach("nowhere")
    assert "`machines`" in str(caught.value.hint)
    assert str(host.folder / "net.d") in str(caught.value.hint)


def test_a_missing_plugin_is_named_before_anything_is_done(host: Host) -> None:
    before = host.snapshot()
    settings = msgspec.structs.replace(host.settings, bin_dirs=(host.plugins,))
    with pytest.raises(MissingProgramError, match="the CNI plugin `bridge`") as caught:
        attach_network(settings, machine_id=host.new_id(), network="machines", deadline=Deadline(60, "the attach"))
    assert caught.value.hint == "run: apt-get install containernetworking-plugins"
    assert host.snapshot() == before
    assert not host.settings.cache_dir.exists()


def test_a_port_of_another_machine(host: Host) -> None:
    first = host.attach(ports=parse_port_mappings("6399:6379"))
    for text in ("6399:80", "127.0.0.1:6399:80"):
        with pytest.raises(ConflictError, match=f"6399/tcp is already published by the machine `{first.machine_id}`"):
            host.attach(ports=parse_port_mappings(text))
    host.attach(ports=parse_port_mappings("6399:6379/udp"))


def test_a_port_of_another_profiles_machine(host: Host) -> None:
    first = host.attach(ports=parse_port_mappings("127.0.0.1:6399:6379"))
    other = msgspec.structs.replace(host.settings, cache_dir=host.folder / "state" / "other")
    with pytest.raises(ConflictError, match=f"already published by `{first.machine_id}`"):
        attach_network(
            other,
            machine_id=host.new_id(),
            network="machines",
            ports=parse_port_mappings("6399:80"),
            deadline=Deadline(60, "the attach"),
        )
    assert list_attachments(other) == []


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_of_a_program_on_the_host(host: Host, protocol: str) -> None:
    before = host.snapshot()
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ConflictError, match=rf"{port}/{protocol} is already in use by `.+` \(pid \d+\)"):
            host.attach(ports=parse_port_mappings(f"{port}:80/{protocol}"))
    assert host.snapshot() == before


def test_bad_ports(host: Host) -> None:
    with pytest.raises(ConflictError, match="published twice"):
        host.attach(ports=[*parse_port_mappings("6399:80"), *parse_port_mappings("127.0.0.1:6399:81")])
    with pytest.raises(NetworkError, match="this host has no such address"):
        host.attach(ports=parse_port_mappings("203.0.113.9:6399:80"))


def test_a_machine_is_attached_once(host: Host) -> None:
    attachment = host.attach()
    with pytest.raises(ConflictError, match="is attached to a network already"):
        host.attach(machine_id=attachment.machine_id)
    assert find_attachments(host.settings, attachment.machine_id) == [attachment]


def test_an_interrupt_undoes_everything(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = host.warm_up()
    add_plugin, seen = cni.add_plugin, []

    def interrupted(invocation: cni.Invocation, plugin: dict[str, object], *rest: object) -> cni.Result:
        seen.append(plugin["type"])
        if plugin["type"] == "firewall":
            raise KeyboardInterrupt
        return add_plugin(invocation, plugin, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cni, "add_plugin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        host.attach(ports=parse_port_mappings("6399:6379"))
    assert seen == ["bridge", "portmap", "firewall"]
    assert host.snapshot() == before
