"""Networks with IPv6: out through NAT, in through published ports, and the same walls as with IPv4."""

from __future__ import annotations

import pytest

from firebuild.errors import NetworkError
from firebuild.names import parse_port_mappings
from firebuild.network.conflist import get_network
from tests.support.network_guest import ask, ip, serve, start_guest

from .conftest import Host
from .test_isolation import refused
from .test_several import create

ADDRESS, OUTSIDE = "2001:db8:7::1", "2001:db8:7::2"
PRIVATE = "fd77::2"


@pytest.fixture
def dual(host: Host) -> Host:
    """A host with IPv6 on its outer link, and a network with both versions."""
    ip("address", "add", f"{ADDRESS}/64", "dev", "wan0", "nodad")
    ip("-n", host.outside, "address", "add", f"{OUTSIDE}/64", "dev", "eth0", "nodad")
    ip("-n", host.outside, "address", "add", f"{PRIVATE}/64", "dev", "eth0", "nodad")
    ip("route", "add", "fd77::/64", "dev", "wan0")
    create(host, "dual", subnets=["10.91.0.0/24", "fd91::/64"])
    return host


def test_out_and_in(dual: Host) -> None:
    before = dual.warm_up("dual")
    ports = [*parse_port_mappings("6399:7000"), *parse_port_mappings(f"[{ADDRESS}]:6400:7000")]
    attachment = dual.attach("dual", addresses=["fd91::77"], ports=ports)
    assert attachment.addresses[1] == "fd91::77/64"
    # The pretended host gives no link-local addresses by itself; without one it does not look for neighbours.
    bridge = get_network(dual.settings, "dual").bridge
    ip("address", "add", "fe80::1/64", "dev", str(bridge), "nodad")
    with start_guest(attachment) as guest, serve(guest, 7000, address="::"), serve(dual.outside, 7002, address="::"):
        # The bridge's own address may still be looked at for duplicates.
        assert ask(None, "fd91::77", 7000) in ("fd91::1", ADDRESS)
        # The outside sees the host, not the guest.
        assert ask(guest, OUTSIDE, 7002) == ADDRESS
        for port in (6399, 6400):
            assert ask(dual.outside, ADDRESS, port) == OUTSIDE
        # By IPv4 the one that names no address is published too.
        assert ask(None, "127.0.0.1", 6399)
    ip("address", "del", "fe80::1/64", "dev", str(bridge))
    dual.detach(attachment.machine_id)
    # The routes of the bridge, which stays, come when its address has been looked at for duplicates.
    left = {kind: lines for kind, lines in dual.snapshot().items() if kind != "routes"}
    assert left == {kind: lines for kind, lines in before.items() if kind != "routes"}


def test_the_same_walls(dual: Host) -> None:
    create(dual, "other", subnets=["10.92.0.0/24", "fd92::/64"])
    one, two = dual.attach("dual"), dual.attach("other")
    strict = dual.attach("dual", strict=True)
    six = two.addresses[1].partition("/")[0]
    neighbour = one.addresses[1].partition("/")[0]
    with (
        start_guest(one) as first,
        start_guest(two) as second,
        start_guest(strict) as third,
        serve(second, 7000, address="::"),
        serve(first, 7000, address="::"),
        serve(None, 7000, address="::"),
        serve(dual.outside, 7000, address="::"),
    ):
        assert ask(first, OUTSIDE, 7000)
        assert ask(first, PRIVATE, 7000)
        for forbidden in ("fd91::1", ADDRESS, six):
            assert refused(first, forbidden)
        assert ask(third, OUTSIDE, 7000)
        for forbidden in (PRIVATE, neighbour, "fd91::1", six):
            assert refused(third, forbidden)


def test_the_loopback_address_cannot_be_published(dual: Host) -> None:
    with pytest.raises(NetworkError, match="IPv6's loopback") as caught:
        dual.attach("dual", ports=parse_port_mappings("[::1]:8080:80"))
    assert caught.value.hint == "publish it on 127.0.0.1"
