"""The kernel takes our rtnetlink requests as it takes those of ip(8) and tc(8): two namespaces end up alike."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from firebuild.errors import NetworkError
from firebuild.host import netlink, tc
from firebuild.host.netns import create_netns, delete_netns, netns_path, run_in_netns

MAC = "06:01:23:45:67:01"
IP_DESTINATION = tc.Match(0xA9FEA9FE, 0xFFFFFFFF, 16)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def names() -> Iterator[tuple[str, str, str]]:
    """Three namespaces: ours, one for a veth's peer, and one that ip and tc configure."""
    made = tuple(f"fnl{number}-{os.getpid()}" for number in range(3))
    with contextlib.ExitStack() as stack:
        for name in made:
            create_netns(name)
            stack.callback(delete_netns, name)
        yield made[0], made[1], made[2]


@pytest.fixture
def ours(names: tuple[str, str, str]) -> str:
    """A namespace with the pair `a0` and `b0`."""
    run("ip", "-n", names[0], "link", "add", "a0", "type", "veth", "peer", "name", "b0")
    return names[0]


def links(name: str) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in json.loads(run("ip", "-n", name, "-d", "-j", "address"))}


def strip_numbers(value: Any) -> Any:
    """Without what differs between two equal namespaces: indexes and random addresses."""
    if isinstance(value, dict):
        volatile = ("ifindex", "address", "link_index", "link_netnsid", "index")
        return {key: strip_numbers(each) for key, each in value.items() if key not in volatile}
    return [strip_numbers(each) for each in value] if isinstance(value, list) else value


def test_a_pair_across_namespaces_with_an_address_and_a_route(names: tuple[str, str, str]) -> None:
    ours, other, reference = names

    def make() -> None:
        descriptor = os.open(netns_path(other), os.O_RDONLY)
        try:
            netlink.add_veth_pair("a0", peer="b0", peer_mac=MAC, peer_netns=descriptor)
        finally:
            os.close(descriptor)

    def configure() -> None:
        link = netlink.get_link("b0")
        assert (link.name, link.mac, link.mtu) == ("b0", MAC, 1500)
        netlink.add_address(link, "169.254.169.254", 32)
        netlink.set_link_up(link, mtu=1400)
        netlink.add_link_route(link, "0.0.0.0", 0)
        netlink.add_link_route(link, "172.16.0.2", 32)

    run_in_netns(ours, make)
    run_in_netns(ours, lambda: netlink.set_link_up(netlink.get_link("a0")))
    run_in_netns(other, configure)
    assert set(links(ours)) == {"lo", "a0"}
    found = links(other)["b0"]
    assert found["address"] == MAC

    run(*f"ip -n {reference} link add a0 type veth peer name b0 address {MAC}".split())
    run(*f"ip -n {reference} link set a0 up".split())
    run(*f"ip -n {reference} address add 169.254.169.254/32 dev b0".split())
    run(*f"ip -n {reference} link set b0 up mtu 1400".split())
    run(*f"ip -n {reference} route add default dev b0".split())
    run(*f"ip -n {reference} route add 172.16.0.2 dev b0".split())
    expected = links(reference)["b0"]
    for link in (found, expected):
        link["addr_info"] = [each for each in link["addr_info"] if each["family"] == "inet"]
        link.pop("link", None)  # shown where the peer is in the same namespace
        del link["operstate"]  # follows the peer's state when the kernel comes to it
        link["flags"] = [flag for flag in link["flags"] if flag != "NO-CARRIER"]
    assert strip_numbers(found) == strip_numbers(expected)
    routes = [run("ip", "-n", name, "-d", "route", "show", "table", "all", "dev", "b0") for name in (other, reference)]
    inet = [[line for line in text.splitlines() if ":" not in line] for text in routes]
    assert len(inet[0]) >= 3 and inet[0] == inet[1]


def filters(name: str, link: str) -> Any:
    return strip_numbers(json.loads(run("tc", "-n", name, "-j", "filter", "show", "dev", link, "ingress")))


def test_filters_are_those_of_tc(names: tuple[str, str, str], ours: str) -> None:
    reference = names[2]

    def configure() -> None:
        a, b = netlink.get_link("a0"), netlink.get_link("b0")
        assert tc.ensure_ingress_qdisc(a)
        tc.add_redirect_filter(a, b, priority=1, protocol=tc.ETH_P_IP, match=IP_DESTINATION)
        tc.add_redirect_filter(a, b, priority=2, protocol=tc.ETH_P_ARP, match=IP_DESTINATION._replace(offset=24))
        tc.add_pass_filter(a, priority=90, protocol=tc.ETH_P_IP, matches=[tc.Match(0x7F000000, 0xFF000000, 12)])
        tc.add_redirect_filter(a, b, priority=100)

    run_in_netns(ours, configure)
    run("ip", "-n", reference, "link", "add", "a0", "type", "veth", "peer", "name", "b0")
    run("tc", "-n", reference, "qdisc", "add", "dev", "a0", "ingress")
    redirect = "action mirred egress redirect dev b0"
    for words in (
        f"protocol ip prio 1 u32 match u32 0xa9fea9fe 0xffffffff at 16 {redirect}",
        f"protocol arp prio 2 u32 match u32 0xa9fea9fe 0xffffffff at 24 {redirect}",
        "protocol ip prio 90 u32 match u32 0x7f000000 0xff000000 at 12",
        f"protocol all prio 100 u32 match u32 0 0 {redirect}",
    ):
        run(*f"tc -n {reference} filter add dev a0 ingress {words}".split())
    qdiscs = [json.loads(run("tc", "-n", name, "-j", "qdisc", "show", "ingress")) for name in (ours, reference)]
    assert len(qdiscs[0]) == 1 and qdiscs[0] == qdiscs[1]
    assert len(filters(ours, "a0")) >= 8
    assert filters(ours, "a0") == filters(reference, "a0")


