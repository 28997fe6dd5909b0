"""The way between a tap and the metadata server: a veth pair into a nameless network namespace that owns the address.

The answers cannot come from the tap's own namespace: with traffic redirected between a CNI interface and the tap, that
namespace owns the guest's address itself. So the server listens in a namespace of its own, and u32 filters on the tap,
ahead of any other (priorities 1 and 2), take what is sent to the metadata address, and ARP for it, there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firebuild.errors import HostError

_CLONE_NEWNET = 0x40000000
_ETH_P_IP = 0x0800
_ETH_P_ARP = 0x0806
_INGRESS = 0xFFFF0000
_INGRESS_PARENT = 0xFFFF0000
_PEER_MAC = "06:01:23:45:67:01"
_INSIDE_NAME = "mmds0"
PRIORITY_IP = 1
PRIORITY_ARP = 2


@dataclass
class MmdsLink:
    """One tap's way to the server: what must be taken down again, and the listening socket."""

    tap: str
    outside: str
    listener: socket.socket
    namespace: int
    own_qdisc: bool


def open_link(tap: str, address: str) -> MmdsLink:
    """Build the way from `tap`, in this network namespace, to a listening TCP socket at `address`:80. Raises HostError."""
    try:
        with contextlib.ExitStack() as undo:
            return _open_link(tap, address, undo)
    except OSError as error:
        raise HostError(f"the metadata service cannot be joined to `{tap}`: {error}", hint="run it as root") from error
    except Exception as error:
        # pyroute2's own errors share no base class but Exception.
        if type(error).__module__.split(".")[0] != "pyroute2":
            raise
        raise HostError(f"the metadata service cannot be joined to `{tap}`: {error}") from error


def _open_link(tap: str, address: str, undo: contextlib.ExitStack) -> MmdsLink:
    from pyroute2 import IPRoute

    inside = _new_namespace()
    undo.callback(os.close, inside)
    outside = f"mmds{socket.if_nametoindex(tap)}"
    with IPRoute() as route:
        _remove_filters(route, tap)
        with contextlib.suppress(OSError):
            route.link("del", index=socket.if_nametoindex(outside))
        peer = {"ifname": _INSIDE_NAME, "net_ns_fd": inside, "address": _PEER_MAC}
        route.link("add", ifname=outside, kind="veth", peer=peer)
        undo.callback(_remove_link, outside)
        outside_index = socket.if_nametoindex(outside)
        tap_index = socket.if_nametoindex(tap)
        _silence(outside)
        route.link("set", index=outside_index, state="up")
        with _in_namespace(inside):
            listener = _configure_inside(address)
        undo.callback(listener.close)
        own_qdisc = _ensure_ingress(route, tap_index)
        _ensure_ingress(route, outside_index)
        undo.callback(_undo_tap, tap, own_qdisc)
        everything = ["0x0/0x0+0"]
        _redirect(route, outside_index, tap_index, PRIORITY_IP, _ETH_P_IP, everything)
        _redirect(route, outside_index, tap_index, PRIORITY_ARP, _ETH_P_ARP, everything)
        number = "0x" + socket.inet_aton(address).hex()
        # The destination stands at byte 16 of the IP header, the target's address at byte 24 of an ARP packet.
        _redirect(route, tap_index, outside_index, PRIORITY_IP, _ETH_P_IP, [f"{number}/0xffffffff+16"])
        _redirect(route, tap_index, outside_index, PRIORITY_ARP, _ETH_P_ARP, [f"{number}/0xffffffff+24"])
    undo.pop_all()
    return MmdsLink(tap, outside, listener, inside, own_qdisc)


def close_link(link: MmdsLink) -> None:
    """Take it down; what is gone already is fine. The namespace ends with its last descriptor. Raises HostError."""
    link.listener.close()
    os.close(link.namespace)
    _undo_tap(link.tap, link.own_qdisc)
    _remove_link(link.outside)


def _configure_inside(address: str) -> socket.socket:
    """In the second namespace: the address, a route to whoever asks, and the socket."""
    from pyroute2 import IPRoute

    with contextlib.suppress(OSError):
        # Nothing but IPv4 may come from here: no router solicitations into the guest's network.
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    with IPRoute() as route:
        index = socket.if_nametoindex(_INSIDE_NAME)
        route.link("set", index=1, state="up")
        route.addr("add", index=index, address=address, prefixlen=32)
        route.link("set", index=index, state="up")
        # The guest's address is not known here: everybody is asked for by ARP on the one link that there is.
        route.route("add", dst="0.0.0.0/0", oif=index, scope=253)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 80))
        listener.listen(16)
    except OSError:
        listener.close()
        raise
    return listener


def _ensure_ingress(route: Any, index: int) -> bool:
    """An ingress qdisc on a link; True if it was not there."""
    for qdisc in route.get_qdiscs(index=index):
        if qdisc.get_attr("TCA_KIND") in ("ingress", "clsact") and qdisc["index"] == index:
            return False
    route.tc("add", "ingress", index, _INGRESS)
    return True


def _redirect(route: Any, source: int, target: int, priority: int, protocol: int, keys: list[str]) -> None:
    action = [{"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}]
    route.tc(
        "add-filter",
        "u32",
        source,
        parent=_INGRESS_PARENT,
        prio=priority,
        protocol=protocol,
        keys=keys,
        target=0,
        action=action,
    )


def _remove_filters(route: Any, tap: str) -> None:
    """Remove our filters from a tap, also those of an emulator that was killed."""
    index = socket.if_nametoindex(tap)
    for priority, protocol in ((PRIORITY_IP, _ETH_P_IP), (PRIORITY_ARP, _ETH_P_ARP)):
        # Absent filters, an absent qdisc and an absent link all come as errors of their own.
        with contextlib.suppress(Exception):
            route.tc("del-filter", index=index, parent=_INGRESS_PARENT, info=(priority << 16) | socket.htons(protocol))


def _undo_tap(tap: str, own_qdisc: bool) -> None:
    from pyroute2 import IPRoute

    with contextlib.suppress(OSError), IPRoute() as route:
        _remove_filters(route, tap)
        if own_qdisc:
            with contextlib.suppress(Exception):
                route.tc("del", "ingress", socket.if_nametoindex(tap), _INGRESS)


def _remove_link(name: str) -> None:
    from pyroute2 import IPRoute

    with contextlib.suppress(Exception), IPRoute() as route:
        route.link("del", index=socket.if_nametoindex(name))


def _silence(name: str) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def _new_namespace() -> int:
    """A descriptor of a new network namespace without a name; the calling thread stays where it is."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _enter(own)
    finally:
        os.close(own)


@contextlib.contextmanager
def _in_namespace(descriptor: int) -> Iterator[None]:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(descriptor)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
