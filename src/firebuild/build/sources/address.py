"""How close an address is to this host: what strangers name must not lead closer than where they are themselves."""

from __future__ import annotations

from firebuild.build.sources.url import Url

ANY_RANK = 3
KINDS = ("public", "private", "loopback", "link-local")


def rank_address(text: str) -> int:
    """How close an address is: 0 public, 1 private, 2 this host, 3 link-local (where clouds keep their metadata)."""
    import ipaddress

    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return rank_address(str(inner))
    if address.is_link_local:
        return 3
    if address.is_loopback or address.is_unspecified:
        return 2
    return 0 if address.is_global and not address.is_multicast else 1


def rank_host(url: Url) -> int:
    """The highest rank of the addresses of a URL's host. Raises OSError where it does not resolve."""
    return max(rank_address(address) for address in resolve_addresses(url))


def resolve_addresses(url: Url) -> list[str]:
    """The addresses of a URL's host. Raises OSError where it has none."""
    import socket

    found = socket.getaddrinfo(url.host, url.effective_port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
