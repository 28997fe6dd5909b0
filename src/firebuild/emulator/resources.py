"""What a microVM is made of: the configuration, checked as Firecracker checks it, and the descriptors that it opens early.

Files, taps and the vsock's socket are opened when they are configured, as Firecracker does: a later change of the file
system under the emulator (a jail, a renamed disk) changes nothing.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import Any

import msgspec

from firebuild.emulator.balloon import check_balloon
from firebuild.emulator.channel import Channel
from firebuild.emulator.faults import Fault, not_served, os_text
from firebuild.emulator.log import Log
from firebuild.emulator.loop import Loop
from firebuild.emulator.mmds import DEFAULT_ADDRESS, Mmds
from firebuild.emulator.models import (
    BalloonConfig,
    BootSource,
    Drive,
    Entropy,
    MachineConfig,
    MachineConfigUpdate,
    MmdsConfig,
    NetworkInterface,
    RateLimiter,
    Serial,
    Vsock,
    shown,
)
from firebuild.emulator.qemu import CMDLINE_MAX, DEVICES_MAX, DrivePlan
from firebuild.emulator.tap import open_tap

VCPUS_MAX = 32
_NUL = "file name contained an unexpected NUL byte"
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


@dataclass
class OpenDrive:
    """A drive and its open file."""

    config: Drive
    descriptor: int
    block_device: bool

    @property
    def read_only(self) -> bool:
        """Whether the guest may not write."""
        return bool(self.config.is_read_only)

    def plan(self, index: int) -> DrivePlan:
        """The drive as QEMU gets it."""
        limits = self.config.rate_limiter or RateLimiter()
        return DrivePlan(
            index=index,
            descriptor=self.descriptor,
            read_only=self.read_only,
            block_device=self.block_device,
            flush=self.config.cache_type == "Writeback",
            bytes_per_s=limits.bandwidth.per_second() if limits.bandwidth else 0,
            ops_per_s=limits.ops.per_second() if limits.ops else 0,
        )


@dataclass
class OpenNet:
    """A network interface, its open tap and the MAC address that the guest gets."""

    config: NetworkInterface
    descriptor: int
    mac: str


@dataclass
class OpenBoot:
    """The boot source and its open files."""

    config: BootSource
    kernel: int
    initrd: int | None


class Resources:
    """The configuration before and after boot. Every setter raises Fault and then has changed nothing."""

    def __init__(self, loop: Loop, log: Log, *, instance_id: str, mmds_limit_bytes: int) -> None:
        self._loop = loop
        self._log = log
        self.machine = MachineConfig(vcpu_count=1, mem_size_mib=128)
        self.boot: OpenBoot | None = None
        self.drives: list[OpenDrive] = []
        self.nets: list[OpenNet] = []
        self.vsock: Vsock | None = None
        self.channel: Channel | None = None
        self.entropy: Entropy | None = None
        self.serial: Serial | None = None
        self.balloon: BalloonConfig | None = None
        self.mmds = Mmds(mmds_limit_bytes, instance_id)
        self.mmds_config: MmdsConfig | None = None
        # Whether anything was configured (or tried) that a snapshot would bring itself.
        self.configured = False

    # What is set.

    def set_machine(self, config: MachineConfig) -> None:
        """PUT /machine-config."""
        self.configured = True
        self._set_machine(config)

    def update_machine(self, update: MachineConfigUpdate) -> None:
        """PATCH /machine-config."""
        self.configured = True
        given = {name: value for name, value in msgspec.structs.asdict(update).items() if value is not None}
        if not given:
            raise Fault("Empty PATCH request.")
        self._set_machine(msgspec.structs.replace(self.machine, **given))

    def _set_machine(self, config: MachineConfig) -> None:
        _check_machine(config)
        if self.balloon is not None and config.mem_size_mib < self.balloon.amount_mib:
            raise Fault(
                "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."
            )
        self.machine = _plain_machine(config)

    def set_boot(self, config: BootSource) -> None:
        """PUT /boot-source."""
        self.configured = True
        prefix = "Boot source error: "
        try:
            kernel = os.open(config.kernel_image_path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise Fault(f"{prefix}The kernel file cannot be opened: {_reason(error)}") from error
        initrd = None
        try:
            if config.initrd_path is not None:
                initrd = os.open(config.initrd_path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            os.close(kernel)
            raise Fault(
                f"{prefix}The initrd file cannot be opened due to invalid path or invalid permissions. {_reason(error)}"
            ) from error
        try:
            _check_boot_args(config.boot_args)
        except Fault:
            _close(kernel, initrd)
            raise
        if self.boot is not None:
            _close(self.boot.kernel, self.boot.initrd)
        self.boot = OpenBoot(config, kernel, initrd)

    def set_drive(self, config: Drive) -> None:
        """PUT /drives/{id} before boot: the root drive comes first, the others in the order in which they were added."""
        self.configured = True
        prefix = "Drive config error: "
        position = next((i for i, drive in enumerate(self.drives) if drive.config.drive_id == config.drive_id), None)
        has_root = bool(self.drives) and self.drives[0].config.is_root_device
        if config.is_root_device and has_root and position != 0:
            raise Fault(f"{prefix}A root block device already exists!")
        if config.socket is not None:
            if config.path_on_host is None:
                raise not_served("vhost-user block devices (the field `socket` of a drive)")
            raise Fault(f"{prefix}Unable to create the virtio block device: Invalid block config.")
        if config.path_on_host is None:
            raise Fault(f"{prefix}Unable to create the virtio block device: Invalid block config.")
        if position is None:
            self._check_devices()
        try:
            drive = open_drive(config)
        except (OSError, ValueError) as error:
            raise Fault(
                f"{prefix}Unable to create the virtio block device: Virtio backend error: "
                f"Error manipulating the backing file: {_reason(error)} {config.path_on_host}"
            ) from error
        if position is None:
            self.drives.insert(0 if config.is_root_device else len(self.drives), drive)
            return
        os.close(self.drives[position].descriptor)
        self.drives[position] = drive
        if config.is_root_device:
            self.drives[0], self.drives[position] = self.drives[position], self.drives[0]

    def set_net(self, config: NetworkInterface) -> None:
        """PUT /network-interfaces/{id} before boot."""
        self.configured = True
        if config.guest_mac is not None and not _MAC.fullmatch(config.guest_mac):
            raise Fault(
                "An error occurred when deserializing the json body of a request: The provided MAC address is invalid."
            )
        old = next((net for net in self.nets if net.config.iface_id == config.iface_id), None)
        mac = config.guest_mac.lower() if config.guest_mac is not None else None
        if mac is not None and any(net.config.guest_mac and net.mac == mac for net in self.nets if net is not old):
            raise Fault(f"Network config error: The MAC address is already in use: {mac}")
        if config.mtu is not None and config.mtu < 68:
            raise Fault(
                "Network config error: Could not create the network device: "
                f"MTU {config.mtu} is out of range [68, 65535]"
            )
        if old is not None:
            # The old tap is let go first: the new configuration may name the same device.
            self.nets.remove(old)
            os.close(old.descriptor)
        else:
            self._check_devices()
        self.nets.append(OpenNet(config, open_tap(config.host_dev_name), mac or _random_mac()))
        self.tell_unkept_limits(config)

    def tell_unkept_limits(self, config: NetworkInterface) -> None:
        """QEMU has no limits for a network interface: they are taken, shown and not kept, and the log says so."""
        if any(
            limiter and (limiter.bandwidth or limiter.ops)
            for limiter in (config.rx_rate_limiter, config.tx_rate_limiter)
        ):
            self._log.warning(
                f"The rate limiters of the network interface {config.iface_id} are not kept by the emulator."
            )

    def set_vsock(self, config: Vsock) -> None:
        """PUT /vsock: binds the Unix socket at once."""
        self.configured = True
        if config.guest_cid < 3:
            raise Fault(f"Vsock config error: Cannot create vsock device: Invalid guest CID {config.guest_cid}")
        if self.channel is None:
            self._check_devices()
        else:
            self.channel.close()
            self.channel = self.vsock = None
        prefix = (
            "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: "
        )
        if "\0" in config.uds_path:
            raise Fault(f"{prefix}paths must not contain interior null bytes")
        try:
            self.channel = Channel(self._loop, self._log, config.uds_path)
        except OSError as error:
            # A path that is too long is refused by Python, without an error number.
            raise Fault(prefix + (os_text(error) if error.errno else "path must be shorter than SUN_LEN")) from error
        self.vsock = Vsock(guest_cid=config.guest_cid, uds_path=config.uds_path)

    def set_entropy(self, config: Entropy) -> None:
        """PUT /entropy."""
        self.configured = True
        if config.rate_limiter is not None and config.rate_limiter.ops is not None:
            self._log.warning("The limit of operations of the entropy device is not kept by the emulator.")
        if self.entropy is None:
            self._check_devices()
        self.entropy = config

    def set_balloon(self, config: BalloonConfig) -> None:
        """PUT /balloon."""
        self.configured = True
        check_balloon(config, mem_size_mib=self.machine.mem_size_mib)
        if self.balloon is None:
            self._check_devices()
        self.balloon = config

    def set_serial(self, config: Serial) -> None:
        """PUT /serial."""
        if config.rate_limiter is not None:
            self._log.warning("The rate limiter of the serial device is not kept by the emulator.")
        self.serial = config

    def set_mmds_config(self, config: MmdsConfig) -> None:
        """PUT /mmds/config."""
        self.configured = True
        prefix = "MMMDS config error: "
        if config.ipv4_address is not None:
            try:
                address = ipaddress.IPv4Address(config.ipv4_address)
            except ValueError:
                raise Fault(
                    "An error occurred when deserializing the json body of a request: invalid IPv4 address syntax."
                ) from None
            if not address.is_link_local or address.packed[2] in (0, 255):
                raise Fault(f"{prefix}The MMDS IPv4 address is not link local.")
        if not config.network_interfaces:
            raise Fault(f"{prefix}The list of network interface IDs that allow forwarding MMDS requests is empty.")
        known = {net.config.iface_id for net in self.nets}
        if not known.issuperset(config.network_interfaces):
            raise Fault(
                f"{prefix}The list of network interface IDs provided contains at least one ID that does not correspond "
                "to any existing network interface."
            )
        self.mmds.version = config.version
        self.mmds.imds_compat = config.imds_compat
        self.mmds_config = msgspec.structs.replace(config, ipv4_address=config.ipv4_address or DEFAULT_ADDRESS)

    # What is asked.

    def find_drive(self, drive_id: str) -> tuple[int, OpenDrive] | None:
        """A drive and its position."""
        return next(((i, drive) for i, drive in enumerate(self.drives) if drive.config.drive_id == drive_id), None)

    def check_kernel(self) -> None:
        """Refuse a kernel that is neither an ELF file nor a bzImage: QEMU would start it and never say a word. Raises Fault."""
        assert self.boot is not None
        head = os.pread(self.boot.kernel, 0x206, 0)
        if not head.startswith(b"\x7fELF") and head[0x202:] != b"HdrS":
            raise Fault(
                "Start microvm error: System configuration error: Cannot load kernel due to invalid memory configuration or "
                "invalid kernel image: Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage"
            )

    def root(self) -> tuple[str | None, bool] | None:
        """The root drive's partition UUID and whether it is read-only, or None without a root drive."""
        drive = self.drives[0] if self.drives else None
        if drive is None or not drive.config.is_root_device:
            return None
        return drive.config.partuuid, drive.read_only

    def mmds_nets(self) -> list[OpenNet]:
        """The interfaces over which the metadata service can be reached."""
        wanted = self.mmds_config.network_interfaces if self.mmds_config is not None else []
        return [net for net in self.nets if net.config.iface_id in wanted]

    def export(self) -> dict[str, Any]:
        """The body of GET /vm/config."""
        document: dict[str, Any] = {
            "drives": [_with_defaults(drive.config) for drive in self.drives],
            "boot-source": self.boot.config if self.boot is not None else {"kernel_image_path": ""},
            "machine-config": self.machine,
            "network-interfaces": [net.config for net in self.nets],
        }
        optional = {
            "vsock": self.vsock, "entropy": self.entropy, "mmds-config": self.mmds_config, "balloon": self.balloon,
        }  # fmt: skip
        document.update((name, value) for name, value in optional.items() if value is not None)
        return {name: shown(value) for name, value in document.items()}

    def close(self) -> None:
        """Close all that is open."""
        if self.boot is not None:
            _close(self.boot.kernel, self.boot.initrd)
        _close(*(drive.descriptor for drive in self.drives), *(net.descriptor for net in self.nets))
        if self.channel is not None:
            self.channel.close()
        self.boot, self.channel = None, None
        self.drives, self.nets = [], []

    def _check_devices(self) -> None:
        count = len(self.drives) + len(self.nets)
        count += sum(one is not None for one in (self.channel, self.entropy, self.balloon))
        if count >= DEVICES_MAX:
            raise not_served(f"more than {DEVICES_MAX} devices")


