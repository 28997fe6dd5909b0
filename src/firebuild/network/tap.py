"""The tap that a guest's network device is: joined to the namespace's CNI interface by tc, as tc-redirect-tap does."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from firebuild.errors import HostError, NetworkError
from firebuild.host import netlink, tc
from firebuild.network.guard import FIRST_PRIORITY, Filter

# linux/if_tun.h
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000

REDIRECT_PRIORITY = 100


def quiet_namespace() -> None:
    """Keep this thread's namespace from speaking IPv6 by itself, and from routing: it has the guest's addresses, and is not the guest.

    A CNI plugin that gives eth0 an IPv6 address turns the protocol on for that interface again. What the tap's filters keep
    back goes to the namespace's own stack; a new namespace routes where its host does.
    """
    settings = {"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"}
    settings |= {f"ipv6/conf/{name}/disable_ipv6": "1" for name in ("all", "default")}
    for name, value in settings.items():
        path = Path(f"/proc/sys/net/{name}")
        try:
            path.write_text(value)
        except FileNotFoundError:
            continue  # a kernel without IPv6
        except OSError as error:
            raise NetworkError(f"writing `{path}` failed: {error.strerror}") from error


def join_tap(
    interface: str,
    tap: str,
    *,
    owner: tuple[int, int] | None,
    plan: Callable[[str], Sequence[Filter]],
    bytes_per_s: int = 0,
) -> netlink.Link:
    """Make `tap` in this thread's namespace, owned by (uid, gid), and join it to `interface` both ways; returns the interface.

    The guest takes the interface's MAC and IP addresses. They stay on the interface: whatever arrives there is redirected
    before the namespace's own stack sees it, and CNI plugins look for them on DEL. `plan` tells for the interface's MAC
    address what the guest may send. `bytes_per_s`: the most that it may send, and be sent; 0: no limit. Raises NetworkError, HostError.
    """
    link = netlink.get_link(interface)
    _make_tap(tap, owner)
    tap_link = netlink.get_link(tap)
    for each in (link, tap_link):
        tc.ensure_ingress_qdisc(each)
    for number, rule in enumerate(plan(link.mac), start=FIRST_PRIORITY):
        if rule.passes:
            first, *further = rule.matches
            tc.add_redirect_filter(
                tap_link, link, priority=number, protocol=rule.protocol, match=first, further=further
            )
        else:
            # It ends in the namespace's own stack: `action drop` needs act_gact, which slim kernels lack.
            tc.add_pass_filter(tap_link, priority=number, protocol=rule.protocol, matches=rule.matches)
    tc.add_redirect_filter(link, tap_link, priority=REDIRECT_PRIORITY)
    if bytes_per_s:
        # What the guest sends leaves by the interface, what it is sent by the tap.
        for each in (link, tap_link):
            tc.add_rate_limit(each, bytes_per_s)
    netlink.set_link_up(tap_link, mtu=link.mtu)
    return link


def _make_tap(name: str, owner: tuple[int, int] | None) -> None:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = (
            "run: modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else "run firebuild as root"
        )
        raise HostError(f"`/dev/net/tun` cannot be opened: {error.strerror}", hint=hint) from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if owner is not None:
            fcntl.ioctl(descriptor, _TUNSETOWNER, owner[0])
            fcntl.ioctl(descriptor, _TUNSETGROUP, owner[1])
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except OSError as error:
        raise NetworkError(f"making the tap `{name}` failed: {error.strerror}") from error
    finally:
        os.close(descriptor)
