"""The fence between guests and what is not theirs to reach: the host, other networks, private ranges. One nftables table.

Its chains only ever refuse: what they let pass, the host's other rules still decide on. A guest is known by its addresses,
which its tap guarantees. Every attach writes the table anew in one transaction, so that a flushed packet filter is
mended, and elements bear the machine's id, so that what a crash left is found.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from firebuild.errors import NetworkError, UsageError
from firebuild.host import process
from firebuild.host.deadline import Deadline
from firebuild.names import ALLOW_WORDS

_TABLE = "inet firebuild"
_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
# RFC 1918, 6598 and 4193.
_PRIVATE = {4: "{ 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 }", 6: "{ fc00::/7 }"}
# guests: all; hosts: may reach the host; crossers: may reach other networks; strict: may not reach private ranges.
_GUEST_SETS = ("guests", "hosts", "crossers", "strict")
_PREFIX = {4: "ip", 6: "ip6"}
_REFUSE = "reject with icmpx type admin-prohibited"


class Permit(msgspec.Struct, frozen=True):
    """What a guest may reach beside the outside and its own network. `ranges`: addresses of any kind, the host's included.

    `strict`: private ranges are closed too, but for `ranges` and where `private` opens them.
    """

    host: bool = False
    networks: bool = False
    private: bool = False
    metadata: bool = False
    spoofing: bool = False
    strict: bool = False
    ranges: tuple[str, ...] = ()


def parse_permit(words: Sequence[str], *, strict: bool = False) -> Permit:
    """From words of an `allow` list: one of ALLOW_WORDS, or an address or range. Raises UsageError."""
    ranges: list[str] = []
    for word in words:
        if word in ALLOW_WORDS:
            continue
        try:
            ranges.append(str(ipaddress.ip_network(word, strict=False)))
        except ValueError:
            raise UsageError(
                f"`{word}` is not something that a network can allow",
                hint=f"{', '.join(ALLOW_WORDS)}, or an address or range",
            ) from None
    return Permit(strict=strict, ranges=tuple(ranges), **{word: True for word in ALLOW_WORDS if word in words})


class Place(msgspec.Struct, frozen=True):
    """Where a guest is. `addresses`: without prefix lengths. `bridge`: None where the network has none. `resolver`: the
    host's address at which the network's names are served."""

    machine_id: str
    addresses: tuple[str, ...]
    bridge: str | None
    internal: bool = False
    isolated: bool = False
    resolver: str | None = None


def raise_fence(place: Place, permit: Permit, deadline: Deadline) -> None:
    """Put a guest behind the fence; what another one with its addresses had is gone. Raises NetworkError, MissingProgramError."""
    _apply(
        [*_plan_table(), *_plan_bridge(place), *_plan_removal(place.addresses), *_plan_guest(place, permit)], deadline
    )


def lower_fence(machine_id: str, deadline: Deadline) -> None:
    """Forget all that bears a machine's id, whatever its addresses were; absent is fine. Raises NetworkError."""
    if process.find_program("nft") is None:
        return  # Without the program nothing can have been made.
    lines = _find_elements(machine_id, deadline)
    if lines:
        _apply(lines, deadline)


def remove_bridge(bridge: str, deadline: Deadline) -> None:
    """Forget a network's bridge. Raises NetworkError."""
    if process.find_program("nft") is None:
        return
    lines = _plan_table()
    for name, element in (
        ("bridges", f'"{bridge}"'),
        ("internals", f'"{bridge}"'),
        ("same", f'"{bridge}" . "{bridge}"'),
    ):
        lines += _plan_absent(name, element)
    _apply(lines, deadline)


def _plan_table() -> list[str]:
    lines = [f"add table {_TABLE}"]
    for version, kind in _TYPES.items():
        lines += [f"add set {_TABLE} {name}{version} {{ type {kind}; }}" for name in _GUEST_SETS]
        lines.append(f"add set {_TABLE} ranges{version} {{ type {kind} . {kind}; flags interval; }}")
        lines.append(f"add set {_TABLE} servers{version} {{ type ifname . {kind}; }}")
    lines += [f"add set {_TABLE} {name} {{ type ifname; }}" for name in ("bridges", "internals")]
    lines.append(f"add set {_TABLE} same {{ type ifname . ifname; }}")
    chains = {"input": _plan_input(), "forward": _plan_forward(), "to-host": _plan_to_host(), "out": _plan_out()}
    for chain in chains:
        hook = f"{{ type filter hook {chain} priority -10; policy accept; }}" if chain in ("input", "forward") else ""
        lines += [f"add chain {_TABLE} {chain} {hook}", f"flush chain {_TABLE} {chain}"]
    return lines + [f"add rule {_TABLE} {chain} {rule}" for chain, rules in chains.items() for rule in rules]


def _plan_input() -> Iterator[str]:
    for version, prefix in _PREFIX.items():
        yield f"{prefix} saddr @guests{version} jump to-host"


