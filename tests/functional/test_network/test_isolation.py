"""Attacks of a guest: frames that it may not send, written to its tap as they are, and places that it may not reach."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebuild.errors import UsageError
from firebuild.host.netns import run_in_netns
from firebuild.names import parse_port_mappings
from firebuild.network.attach import Attachment
from firebuild.network.conflist import parse_network
from firebuild.network.fence import parse_permit
from firebuild.network.guard import link_local
from tests.support.network_guest import ask, ip, open_tap, ping, serve, start_guest

from .conftest import Host
from .test_several import create, own

BROADCAST, OTHER_MAC = "ff:ff:ff:ff:ff:ff", "02:00:00:00:00:66"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
STRANGER4, STRANGER6 = "10.91.0.200", "fd91::bad"
IPV4, ARP, IPV6, VLAN = 0x0800, 0x0806, 0x86DD, 0x8100
UDP, ICMPV6, NO_NEXT = 17, 58, 59


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def frame(source: str, kind: int, body: bytes, target: str = BROADCAST) -> bytes:
    return octets(target) + octets(source) + struct.pack(">H", kind) + body


def ipv4(source: str, target: str, body: bytes = b"", *, protocol: int = UDP, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    header = struct.pack(">BBHHHBBH", 0x40 | size // 4, 0, size + len(body), 1, 0, 64, protocol, 0)
    header += socket.inet_aton(source) + socket.inet_aton(target) + options
    total = sum(struct.unpack(f">{size // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + header[12:] + body


def udp(source: int, target: int) -> bytes:
    return struct.pack(">HHHH", source, target, 8, 0)


def arp(mac: str, address: str, *, operation: int = 1) -> bytes:
    sender = octets(mac) + socket.inet_aton(address)
    return struct.pack(">HHBBH", 1, IPV4, 6, 4, operation) + sender + bytes(6) + socket.inet_aton("10.91.0.1")


def ipv6(source: str, target: str, body: bytes, *, header: int = ICMPV6) -> bytes:
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(target).packed
    return struct.pack(">IHBB", 6 << 28, len(body), header, 255) + addresses + body


def icmpv6(kind: int, target: str = "::") -> bytes:
    return struct.pack(">BBHI", kind, 0, 0, 0) + ipaddress.IPv6Address(target).packed


def good_frames(attachment: Attachment) -> Iterator[tuple[str, bytes]]:
    mac, (four, six), local = attachment.mac, addresses(attachment), str(link_local(attachment.mac))
    yield "own IPv4", frame(mac, IPV4, ipv4(four, STRANGER4, udp(1, 2)))
    yield "own ARP", frame(mac, ARP, arp(mac, four))
    yield "ARP probe", frame(mac, ARP, arp(mac, "0.0.0.0"))
    yield "own IPv6", frame(mac, IPV6, ipv6(six, STRANGER6, udp(1, 2), header=UDP))
    yield "own link-local", frame(mac, IPV6, ipv6(local, ALL_NODES, icmpv6(133)))
    yield "own solicitation", frame(mac, IPV6, ipv6(six, STRANGER6, icmpv6(135, STRANGER6)))
    yield "own advertisement", frame(mac, IPV6, ipv6(six, ALL_NODES, icmpv6(136, six)))
    yield "advertisement from the link-local address", frame(mac, IPV6, ipv6(local, ALL_NODES, icmpv6(136, six)))
    yield "duplicate address detection", frame(mac, IPV6, ipv6("::", ALL_NODES, icmpv6(135, six)))


def bad_frames(attachment: Attachment) -> Iterator[tuple[str, bytes]]:
    mac, (four, six), local = attachment.mac, addresses(attachment), str(link_local(attachment.mac))
    yield "IPv4 of another", frame(mac, IPV4, ipv4(STRANGER4, "10.91.0.1", udp(1, 2)))
    yield "another's MAC", frame(OTHER_MAC, IPV4, ipv4(four, STRANGER4, udp(1, 2)))
    yield "IPv4 of the gateway", frame(mac, IPV4, ipv4("10.91.0.1", STRANGER4, udp(1, 2)))
    yield "a DHCP server", frame(mac, IPV4, ipv4(four, "255.255.255.255", udp(67, 68)))
    yield "a DHCP server, with options", frame(mac, IPV4, ipv4(four, STRANGER4, udp(67, 68), options=b"\1" * 4))
    yield "metadata", frame(mac, IPV4, ipv4(four, "169.254.169.254", udp(1, 80)))
    yield "link-local", frame(mac, IPV4, ipv4(four, "169.254.170.2", udp(1, 80)))
    yield "metadata of Alibaba", frame(mac, IPV4, ipv4(four, "100.100.100.200", udp(1, 80)))
    yield "metadata over IPv6", frame(mac, IPV6, ipv6(six, "fd00:ec2::254", udp(1, 80), header=UDP))
    yield "loopback", frame(mac, IPV4, ipv4(four, "127.0.0.1", udp(1, 2)))
    yield "ARP for another", frame(mac, ARP, arp(mac, STRANGER4, operation=2))
    yield "ARP for the gateway", frame(mac, ARP, arp(mac, "10.91.0.1", operation=2))
    yield "ARP with another's MAC in it", frame(mac, ARP, arp(OTHER_MAC, four, operation=2))
    yield "ARP from another's MAC", frame(OTHER_MAC, ARP, arp(mac, four, operation=2))
    yield "IPv6 of another", frame(mac, IPV6, ipv6(STRANGER6, six, udp(1, 2), header=UDP))
    yield "another's link-local", frame(mac, IPV6, ipv6("fe80::1", ALL_NODES, icmpv6(133)))
    yield "IPv6 from another's MAC", frame(OTHER_MAC, IPV6, ipv6(six, STRANGER6, udp(1, 2), header=UDP))
    yield "a router", frame(mac, IPV6, ipv6(local, ALL_NODES, icmpv6(134)), ALL_NODES_MAC)
    yield "a redirect", frame(mac, IPV6, ipv6(local, ALL_NODES, icmpv6(137)), ALL_NODES_MAC)
    hidden = bytes((ICMPV6, 0, 1, 4, 0, 0, 0, 0)) + icmpv6(134)
    for header in (0, 43, 60):
        yield f"a router behind header {header}", frame(mac, IPV6, ipv6(local, ALL_NODES, hidden, header=header))
    yield "advertisement of another's", frame(mac, IPV6, ipv6(six, ALL_NODES, icmpv6(136, STRANGER6)))
    yield "denial of another's address", frame(mac, IPV6, ipv6("::", ALL_NODES, icmpv6(135, STRANGER6)))
    yield "IPv6 from nowhere", frame(mac, IPV6, ipv6("::", ALL_NODES, b"", header=NO_NEXT))
    yield "a DHCPv6 server", frame(mac, IPV6, ipv6(local, ALL_NODES, udp(547, 546), header=UDP))
    tagged = struct.pack(">HH", 7, IPV4) + ipv4(four, STRANGER4, udp(1, 2))
    yield "a VLAN's", frame(mac, VLAN, tagged)
    yield "RARP", frame(mac, 0x8035, arp(mac, STRANGER4, operation=3))
    yield "an unknown protocol", frame(mac, 0x88B5, b"knock")


def addresses(attachment: Attachment) -> tuple[str, str]:
    four, six = (each.partition("/")[0] for each in attachment.addresses)
    return four, six


def find_passed(attachment: Attachment, frames: list[tuple[str, bytes]]) -> set[str]:
    """Which frames leave the machine's namespace: they are written to its tap, and looked for at the host's end of its way."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as ear:
        ear.bind((attachment.host_interface, 0x0003))
        ear.settimeout(20)
        tap = run_in_netns(attachment.netns, lambda: open_tap(attachment.tap))
        try:
            for _, data in frames:
                os.write(tap, bytes(10) + data)
            # What comes last tells that all before has been seen.
            end = frame(attachment.mac, ARP, arp(attachment.mac, addresses(attachment)[0], operation=9))
            os.write(tap, bytes(10) + end)
            heard: set[bytes] = set()
            while end not in heard:
                heard.add(ear.recv(2000))
        finally:
            os.close(tap)
    return {name for name, data in frames if data in heard}


