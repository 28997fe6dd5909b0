"""Networks that firebuild made for its user: planned, written as CNI configurations, removed with their bridges."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import BusyError, ConflictError, NetworkError, NotFoundError, UsageError
from firebuild.host import netlink
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, remove_tree, sync_folder, write_atomic
from firebuild.host.locks import hold_lock
from firebuild.host.routes import list_routes
from firebuild.network import fence, records
from firebuild.network.attach import list_attachments
from firebuild.network.conflist import NAME_PATTERN, Network, NetworkSettings, find_network, get_network, list_networks

CNI_VERSION = "1.0.0"
# Where subnets are looked for: parts of the private ranges (RFC 1918, RFC 4193) that few hosts use.
_POOL4 = [ipaddress.ip_network(f"10.{second}.{third}.0/24") for second in (213, 214) for third in range(256)]
_NAME_MAX = 60

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


class NetworkRequest(msgspec.Struct, frozen=True):
    """What `network create` is asked for. `subnets`: at most one of each IP version; `gateways`: the bridge's addresses in
    them, else the first of each. `ipv6`: an IPv6 subnet is wanted, and chosen where none is named."""

    name: str
    subnets: Sequence[str] = ()
    gateways: Sequence[str] = ()
    ipv6: bool = False
    internal: bool = False
    isolated: bool = False
    allow: Sequence[str] = ()
    labels: Mapping[str, str] = {}


def create_network(settings: NetworkSettings, request: NetworkRequest, *, deadline: Deadline) -> Network:
    """Make a network: its configuration is written; its bridge comes with the first machine.

    Raises ConflictError, UsageError, NetworkError, HostError."""
    folder = _own_folder(settings)
    if not NAME_PATTERN.fullmatch(request.name) or len(request.name) > _NAME_MAX or request.name == "none":
        raise UsageError(f"`{request.name}` is not a network's name", hint="letters, digits, `_`, `.`, `-`; 60 at most")
    fence.parse_permit(request.allow)
    records.ensure_folders(settings, request.name)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise map_os_error(error, f"making the folder `{folder}`") from error
    with hold_lock(records.networks_lock_path(settings), "the list of networks", deadline=deadline):
        known = find_network(settings, request.name)
        if known is not None:
            raise ConflictError(f"there is a network `{request.name}` already: `{known.path}`")
        subnets = plan_subnets(request, list_taken(settings))
        document = plan_document(request, subnets, folder)
        write_atomic(folder / f"{request.name}.conflist", json.dumps(document, indent=2).encode())
    return get_network(settings, request.name)


def remove_network(settings: NetworkSettings, name: str, *, deadline: Deadline) -> None:
    """Remove a network that was created, with its bridge and address leases.

    Raises NotFoundError, ConflictError, BusyError, NetworkError, HostError."""
    network = get_network(settings, name)
    if not is_own(settings, network):
        where = "it comes with firebuild" if network.bundled else f"remove its file `{network.path}`"
        raise ConflictError(f"the network `{name}` was not made by `firebuild network create`", hint=where)
    records.ensure_folders(settings, name)
    with hold_lock(records.lock_path(settings, name), f"the network `{name}`", deadline=deadline):
        used = list_attachments(settings, name)
        if used:
            raise BusyError(f"the network `{name}` is used by the machines {', '.join(used)}", hint="stop them first")
        # The file goes last: until then the network is there, and removing it can be repeated.
        if network.bridge is not None:
            netlink.delete_link(network.bridge)
            fence.remove_bridge(network.bridge, deadline)
        remove_tree(_leases_folder(network.path.parent) / name)
        try:
            network.path.unlink(missing_ok=True)
            sync_folder(network.path.parent)
        except OSError as error:
            raise map_os_error(error, f"removing `{network.path}`") from error


def is_own(settings: NetworkSettings, network: Network) -> bool:
    """Whether `network create` made it."""
    return settings.own_dir is not None and network.path.parent == settings.own_dir


def plan_subnets(request: NetworkRequest, taken: Mapping[Subnet, str]) -> list[tuple[Subnet, str]]:
    """The subnets with the bridge's address in each. Raises UsageError, ConflictError naming who has a subnet."""
    subnets = [_parse_subnet(text) for text in request.subnets]
    if len({subnet.version for subnet in subnets}) != len(subnets):
        raise UsageError("a network has one subnet of each IP version")
    for subnet in subnets:
        for other, owner in taken.items():
            if _overlap(subnet, other):
                raise ConflictError(
                    f"the subnet `{subnet}` overlaps with `{other}` of {owner}", hint="choose another one"
                )
    if not any(subnet.version == 4 for subnet in subnets):
        free = next((each for each in _POOL4 if not any(_overlap(each, other) for other in taken)), None)
        if free is None:
            raise NetworkError("no free subnet was found", hint="name one with --subnet")
        subnets.insert(0, free)
    if request.ipv6 and not any(subnet.version == 6 for subnet in subnets):
        subnets.append(_choose_ipv6(request.name, subnets[0]))
    gateways = [_parse_gateway(text, subnets) for text in request.gateways]
    planned: list[tuple[Subnet, str]] = []
    for subnet in sorted(subnets, key=lambda each: each.version):
        named = [gateway for gateway in gateways if gateway in subnet]
        if len(named) > 1:
            raise UsageError(f"the subnet `{subnet}` has one gateway")
        planned.append((subnet, str(named[0] if named else subnet[1])))
    return planned


