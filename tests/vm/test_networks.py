"""Real guests in networks of their own: several interfaces, one way out."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from tests.support.cli import Cli
from tests.vm.conftest import BASE


def test_two_machines_in_networks_of_their_own(cli: Cli) -> None:
    try:
        _try_networks(cli)
    finally:
        cli.clean()
        cli.ok("network", "prune")
    assert not {"inner", "outer"} & set(cli.ok("network", "ls", "-q").split())


def _try_networks(cli: Cli) -> None:
    cli.ok("network", "create", "outer", "--ipv6", "--subnet", "fd20:1::/64")
    assert cli.ok("network", "create", "inner", "--internal", "--subnet", "10.201.7.0/24").strip() == "inner"
    sleep = ("--from", BASE, "--", "sleep", "1000")
    cli.ok(
        "run", "-d", "--name", "net1", "--network", "inner:ip=10.201.7.70", "--network", "outer:ip6=fd20:1::7", *sleep
    )
    cli.ok("run", "-d", "--name", "net2", "--network", "inner:alias=second", "--network-alias", "the-other", *sleep)
    look = 'for name in net1 NET1 net2 second the-other; do getent ahostsv4 "$name" | head -n 1; done'
    first, second = "10.201.7.70", cli.json("inspect", "net2")["NetworkInterfaces"][0]["Addresses"][0].partition("/")[0]
    for machine in ("net1", "net2"):
        seen = [line.split()[0] for line in cli.ok("exec", machine, "--", "sh", "-c", look).splitlines()]
        assert seen == [first, first, second, second, second]
    assert "is named twice" in cli.refused("run", "--network", "inner", "--network", "inner", *sleep).stderr
    routes = [line.split() for line in cli.ok("exec", "net1", "--", "cat", "/proc/net/route").splitlines()[1:]]
    assert [route[0] for route in routes if route[1] == "00000000"] == ["eth1"]
    assert {route[0] for route in routes} == {"eth0", "eth1"}
    # The second machine has no way out, and reaches the first.
    routes = [line.split() for line in cli.ok("exec", "net2", "--", "cat", "/proc/net/route").splitlines()[1:]]
    assert "00000000" not in [route[1] for route in routes]
    listen = "exec 3<>/dev/tcp/10.201.7.70/22 2>&1"
    assert "refused" in cli.run("exec", "net2", "--", "bash", "-c", listen).stderr
    _attack_from_a_guest(cli)
    # Over IPv6 the machine is there, with nobody at that port, and has one way out.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("fd20:1::7", 22), timeout=60)
    routes = [line.split() for line in cli.ok("exec", "net1", "--", "cat", "/proc/net/ipv6_route").splitlines()]
    ways = {(route[4], route[9]) for route in routes if route[:2] == ["0" * 32, "00"] and route[9] != "lo"}
    assert ways == {(f"{int(ipaddress.IPv6Address('fd20:1::1')):032x}", "eth1")}
    interfaces = cli.json("inspect", "net1")["NetworkInterfaces"]
    assert [each["StaticConfiguration"]["IPConfiguration"]["NetName"] for each in interfaces] == ["inner", "outer"]
    assert interfaces[0]["Addresses"] == ["10.201.7.70/24"]
    names = {machine["Name"] for machine in cli.json("network", "inspect", "inner")["Machines"].values()}
    assert names == {"net1", "net2"}
    assert "stop them first" in cli.refused("network", "rm", "inner").stderr


def _attack_from_a_guest(cli: Cli) -> None:
    """The host's services and a cloud's metadata, tried from a real guest; its own metadata service answers."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        script = (
            f'try() {{ timeout 5 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null && echo open || echo closed; }}; '
            f"try fd20:1::1 {port}; try 169.254.170.2 80; try 169.254.169.254 80; try 10.201.7.1 {port}"
        )
        seen = cli.ok("exec", "net1", "--", "bash", "-c", script).split()
        assert seen == ["closed", "closed", "open", "closed"]
