"""Whether host ports are free to be published, and who has them if not."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence

import msgspec

from firebuild.errors import ConflictError, NetworkError
from firebuild.host.deadline import Deadline
from firebuild.names import PortMapping
from firebuild.network.conflist import NetworkSettings
from firebuild.network.records import find_record, list_records
from firebuild.network.rules import list_translated_ports

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_LISTEN = "0A"
_ATTEMPTS = 1000


def choose_ports(settings: NetworkSettings, ports: Sequence[PortMapping], deadline: Deadline) -> list[PortMapping]:
    """The mappings as they can be published now: where one names no host port, with one that is free.

    Raises ConflictError naming who has a port; NetworkError for an address that is not this host's.

    Asked are the request itself, the records of other machines, the packet filter (machines of other profiles, and
    containers), and the kernel, by binding. Somebody may still take a port right afterwards.
    """
    named = [port for port in ports if port.host_port]
    for index, port in enumerate(named):
        if any(overlaps(port, other) for other in named[:index]):
            raise ConflictError(f"the host port {_name(port)} is published twice in one request")
    if not ports:
        return []
    others = list(_list_published(settings, deadline))
    for taken, owner in others:
        for port in named:
            if overlaps(port, taken):
                raise ConflictError(
                    f"the host port {_name(port)} is already published by {owner}", hint="choose another host port"
                )
    chosen: list[PortMapping] = []
    for port in ports:
        if port.host_port:
            _bind(port)
            chosen.append(port)
        else:
            chosen.append(_choose_port(port, [*chosen, *named, *(taken for taken, _ in others)]))
    return chosen


def _list_published(settings: NetworkSettings, deadline: Deadline) -> Iterator[tuple[PortMapping, str]]:
    for key in list_records(settings):
        record = find_record(settings, key)
        for taken in record.ports if record is not None else []:
            yield taken, f"the machine `{key.partition('.')[0]}`"
    for taken, owner in list_translated_ports(deadline):
        yield taken, f"`{owner}`"


def _choose_port(port: PortMapping, others: Sequence[PortMapping]) -> PortMapping:
    """The mapping with a host port that the kernel calls free and none of the others has. Raises NetworkError."""
    for _ in range(_ATTEMPTS):
        chosen = msgspec.structs.replace(port, host_port=_bind(port))
        if not any(overlaps(chosen, other) for other in others):
            return chosen
    raise NetworkError(f"no free host port was found for {port}", hint="name one")


def overlaps(one: PortMapping, other: PortMapping) -> bool:
    """Whether two mappings claim the same host port on a common address."""
    if (one.host_port, one.protocol) != (other.host_port, other.protocol):
        return False
    if not one.host_address or not other.host_address:
        return True
    first, second = ipaddress.ip_address(one.host_address), ipaddress.ip_address(other.host_address)
    if first.version != second.version:
        return False
    return first == second or first.is_unspecified or second.is_unspecified


def _name(port: PortMapping) -> str:
    address = f"[{port.host_address}]" if ":" in port.host_address else port.host_address
    return f"{address}:{port.host_port}/{port.protocol}" if address else f"{port.host_port}/{port.protocol}"


def _bind(port: PortMapping) -> int:
    """The number that the kernel lets a program listen on: the host port, or any where that is 0."""
    address = port.host_address or "0.0.0.0"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, _KINDS[port.protocol]) as probe:
        if port.protocol == "tcp":
            # Connections of a former server that wait to be forgotten (TIME_WAIT) do not count; a listener still does.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address, port.host_port))
            number: int = probe.getsockname()[1]
            return number
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                owner = find_listener(port.protocol, port.host_port) or "another program"
                raise ConflictError(
                    f"the host port {_name(port)} is already in use by {owner}", hint="choose another host port"
                ) from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise NetworkError(
                    f"the port {_name(port)} cannot be published: this host has no such address"
                ) from None
            raise NetworkError(f"the port {_name(port)} cannot be published: {error.strerror}") from error


def find_listener(protocol: str, port: int) -> str | None:
    """Which process listens on a port of this host, as "`redis-server` (pid 42)", or None. Reads /proc, proc(5)."""
    inodes: set[str] = set()
    for table in (protocol, f"{protocol}6"):
        try:
            with open(f"/proc/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            if int(row[1].rpartition(":")[2], 16) == port and (protocol == "udp" or row[3] == _LISTEN):
                inodes.add(f"socket:[{row[9]}]")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                links = [os.readlink(entry.path) for entry in entries]
            if inodes.intersection(links):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    return f"`{file.read().strip()}` (pid {pid})"
        except OSError:
            continue
    return None
