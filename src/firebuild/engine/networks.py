"""Use cases: networks listed, described, made and removed."""

from __future__ import annotations

from typing import Any

import msgspec

from firebuild.engine.core import Engine
from firebuild.errors import BusyError, FirebuildError
from firebuild.host.deadline import Deadline
from firebuild.network.attach import find_attachments
from firebuild.network.conflist import Network, get_network, list_networks
from firebuild.network.own import NetworkRequest, create_network, is_own, remove_network

_LOCK_S = 60.0


class NetworkView(msgspec.Struct, frozen=True):
    """A network for people. `origin`: shipped, created or yours (a file of the user's). `machines`: the ids of those that are to be
    in it, whether they run or not."""

    network: Network
    origin: str
    machines: list[str]


def view_networks(engine: Engine) -> list[NetworkView]:
    """All networks, by name."""
    return [_view(engine, network) for network in list_networks(engine.networks)]


def get_view(engine: Engine, name: str) -> NetworkView:
    """One network. Raises NotFoundError, NetworkError."""
    return _view(engine, get_network(engine.networks, name))


def _view(engine: Engine, network: Network) -> NetworkView:
    origin = "shipped" if network.bundled else "created" if is_own(engine.networks, network) else "yours"
    machines = [
        str(record.spec.id)
        for record in engine.machines.records.list_all(kind=None)
        if any(join.network == network.name for join in record.spec.networks)
    ]
    return NetworkView(network, origin, machines)


def describe_network(engine: Engine, name: str) -> dict[str, Any]:
    """Everything about a network. Raises NotFoundError, NetworkError."""
    view = get_view(engine, name)
    network, options = view.network, view.network.options
    ipam = [plugin["ipam"] for plugin in network.plugins if isinstance(plugin.get("ipam"), dict)]
    return {
        "Name": network.name,
        "Origin": view.origin,
        "Path": str(network.path),
        "CNIVersion": network.cni_version,
        "Plugins": network.plugin_types,
        "Bridge": network.bridge or "",
        "Subnets": network.subnets,
        "IPAM": ipam,
        "Internal": options.internal,
        "Isolated": options.isolated,
        "Allow": list(options.allow),
        "Labels": dict(options.labels),
        "CreatedAtUTC": options.created_ns // 10**9 or None,
        "Machines": {machine: _describe_place(engine, machine, name) for machine in view.machines},
    }


def _describe_place(engine: Engine, machine: str, network: str) -> dict[str, Any]:
    record = engine.machines.records.get(machine)
    places = [each for each in find_attachments(engine.networks, record.spec.id) if each.network == network]
    place: dict[str, Any] = {"Name": record.spec.name, "Interface": "", "MacAddress": "", "Addresses": []}
    if places:
        place |= {"Interface": places[0].interface, "MacAddress": places[0].mac, "Addresses": places[0].addresses}
    return place


def create(engine: Engine, request: NetworkRequest) -> Network:
    """Make a network. Raises ConflictError, UsageError, NetworkError, HostError."""
    engine.layout.ensure()
    return create_network(engine.networks, request, deadline=Deadline(_LOCK_S, "making the network"))


def remove(engine: Engine, name: str) -> None:
    """Remove a network that was created. Raises NotFoundError, ConflictError, BusyError, NetworkError."""
    remove_network(engine.networks, name, deadline=Deadline(_LOCK_S, "removing the network"))


def prune(engine: Engine) -> tuple[list[str], list[FirebuildError]]:
    """Remove the created networks that no machine is to be in: their names, and the failures met."""
    engine.repair(quick=True)
    removed: list[str] = []
    failures: list[FirebuildError] = []
    for view in view_networks(engine):
        if view.origin != "created" or view.machines:
            continue
        try:
            remove(engine, view.network.name)
            removed.append(view.network.name)
        except BusyError:
            continue  # A machine has just come.
        except FirebuildError as error:
            failures.append(error)
    return removed, failures
