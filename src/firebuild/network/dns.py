"""Which name servers a guest is told: the network's, else the host's, without those that only the host itself can reach."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from firebuild.network.result import Names

RESOLV_CONF = Path("/etc/resolv.conf")
# Where systemd-resolved writes its upstream servers; its own resolv.conf names only the stub 127.0.0.53.
UPSTREAM_RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf")

# Some clouds' resolver; inside a machine it is the machine's own metadata service.
METADATA_ADDRESS = ipaddress.ip_address("169.254.169.254")


def parse_resolv_conf(text: str) -> Names:
    """Read a resolv.conf(5): all nameservers, the last `search` or `domain`, all options."""
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            nameservers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = words[1:] if words[0] == "search" else words[1:2]
        elif words[0] == "options":
            options += words[1:]
    return Names(nameservers, [domain for domain in search if domain != "."], options)


def plan_names(
    network: Names, host: Names, upstream: Names | None, *, has_ipv4: bool, has_ipv6: bool
) -> tuple[Names, list[str]]:
    """What a guest gets, and a warning for each thing that will not work.

    Servers from the network's own configuration come first, then the host's, then systemd-resolved's upstream servers. A
    loopback server, or one of an IP version that the guest does not have, is of no use to a guest. There is
    no built-in default: who resolves a machine's names is not firebuild's to choose.
    """
    for source in (network, host, upstream):
        if source is None:
            continue
        usable = [server for server in source.nameservers if _is_usable(server, has_ipv4=has_ipv4, has_ipv6=has_ipv6)]
        if usable:
            given = network if network.search or network.options else source
            options = [option for option in given.options if option != "trust-ad"]
            return Names(usable, given.search, options), []
    warning = (
        "the machine has no name server: neither the network nor the host names one that a machine can reach; "
        "add a `dns` section with `nameservers` to the network, or a server to `/etc/resolv.conf`"
    )
    return Names([], network.search, network.options), [warning]


def _is_usable(server: str, *, has_ipv4: bool, has_ipv6: bool) -> bool:
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or address.is_multicast or address == METADATA_ADDRESS:
        return False
    if address.version == 4:
        return has_ipv4
    return has_ipv6 and not address.is_link_local


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def load_names(path: Path) -> Names | None:
    """The names in a file, or None if it cannot be read."""
    try:
        return parse_resolv_conf(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