@pytest.fixture
def dual(host: Host) -> Host:
    create(host, "dual", subnets=["10.91.0.0/24", "fd91::/64"])
    return host


def test_what_a_guest_may_send(dual: Host) -> None:
    attachment = dual.attach("dual")
    frames = list(good_frames(attachment))
    assert find_passed(attachment, frames) == {name for name, _ in frames}
    assert find_passed(attachment, list(bad_frames(attachment))) == set()


def test_what_is_allowed_on_purpose(dual: Host) -> None:
    attachment = dual.attach("dual", allow=["metadata", "spoofing"])
    passed = find_passed(attachment, list(bad_frames(attachment)))
    assert {"IPv4 of another", "a router", "metadata", "metadata over IPv6", "an unknown protocol"} <= passed
    assert "loopback" not in passed


def test_without_ipv6_none_is_sent(host: Host) -> None:
    attachment = host.attach()
    local = str(link_local(attachment.mac))
    bad = [("IPv6", frame(attachment.mac, IPV6, ipv6(local, ALL_NODES, icmpv6(133))))]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IPV6)) as ear:
        ear.bind((attachment.host_interface, IPV6))
        ear.settimeout(2)
        tap = run_in_netns(attachment.netns, lambda: open_tap(attachment.tap))
        try:
            os.write(tap, bytes(10) + bad[0][1])
            with pytest.raises(TimeoutError):
                while ear.recv(2000) != bad[0][1]:
                    pass
        finally:
            os.close(tap)