def test_removal_takes_only_what_is_meant_and_absent_is_fine(ours: str) -> None:
    def configure() -> None:
        a, b = netlink.get_link("a0"), netlink.get_link("b0")
        tc.delete_filters(a, priority=1, protocol=tc.ETH_P_IP)
        tc.delete_ingress_qdisc(a)
        assert tc.ensure_ingress_qdisc(a)
        tc.add_redirect_filter(a, b, priority=1, protocol=tc.ETH_P_IP)
        tc.add_redirect_filter(a, b, priority=2, protocol=tc.ETH_P_ARP)
        assert not tc.ensure_ingress_qdisc(a)
        tc.delete_filters(a, priority=2, protocol=tc.ETH_P_IP)  # the priority is another protocol's
        tc.delete_filters(a, priority=3, protocol=tc.ETH_P_IP)

    def remove() -> None:
        tc.delete_filters(netlink.get_link("a0"), priority=1, protocol=tc.ETH_P_IP)

    run_in_netns(ours, configure)
    assert {each["pref"] for each in filters(ours, "a0")} == {1, 2}
    run_in_netns(ours, remove)
    assert {each["pref"] for each in filters(ours, "a0")} == {2}

    def remove_all() -> None:
        a = netlink.get_link("a0")
        tc.delete_ingress_qdisc(a)
        tc.delete_ingress_qdisc(a)
        netlink.delete_link("a0")
        netlink.delete_link("a0")
        tc.delete_filters(a, priority=1, protocol=tc.ETH_P_IP)
        tc.delete_ingress_qdisc(a)

    run_in_netns(ours, remove_all)
    assert set(links(ours)) == {"lo"}


def test_anothers_clsact_qdisc_is_kept_and_used(ours: str) -> None:
    run("tc", "-n", ours, "qdisc", "add", "dev", "a0", "clsact")

    def configure() -> None:
        a, b = netlink.get_link("a0"), netlink.get_link("b0")
        assert not tc.ensure_ingress_qdisc(a)
        tc.add_redirect_filter(a, b, priority=1, protocol=tc.ETH_P_IP)

    run_in_netns(ours, configure)
    assert {each["pref"] for each in filters(ours, "a0")} == {1}
    assert "clsact" in run("tc", "-n", ours, "qdisc", "show", "dev", "a0")


GONE = netlink.Link("gone0", 4711, "", 0)
FAULTS: list[tuple[Callable[[netlink.Link], object], str]] = [
    (lambda a: netlink.get_link("nope0"), "`nope0` failed: No such device"),
    (lambda a: netlink.get_link("a-name-that-is-too-long"), "`a-name-that-is-too-long` failed: .*"),
    (lambda a: netlink.set_link_up(GONE), "`gone0` failed: No such device"),
    (lambda a: netlink.set_link_up(a, mtu=1), r"`a0` failed: Invalid argument \(mtu less than device minimum\)"),
    (
        lambda a: netlink.add_veth_pair("a0", peer="c0", peer_mac=MAC, peer_netns=999),
        "`a0` and `c0` failed: .*",
    ),
    (lambda a: netlink.add_address(GONE, "10.0.0.1", 24), "`gone0` the address `10.0.0.1/24` failed: No such device"),
    (lambda a: netlink.add_link_route(a, "10.0.0.0", 24), "`10.0.0.0/24` to the interface `a0` failed: Network is down"),
    (lambda a: tc.ensure_ingress_qdisc(GONE), "`gone0` failed: No such device"),
    (lambda a: tc.add_redirect_filter(a, a, priority=1), "`a0` to `a0` failed: Invalid argument .*"),
    (
        lambda a: tc.add_pass_filter(GONE, priority=1, protocol=tc.ETH_P_IP, matches=[tc.EVERYTHING]),
        "`gone0` failed: No such device",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("deed", "words"), FAULTS)
def test_a_refusal_names_the_object_and_leaves_things_as_they_were(
    ours: str, deed: Callable[[netlink.Link], object], words: str
) -> None:
    before = links(ours)
    with pytest.raises(NetworkError, match=words):
        run_in_netns(ours, lambda: deed(netlink.get_link("a0")))
    assert links(ours) == before
    assert filters(ours, "a0") == []


def test_an_address_is_given_once(ours: str) -> None:
    def give() -> None:
        netlink.add_address(netlink.get_link("a0"), "10.0.0.1", 24)

    run_in_netns(ours, give)
    with pytest.raises(NetworkError, match=r"`10\.0\.0\.1/24` failed: File exists"):
        run_in_netns(ours, give)
