"""The routes of this thread's network namespace, as /proc tells them (proc(5): net/route; net/ipv6_route)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

_UP = 0x1


def list_routes() -> Iterator[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str]]:
    """Destination and interface of each route in the main table; IPv6's without those of the loopback and link-local ones."""
    for line in _read("route")[1:]:
        device, destination, _, flags, _, _, _, mask = line.split()[:8]
        if int(flags, 16) & _UP:
            address = socket.inet_ntoa(struct.pack("=I", int(destination, 16)))
            yield ipaddress.ip_network((address, bin(int(mask, 16)).count("1"))), device
    for line in _read("ipv6_route"):
        fields = line.split()
        network = ipaddress.ip_network((bytes.fromhex(fields[0]), int(fields[1], 16)))
        if fields[9] != "lo" and not network.is_link_local and not network.is_multicast:
            yield network, fields[9]


def _read(name: str) -> list[str]:
    try:
        with open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []  # a kernel without IPv6
