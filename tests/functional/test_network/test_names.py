"""Machines found by name: a resolver for each network, there as long as a machine is, mended after crashes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from firebuild.host import process
from firebuild.host.identity import find_identity, wait_gone
from firebuild.host.marked import find_marked_processes
from firebuild.host.netns import run_in_netns
from firebuild.network.attach import Attachment, rename_machine, repair_names
from tests.support.network_guest import ask, resolve, start_guest

from .conftest import Host
from .test_several import create, own

MARK = "FIREBUILD_RESOLVER"


def server_of(attachment: Attachment) -> str:
    assert attachment.warnings == []
    assert attachment.resolver is not None and attachment.nameservers == [attachment.resolver]
    return attachment.resolver


def processes(host: Host, bridge: str = "machines0") -> list[int]:
    return [found.pid for found in find_marked_processes(MARK, str(host.names / bridge))]


def kill(pid: int) -> None:
    identity = find_identity(pid)
    os.kill(pid, signal.SIGKILL)
    assert identity is not None and wait_gone(identity, 20)


@contextlib.contextmanager
def serve_names(namespace: str, address: str) -> Iterator[None]:
    """A name server that answers every question with 203.0.113.9."""

    def listen() -> socket.socket:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((address, 53))
        return server

    server = run_in_netns(namespace, listen)

    def answer() -> None:
        while True:
            data, peer = server.recvfrom(2048)
            if not data:
                return
            end = data.index(b"\0", 12) + 5
            head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
            record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("203.0.113.9")
            server.sendto(head + data[12:end] + record, peer)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        server.close()


def test_machines_find_each_other(host: Host) -> None:
    before = host.warm_up()
    subprocess.run(["iptables", "-P", "INPUT", "DROP"], check=True)
    one = host.attach(names=["one", "one-host"])
    two = host.attach(names=["two", "web", "web.example"])
    server = server_of(one)
    assert server == server_of(two) == one.gateway
    with start_guest(one) as first, start_guest(two) as second:
        for guest in (first, second):
            assert resolve(guest, server, "one") == resolve(guest, server, "ONE-host") == [own(one)]
            assert resolve(guest, server, "web") == resolve(guest, server, "web.example") == [own(two)]
            assert resolve(guest, server, "nobody") is None
        third = host.attach(names=["three", "web"])
        assert resolve(first, server, "web") == sorted([own(two), own(third)])
        host.detach(two.machine_id)
        assert resolve(first, server, "web") == [own(third)]
        assert resolve(first, server, "two") is None
        rename_machine(host.settings, third.machine_id, [["tres", "web"]])
        deadline = time.monotonic() + 60
        while resolve(first, server, "tres") is None and time.monotonic() < deadline:
            pass  # Its server reads the names again when it gets to it.
        assert resolve(first, server, "tres") == resolve(first, server, "web") == [own(third)]
        assert resolve(first, server, "three") is None
        # Nothing else of the host is open by that.
        with pytest.raises(OSError):
            ask(first, server, 54, timeout_s=2)
    assert len(processes(host)) == 1
    host.detach(one.machine_id)
    host.detach(third.machine_id)
    assert processes(host) == []
    assert list(host.names.iterdir()) == []
    subprocess.run(["iptables", "-P", "INPUT", "ACCEPT"], check=True)
    assert host.snapshot() == before


def test_both_ip_versions(host: Host) -> None:
    create(host, "dual", subnets=["10.91.0.0/24", "fd91::/64"])
    one, two = host.attach("dual", names=["one"]), host.attach("dual", names=["two"])
    with start_guest(one) as first:
        server = server_of(one)
        assert resolve(first, server, "two") == [own(two)]
        assert resolve(first, server, "two", version=6) == [two.addresses[1].partition("/")[0]]


def test_other_questions_go_to_the_networks_own_servers(host: Host) -> None:
    plugins = host.bundled_plugins("machines")
    plugins[0]["dns"] = {"nameservers": [Host.OUTSIDE], "search": ["example.org"]}
    plugins[0] |= {"bridge": "named0"}
    plugins[0]["ipam"]["ranges"] = [[{"subnet": "10.92.0.0/24"}]]
    host.write_network("named", plugins)
    create(host, "inner", internal=True)
    one, inner = host.attach("named", names=["one"]), host.attach("inner", names=["inside"])
    assert one.search == ["example.org"]
    with serve_names(host.outside, Host.OUTSIDE), start_guest(one) as guest, start_guest(inner) as closed:
        assert resolve(guest, server_of(one), "www.example.org") == ["203.0.113.9"]
        # Of other networks nothing is known, and plain names are not asked for outside.
        assert resolve(guest, server_of(one), "inside") is None
        assert resolve(closed, server_of(inner), "inside") == [own(inner)]
        with contextlib.suppress(OSError):  # refused
            assert not resolve(closed, server_of(inner), "www.example.org")
        with pytest.raises(OSError):
            resolve(guest, server_of(inner), "inside", timeout_s=2)


def test_builds_and_isolated_machines_have_no_names(host: Host) -> None:
    create(host, "apart", isolated=True)
    assert host.attach("apart", names=["one"]).resolver is None
    assert host.attach("machine-builds", names=["two"], strict=True).resolver is None
    assert not host.names.exists()


def test_a_resolver_that_was_killed_is_mended(host: Host) -> None:
    one = host.attach(names=["one"])
    (first,) = processes(host)
    kill(first)
    assert repair_names(host.settings) == ["name resolver of the bridge machines0: repaired"]
    (second,) = processes(host)
    assert second != first
    assert resolve(None, server_of(one), "one") == [own(one)]
    assert repair_names(host.settings) == []
    # The next machine mends it too.
    kill(second)
    host.attach(names=["two"])
    assert resolve(None, server_of(one), "one") == [own(one)]


def test_a_resolver_whose_starter_was_killed_is_not_left(host: Host) -> None:
    one = host.attach(names=["one"])
    (place,) = [path for path in host.names.iterdir() if path.is_dir()]
    (place / "process.json").unlink()
    two = host.attach(names=["two"])
    assert len(processes(host)) == 1
    assert resolve(None, server_of(two), "one") == [own(one)]
    # The crash came when the last name was gone, before the resolver was ended.
    for name in (place / "names").iterdir():
        name.unlink()
    assert repair_names(host.settings) == ["name resolver of the bridge machines0: repaired"]
    assert (processes(host), list(host.names.iterdir())) == ([], [])


def test_a_machine_starts_where_there_can_be_no_resolver(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 53))
        taken = host.attach(names=["one"])
    assert taken.resolver is None
    assert "Address already in use" in taken.warnings[-1]
    assert processes(host) == [] and list(host.names.iterdir()) == []
    found = process.find_program
    monkeypatch.setattr(process, "find_program", lambda name: None if name == "dnsmasq" else found(name))
    missing = host.attach(names=["two"])
    assert "apt-get install dnsmasq-base" in missing.warnings[-1]
