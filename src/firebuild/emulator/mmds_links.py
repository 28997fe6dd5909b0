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

from firebuild.errors import NetworkError
from firebuild.host import netlink, tc

_CLONE_NEWNET = 0x40000000
_PEER_MAC = "06:01:23:45:67:01"
_INSIDE_NAME = "mmds0"
PRIORITY_IP = 1
PRIORITY_ARP = 2
# Where the receiver's address stands in an IPv4 header (RFC 791) and in an ARP packet for IPv4 over Ethernet (RFC 826).
_IP_DESTINATION_OFFSET = 16
_ARP_TARGET_OFFSET = 24


@dataclass(frozen=True)
class MmdsLink:
    """One tap's way to the server: the listening socket, the namespace that it is in, and what takes all down again."""

    listener: socket.socket
    namespace: int
    undo: contextlib.ExitStack


def open_link(tap: str, address: str) -> MmdsLink:
    """Build the way from `tap`, in this network namespace, to a listening TCP socket at `address`:80. Raises NetworkError."""
    subject = f"the metadata service cannot be joined to `{tap}`"
    try:
        with contextlib.ExitStack() as undo:
            listener, namespace = _open_link(tap, address, undo)
            return MmdsLink(listener, namespace, undo.pop_all())
    except OSError as error:
        raise NetworkError(f"{subject}: {error}", hint="run it as root") from error
    except NetworkError as error:
        raise NetworkError(f"{subject}: {error}", hint=error.hint) from error


def _open_link(tap_name: str, address: str, undo: contextlib.ExitStack) -> tuple[socket.socket, int]:
    inside = _new_namespace()
    undo.callback(os.close, inside)
    tap = netlink.get_link(tap_name)
    outside_name = f"mmds{tap.index}"
    netlink.delete_link(outside_name)  # of an emulator that was killed
    netlink.add_veth_pair(outside_name, peer=_INSIDE_NAME, peer_mac=_PEER_MAC, peer_netns=inside)
    undo.callback(netlink.delete_link, outside_name)
    outside = netlink.get_link(outside_name)
    _silence(outside_name)
    netlink.set_link_up(outside)
    with _in_namespace(inside):
        listener = _configure_inside(address)
    undo.callback(listener.close)
    if tc.ensure_ingress_qdisc(tap):
        undo.callback(tc.delete_ingress_qdisc, tap)
    else:
        _remove_filters(tap)  # of an emulator that was killed
        undo.callback(_remove_filters, tap)
    tc.ensure_ingress_qdisc(outside)
    tc.add_redirect_filter(outside, tap, priority=PRIORITY_IP, protocol=tc.ETH_P_IP)
    tc.add_redirect_filter(outside, tap, priority=PRIORITY_ARP, protocol=tc.ETH_P_ARP)
    number = int.from_bytes(socket.inet_aton(address))
    to_address = tc.Match(number, 0xFFFFFFFF, _IP_DESTINATION_OFFSET)
    for_address = tc.Match(number, 0xFFFFFFFF, _ARP_TARGET_OFFSET)
    tc.add_redirect_filter(tap, outside, priority=PRIORITY_IP, protocol=tc.ETH_P_IP, match=to_address)
    tc.add_redirect_filter(tap, outside, priority=PRIORITY_ARP, protocol=tc.ETH_P_ARP, match=for_address)
    return listener, inside


def close_link(link: MmdsLink) -> None:
    """Take it down; what is gone already is fine. The namespace ends with its last descriptor. Raises NetworkError."""
    link.undo.close()


def _configure_inside(address: str) -> socket.socket:
    """In the second namespace: the address, a route to whoever asks, and the socket."""
    with contextlib.suppress(OSError):
        # Nothing but IPv4 may come from here: no router solicitations into the guest's network.
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    netlink.set_link_up(netlink.get_link("lo"))
    inside = netlink.get_link(_INSIDE_NAME)
    netlink.add_address(inside, address, 32)
    netlink.set_link_up(inside)
    # The guest's address is not known here: everybody is asked for by ARP on the one link that there is.
    netlink.add_link_route(inside, "0.0.0.0", 0)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 80))
        listener.listen(16)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_filters(tap: netlink.Link) -> None:
    for priority, protocol in ((PRIORITY_IP, tc.ETH_P_IP), (PRIORITY_ARP, tc.ETH_P_ARP)):
        tc.delete_filters(tap, priority=priority, protocol=protocol)


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
