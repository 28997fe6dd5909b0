"""The few rtnetlink(7) requests that machines' networks need, written out: importing a library for them costs over 100 ms of CPU.

Everything acts in the network namespace of the calling thread (see host.netns.run_in_netns), and every request reads the
kernel's answer. Formats: netlink(7), rtnetlink(7), and the kernel's headers, which are named beside their numbers.
Numbers are in the host's byte order, addresses in the network's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from firebuild.errors import NetworkError

# linux/netlink.h
_NLMSG_ERROR = 2
_NLM_F_REQUEST, NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
NEW = NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
_NLMSGERR_ATTR_MSG = 1
_NLA_F_NESTED, _NLA_TYPE_MASK = 0x8000, 0x3FFF
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
# linux/rtnetlink.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 17, 18, 19, 20, 24
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 3, 253, 1
_RTA_DST, _RTA_OIF = 1, 4
_AF_BRIDGE = 7  # linux/socket.h; Python does not have it
# linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
# linux/if_link.h, linux/if.h, linux/veth.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 12, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_DATA, _IFLA_BRPORT_ISOLATED = 1, 2, 5, 33
_VETH_INFO_PEER = 1
_IFF_UP = 0x1


@dataclass(frozen=True)
class Link:
    """What the kernel says of one interface: `mac` as aa:bb:…, `mtu` in bytes."""

    name: str
    index: int
    mac: str
    mtu: int


def attribute(kind: int, payload: bytes) -> bytes:
    """An attribute (struct nlattr): length and kind of 16 bits each, the payload, and padding to 4 bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a string with its final zero."""
    return attribute(kind, os.fsencode(value) + b"\0")


def parse_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each attribute; one that claims more than there is ends the list."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def parse_error(flags: int, body: bytes) -> tuple[int, str]:
    """An NLMSG_ERROR's error number, 0 for an acknowledgement, and what the kernel says beside it, often nothing.

    `flags` are the header's. The body (struct nlmsgerr) is the negative number, the request's header, the request's body
    unless capped, and attributes if there are any ("extended acknowledgement", Documentation/userspace-api/netlink/intro.rst).
    """
    number, length = struct.unpack_from("=iI", body)
    said = ""
    if flags & _NLM_F_ACK_TLVS:
        request = _HEADER.size if flags & _NLM_F_CAPPED else (length + 3) & ~3
        for kind, payload in parse_attributes(body[4 + request :]):
            if kind == _NLMSGERR_ATTR_MSG:
                said = payload.rstrip(b"\0").decode("utf-8", "replace").rstrip(". \n")
    return -number, said


def plan_refusal(doing: str, number: int, said: str, modules: str) -> NetworkError:
    """The error that says what the kernel refused; `modules`: the kernel modules that the request needs, if any."""
    hint = None
    if number in (errno.EPERM, errno.EACCES):
        hint = "run it as root"
    elif modules and number in (errno.ENOENT, errno.EOPNOTSUPP):
        hint = f"run: modprobe -a {modules}"
    return NetworkError(f"{doing} failed: {os.strerror(number)}{f' ({said})' if said else ''}", hint=hint)


def request(
    kind: int, flags: int, body: bytes, doing: str, *, expected: Collection[int] = (), modules: str = ""
) -> bytes | None:
    """Send one request; return the body of its answer, empty for an acknowledgement, None for an error number that is `expected`.

    `doing` names the deed and its object; `modules` are the kernel modules that it needs. Raises NetworkError.
    """
    try:
        answer_kind, answer_flags, answer = _exchange(kind, flags, body)
    except OSError as error:
        raise NetworkError(f"{doing} failed: {error.strerror}") from error
    if answer_kind != _NLMSG_ERROR:
        return answer
    number, said = parse_error(answer_flags, answer)
    if number == 0:
        return b""
    if number in expected:
        return None
    raise plan_refusal(doing, number, said, modules)


def _exchange(kind: int, flags: int, body: bytes) -> tuple[int, int, bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        with contextlib.suppress(OSError):  # kernels before 4.12 give the number alone
            link.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        link.bind((0, 0))
        # The socket carries this one request: any sequence number will do.
        link.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | _NLM_F_REQUEST, 1, 0) + body)
        while True:
            answer, (port, _) = link.recvfrom(1 << 16)
            if port == 0:  # the kernel: root's other processes may write to this socket, too
                length, answer_kind, answer_flags, _, _ = _HEADER.unpack_from(answer)
                return answer_kind, answer_flags, answer[_HEADER.size : length]


def _link_message(index: int, *, flags: int = 0, change: int = 0, family: int = socket.AF_UNSPEC) -> bytes:
    # struct ifinfomsg: family, padding, type, index, flags, change mask.
    return struct.pack("=BBHiII", family, 0, 0, index, flags, change)


def get_link(name: str) -> Link:
    """The interface `name`. Raises NetworkError."""
    body = request(_RTM_GETLINK, 0, _link_message(0) + text(_IFLA_IFNAME, name), f"finding the interface `{name}`")
    assert body is not None
    found = dict(parse_attributes(body[16:]))
    mac, mtu = found.get(_IFLA_ADDRESS, b""), found.get(_IFLA_MTU, b"\0\0\0\0")
    return Link(name, struct.unpack_from("=i", body, 4)[0], mac.hex(":"), struct.unpack("=I", mtu)[0])


def set_link_up(link: Link, *, mtu: int | None = None) -> None:
    """Bring an interface up, with an MTU in bytes if one is given. Raises NetworkError."""
    body = _link_message(link.index, flags=_IFF_UP, change=_IFF_UP)
    if mtu is not None:
        body += attribute(_IFLA_MTU, struct.pack("=I", mtu))
    request(_RTM_NEWLINK, NLM_F_ACK, body, f"bringing up the interface `{link.name}`")


def isolate_bridge_port(link: Link) -> None:
    """`bridge link set dev <link> isolated on`: no frames between this port of a bridge and others like it. Raises NetworkError."""
    body = _link_message(link.index, family=_AF_BRIDGE)
    body += nested(_IFLA_PROTINFO, attribute(_IFLA_BRPORT_ISOLATED, b"\1"))
    request(_RTM_SETLINK, NLM_F_ACK, body, f"isolating the bridge's port `{link.name}`")


def is_isolated(name: str) -> bool:
    """Whether an interface is an isolated port of a bridge. Raises NetworkError."""
    body = request(_RTM_GETLINK, 0, _link_message(0) + text(_IFLA_IFNAME, name), f"finding the interface `{name}`")
    assert body is not None
    info = dict(parse_attributes(dict(parse_attributes(body[16:])).get(_IFLA_LINKINFO, b"")))
    port = dict(parse_attributes(info.get(_IFLA_INFO_SLAVE_DATA, b"")))
    return port.get(_IFLA_BRPORT_ISOLATED) == b"\1"


def add_veth_pair(name: str, *, peer: str, peer_mac: str, peer_netns: int) -> None:
    """veth(4): an interface here and its peer, with a MAC address, in the namespace that `peer_netns` is open on. Raises NetworkError."""
    other = _link_message(0) + text(_IFLA_IFNAME, peer)
    other += attribute(_IFLA_ADDRESS, bytes.fromhex(peer_mac.replace(":", "")))
    other += attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_netns))
    body = _link_message(0) + text(_IFLA_IFNAME, name)
    data = nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, other))
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), data)
    request(_RTM_NEWLINK, NEW, body, f"making the veth pair `{name}` and `{peer}`", modules="veth")


def delete_link(name: str) -> None:
    """Remove an interface, of a pair both; absent is fine. Raises NetworkError."""
    body = _link_message(0) + text(_IFLA_IFNAME, name)
    request(_RTM_DELLINK, NLM_F_ACK, body, f"removing the interface `{name}`", expected=(errno.ENODEV,))


def add_address(link: Link, address: str, prefix_length: int) -> None:
    """Give an interface an IPv4 address. Raises NetworkError."""
    # struct ifaddrmsg: family, prefix length, flags, scope (0: universe), index.
    body = struct.pack("=BBBBI", socket.AF_INET, prefix_length, 0, 0, link.index)
    number = socket.inet_aton(address)
    body += attribute(_IFA_LOCAL, number) + attribute(_IFA_ADDRESS, number)
    request(_RTM_NEWADDR, NEW, body, f"giving the interface `{link.name}` the address `{address}/{prefix_length}`")


def add_link_route(link: Link, destination: str, prefix_length: int) -> None:
    """Route IPv4 destinations to an interface on which they are asked for by ARP: no gateway. Raises NetworkError."""
    # struct rtmsg: family, destination and source prefix lengths, tos, table, protocol, scope, type, flags.
    scope = (_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_LINK, _RTN_UNICAST)
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, prefix_length, 0, 0, *scope, 0)
    if prefix_length:
        body += attribute(_RTA_DST, socket.inet_aton(destination))
    body += attribute(_RTA_OIF, struct.pack("=I", link.index))
    request(_RTM_NEWROUTE, NEW, body, f"routing `{destination}/{prefix_length}` to the interface `{link.name}`")
