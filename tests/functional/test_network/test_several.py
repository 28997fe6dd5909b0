"""Machines in several networks, networks that were created, isolated and internal ones."""

from __future__ import annotations

import ipaddress
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from firebuild.errors import BusyError, CniError, ConflictError, NetworkError, NotFoundError, UsageError
from firebuild.host import netlink
from firebuild.host.deadline import Deadline
from firebuild.names import parse_port_mappings
from firebuild.network.attach import find_attachments, list_attachments
from firebuild.network.conflist import find_network, get_network
from firebuild.network.own import NetworkRequest, create_network, remove_network
from tests.support.network_guest import ask, ip, ping, serve, start_guest

from .conftest import Host
from .test_faults import start_victim


def create(host: Host, name: str, **options: object) -> None:
    create_network(host.settings, NetworkRequest(name=name, **options), deadline=Deadline(60, "creating"))  # type: ignore[arg-type]


def remove(host: Host, name: str) -> None:
    remove_network(host.settings, name, deadline=Deadline(60, "removing"))


def own(attachment: object) -> str:
    return str(attachment.addresses[0].partition("/")[0])  # type: ignore[attr-defined]


def test_a_machine_in_three_networks(host: Host) -> None:
    before = host.warm_up("machines", "machine-builds")
    create(host, "third", subnets=["10.77.0.0/24"], gateways=["10.77.0.9"])
    machine_id = host.new_id()
    first = host.attach("machines", machine_id=machine_id, ports=parse_port_mappings("6399:6379"))
    second = host.attach("machine-builds", machine_id=machine_id, number=1)
    third = host.attach("third", machine_id=machine_id, number=2, addresses=["10.77.0.50"])
    assert [each.interface for each in (first, second, third)] == ["eth0", "eth1", "eth2"]
    assert [each.tap for each in (first, second, third)] == ["tap0", "tap1", "tap2"]
    assert len({each.mac for each in (first, second, third)}) == 3
    assert (third.addresses, third.gateway) == (["10.77.0.50/24"], "10.77.0.9")
    assert find_attachments(host.settings, machine_id) == [first, second, third]
    assert list_attachments(host.settings) == [machine_id] == list_attachments(host.settings, "third")
    with start_guest(first, second, third) as guest, serve(guest, 6379):
        for each in (first, second, third):
            assert ping(own(each))
        assert ask(None, "127.0.0.1", 6399)
    with pytest.raises(BusyError, match=machine_id):
        remove(host, "third")
    host.detach(machine_id)
    remove(host, "third")
    assert host.snapshot() == before


def test_a_later_network_that_fails_leaves_the_others(host: Host) -> None:
    before = host.warm_up("machines")
    host.write_faulty_network()
    host.write_plugin("faulty", on_add="exit 3")
    first = host.attach("machines")
    with pytest.raises(CniError):
        host.attach("faulty", machine_id=first.machine_id, number=1)
    assert find_attachments(host.settings, first.machine_id) == [first]
    assert "eth1" not in ip("-n", first.netns, "link")
    host.detach(first.machine_id)
    assert host.snapshot() == before


def test_a_network_that_cannot_be_left_does_not_hold_the_others(host: Host) -> None:
    before = host.warm_up("machines")
    host.write_faulty_network()
    host.write_plugin("faulty")
    first = host.attach("machines")
    host.attach("faulty", machine_id=first.machine_id, number=1)
    host.write_plugin("faulty", on_del="exit 3")
    with pytest.raises(CniError):
        host.detach(first.machine_id)
    assert list_attachments(host.settings, "machines") == []
    assert list_attachments(host.settings, "faulty") == [first.machine_id]
    host.write_plugin("faulty")
    host.detach(first.machine_id)
    assert host.snapshot() == before


def test_a_created_network_is_there_until_it_is_removed(host: Host) -> None:
    before = host.warm_up()
    create(host, "mine", ipv6=True, labels={"a": "b"})
    network = get_network(host.settings, "mine")
    assert network.options.labels == {"a": "b"}
    with pytest.raises(ConflictError, match="there is a network `mine` already"):
        create(host, "mine")
    attachment = host.attach("mine", ports=parse_port_mappings("6399:6379"))
    assert [ipaddress.ip_interface(each).version for each in attachment.addresses] == [4, 6]
    assert attachment.gateway and attachment.gateway6
    with start_guest(attachment) as guest, serve(guest, 6379):
        assert ask(None, "127.0.0.1", 6399) == attachment.gateway
    host.detach(attachment.machine_id)
    remove(host, "mine")
    assert find_network(host.settings, "mine") is None
    assert host.snapshot() == before
    with pytest.raises(NotFoundError):
        remove(host, "mine")


