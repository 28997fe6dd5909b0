"""Attaching a machine to a network and detaching it: namespace, CNI chain, tap, published ports, in an order that survives kills."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import CniError, ConflictError, FirebuildError, NetworkError, NotFoundError, UsageError
from firebuild.host import netlink, netns, process
from firebuild.host.deadline import Deadline
from firebuild.host.locks import hold_lock
from firebuild.host.marked import kill_marked_processes
from firebuild.names import MachineId, PortMapping
from firebuild.network import cni, dns, fence, guard, records, resolver, rules, tap
from firebuild.network.checks import check_interface, check_subnets
from firebuild.network.conflist import Network, NetworkSettings, find_network, get_network, list_networks
from firebuild.network.ports import choose_ports
from firebuild.network.records import Attachment, Progress, Record
from firebuild.network.result import Interface, Names, parse_result

__all__ = [
    "Attachment",
    "Network",
    "NetworkSettings",
    "attach_network",
    "detach_network",
    "find_attachments",
    "find_network",
    "list_attachments",
    "list_networks",
    "rename_machine",
    "repair_names",
]

UNDO_TIMEOUT_S = 120.0


def attach_network(
    settings: NetworkSettings,
    *,
    machine_id: MachineId,
    network: str,
    number: int = 0,
    ports: Sequence[PortMapping] = (),
    addresses: Sequence[str] = (),
    tap_owner: tuple[int, int] | None = None,
    allow: Sequence[str] = (),
    strict: bool = False,
    names: Sequence[str] = (),
    bytes_per_s: int = 0,
    deadline: Deadline,
) -> Attachment:
    """Give a machine a namespace in a network, with a tap for its VMM; all of it, or none and an error.

    `number`: 0 for the machine's first network, which makes the namespace; the next ones get eth1, tap1, and so on in it.
    `addresses`: at most an IPv4 and an IPv6 one, with or without a prefix length. `tap_owner`: the (uid, gid) that may open the tap.
    `allow`: what it may reach beside what the network allows (fence.parse_permit). `strict`: it is kept from other machines on
    its bridge, and from private ranges but for its name servers. `names`: what the others in the network know it by. `bytes_per_s`: the
    most that it may send, and be sent; 0: no limit.
    A record is written first. If undoing fails as well, it stays, and detach_network can be called again.
    Raises NotFoundError, ConflictError, UsageError, CniError, NetworkError, MissingProgramError, DeadlineError, HostError.
    """
    chosen = get_network(settings, network)
    if strict and chosen.bridge is not None:
        chosen = msgspec.structs.replace(chosen, options=msgspec.structs.replace(chosen.options, isolated=True))
    permit = fence.parse_permit([*chosen.options.allow, *allow], strict=strict)
    process.get_program("nft")
    check_subnets(chosen)
    record = _plan_record(chosen, machine_id, number, ports, addresses)
    cni.check_plugins(settings.bin_dirs, chosen.plugins)
    if chosen.needs_iptables():
        process.get_program("iptables")
    records.ensure_folders(settings, network)
    with _hold_network(settings, network, deadline):
        if not chosen.path.exists():
            raise NotFoundError(f"the network `{network}` has been removed")
        if records.find_record(settings, record.key) is not None:
            raise ConflictError(f"the machine `{machine_id}` is attached to a network already")
        with hold_lock(records.ports_lock_path(settings), "the table of published ports", deadline=deadline):
            record = msgspec.structs.replace(record, ports=choose_ports(settings, record.ports, deadline))
            records.save_record(settings, record)
        try:
            return _set_up(settings, chosen, record, permit, names, addresses, tap_owner, bytes_per_s, deadline)
        except BaseException as error:
            _undo(settings, record, error)
            raise


def detach_network(settings: NetworkSettings, machine_id: MachineId, *, deadline: Deadline) -> None:
    """Take a machine out of its networks; nothing is left of it afterwards. Not attached is fine.

    Works from the record alone: after a crash at any point, after a reboot, with the namespace gone. If a plugin fails, the
    others are still run, the record is kept, and the call can be repeated.
    Raises CniError, NetworkError, MissingProgramError, DeadlineError, BusyError, HostError.
    """
    failures: list[FirebuildError] = []
    for key in reversed(records.list_records(settings, machine_id)):
        record = records.find_record(settings, key)
        if record is None:
            continue
        records.ensure_folders(settings, record.network)
        try:
            with _hold_network(settings, record.network, deadline):
                record = records.find_record(settings, key)
                if record is not None:
                    _take_down(settings, record, deadline)
        except FirebuildError as error:
            failures.append(error)
    if failures:
        raise _combine(failures)
    records.delete_halves(settings, machine_id)


def find_attachments(settings: NetworkSettings, machine_id: MachineId) -> list[Attachment]:
    """A machine's attachments that are whole, in order: the first is eth0."""
    found = [record.attachment for record in records.find_records(settings, machine_id)]
    return [attachment for attachment in found if attachment is not None]


