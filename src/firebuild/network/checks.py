"""Whether a network can be what it says: its subnets against the host's routes, a plugin's addresses against everything known."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from firebuild.errors import ConflictError, NetworkError
from firebuild.host.routes import list_routes
from firebuild.network.conflist import Network
from firebuild.network.records import Attachment, Record
from firebuild.network.result import Interface


def check_subnets(network: Network) -> None:
    """Raises ConflictError where the host has a route to a part of the network's subnets that leads elsewhere.

    A wider route is none of them: the network's own wins over it.
    """
    subnets = _parse_subnets(network)
    for destination, device in list_routes() if network.bridge is not None else ():
        if device == network.bridge or destination.prefixlen == destination.max_prefixlen:
            continue
        for subnet in subnets:
            if subnet.version != destination.version or not subnet.overlaps(destination):
                continue
            if destination.prefixlen >= subnet.prefixlen:
                raise ConflictError(
                    f"the subnet `{subnet}` of the network `{network.name}` overlaps with this host's route to `{device}`",
                    hint=f"give the network another subnet: {network.path}"
                    if not network.bundled
                    else f"copy `{network.path}` to a folder of --cni-conf-dir, and give it another subnet there",
                )


def check_interface(network: Network, record: Record, interface: Interface, others: Sequence[Attachment]) -> None:
    """Raises NetworkError for an address that the plugins gave and that cannot be this machine's."""
    subnets = _parse_subnets(network)
    taken = {ipaddress.ip_interface(text).ip: each for each in others for text in each.addresses}
    gateways = [ipaddress.ip_address(each) for each in (interface.gateway, interface.gateway6) if each is not None]
    for text in interface.addresses:
        given = ipaddress.ip_interface(text)
        address, around = given.ip, given.network
        wrong = None
        ends = (around.network_address, around.broadcast_address) if around.num_addresses > 2 else ()
        unfit = address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local
        if unfit or address in ends:
            wrong = "no machine's"
        elif address in gateways:
            wrong = "the gateway's"
        elif address in taken:
            wrong = f"that of the machine `{taken[address].machine_id}`"
        elif subnets and not any(address in subnet for subnet in subnets):
            wrong = "in none of its subnets"
        if wrong is not None:
            raise NetworkError(
                f"the network `{record.network}`: its plugins gave the machine {address}, which is {wrong}",
                hint="mend its configuration, or the plugin that hands out addresses",
            )


def _parse_subnets(network: Network) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    found: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for text in network.subnets:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            continue  # The plugin that reads it says so.
    return found
