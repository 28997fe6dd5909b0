"""The tap that a guest's network device is: joined to the namespace's CNI interface by tc, as tc-redirect-tap does."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from firebuild.errors import HostError, NetworkError
from firebuild.host import netlink, tc

# linux/if_tun.h
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000

# Below this number there is room for filters that take packets out ahead of the redirect (the emulator's metadata: 1 and 2).
REDIRECT_PRIORITY = 100
LOOPBACK_PRIORITY = 90
_IPV4_ADDRESS_OFFSETS = (12, 16)  # source, destination (RFC 791)
_LOOPBACK, _LOOPBACK_MASK = 0x7F000000, 0xFF000000


def quiet_namespace() -> None:
    """Keep this thread's namespace from speaking IPv6 by itself: it holds the guest's MAC address, and is not the guest.

    A CNI plugin that gives eth0 an IPv6 address turns the protocol on for that interface again.
    """
    for name in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        try:
            path.write_text("1")
        except FileNotFoundError:
            return
        except OSError as error:
            raise NetworkError(f"writing `{path}` failed: {error.strerror}") from error


def join_tap(interface: str, tap: str, *, owner: tuple[int, int] | None) -> netlink.Link:
    """Make `tap` in this thread's namespace, owned by (uid, gid), and join it to `interface` both ways; returns the interface.

    The guest takes the interface's MAC and IP addresses. They stay on the interface: whatever arrives there is redirected
    before the namespace's own stack sees it, and CNI plugins look for them on DEL. Raises NetworkError, HostError.
    """
    link = netlink.get_link(interface)
    _make_tap(tap, owner)
    tap_link = netlink.get_link(tap)
    for each in (link, tap_link):
        tc.ensure_ingress_qdisc(each)
    # The portmap plugin lets 127.0.0.0/8 cross the bridge (route_localnet), which would open the host's loopback services to
    # a guest that writes such packets itself (compare CVE-2020-8558). They end in the namespace's own stack, as martians.
    for number, offset in enumerate(_IPV4_ADDRESS_OFFSETS):
        match = tc.Match(_LOOPBACK, _LOOPBACK_MASK, offset)
        tc.add_pass_filter(tap_link, priority=LOOPBACK_PRIORITY + number, protocol=tc.ETH_P_IP, match=match)
    tc.add_redirect_filter(link, tap_link, priority=REDIRECT_PRIORITY)
    tc.add_redirect_filter(tap_link, link, priority=REDIRECT_PRIORITY)
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