def rename_machine(settings: NetworkSettings, machine_id: MachineId, names: Sequence[Sequence[str]]) -> None:
    """What the others in a machine's networks know it by from now on: for each of them, in order. A machine in none is fine.

    Raises NetworkError, HostError."""
    if settings.names_dir is None:
        return
    by_address = {
        str(ipaddress.ip_interface(address).ip): names[attachment.number]
        for attachment in find_attachments(settings, machine_id)
        for address in attachment.addresses
    }
    resolver.change_names(settings.names_dir, machine_id, by_address.__getitem__)


def list_attachments(settings: NetworkSettings, network: str | None = None) -> list[str]:
    """The ids of all machines that have a record, whole, half-made or half-written, sorted; or of those that have one in that network."""
    keys = records.list_records(settings)
    if network is None:
        keys += records.list_halves(settings)
    else:
        found = [records.find_record(settings, key) for key in keys]
        keys = [record.key for record in found if record is not None and record.network == network]
    return sorted({key.partition(".")[0] for key in keys})


def repair_names(settings: NetworkSettings) -> list[str]:
    """Mend the networks' name servers after a crash; a sentence for each that was mended. Raises NetworkError, HostError."""
    return resolver.repair_resolvers(settings.names_dir) if settings.names_dir is not None else []


def _hold_network(settings: NetworkSettings, network: str, deadline: Deadline) -> AbstractContextManager[None]:
    return hold_lock(records.lock_path(settings, network), f"the network `{network}`", deadline=deadline)


def _plan_record(
    network: Network, machine_id: MachineId, number: int, ports: Sequence[PortMapping], addresses: Sequence[str]
) -> Record:
    """What is to be done, or an error before anything is done."""
    if ports and not network.has_capability("portMappings"):
        raise NetworkError(
            f"the network `{network.name}` cannot publish ports",
            hint="an internal network publishes none: name another one first"
            if network.options.internal
            else "add the `portmap` plugin with the capability `portMappings` to its configuration",
        )
    ips, arguments = _plan_addresses(network, addresses)
    return Record(
        machine_id=machine_id,
        network=network.name,
        cni_version=network.cni_version,
        plugins=network.plugins,
        netns=f"fb-{machine_id}",
        ports=list(ports),
        ips=ips,
        arguments=arguments,
        number=number,
    )


def _plan_addresses(network: Network, texts: Sequence[str]) -> tuple[list[str], str]:
    plans = [_plan_address(network, text) for text in texts]
    arguments = [argument for _, argument in plans if argument]
    if len(arguments) > 1:
        raise NetworkError(
            f"the network `{network.name}` cannot give a machine two addresses of its choice",
            hint="declare the capability `ips` in its configuration, with an IPAM plugin that has it",
        )
    return [ip for ips, _ in plans for ip in ips], "".join(arguments)


