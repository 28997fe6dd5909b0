"""The metadata service's links: a veth's end stands in for a tap, and a namespace behind it for the guest."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from firebuild.emulator.faults import Fault
from firebuild.emulator.http import Response
from firebuild.emulator.log import Log
from firebuild.emulator.loop import Loop
from firebuild.emulator.mmds import Mmds
from firebuild.emulator.mmds_links import MmdsLink, close_link, open_link
from firebuild.emulator.resources import Resources
from firebuild.emulator.server import HttpServer
from firebuild.errors import NetworkError
from firebuild.host.netns import create_netns, delete_netns, run_in_netns

T = TypeVar("T")
TIMEOUT_S = 60.0
ADDRESS = "169.254.169.254"
GUEST_ADDRESS = "172.16.0.2"


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """Two namespaces: `machine` holds `tap0`, `guest` holds `eth0`, the other end of the same wire."""
    machine, guest = f"fbem-{os.getpid()}", f"fbeg-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        for name in (machine, guest):
            create_netns(name)
            stack.callback(delete_netns, name)
        run("ip", "-n", machine, "link", "add", "tap0", "type", "veth", "peer", "name", "eth0", "netns", guest)
        run("ip", "-n", machine, "link", "set", "tap0", "up")
        run("ip", "-n", guest, "addr", "add", f"{GUEST_ADDRESS}/30", "dev", "eth0")
        run("ip", "-n", guest, "link", "set", "eth0", "up")
        run("ip", "-n", guest, "route", "add", f"{ADDRESS}/32", "dev", "eth0")
        yield machine, guest


@contextlib.contextmanager
def serving(machine: str, mmds: Mmds, address: str = ADDRESS) -> Iterator[MmdsLink]:
    """The service on the machine's tap, its loop in a thread."""
    loop = Loop()
    link = run_in_netns(machine, lambda: open_link("tap0", address))
    server = HttpServer(
        loop, link.listener, name="test", body_limit=0, connection_limit=4, answer=mmds.answer,
        refuse=lambda status, message: Response(status, message.encode(), "text/plain"),
    )  # fmt: skip
    reader, writer = os.pipe()
    loop.watch(reader, 1, lambda _: loop.stop())
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield link
    finally:
        os.write(writer, b"x")
        thread.join(TIMEOUT_S)
        server.close()
        run_in_netns(machine, lambda: close_link(link))
        loop.close()
        os.close(reader)
        os.close(writer)


