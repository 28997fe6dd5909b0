"""The few rtnetlink(7) requests that a machine's namespace needs, written out: importing pyroute2 costs 120 ms of CPU.

Everything acts in the network namespace of the calling thread (see host.netns.run_in_netns).
"""

from __future__ import annotations

import os
import socket
import struct

from firebuild.errors import NetworkError

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWQDISC, _RTM_NEWTFILTER = 16, 18, 36, 44
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFF_UP = 0x1
# linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h
_TC_H_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TCA_MIRRED_PARMS = 2
_TCA_EGRESS_REDIR = 1
_TC_ACT_STOLEN = 4
_TC_U32_TERMINAL = 1
_ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
_NLA_F_NESTED = 0x8000


class Link:
    """What the kernel says of one interface: `index`, `mac` (aa:bb:…), `mtu` in bytes."""

    def __init__(self, index: int, mac: str, mtu: int) -> None:
        self.index = index
        self.mac = mac
        self.mtu = mtu


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _request(kind: int, flags: int, body: bytes, doing: str) -> bytes:
    """Send one request; return the body of its answer (empty for a bare acknowledgement). Raises NetworkError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        header = struct.pack("=IHHII", 16 + len(body), kind, flags | _NLM_F_REQUEST, 1, 0)
        link.send(header + body)
        answer = link.recv(1 << 16)
    _, answer_kind, _, _, _ = struct.unpack_from("=IHHII", answer)
    if answer_kind != _NLMSG_ERROR:
        return answer[16:]
    (number,) = struct.unpack_from("=i", answer, 16)
    if number != 0:
        hint = "run firebuild as root" if -number in (1, 13) else None
        raise NetworkError(f"{doing} failed: {os.strerror(-number)}", hint=hint)
    return b""


def _link_message(index: int, *, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, flags, change)


def get_link(name: str) -> Link:
    """The interface `name`. Raises NetworkError."""
    body = _request(_RTM_GETLINK, 0, _link_message(0) + _text(_IFLA_IFNAME, name), f"finding the interface `{name}`")
    index = struct.unpack_from("=i", body, 4)[0]
    mac, mtu, offset = "", 0, 16
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        payload = body[offset + 4 : offset + length]
        if kind == _IFLA_ADDRESS:
            mac = payload.hex(":")
        elif kind == _IFLA_MTU:
            mtu = struct.unpack("=I", payload)[0]
        offset += max(4, (length + 3) & ~3)
    return Link(index, mac, mtu)


def set_link_up(index: int, *, mtu: int | None = None) -> None:
    """Bring an interface up, with an MTU if one is given. Raises NetworkError."""
    body = _link_message(index, flags=_IFF_UP, change=_IFF_UP)
    if mtu is not None:
        body += _attribute(_IFLA_MTU, struct.pack("=I", mtu))
    _request(_RTM_NEWLINK, _NLM_F_ACK, body, f"bringing up the interface number {index}")


def _tc_message(index: int, handle: int, parent: int, info: int) -> bytes:
    return struct.pack("=BBHiIII", socket.AF_UNSPEC, 0, 0, index, handle, parent, info)


def add_ingress_qdisc(index: int) -> None:
    """`tc qdisc add dev … ingress`. Raises NetworkError."""
    body = _tc_message(index, _INGRESS_HANDLE, _TC_H_INGRESS, 0) + _text(_TCA_KIND, "ingress")
    flags = _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL
    _request(_RTM_NEWQDISC, flags, body, f"adding an ingress qdisc to the interface number {index}")


def _u32_filter(
    index: int, *, priority: int, protocol: int, match: tuple[int, int, int], action: bytes | None, what: str
) -> None:
    value, mask, offset = match
    # struct tc_u32_sel (offmask is big-endian) with one struct tc_u32_key.
    selector = struct.pack("=BBBBHHhhI", _TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0)
    selector += struct.pack(">II", mask, value & mask) + struct.pack("=ii", offset, 0)
    parts = [_attribute(_TCA_U32_SEL, selector)]
    if action is not None:
        parts.append(_nested(_TCA_U32_ACT, action))
    info = (priority << 16) | socket.htons(protocol)
    body = _tc_message(index, 0, _INGRESS_HANDLE, info) + _text(_TCA_KIND, "u32") + _nested(_TCA_OPTIONS, *parts)
    _request(_RTM_NEWTFILTER, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL, body, what)


def add_redirect_filter(index: int, target: int, *, priority: int) -> None:
    """`tc filter add … protocol all u32 match u32 0 0 action mirred egress redirect dev <target>`. Raises NetworkError."""
    # struct tc_mirred: tc_gen (index, capab, action, refcnt, bindcnt), eaction, ifindex.
    parameters = struct.pack("=IIiiiiI", 0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, target)
    action = _nested(
        1,
        _text(_TCA_ACT_KIND, "mirred"),
        _nested(_TCA_ACT_OPTIONS, _attribute(_TCA_MIRRED_PARMS, parameters)),
    )
    what = f"redirecting the interface number {index} to number {target}"
    _u32_filter(index, priority=priority, protocol=_ETH_P_ALL, match=(0, 0, 0), action=action, what=what)


def add_pass_filter(index: int, *, priority: int, protocol: int, match: tuple[int, int, int]) -> None:
    """Hand packets to the namespace's own stack, past later filters: those of an ethertype whose network header matches.

    `match` is (value, mask, offset in bytes) of 32 bits. A u32 filter without an action ends the classification with
    TC_ACT_OK; it needs no module beside u32, where `action drop` needs act_gact, which slim kernels lack. Raises NetworkError.
    """
    what = f"adding a filter to the interface number {index}"
    _u32_filter(index, priority=priority, protocol=protocol, match=match, action=None, what=what)