def _plan_address(network: Network, text: str) -> tuple[list[str], str]:
    """How to ask for an address: by the capability `ips`, else by CNI_ARGS, which host-local and static understand."""
    try:
        wanted = ipaddress.ip_interface(text)
    except ValueError:
        raise UsageError(f"`{text}` is not an IP address") from None
    subnets = [ipaddress.ip_network(subnet, strict=False) for subnet in network.subnets]
    around = [subnet for subnet in subnets if wanted.ip in subnet]
    if subnets and not around:
        known = ", ".join(f"`{subnet}`" for subnet in subnets)
        raise NetworkError(f"the address `{wanted.ip}` is not in the network `{network.name}`", hint=f"it has {known}")
    if network.has_capability("ips"):
        return [f"{wanted.ip}/{around[0].prefixlen}" if around and "/" not in text else text], ""
    if any((plugin.get("ipam") or {}).get("type") == "host-local" for plugin in network.plugins):
        return [], f"IgnoreUnknown=1;IP={wanted.ip}"
    raise NetworkError(
        f"the network `{network.name}` cannot give a machine an address of its choice",
        hint="declare the capability `ips` in its configuration, with an IPAM plugin that has it",
    )


def _invocation(settings: NetworkSettings, record: Record) -> cni.Invocation:
    return cni.Invocation(
        network=record.network,
        cni_version=record.cni_version,
        container_id=record.machine_id,
        netns_path=str(netns.netns_path(record.netns)),
        bin_dirs=settings.bin_dirs,
        runtime=cni.RuntimeArguments(ports=tuple(record.ports), ips=tuple(record.ips)),
        interface=record.interface,
        arguments=record.arguments,
    )


def _set_up(
    settings: NetworkSettings,
    network: Network,
    record: Record,
    permit: fence.Permit,
    names: Sequence[str],
    addresses: Sequence[str],
    tap_owner: tuple[int, int] | None,
    bytes_per_s: int,
    deadline: Deadline,
) -> Attachment:
    if record.number == 0:
        netns.create_netns(record.netns)
        netns.run_in_netns(record.netns, tap.quiet_namespace)
    invocation = _invocation(settings, record)
    result: dict[str, Any] = {}
    others = records.list_others(settings, record)
    for index, plugin in enumerate(record.plugins):
        records.save_progress(settings, record.key, Progress(result or None))
        answer = cni.add_plugin(invocation, plugin, result or None, deadline)
        # A result is kept for DEL only if it still says what the plugins before it need then: the addresses.
        if index == len(record.plugins) - 1 or _known_addresses(record.network, result):
            check_interface(network, record, parse_result(record.network, answer), others)
        result = answer
    records.save_progress(settings, record.key, Progress(result))
    interface = parse_result(record.network, result)
    for address in addresses:
        _check_address(record.network, interface, address)
    _check_families(record, interface)
    if network.options.isolated:
        _isolate(network, interface)
    served, warnings = _load_names(interface)
    if permit.strict:
        permit = msgspec.structs.replace(permit, ranges=(*permit.ranges, *served.nameservers))
    address_of_resolver = None
    if names and not permit.strict:
        address_of_resolver, trouble = _serve_names(settings, network, record, interface, names, deadline)
        if address_of_resolver is not None:
            served, warnings = msgspec.structs.replace(served, nameservers=[address_of_resolver]), []
        warnings += trouble
    mac = _find_mac(record)
    place = _plan_place(network, record, interface, mac, address_of_resolver)
    fence.raise_fence(place, permit, deadline)

    def plan(mac: str) -> list[guard.Filter]:
        return guard.plan_guard(mac, interface.addresses, metadata=permit.metadata, spoofing=permit.spoofing)

    link = netns.run_in_netns(
        record.netns,
        lambda: tap.join_tap(record.interface, record.tap, owner=tap_owner, plan=plan, bytes_per_s=bytes_per_s),
    )
    if record.ports:
        rules.accept_published(record.machine_id, interface.addresses, deadline)
    attachment = Attachment(
        machine_id=record.machine_id,
        network=record.network,
        netns=record.netns,
        netns_path=str(netns.netns_path(record.netns)),
        interface=record.interface,
        tap=record.tap,
        mac=link.mac,
        addresses=interface.addresses,
        gateway=None if network.options.internal else interface.gateway,
        gateway6=None if network.options.internal else interface.gateway6,
        mtu=link.mtu,
        nameservers=served.nameservers,
        search=served.search,
        options=served.options,
        host_interface=interface.host_interface,
        ports=record.ports,
        cni_version=record.cni_version,
        warnings=warnings,
        number=record.number,
        resolver=address_of_resolver,
    )
    records.save_record(settings, msgspec.structs.replace(record, result=result, attachment=attachment))
    records.delete_progress(settings, record.key)
    return attachment