def test_a_namespace_does_not_route_what_the_filters_keep_back(host: Host) -> None:
    """A host that routes makes new namespaces that route."""
    subprocess.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.default.forwarding=1"], check=True)
    attachment = host.attach()
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        path = Path(f"/proc/sys/net/{name}")
        assert run_in_netns(attachment.netns, path.read_text).strip() == "0"
    with serve(host.outside, 7000, kind="udp"):
        links = ip("-n", attachment.netns, "-o", "link", "show", attachment.tap)
        tap_mac = links.split("link/ether ")[1].split()[0]
        spoofed = frame(attachment.mac, IPV4, ipv4("192.168.127.200", Host.OUTSIDE, udp(1, 7000)), tap_mac)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IPV4)) as ear:
            ear.bind((attachment.host_interface, IPV4))
            ear.settimeout(2)
            tap = run_in_netns(attachment.netns, lambda: open_tap(attachment.tap))
            os.write(tap, bytes(10) + spoofed)
            with pytest.raises(TimeoutError):
                ear.recv(2000)
            os.close(tap)


def refused(source: str, address: str, port: int = 7000) -> bool:
    """Whether a connection from a guest comes to nothing."""
    try:
        ask(source, address, port, timeout_s=3)
    except OSError:
        return True
    return False


def test_the_host_is_not_reached(host: Host) -> None:
    attachment = host.attach()
    assert attachment.gateway is not None
    subprocess.run(["iptables", "-I", "INPUT", "-j", "ACCEPT"], check=True)
    with start_guest(attachment) as guest, serve(None, 7000), serve(guest, 7000), serve(host.outside, 7000):
        assert refused(guest, attachment.gateway)
        assert refused(guest, Host.ADDRESS)
        # It answers a ping, is answered by its machines, and the way out is open.
        assert run_in_netns(guest, lambda: ping(attachment.gateway or ""))
        assert ask(None, own(attachment), 7000)
        assert ask(guest, Host.OUTSIDE, 7000) == Host.ADDRESS


def test_the_host_is_reached_where_that_is_allowed(host: Host) -> None:
    by_word, by_range = host.attach(allow=["host"]), host.attach(allow=[f"{Host.ADDRESS}/32", "198.51.100.0/30"])
    assert by_word.gateway is not None
    with start_guest(by_word) as one, start_guest(by_range) as two, serve(None, 7000):
        assert ask(one, by_word.gateway, 7000) == own(by_word)
        assert ask(two, Host.ADDRESS, 7000) == own(by_range)
        assert refused(two, by_word.gateway)


