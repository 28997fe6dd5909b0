"""What a guest may send through its tap: its own addresses' packets only, none to a cloud's metadata, none that a router sends.

A plan of u32 filters, in the order of their priorities; the first that matches decides. What none lets pass goes to
the stack of the machine's namespace, which routes nothing and so ends it there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

import msgspec

from firebuild.host.tc import ETH_P_ALL, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, EVERYTHING, Match

# Below this number there is room for filters that take packets out ahead of these (the emulator's metadata: 1 and 2).
FIRST_PRIORITY = 50
# Firecracker itself and the emulator answer at the machine's own 169.254.169.254; what comes to the filters is meant for others.
METADATA_NETWORKS = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("100.100.100.200/32"),
    ipaddress.ip_network("fd00:ec2::254/128"),
    ipaddress.ip_network("fd20:ce::254/128"),
)
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")

# Offsets from the network header. Ethernet's header is before it: receiver at -14, sender at -8.
_SENDER = -8
# RFC 791 and 8200: where source and destination are, by IP version.
_SOURCE = {4: 12, 6: 8}
_DESTINATION = {4: 16, 6: 24}
# RFC 791: version 4, and a header without options, so that what follows is where it is looked for.
_PLAIN_IPV4 = Match(0x45000000, 0xFF000000, 0)
_UDP = Match(0x00110000, 0x00FF0000, 8)
_FROM_DHCP_SERVER = Match(67 << 16 | 68, 0xFFFFFFFF, 20)
# RFC 8200: the next header is byte 6; RFC 4443: the type is the first byte after the header.
_NEXT_HEADER = 4
_EXTENSIONS = (0, 43, 60)
_ICMPV6 = Match(58 << 8, 0x0000FF00, _NEXT_HEADER)
_DHCPV6_SERVER = (Match(17 << 8, 0x0000FF00, _NEXT_HEADER), Match(547 << 16 | 546, 0xFFFFFFFF, 40))
_ICMPV6_TYPE, _ND_TARGET = 40, 48
_ROUTER_ADVERTISEMENT, _NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT, _REDIRECT = 134, 135, 136, 137
# RFC 826, for IPv4 over Ethernet: what it is, the sender's two addresses.
_ARP_KIND = (Match(0x00010800, 0xFFFFFFFF, 0), Match(0x06040000, 0xFFFF0000, 4))
_ARP_SENDER_MAC, _ARP_SENDER_IP = 8, 14


class Filter(msgspec.Struct, frozen=True):
    """Packets of an ethertype that have all `matches`: they pass, or end."""

    protocol: int
    matches: tuple[Match, ...]
    passes: bool


def plan_guard(mac: str, addresses: Sequence[str], *, metadata: bool = False, spoofing: bool = False) -> list[Filter]:
    """The filters for a guest with this MAC address and these addresses (CIDR form).

    `metadata`: it may reach a cloud's metadata services. `spoofing`: it may send from any address, as a router does.
    """
    # The portmap plugin lets 127.0.0.0/8 cross the bridge (route_localnet), which would open the host's loopback services to
    # a guest that writes such packets itself (compare CVE-2020-8558).
    filters = [
        Filter(ETH_P_IP, _match_network(_LOOPBACK, offset), passes=False) for offset in (_SOURCE[4], _DESTINATION[4])
    ]
    for network in () if metadata else METADATA_NETWORKS:
        protocol = ETH_P_IP if network.version == 4 else ETH_P_IPV6
        filters.append(Filter(protocol, _match_network(network, _DESTINATION[network.version]), passes=False))
    if spoofing:
        return [*filters, Filter(ETH_P_ALL, (EVERYTHING,), passes=True)]
    own = [ipaddress.ip_interface(each).ip for each in addresses]
    sender = _match_mac(mac, _SENDER)
    ipv4 = [each for each in own if each.version == 4]
    if ipv4:
        filters.append(Filter(ETH_P_IP, (_PLAIN_IPV4, _UDP, _FROM_DHCP_SERVER), passes=False))
    for address in ipv4:
        number = int(address)
        source = Match(number, 0xFFFFFFFF, _SOURCE[4])
        filters.append(Filter(ETH_P_IP, (_PLAIN_IPV4, source, *sender), passes=True))
        # 0.0.0.0: somebody who asks whether an address is free (RFC 5227).
        for sender_ip in (number, 0):
            claimed = (*_match_mac(mac, _ARP_SENDER_MAC), Match(sender_ip, 0xFFFFFFFF, _ARP_SENDER_IP))
            filters.append(Filter(ETH_P_ARP, (*_ARP_KIND, *claimed, *sender), passes=True))
    ipv6 = [each for each in own if isinstance(each, ipaddress.IPv6Address)]
    if ipv6:
        filters += _plan_ipv6(sender, [*ipv6, link_local(mac)])
    return filters


def _plan_ipv6(sender: tuple[Match, ...], own: Sequence[ipaddress.IPv6Address]) -> Iterator[Filter]:
    for header in _EXTENSIONS:
        # They would hide what follows.
        yield Filter(ETH_P_IPV6, (Match(header << 8, 0x0000FF00, _NEXT_HEADER),), passes=False)
    yield Filter(ETH_P_IPV6, _DHCPV6_SERVER, passes=False)
    for kind in (_ROUTER_ADVERTISEMENT, _REDIRECT):
        yield Filter(ETH_P_IPV6, (_ICMPV6, _match_type(kind)), passes=False)
    unspecified = _match_ipv6(ipaddress.IPv6Address("::"), _SOURCE[6])
    for address in own:
        source, target = _match_ipv6(address, _SOURCE[6]), _match_ipv6(address, _ND_TARGET)
        # Who says that an address is theirs says so of their own.
        for source_of_claim in own:
            claim = (_ICMPV6, _match_type(_NEIGHBOUR_ADVERTISEMENT), *target)
            yield Filter(ETH_P_IPV6, (*claim, *_match_ipv6(source_of_claim, _SOURCE[6]), *sender), passes=True)
        # The question whether one's own address is free (RFC 4862).
        asked = (_ICMPV6, _match_type(_NEIGHBOUR_SOLICITATION), *target)
        yield Filter(ETH_P_IPV6, (*asked, *unspecified, *sender), passes=True)
    yield Filter(ETH_P_IPV6, (_ICMPV6, _match_type(_NEIGHBOUR_ADVERTISEMENT)), passes=False)
    for address in own:
        source = _match_ipv6(address, _SOURCE[6])
        yield Filter(ETH_P_IPV6, (*source, *sender), passes=True)


def link_local(mac: str) -> ipaddress.IPv6Address:
    """The link-local address that is made from a MAC address (RFC 4291, appendix A)."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(octets[:3]) + b"\xff\xfe" + bytes(octets[3:]))


def _match_type(kind: int) -> Match:
    return Match(kind << 24, 0xFF000000, _ICMPV6_TYPE)


def _match_mac(mac: str, offset: int) -> tuple[Match, ...]:
    octets = bytes.fromhex(mac.replace(":", ""))
    return (
        Match(int.from_bytes(octets[:4]), 0xFFFFFFFF, offset),
        Match(int.from_bytes(octets[4:]) << 16, 0xFFFF0000, offset + 4),
    )


def _match_ipv6(address: ipaddress.IPv6Address, offset: int) -> tuple[Match, ...]:
    return _match_network(ipaddress.ip_network(address), offset)


def _match_network(network: ipaddress.IPv4Network | ipaddress.IPv6Network, offset: int) -> tuple[Match, ...]:
    """The 32-bit words of an address that its prefix covers."""
    value, mask = network.network_address.packed, network.netmask.packed
    words = [(value[index : index + 4], mask[index : index + 4], index) for index in range(0, len(value), 4)]
    return tuple(
        Match(int.from_bytes(word), int.from_bytes(ones), offset + index) for word, ones, index in words if any(ones)
    )