def _check_address(network: str, interface: Interface, address: str) -> None:
    given = [ipaddress.ip_interface(each).ip for each in interface.addresses]
    if ipaddress.ip_interface(address).ip not in given:
        raise NetworkError(
            f"the network `{network}` gave the machine {given[0]} instead of the address `{address}` that was asked for"
        )


def _check_families(record: Record, interface: Interface) -> None:
    """A port on an IPv6 address of the host leads to an IPv6 address of the guest: plugins pass over others without a word."""
    versions = {ipaddress.ip_interface(each).version for each in interface.addresses}
    for port in record.ports:
        if port.host_address == "::1":
            raise NetworkError(
                f"the port {port} cannot be published: Linux does not route IPv6's loopback",
                hint="publish it on 127.0.0.1",
            )
        if port.host_address and ipaddress.ip_address(port.host_address).version not in versions:
            raise NetworkError(
                f"the port {port} cannot be published: the network `{record.network}` has no such addresses",
                hint="an IPv6 address of the host needs a network with IPv6",
            )


def _find_mac(record: Record) -> str:
    if not netns.run_in_netns(record.netns, lambda: _has_interface(record.interface)):
        raise NetworkError(
            f"the network `{record.network}`: its plugins tell of success, but made no interface `{record.interface}`"
        )
    return netns.run_in_netns(record.netns, lambda: netlink.get_link(record.interface)).mac


def _serve_names(
    settings: NetworkSettings,
    network: Network,
    record: Record,
    interface: Interface,
    names: Sequence[str],
    deadline: Deadline,
) -> tuple[str | None, list[str]]:
    """The address of the network's name server, which knows the machine now, or None and why not. A network whose bridge has
    no address of the host's has none, and no isolated one: nobody there could be asked for."""
    listen = interface.gateway or interface.gateway6
    if settings.names_dir is None or network.bridge is None or not network.host_is_gateway or listen is None:
        return None, []
    if network.options.isolated:
        return None, []
    servers = [server for server in interface.names.nameservers if dns.is_address(server)]
    config = resolver.Resolver(network.bridge, listen, servers or None, closed=network.options.internal)
    trouble = resolver.add_names(settings.names_dir, config, record.machine_id, interface.addresses, names)
    if trouble is not None:
        return None, [trouble]
    rules.accept_questions(record.machine_id, interface.addresses, listen, deadline)
    return listen, []


def _plan_place(
    network: Network, record: Record, interface: Interface, mac: str, resolver_address: str | None
) -> fence.Place:
    own = [str(ipaddress.ip_interface(each).ip) for each in interface.addresses]
    if any(":" in each for each in own):
        own.append(str(guard.link_local(mac)))
    options = network.options
    return fence.Place(
        record.machine_id,
        tuple(own),
        network.bridge,
        internal=options.internal,
        isolated=options.isolated,
        resolver=resolver_address,
    )


def _isolate(network: Network, interface: Interface) -> None:
    """Keep the machine from all others on its bridge; the kernel's own word that it is so."""
    if network.bridge is None or not interface.host_interface:
        raise NetworkError(f"the network `{network.name}` cannot isolate machines: it has no bridge")
    link = netlink.get_link(interface.host_interface)
    netlink.isolate_bridge_port(link)
    if not netlink.is_isolated(link.name):
        raise NetworkError(f"the network `{network.name}`: the kernel did not isolate the bridge's port `{link.name}`")