def open_drive(config: Drive) -> OpenDrive:
    """Open a drive's file. Raises OSError."""
    assert config.path_on_host is not None
    flags = os.O_RDONLY if config.is_read_only else os.O_RDWR
    descriptor = os.open(config.path_on_host, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(descriptor)
        raise ValueError("Neither a regular file nor a block device")
    return OpenDrive(config, descriptor, stat.S_ISBLK(mode))


def _with_defaults(config: Drive) -> Drive:
    return msgspec.structs.replace(config, is_read_only=bool(config.is_read_only), io_engine=config.io_engine or "Sync")


def _check_machine(config: MachineConfig) -> None:
    prefix = "Machine config error: "
    count = config.vcpu_count
    if not 1 <= count <= VCPUS_MAX or (config.smt and count > 1 and count % 2):
        raise Fault(
            f"{prefix}The number of vCPUs must be greater than 0, less than {VCPUS_MAX} and must be 1 or an even number if "
            "SMT is enabled."
        )
    if config.mem_size_mib == 0 or (config.huge_pages != "None" and config.mem_size_mib % 2):
        raise Fault(f"{prefix}The memory size (MiB) is either 0, or not a multiple of the configured page size.")
    if config.cpu_template not in (None, "None"):
        raise not_served(f"the CPU template {config.cpu_template}")
    if config.huge_pages == "2M":
        raise not_served("hugetlbfs pages (huge_pages 2M)")


def _plain_machine(config: MachineConfig) -> MachineConfig:
    return msgspec.structs.replace(config, cpu_template=None)


def _check_boot_args(boot_args: str | None) -> None:
    prefix = "Boot source error: The kernel command line is invalid: "
    if boot_args is None:
        return
    if len(boot_args.encode()) >= CMDLINE_MAX:
        raise Fault(f"{prefix}Invalid cmdline capacity provided.")
    if any(ord(char) < 32 or ord(char) > 126 for char in boot_args):
        raise Fault(f"{prefix}Non-ASCII or control character.")


def _random_mac() -> str:
    """A locally administered address for an interface without one."""
    return ":".join(f"{byte:02x}" for byte in (0x06, *secrets.token_bytes(5)))


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return os_text(error)
    return _NUL if str(error) == "embedded null byte" else str(error)


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