def _choose_ipv6(name: str, subnet: Subnet) -> Subnet:
    # RFC 4193: a random global id; here from what the network is, so that a network made anew has its old addresses.
    digest = hashlib.sha256(f"{name} {subnet}".encode()).digest()
    return ipaddress.ip_network((b"\xfd" + digest[:7] + bytes(8), 64))


def _overlap(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)


def _parse_subnet(text: str) -> Subnet:
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError:
        raise UsageError(f"`{text}` is not a subnet", hint="write for example 10.1.2.0/24 or fd12::/64") from None
    if subnet.num_addresses < 4:
        raise UsageError(f"the subnet `{text}` has no room for machines")
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or subnet.is_unspecified:
        raise UsageError(f"the subnet `{text}` is not one for machines")
    return subnet


def _parse_gateway(text: str, subnets: Sequence[Subnet]) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise UsageError(f"`{text}` is not an IP address") from None
    around = [subnet for subnet in subnets if address in subnet]
    if not around:
        raise UsageError(f"the gateway `{text}` is in no subnet of the network")
    if address == around[0].network_address or (address.version == 4 and address == around[0].broadcast_address):
        raise UsageError(f"the gateway `{text}` is not an address of one host")
    return address


def list_taken(settings: NetworkSettings) -> dict[Subnet, str]:
    """Which subnets networks and this host's routes have already, and whose they are."""
    taken: dict[Subnet, str] = {}
    for destination, device in list_routes():
        if destination.prefixlen:
            taken[destination] = f"this host's route to `{device}`"
    for network in list_networks(settings):
        for text in network.subnets:
            try:
                taken[ipaddress.ip_network(text, strict=False)] = f"the network `{network.name}`"
            except ValueError:
                continue
    return taken


def plan_document(request: NetworkRequest, subnets: Sequence[tuple[Subnet, str]], folder: Path) -> dict[str, Any]:
    """The configuration list: a bridge with NAT, published ports and a firewall; an internal network has the bridge only."""
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": bridge_name(folder, request.name),
        "isGateway": True,
        "isDefaultGateway": not request.internal,
        "ipMasq": not request.internal,
        "hairpinMode": True,
        "capabilities": {"ips": True, "mac": True},
        "ipam": {
            "type": "host-local",
            "dataDir": str(_leases_folder(folder)),
            "ranges": [[{"subnet": str(subnet), "gateway": gateway}] for subnet, gateway in subnets],
        },
    }
    plugins = [bridge]
    if not request.internal:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}, "snat": True})
    plugins.append({"type": "firewall"})
    options: dict[str, Any] = {"created_ns": time.time_ns(), "labels": dict(request.labels)}
    if request.allow:
        options["allow"] = list(request.allow)
    options |= {name: True for name, value in (("internal", request.internal), ("isolated", request.isolated)) if value}
    return {"cniVersion": CNI_VERSION, "name": request.name, "firebuild": options, "plugins": plugins}


def bridge_name(folder: Path, name: str) -> str:
    """A name for the network's bridge, of its own among all profiles'; 12 bytes of the 15 that an interface's name may have."""
    return f"fb{hashlib.sha256(f'{folder}/{name}'.encode()).hexdigest()[:10]}"


def _leases_folder(folder: Path) -> Path:
    return folder / "leases"


def _own_folder(settings: NetworkSettings) -> Path:
    if settings.own_dir is None:
        raise NotFoundError("there is no folder for networks of firebuild's own")
    return settings.own_dir
