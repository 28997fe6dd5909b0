"""The leak ledger tells a machine's remains from what networks share."""

from __future__ import annotations

from pathlib import Path

from tests.support.ledger import Watch, difference, find_mounts, normalise_iptables, normalise_nftables

SHARED = """*nat
:PREROUTING ACCEPT [1:60]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
COMMIT
*filter
:CNI-ADMIN - [0:0]
:CNI-FORWARD - [0:0]
-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
COMMIT
"""
PERSONAL = """*nat
:CNI-DN-0a1b2c3d4e5f60718293a - [0:0]
:CNI-0a1b2c3d4e5f60718293a4b5 - [0:0]
-A POSTROUTING -s 192.168.127.5/32 -m comment --comment "name: \\"machines\\"" -j CNI-0a1b2c3d4e5f60718293a4b5
-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 6399 -j CNI-DN-0a1b2c3d4e5f60718293a
-A CNI-DN-0a1b2c3d4e5f60718293a -d 127.0.0.1/32 -p tcp --dport 6399 -j DNAT --to-destination 192.168.127.5:6379
*filter
-A CNI-FORWARD -d 192.168.127.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""


def test_what_networks_share_is_no_leak() -> None:
    assert list(normalise_iptables(SHARED.splitlines())) == []


def test_every_line_of_a_machine_is_a_leak() -> None:
    lines = [line for line in PERSONAL.splitlines() if not line.startswith("*")]
    assert len(list(normalise_iptables(PERSONAL.splitlines()))) == len(lines)


def test_handles_and_counters_of_nftables_do_not_matter() -> None:
    rule = {"family": "inet", "table": "own", "chain": "input", "expr": [{"counter": {"packets": 1}}, {"drop": None}]}
    first = list(normalise_nftables([{"metainfo": {}}, {"rule": {**rule, "handle": 7}}]))
    again = {**rule, "handle": 9, "expr": [{"counter": {"packets": 2}}, {"drop": None}]}
    assert first == list(normalise_nftables([{"rule": again}]))
    assert len(first) == 1
    assert list(normalise_nftables([{"rule": {**rule, "family": "ip", "table": "nat"}}])) == []


def test_a_namespace_mount_is_a_leak_and_its_folder_is_not() -> None:
    shared = "42 25 0:24 /netns /run/netns rw,nosuid shared:5 - tmpfs tmpfs rw"
    leaked = "43 42 0:4 net:[4026532255] /run/netns/fb-abc rw shared:6 - nsfs nsfs rw"
    assert list(find_mounts(f"{shared}\n{leaked}\n")) == ["/run/netns/fb-abc nsfs"]


def test_a_machines_folder_is_a_leak_even_when_empty(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "state", tmp_path / "run", folders=(tmp_path / "leases",))
    (watch.run / "m").mkdir(parents=True)
    (tmp_path / "leases" / "machines").mkdir(parents=True)
    (tmp_path / "leases" / "machines" / "last_reserved_ip.0").touch()
    (watch.state / "store" / "blobs").mkdir(parents=True)
    assert list(watch.find_files()) == []
    (watch.state / "machines" / "abc").mkdir(parents=True)
    (tmp_path / "leases" / "machines" / "192.168.127.5").touch()
    assert len(list(watch.find_files())) == 2


def test_only_what_is_new_is_a_leak() -> None:
    before = {"links": frozenset({"lo", "gone"})}
    assert difference(before, {"links": frozenset({"lo", "veth1"})}) == ["links: veth1"]
