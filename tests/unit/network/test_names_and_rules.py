"""Name servers that a guest can use; port conflicts; packet filter rules read and written."""

from __future__ import annotations

import pytest

from firebuild.names import MachineId, PortMapping, parse_port_mappings
from firebuild.network.dns import parse_resolv_conf, plan_names
from firebuild.network.ports import overlaps
from firebuild.network.result import Names
from firebuild.network.rules import parse_dnat_rule, plan_sweep

STUB = Names(["127.0.0.53"], ["corp.example"], ["edns0", "trust-ad"])
UPSTREAM = Names(["10.0.0.53", "fe80::1"], ["corp.example"])


def test_a_resolv_conf() -> None:
    text = (
        "# c\nnameserver 1.2.3.4 # one\n;x\nnameserver fd00::1\nnameserver\n"
        "domain old\nsearch a.example b.example\noptions ndots:2 rotate\n"
    )
    assert parse_resolv_conf(text) == Names(["1.2.3.4", "fd00::1"], ["a.example", "b.example"], ["ndots:2", "rotate"])
    assert parse_resolv_conf("search .\n") == Names([], [], [])


def test_the_networks_own_servers_win() -> None:
    names, warnings = plan_names(Names(["10.7.0.1"]), UPSTREAM, None, has_ipv4=True, has_ipv6=False)
    assert (names, warnings) == (Names(["10.7.0.1"]), [])


def test_the_systemd_stub_is_seen_through() -> None:
    names, warnings = plan_names(Names(), STUB, UPSTREAM, has_ipv4=True, has_ipv6=True)
    assert (names, warnings) == (Names(["10.0.0.53"], ["corp.example"]), [])


def test_a_networks_loopback_servers_are_passed_over() -> None:
    """A conflist with `resolvConf: /etc/resolv.conf` copies the stub's address."""
    names, _ = plan_names(STUB, STUB, UPSTREAM, has_ipv4=True, has_ipv6=False)
    assert names == Names(["10.0.0.53"], ["corp.example"], ["edns0"])


@pytest.mark.parametrize(
    "server", ["127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "fe80::1", "fd00::53", "dns.example"]
)
def test_no_usable_server_is_a_warning_and_no_default(server: str) -> None:
    names, warnings = plan_names(Names(), Names([server]), None, has_ipv4=True, has_ipv6=False)
    assert names.nameservers == []
    assert len(warnings) == 1
    assert "no name server" in warnings[0]


def one(text: str) -> PortMapping:
    return parse_port_mappings(text)[0]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("80:80", "80:81", True),
        ("80:80", "80:80/udp", False),
        ("80:80", "81:80", False),
        ("127.0.0.1:80:80", "80:80", True),
        ("127.0.0.1:80:80", "0.0.0.0:80:80", True),
        ("127.0.0.1:80:80", "127.0.0.2:80:80", False),
        ("127.0.0.1:80:80", "[::]:80:80", False),
        ("[::1]:80:80", "[::]:80:80", True),
        ("[::1]:80:80", "80:80", True),
    ],
)
def test_which_ports_overlap(first: str, second: str, expected: bool) -> None:
    assert overlaps(one(first), one(second)) is expected
    assert overlaps(one(second), one(first)) is expected


def test_dnat_rules() -> None:
    rule = "-A CNI-DN-0a1b -d 127.0.0.1/32 -p tcp -m tcp --dport 6399 -j DNAT --to-destination 192.168.127.5:6379"
    assert parse_dnat_rule(rule) == PortMapping("127.0.0.1", 6399, 6379, "tcp")
    docker = "-A DOCKER ! -i docker0 -p udp -m udp --dport 53 -j DNAT --to-destination 172.17.0.2:5353"
    assert parse_dnat_rule(docker) == PortMapping("", 53, 5353, "udp")
    six = "-A CNI-DN-0a1b -d fd00::1/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd91::2]:8080"
    assert parse_dnat_rule(six) == PortMapping("fd00::1", 80, 8080, "tcp")
    for other in (
        "-A POSTROUTING -j MASQUERADE",
        "-A X -p tcp --dport 80:90 -j DNAT --to-destination 10.0.0.1",
        "-A X -p all -j DNAT --to-destination 10.0.0.1",
        "-P FORWARD ACCEPT",
    ):
        assert parse_dnat_rule(other) is None


def test_a_sweep_takes_a_machines_rules_and_chains_and_no_others() -> None:
    mine, other = "abcdefghij0123456789", "abcdefghij0123456780"
    chain, rest = "CNI-4d2ec922f5dcfe1b359d631d", "CNI-1111c922f5dcfe1b359d631d"
    rules = [
        "-P POSTROUTING ACCEPT",
        f"-N {chain}",
        f'-A POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \\"n\\" id: \\"{mine}\\"" -j {chain}',
        f'-A POSTROUTING -s 10.0.0.3/32 -m comment --comment "name: \\"n\\" id: \\"{other}\\"" -j {rest}',
        f'-A {chain} -d 10.0.0.0/24 -m comment --comment "name: \\"n\\" id: \\"{mine}\\"" -j ACCEPT',
        f'-A FORWARD -d 10.0.0.2/32 -m comment --comment "firebuild id: \\"{mine}\\"" -j ACCEPT',
    ]
    assert plan_sweep(rules, "nat", MachineId(mine)).splitlines() == [
        "*nat",
        f'-D POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \\"n\\" id: \\"{mine}\\"" -j {chain}',
        f'-D FORWARD -d 10.0.0.2/32 -m comment --comment "firebuild id: \\"{mine}\\"" -j ACCEPT',
        f"-F {chain}",
        f"-X {chain}",
        "COMMIT",
    ]
    assert plan_sweep(rules[:2], "nat", MachineId(mine)) == ""
