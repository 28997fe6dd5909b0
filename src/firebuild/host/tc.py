"""Traffic control by rtnetlink(7): ingress qdiscs, rate limits, and u32 filters that redirect packets or hand them to the namespace itself.

Each function says the tc(8) command that it stands for. Formats: tc-u32(8), tc-mirred(8), linux/pkt_sched.h,
linux/pkt_cls.h, linux/tc_act/tc_mirred.h, and net/sched/cls_api.c for how the kernel reads them.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from firebuild.host.netlink import NEW, NLM_F_ACK, Link, attribute, nested, request, text

# linux/rtnetlink.h
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_NEWTFILTER, _RTM_DELTFILTER = 36, 37, 44, 45
_TCA_KIND, _TCA_OPTIONS = 1, 2
# linux/pkt_sched.h
_TC_H_ROOT = 0xFFFFFFFF
_TC_H_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000  # ffff:0, of ingress and clsact qdiscs alike
_INGRESS_PARENT = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS): clsact refuses ffff:0, ingress takes both
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_TC_LINKLAYER_ETHERNET = 1
# The largest packet that a segmenting interface is handed.
_TBF_BURST_MIN = 1 << 17
_U32_MAX = 2**32 - 1
# linux/pkt_cls.h
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TC_U32_TERMINAL = 1
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TC_ACT_STOLEN = 4
# linux/tc_act/tc_mirred.h
_TCA_MIRRED_PARMS = 2
_TCA_EGRESS_REDIR = 1
# linux/if_ether.h
ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0003, 0x0800, 0x0806, 0x86DD


class Match(NamedTuple):
    """32 bits of a packet, big-endian at `offset` bytes from its network header, that must equal `value` where `mask` has ones.

    Ethernet's header is before it: its source address at -8.
    """

    value: int
    mask: int
    offset: int


EVERYTHING = Match(0, 0, 0)


def _message(link: Link, handle: int, parent: int, info: int) -> bytes:
    # struct tcmsg: family, padding, index, handle, parent, info.
    return struct.pack("=BBHiIII", socket.AF_UNSPEC, 0, 0, link.index, handle, parent, info)


def _filter_info(priority: int, protocol: int) -> int:
    return (priority << 16) | socket.htons(protocol)


def ensure_ingress_qdisc(link: Link) -> bool:
    """`tc qdisc add dev <link> ingress`; True if there was none yet (clsact is one, too). Raises NetworkError."""
    body = _message(link, _INGRESS_HANDLE, _TC_H_INGRESS, 0) + text(_TCA_KIND, "ingress")
    doing = f"adding an ingress qdisc to the interface `{link.name}`"
    answer = request(_RTM_NEWQDISC, NEW, body, doing, expected=(errno.EEXIST,), modules="sch_ingress")
    return answer is not None


def delete_ingress_qdisc(link: Link) -> None:
    """`tc qdisc del dev <link> ingress`, with all its filters; an absent qdisc or interface is fine. Raises NetworkError."""
    body = _message(link, 0, _TC_H_INGRESS, 0)
    doing = f"removing the ingress qdisc of the interface `{link.name}`"
    request(_RTM_DELQDISC, NLM_F_ACK, body, doing, expected=(errno.ENOENT, errno.ENODEV))


def add_redirect_filter(
    link: Link,
    target: Link,
    *,
    priority: int,
    protocol: int = ETH_P_ALL,
    match: Match = EVERYTHING,
    further: Sequence[Match] = (),
) -> None:
    """What arrives at `link` and has `match` and all `further` ones leaves by `target`. Raises NetworkError.

    `tc filter add dev <link> ingress prio … protocol … u32 match u32 <value> <mask> at <offset> action mirred egress redirect
    dev <target>`. `protocol`: an ethertype. Lower priorities come first.
    """
    # struct tc_mirred: tc_gen (index, capab, action, refcnt, bindcnt), eaction, ifindex.
    parameters = struct.pack("=IIiiiiI", 0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, target.index)
    options = nested(_TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, parameters))
    actions = nested(_TCA_U32_ACT, nested(1, text(_TCA_ACT_KIND, "mirred"), options))
    doing = f"redirecting the interface `{link.name}` to `{target.name}`"
    _add_u32_filter(link, priority, protocol, (match, *further), actions, doing, "cls_u32 act_mirred")


def add_pass_filter(link: Link, *, priority: int, protocol: int, matches: Sequence[Match]) -> None:
    """Matching packets go to the namespace's own stack, past later filters: `tc filter add … u32 match … `, without an action.

    A u32 filter without an action ends the classification with TC_ACT_OK; it needs no module beside u32, where `action drop`
    needs act_gact, which slim kernels lack. Raises NetworkError.
    """
    doing = f"adding a filter to the interface `{link.name}`"
    _add_u32_filter(link, priority, protocol, matches, b"", doing, "cls_u32")


def _add_u32_filter(
    link: Link, priority: int, protocol: int, matches: Sequence[Match], actions: bytes, doing: str, modules: str
) -> None:
    # struct tc_u32_sel (flags, offshift, nkeys, padding, offmask, off, offoff, hoff, hmask) with a struct tc_u32_key
    # (mask and value big-endian, off, offmask) for each match.
    selector = struct.pack("=BBBBHHhhI", _TC_U32_TERMINAL, 0, len(matches), 0, 0, 0, 0, 0, 0)
    for match in matches:
        selector += struct.pack(">II", match.mask, match.value & match.mask) + struct.pack("=ii", match.offset, 0)
    options = nested(_TCA_OPTIONS, attribute(_TCA_U32_SEL, selector), actions)
    body = _message(link, 0, _INGRESS_PARENT, _filter_info(priority, protocol)) + text(_TCA_KIND, "u32") + options
    request(_RTM_NEWTFILTER, NEW, body, doing, modules=modules)


def add_rate_limit(link: Link, bytes_per_s: int) -> None:
    """Let at most that much leave by `link`, on average: `tc qdisc add dev <link> root tbf rate … burst … limit …`.

    Bursts of a fiftieth of a second, and of one large packet at least; what has waited longer than an eighth is dropped, which
    is what tells TCP. Raises NetworkError.
    """
    burst = max(_TBF_BURST_MIN, bytes_per_s // 50)
    limit = min(burst + max(_TBF_BURST_MIN, bytes_per_s // 8), _U32_MAX)
    # struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate; struct tc_tbf_qopt: two of them, limit, buffer, mtu.
    rate = struct.pack("=BBHhHI", 0, _TC_LINKLAYER_ETHERNET, 0, 0, 0, min(bytes_per_s, _U32_MAX))
    parameters = rate + bytes(12) + struct.pack("=III", limit, 0, 0)
    attributes = [attribute(_TCA_TBF_PARMS, parameters), attribute(_TCA_TBF_BURST, struct.pack("=I", burst))]
    if bytes_per_s > _U32_MAX:
        attributes.append(attribute(_TCA_TBF_RATE64, struct.pack("=Q", bytes_per_s)))
    body = _message(link, 0, _TC_H_ROOT, 0) + text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, *attributes)
    request(_RTM_NEWQDISC, NEW, body, f"limiting the rate of the interface `{link.name}`", modules="sch_tbf")


def delete_filters(link: Link, *, priority: int, protocol: int) -> None:
    """`tc filter del dev <link> ingress prio … protocol …`; absent filters, qdisc or interface are fine. Raises NetworkError."""
    body = _message(link, 0, _INGRESS_PARENT, _filter_info(priority, protocol))
    doing = f"removing the filters of priority {priority} of the interface `{link.name}`"
    # EINVAL: no qdisc has that handle, or the priority is another protocol's.
    expected = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
    request(_RTM_DELTFILTER, NLM_F_ACK, body, doing, expected=expected)