def ask(guest: str, method: str, path: str, headers: dict[str, str], address: str = ADDRESS) -> tuple[int, str]:
    """One request out of the guest's namespace."""

    def inside() -> tuple[int, str]:
        connection = http.client.HTTPConnection(address, 80, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    return run_in_netns(guest, inside)


def store() -> Mmds:
    mmds = Mmds(51200, "i")
    mmds.version = "V2"
    mmds.put({"latest": {"meta-data": {"VMMID": "abc"}}})
    return mmds


def fetch(guest: str, address: str = ADDRESS) -> object:
    status, token = ask(guest, "PUT", "/latest/api/token", {"X-metadata-token-ttl-seconds": "60"}, address)
    assert status == 200
    headers = {"X-metadata-token": token, "Accept": "application/json"}
    status, text = ask(guest, "GET", "/latest/meta-data", headers, address)
    assert status == 200
    return json.loads(text)


def traces(machine: str) -> str:
    """What the service adds to the machine's namespace."""
    links = "\n".join(link.split(":")[1] for link in run("ip", "-n", machine, "-o", "link").splitlines())
    return links + run("tc", "-n", machine, "qdisc", "show", "ingress") + run(
        "tc", "-n", machine, "filter", "show", "dev", "tap0", "ingress"
    )  # fmt: skip


def test_a_guest_fetches_its_metadata_and_nothing_is_left(names: tuple[str, str]) -> None:
    machine, guest = names
    before = traces(machine)
    with serving(machine, store()):
        assert fetch(guest) == {"VMMID": "abc"}
        assert ask(guest, "GET", "/latest", {})[0] == 401
        assert traces(machine) != before
    assert traces(machine) == before


def test_the_guests_own_address_on_the_machines_side_does_no_harm(names: tuple[str, str]) -> None:
    """As behind a CNI interface: the machine's namespace holds the guest's address, and redirects all the rest away."""
    machine, guest = names
    run("ip", "-n", machine, "link", "add", "eth0", "type", "veth", "peer", "name", "bridge0")
    run("ip", "-n", machine, "addr", "add", f"{GUEST_ADDRESS}/24", "dev", "eth0")
    run("ip", "-n", machine, "link", "set", "eth0", "up")
    run("tc", "-n", machine, "qdisc", "add", "dev", "tap0", "ingress")
    run(
        *f"tc -n {machine} filter add dev tap0 ingress protocol all prio 100 u32 match u32 0 0 "
        "action mirred egress redirect dev eth0".split()
    )
    before = traces(machine)
    with serving(machine, store()):
        assert fetch(guest) == {"VMMID": "abc"}
    assert traces(machine) == before


def test_another_address(names: tuple[str, str]) -> None:
    machine, guest = names
    run("ip", "-n", guest, "route", "add", "169.254.7.1/32", "dev", "eth0")
    with serving(machine, store(), "169.254.7.1"):
        assert fetch(guest, "169.254.7.1") == {"VMMID": "abc"}


def test_what_a_killed_emulator_left_is_replaced(names: tuple[str, str]) -> None:
    machine, guest = names
    run("tc", "-n", machine, "qdisc", "add", "dev", "tap0", "ingress")
    before = traces(machine)
    left = run_in_netns(machine, lambda: open_link("tap0", ADDRESS))
    # What the kernel does when the emulator is killed: the namespace goes, and the pair of links with it.
    left.listener.close()
    os.close(left.namespace)
    with serving(machine, store()):
        assert fetch(guest) == {"VMMID": "abc"}
    assert traces(machine) == before


def test_a_tap_that_is_not_there(names: tuple[str, str]) -> None:
    with pytest.raises(NetworkError, match="nope"):
        run_in_netns(names[0], lambda: open_link("nope", ADDRESS))


def in_resources(machine: str, function: Callable[[Resources], T]) -> T:
    """Call with fresh resources in the machine's namespace."""

    def inside() -> T:
        loop = Loop()
        resources = Resources(loop, Log("t"), instance_id="t", mmds_limit_bytes=100)
        try:
            return function(resources)
        finally:
            resources.close()
            loop.close()

    return run_in_netns(machine, inside)


def test_taps_are_opened_when_they_are_configured(names: tuple[str, str]) -> None:
    from firebuild.emulator.models import MmdsConfig, NetworkInterface

    machine, _ = names
    run("ip", "netns", "exec", machine, "ip", "tuntap", "add", "tap1", "mode", "tap", "vnet_hdr")

    def check(resources: Resources) -> None:
        first = NetworkInterface(iface_id="e1", host_dev_name="tap1", guest_mac="06:00:00:00:00:01")
        resources.set_net(first)
        with pytest.raises(Fault, match="Device or resource busy"):
            resources.set_net(NetworkInterface(iface_id="e2", host_dev_name="tap1"))
        with pytest.raises(Fault, match="MAC address is already in use"):
            resources.set_net(NetworkInterface(iface_id="e2", host_dev_name="t", guest_mac="06:00:00:00:00:01"))
        with pytest.raises(Fault, match="Invalid TUN/TAP Backend provided by tap0"):
            resources.set_net(NetworkInterface(iface_id="e2", host_dev_name="tap0"))
        resources.set_net(first)
        assert [net.config.iface_id for net in resources.nets] == ["e1"]
        resources.set_mmds_config(MmdsConfig(network_interfaces=["e1"], version="V2"))
        assert resources.export()["mmds-config"]["ipv4_address"] == ADDRESS
        assert [net.config.iface_id for net in resources.mmds_nets()] == ["e1"]

    in_resources(machine, check)
