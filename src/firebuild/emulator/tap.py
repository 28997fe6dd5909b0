"""Opening a tap device by its name (tun(4) is Linux's Documentation/networking/tuntap.rst), as Firecracker opens it."""

from __future__ import annotations

import fcntl
import os
import struct

from firebuild.emulator.faults import Fault, os_text

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_NAME_MAX = 15


def open_tap(name: str) -> int:
    """A descriptor of the tap `name` in this network namespace, made if it does not exist. Raises Fault."""
    prefix = "Network config error: Could not create the network device: Open tap device failed: "
    if not name or len(os.fsencode(name)) > _NAME_MAX:
        raise Fault(f"{prefix}Invalid interface name")
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Fault(f"{prefix}Couldn't open /dev/net/tun: {os_text(error)}") from error
    try:
        request = struct.pack("16sH22x", os.fsencode(name), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError as error:
        os.close(descriptor)
        raise Fault(
            f"{prefix}Error while creating ifreq structure: {os_text(error)}. Invalid TUN/TAP Backend provided by {name}. "
            "Check our documentation on setting up the network devices."
        ) from error
    return descriptor