def _plan_forward() -> Iterator[str]:
    for version, prefix in _PREFIX.items():
        yield f"{prefix} saddr @guests{version} jump out"
    yield "iifname . oifname @same accept"
    yield f"oifname @internals ct state new {_REFUSE}"


def _plan_to_host() -> Iterator[str]:
    yield "ct state established,related accept"
    yield "icmp type echo-request accept"
    yield "icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept"
    for version, prefix in _PREFIX.items():
        yield f"iifname . {prefix} daddr @servers{version} meta l4proto {{ tcp, udp }} th dport 53 accept"
        yield f"{prefix} saddr @hosts{version} accept"
        yield f"{prefix} saddr . {prefix} daddr @ranges{version} accept"
    yield _REFUSE


def _plan_out() -> Iterator[str]:
    yield "ct state established,related accept"
    yield "iifname . oifname @same accept"
    yield f"iifname @internals {_REFUSE}"
    for version, prefix in _PREFIX.items():
        yield f"{prefix} saddr . {prefix} daddr @ranges{version} accept"
    for version, prefix in _PREFIX.items():
        yield f"{prefix} saddr @strict{version} {prefix} daddr {_PRIVATE[version]} {_REFUSE}"
    # A published port, reached by the host's address.
    yield "ct status dnat accept"
    for version, prefix in _PREFIX.items():
        yield f"{prefix} saddr @crossers{version} accept"
    yield f"oifname @bridges {_REFUSE}"


def _plan_bridge(place: Place) -> Iterator[str]:
    if place.bridge is None:
        return
    name = f'"{place.bridge}"'
    pair = f"{name} . {name}"
    yield f"add element {_TABLE} bridges {{ {name} }}"
    if place.resolver is not None:
        version = ipaddress.ip_address(place.resolver).version
        yield f"add element {_TABLE} servers{version} {{ {name} . {place.resolver} }}"
    yield from [f"add element {_TABLE} internals {{ {name} }}"] if place.internal else _plan_absent("internals", name)
    yield from _plan_absent("same", pair) if place.isolated else [f"add element {_TABLE} same {{ {pair} }}"]


def _plan_guest(place: Place, permit: Permit) -> Iterator[str]:
    members = {"guests": True, "hosts": permit.host, "crossers": permit.networks}
    members["strict"] = permit.strict and not permit.private
    comment = f'comment "{place.machine_id}"'
    ranges = [ipaddress.ip_network(text) for text in permit.ranges]
    for text in place.addresses:
        address = ipaddress.ip_address(text)
        for name, wanted in members.items():
            if wanted:
                yield f"add element {_TABLE} {name}{address.version} {{ {address} {comment} }}"
        own = [each for each in ranges if each.version == address.version]
        for each in ipaddress.collapse_addresses(own):  # type: ignore[type-var]
            yield f"add element {_TABLE} ranges{address.version} {{ {address} . {each} {comment} }}"


def _plan_removal(addresses: Sequence[str]) -> list[str]:
    found: list[str] = []
    for text in addresses:
        version = ipaddress.ip_address(text).version
        for name in _GUEST_SETS:
            found += _plan_absent(f"{name}{version}", text)
    return found


def _plan_absent(name: str, element: str) -> list[str]:
    # What is not there cannot be deleted, and would undo the whole transaction.
    return [f"add element {_TABLE} {name} {{ {element} }}", f"delete element {_TABLE} {name} {{ {element} }}"]


def _find_elements(machine_id: str, deadline: Deadline) -> list[str]:
    """What deletes the elements that bear a machine's id."""
    done = process.run(["nft", "-j", "list", "table", *_TABLE.split()], timeout_s=deadline.check(), check=False)
    if done.returncode != 0:
        return []  # There is no such table.
    found: list[str] = []
    for holder in json.loads(done.stdout)["nftables"]:
        held = holder.get("set")
        if held is None:
            continue
        for item in held.get("elem", []):
            element = item.get("elem", item) if isinstance(item, dict) else item
            if isinstance(element, dict) and element.get("comment") == machine_id:
                found.append(f"delete element {_TABLE} {held['name']} {{ {_show(element['val'])} }}")
    return found


def _show(value: Any) -> str:
    """An element's value of nft's JSON as nft's words (libnftables-json(5))."""
    if isinstance(value, dict) and "concat" in value:
        return " . ".join(_show(part) for part in value["concat"])
    if isinstance(value, dict) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if isinstance(value, dict) and "range" in value:
        return "-".join(str(part) for part in value["range"])
    return str(value)


def _apply(lines: Sequence[str], deadline: Deadline) -> None:
    script = "\n".join([*lines, ""])
    done = process.run(["nft", "-f", "-"], stdin=script.encode(), timeout_s=deadline.check(), check=False)
    if done.returncode != 0:
        failure = process.failure(done)
        raise NetworkError(f"the packet filter refused firebuild's table: {failure.message}", details=failure.details)
