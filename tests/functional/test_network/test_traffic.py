"""Packets of guests: to the host, to the outside through NAT, through published ports, and the ones that must not pass."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from firebuild.host.netns import run_in_netns
from firebuild.names import parse_port_mappings
from firebuild.network.guard import FIRST_PRIORITY
from tests.support.network_guest import ask, ip, ping, serve, start_guest

from .conftest import Host


def first_address(addresses: list[str]) -> str:
    return addresses[0].partition("/")[0]


def test_a_guest_is_reached_and_reaches_out(host: Host) -> None:
    attachment = host.attach(allow=["host"])
    address = first_address(attachment.addresses)
    with start_guest(attachment) as guest, serve(guest, 7000), serve(None, 7001), serve(host.outside, 7002):
        assert ping(address)
        assert ask(None, address, 7000) == attachment.gateway
        assert attachment.gateway is not None
        assert ask(guest, attachment.gateway, 7001) == address
        # The outside sees the host, not the guest.
        assert ask(guest, Host.OUTSIDE, 7002) == Host.ADDRESS


def test_the_namespace_itself_does_not_answer_for_the_guest(host: Host) -> None:
    attachment = host.attach()
    address = first_address(attachment.addresses)
    with serve(attachment.netns, 7000), pytest.raises(OSError):
        ask(None, address, 7000, timeout_s=2)
    assert not ping(address, timeout_s=2)
    neighbours = [line for line in ip("neigh", "show", address).splitlines() if "lladdr" in line]
    assert neighbours == []


def test_large_transfers_pass_with_offloads_on(host: Host) -> None:
    attachment = host.attach()
    size = 8 << 20

    def listen() -> socket.socket:
        server = socket.create_server(("", 7000))
        server.settimeout(60)
        return server

    with start_guest(attachment) as guest, run_in_netns(guest, listen) as server:

        def send() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"\x5a" * size)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        with socket.create_connection((first_address(attachment.addresses), 7000), timeout=60) as client:
            received = 0
            while chunk := client.recv(1 << 16):
                assert chunk.count(b"\x5a") == len(chunk)
                received += len(chunk)
        thread.join()
    assert received == size


def test_a_rate_holds_both_ways(host: Host) -> None:
    rate, size = 1 << 20, 3 << 20
    slow, fast = host.attach(bytes_per_s=rate), host.attach()
    for interface in ("eth0", "tap0"):
        shown = run(["ip", "netns", "exec", slow.netns, "tc", "qdisc", "show", "dev", interface, "root"])
        assert "tbf" in shown and "rate 8388Kbit" in shown, shown
    assert "tbf" not in run(["ip", "netns", "exec", fast.netns, "tc", "qdisc", "show"])
    with start_guest(slow) as inside, start_guest(fast) as other:
        for source, target, address in ((inside, other, fast), (other, inside, slow)):
            began = time.monotonic()
            assert transfer(source, target, first_address(address.addresses), size) == size
            # A burst goes at once; a busy host only makes it longer.
            assert time.monotonic() - began > (size - (1 << 19)) / rate


def run(argv: list[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def transfer(source: str, target: str, address: str, size: int) -> int:
    """Send that many bytes over TCP; how many arrived when the last one had."""

    def listen() -> socket.socket:
        server = socket.create_server(("", 7000))
        server.settimeout(120)
        return server

    def send() -> None:
        with socket.create_connection((address, 7000), timeout=120) as client:
            client.sendall(bytes(size))

    with run_in_netns(target, listen) as server:
        thread = threading.Thread(target=lambda: run_in_netns(source, send), daemon=True)
        thread.start()
        peer, _ = server.accept()
        received = 0
        with peer:
            peer.settimeout(120)
            while chunk := peer.recv(1 << 16):
                received += len(chunk)
        thread.join()
    return received


@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
def test_published_ports_are_reached_from_everywhere(host: Host, policy: str) -> None:
    # Docker sets the policy of FORWARD to DROP.
    subprocess.run(["iptables", "-P", "FORWARD", policy], check=True)
    ports = [*parse_port_mappings("6399:6379"), *parse_port_mappings("0.0.0.0:6400:6380/udp")]
    server = host.attach(ports=ports)
    client = host.attach()
    with (
        start_guest(server) as inside,
        start_guest(client) as other,
        serve(inside, 6379),
        serve(inside, 6380, kind="udp"),
        serve(host.outside, 7002),
    ):
        gateway = server.gateway
        assert gateway is not None
        assert ask(None, "127.0.0.1", 6399) == gateway
        assert ask(None, Host.ADDRESS, 6399)
        assert ask(None, "127.0.0.1", 6400, kind="udp") == gateway
        # From another host the client's own address is seen.
        assert ask(host.outside, Host.ADDRESS, 6399) == Host.OUTSIDE
        assert ask(host.outside, Host.ADDRESS, 6400, kind="udp") == Host.OUTSIDE
        # From another machine, from the machine itself, by the host's address and by the bridge's.
        for source in (other, inside):
            assert ask(source, Host.ADDRESS, 6399)
            assert ask(source, gateway, 6399)
        assert ask(other, first_address(server.addresses), 6379)
        assert ask(other, Host.OUTSIDE, 7002) == Host.ADDRESS
        if policy == "DROP":
            # What is not published stays closed: a route to the machine is not enough.
            ip("-n", host.outside, "route", "add", first_address(server.addresses), "via", Host.ADDRESS)
            with pytest.raises(OSError):
                ask(host.outside, first_address(server.addresses), 6379, timeout_s=2)


def test_a_port_published_on_loopback_is_closed_to_others(host: Host) -> None:
    attachment = host.attach(ports=parse_port_mappings("127.0.0.1:6399:6379"))
    with start_guest(attachment) as guest, serve(guest, 6379):
        assert ask(None, "127.0.0.1", 6399) == attachment.gateway
        with pytest.raises(OSError):
            ask(host.outside, Host.ADDRESS, 6399, timeout_s=2)


def test_a_guest_cannot_reach_the_hosts_loopback_services(host: Host) -> None:
    """Publishing on 127.0.0.1 makes the bridge route 127.0.0.0/8; a guest's own such packets must not get in."""
    attachment = host.attach(ports=parse_port_mappings("127.0.0.1:6399:6379"), allow=["host"])
    assert Path("/proc/sys/net/ipv4/conf/machines0/route_localnet").read_text().strip() == "1"
    with start_guest(attachment) as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 7003))
        assert attachment.gateway is not None

        def misroute() -> None:
            for name in ("all", "eth0"):
                Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").write_text("1")

        run_in_netns(guest, misroute)
        ip("-n", guest, "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
        ip("-n", guest, "route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local")
        source = first_address(attachment.addresses)
        ip("-n", guest, "route", "add", "127.0.0.1", "via", attachment.gateway, "src", source)

        def attack() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"knock", ("127.0.0.1", 7003))

        run_in_netns(guest, attack)
        server.settimeout(2)
        with pytest.raises(TimeoutError):
            server.recvfrom(100)
        # It is the filter that stops them: without it they arrive.
        tc = ["tc", "-n", attachment.netns, "filter", "del", "dev", "tap0", "ingress", "prio", str(FIRST_PRIORITY + 1)]
        subprocess.run(tc, check=True)
        run_in_netns(guest, attack)
        server.settimeout(20)
        assert server.recvfrom(100)[1][0] == source