def _load_names(interface: Interface) -> tuple[Names, list[str]]:
    versions = {ipaddress.ip_interface(each).version for each in interface.addresses}
    return dns.plan_names(
        interface.names,
        dns.load_names(dns.RESOLV_CONF) or Names(),
        dns.load_names(dns.UPSTREAM_RESOLV_CONF),
        has_ipv4=4 in versions,
        has_ipv6=6 in versions,
    )


def _undo(settings: NetworkSettings, record: Record, error: BaseException) -> None:
    """Take down what a failed or interrupted attach made; a second failure is told with the first."""
    try:
        _take_down(settings, record, Deadline(UNDO_TIMEOUT_S, f"undoing the attachment of `{record.machine_id}`"))
    except FirebuildError as second:
        told = f"undoing it failed too: {second.message}; its record is kept, and `firebuild purge` tries again"
        if isinstance(error, FirebuildError):
            error.details = f"{error.details}\n{told}" if error.details else told
        else:
            error.add_note(told)


def _take_down(settings: NetworkSettings, record: Record, deadline: Deadline) -> None:
    machine_id = record.machine_id
    progress = records.find_progress(settings, record.key)
    # Something went wrong before: then plugins may still run, or may be unable to find all that they made.
    unclean = progress is not None or record.attachment is None
    if unclean and not kill_marked_processes("CNI_CONTAINERID", machine_id):
        raise NetworkError(f"a CNI plugin that was started for `{machine_id}` does not end")
    result = record.result or (progress.result if progress is not None else None)
    if not _is_mounted(netns.netns_path(record.netns)):
        # Plugins do more when there is a namespace to look into: an empty one stands in.
        netns.delete_netns(record.netns)
        netns.create_netns(record.netns)
    unclean = unclean or not netns.run_in_netns(record.netns, lambda: _has_interface(record.interface))
    records.save_progress(settings, record.key, Progress(result))
    failures = _delete_all(_invocation(settings, record), record, result, deadline)
    if record.ports:
        rules.remove_accept_published(machine_id, _known_addresses(record.network, result), deadline)
    if record.attachment is not None and record.attachment.resolver is not None:
        rules.remove_accept_questions(machine_id, record.attachment.addresses, record.attachment.resolver, deadline)
    if settings.names_dir is not None:
        resolver.remove_names(settings.names_dir, machine_id)
    fence.lower_fence(machine_id, deadline)
    if failures:
        raise _combine(failures)
    if unclean:
        rules.sweep_rules(machine_id, deadline)
    if records.list_records(settings, machine_id) == [record.key]:
        netns.delete_netns(record.netns)
    records.delete_record(settings, record.key)


def _known_addresses(network: str, result: dict[str, Any] | None) -> list[str]:
    try:
        return parse_result(network, result or {}).addresses
    except NetworkError:
        return []  # Then no rule was made.


def _delete_all(
    invocation: cni.Invocation, record: Record, result: dict[str, Any] | None, deadline: Deadline
) -> list[FirebuildError]:
    """DEL by every plugin, last first; what failed. One that fails is tried twice.

    The bridge plugin up to 1.1.1 fails on DEL when its ADD did not get as far as masquerading, and succeeds when asked again.
    """
    failures: list[FirebuildError] = []
    for plugin in reversed(record.plugins):
        try:
            try:
                cni.delete_plugin(invocation, plugin, result, deadline)
            except CniError:
                cni.delete_plugin(invocation, plugin, result, deadline)
        except FirebuildError as error:
            failures.append(error)
    return failures


def _combine(failures: list[FirebuildError]) -> FirebuildError:
    first = failures[0]
    others = [f"and: {failure.message}" for failure in failures[1:]]
    first.details = "\n".join([*([first.details] if first.details else []), *others]) or None
    if first.hint is None:
        first.hint = "the record of the attachment is kept: call again once the plugin works"
    return first


def _has_interface(wanted: str) -> bool:
    """Whether the plugins' interface is in this thread's namespace: from it they read what to undo."""
    return any(name == wanted for _, name in socket.if_nameindex())


def _is_mounted(path: Path) -> bool:
    """Whether a namespace is bound there; a crash can leave the bare file."""
    try:
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except OSError:
        return False