def test_subnets_do_not_collide(host: Host) -> None:
    create(host, "one")
    create(host, "two")
    one, two = (ipaddress.ip_network(get_network(host.settings, name).subnets[0]) for name in ("one", "two"))
    assert not one.overlaps(two)
    for subnet, owner in (
        (str(one), "the network `one`"),
        ("192.168.127.128/25", "the network `machines`"),
        ("198.51.100.0/30", "this host's route to `wan0`"),
    ):
        with pytest.raises(ConflictError, match=owner):
            create(host, "three", subnets=[subnet])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: create(host, f"many{number}"), range(8)))
    subnets = {get_network(host.settings, f"many{number}").subnets[0] for number in range(8)}
    assert len(subnets) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subnets": ["10.0.0.0/31"]}, "no room"),
        ({"subnets": ["ten"]}, "not a subnet"),
        ({"subnets": ["10.0.0.1/24"]}, "not a subnet"),
        ({"subnets": ["127.0.0.0/8"]}, "not one for machines"),
        ({"subnets": ["10.5.0.0/24", "10.6.0.0/24"]}, "one subnet of each"),
        ({"subnets": ["10.5.0.0/24"], "gateways": ["10.6.0.1"]}, "in no subnet"),
        ({"subnets": ["10.5.0.0/24"], "gateways": ["10.5.0.255"]}, "not an address of one host"),
    ],
)
def test_what_cannot_be_created(host: Host, options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create(host, "bad", **options)
    for name in ("../up", "none", "a" * 61):
        with pytest.raises(UsageError, match="not a network's name"):
            create(host, name)
    assert find_network(host.settings, "bad") is None


def test_others_networks_are_not_removed(host: Host) -> None:
    with pytest.raises(ConflictError, match="was not made by") as caught:
        remove(host, "machines")
    assert str(host.folder / "net.d") in str(caught.value.hint)


def test_machines_of_an_isolated_network_do_not_meet(host: Host) -> None:
    create(host, "apart", isolated=True)
    one, two = host.attach("apart"), host.attach("apart")
    assert netlink.is_isolated(one.host_interface) and netlink.is_isolated(two.host_interface)
    with start_guest(one) as first, start_guest(two) as second, serve(second, 7000), serve(host.outside, 7002):
        assert ask(None, own(two), 7000)
        assert ask(first, Host.OUTSIDE, 7002) == Host.ADDRESS
        with pytest.raises(OSError):
            ask(first, own(two), 7000, timeout_s=2)


def test_an_internal_network_has_no_way_out_of_its_own(host: Host) -> None:
    create(host, "inner", internal=True)
    one, two = host.attach("inner"), host.attach("inner")
    assert (one.gateway, one.gateway6) == (None, None)
    with start_guest(one) as first, start_guest(two) as second, serve(second, 7000):
        assert ask(first, own(two), 7000) == own(one)
        with pytest.raises(OSError):
            ask(first, Host.OUTSIDE, 7002, timeout_s=2)
    with pytest.raises(NetworkError, match="cannot publish") as caught:
        host.attach("inner", ports=parse_port_mappings("80"))
    assert "internal" in str(caught.value.hint)


def test_free_host_ports_are_chosen(host: Host) -> None:
    ports = parse_port_mappings("127.0.0.1::80-81") + parse_port_mappings("0:90/udp")
    first, second = host.attach(ports=ports), host.attach(ports=ports)
    chosen = [*first.ports, *second.ports]
    assert all(port.host_port > 0 for port in chosen)
    assert len({(port.host_port, port.protocol) for port in chosen}) == 6
    with start_guest(first) as guest, serve(guest, 80):
        assert ask(None, "127.0.0.1", first.ports[0].host_port)


def test_a_port_on_ipv6_needs_a_guest_with_ipv6(host: Host) -> None:
    before = host.warm_up()
    with pytest.raises(NetworkError, match=r"the port \[::\]:8080:80/tcp cannot be published"):
        host.attach(ports=parse_port_mappings("[::]:8080:80"))
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("point", "number"),
    [("attach.records.save_record", 3), ("attach.cni.add_plugin", 5), ("attach.tap.join_tap", 2)],
)
def test_killed_in_the_second_network(host: Host, point: str, number: int) -> None:
    before = host.warm_up("machines", "machine-builds")
    machine_id = host.new_id()
    with start_victim(host, machine_id, "machines,machine-builds", point, number, "after") as victim:
        assert victim.wait(100) == -signal.SIGKILL
    assert list_attachments(host.settings, "machine-builds") == [machine_id]
    host.detach(machine_id)
    assert host.snapshot() == before
