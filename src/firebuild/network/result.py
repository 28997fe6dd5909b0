"""What a CNI result says of a machine's interface (CNI specification 1.1.0, section 5; older ips with `version`)."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from firebuild.errors import NetworkError


class _Interface(msgspec.Struct):
    name: str
    sandbox: str = ""


class _Address(msgspec.Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _Route(msgspec.Struct):
    dst: str
    gw: str | None = None


class Names(msgspec.Struct, frozen=True):
    """Name resolution: `nameservers` are IP addresses, `search` domains, `options` as in resolv.conf(5)."""

    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []


class _Result(msgspec.Struct):
    interfaces: list[_Interface] = []
    ips: list[_Address] = []
    routes: list[_Route] = []
    dns: Names = msgspec.field(default_factory=Names)


class Interface(msgspec.Struct, frozen=True):
    """The machine's side: `addresses` in CIDR form, IPv4 first; `host_interface`: the veth's name on the host, or empty."""

    addresses: list[str]
    gateway: str | None
    gateway6: str | None
    host_interface: str
    names: Names


def parse_result(network: str, document: dict[str, Any]) -> Interface:
    """Read the last plugin's result. Raises NetworkError if it is malformed or gives the machine no address."""
    try:
        result = msgspec.convert(document, _Result)
        own = [entry for entry in result.ips if _is_inside(result, entry)]
        addresses = sorted((ipaddress.ip_interface(entry.address) for entry in own), key=lambda each: each.version)
        gateways = [ipaddress.ip_address(entry.gateway) for entry in own if entry.gateway]
        for route in result.routes:
            if route.gw and ipaddress.ip_network(route.dst, strict=False).prefixlen == 0:
                gateways.append(ipaddress.ip_address(route.gw))
    except (msgspec.ValidationError, ValueError, IndexError) as error:
        raise NetworkError(f"the network `{network}`: its plugins returned a malformed result: {error}") from error
    if not addresses:
        raise NetworkError(
            f"the network `{network}` gave the machine no IP address", hint="its configuration needs an `ipam` section"
        )
    outside = [interface.name for interface in result.interfaces if not interface.sandbox]
    return Interface(
        addresses=[str(address) for address in addresses],
        gateway=next((str(gateway) for gateway in gateways if gateway.version == 4), None),
        gateway6=next((str(gateway) for gateway in gateways if gateway.version == 6), None),
        # The bridge plugin lists the bridge, then the veth; ptp lists the veth alone.
        host_interface=outside[-1] if outside else "",
        names=result.dns,
    )


def _is_inside(result: _Result, entry: _Address) -> bool:
    if entry.interface is None:
        return True
    if entry.interface < 0:
        raise IndexError(f"`ips` names the interface number {entry.interface}")
    return bool(result.interfaces[entry.interface].sandbox)