def test_other_networks_are_not_reached(host: Host) -> None:
    create(host, "other")
    create(host, "crossing", allow=["networks"])
    one, two, three = host.attach(), host.attach("other"), host.attach("crossing")
    published = host.attach("other", ports=parse_port_mappings("6399:7000"))
    with (
        start_guest(one) as first,
        start_guest(two) as second,
        start_guest(three) as third,
        start_guest(published) as fourth,
        serve(second, 7000),
        serve(fourth, 7000),
    ):
        assert refused(first, own(two))
        assert ask(third, own(two), 7000)
        # What is published is for everybody.
        assert ask(first, Host.ADDRESS, 6399)
        assert ask(None, own(two), 7000)


def test_an_internal_network_is_closed_both_ways(host: Host) -> None:
    create(host, "inner", internal=True)
    create(host, "other", allow=["networks"])
    inside, other = host.attach("inner"), host.attach("other")
    gateway = (
        ip("-4", "-o", "address", "show", "to", own(inside).rsplit(".", 1)[0] + ".0/24").split()[3].partition("/")[0]
    )
    with start_guest(inside) as guest, start_guest(other) as second, serve(guest, 7000), serve(host.outside, 7000):
        # A route of its own does not help.
        ip("-n", guest, "route", "add", "default", "via", gateway)
        assert refused(guest, Host.OUTSIDE)
        assert refused(guest, own(other))
        ip("-n", host.outside, "route", "add", own(inside), "via", Host.ADDRESS)
        assert refused(host.outside, own(inside))
        assert ask(None, own(inside), 7000) == gateway
        assert second


def test_builds_are_the_strictest(host: Host) -> None:
    create(host, "other")
    options = {"strict": True}
    one, two = host.attach("machine-builds", **options), host.attach("machine-builds", **options)
    machine = host.attach("other", ports=parse_port_mappings("6399:7000"))
    open_one = host.attach("machine-builds", strict=True, allow=["10.55.0.0/24"])
    # A private range behind the outside, as a firm's network is.
    ip("-n", host.outside, "address", "add", "10.55.0.1/24", "dev", "eth0")
    ip("route", "add", "10.55.0.0/24", "via", Host.OUTSIDE)
    with (
        start_guest(one) as first,
        start_guest(two) as second,
        start_guest(machine) as other,
        start_guest(open_one) as third,
        serve(second, 7000), serve(other, 7000), serve(host.outside, 7000), serve(None, 7000),
    ):  # fmt: skip
        assert ask(first, Host.OUTSIDE, 7000)
        assert ask(third, "10.55.0.1", 7000)
        assert refused(first, own(two))
        assert refused(first, own(machine))
        assert refused(first, "10.55.0.1")
        assert refused(first, Host.ADDRESS)
        assert refused(first, Host.ADDRESS, 6399)


def test_the_fence_is_mended_by_the_next_machine(host: Host) -> None:
    before = host.warm_up()
    subprocess.run(["nft", "delete", "table", "inet", "firebuild"], check=True)
    first = host.attach()
    with start_guest(first) as guest, serve(None, 7000):
        assert first.gateway is not None
        assert refused(guest, first.gateway)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    host.detach(first.machine_id)
    host.warm_up()
    assert host.snapshot()["nftables"] == before["nftables"]


def test_what_cannot_be_allowed(host: Host) -> None:
    with pytest.raises(UsageError, match="`everything` is not something that a network can allow"):
        parse_permit(["host", "everything"])
    with pytest.raises(UsageError):
        host.attach(allow=["10.0.0.0/99"])
    text = '{"cniVersion": "1.0.0", "name": "a", "firebuild": {"isolate": true}, "plugins": [{"type": "bridge"}]}'
    with pytest.raises(Exception, match="isolate"):
        parse_network(text, host.folder)
