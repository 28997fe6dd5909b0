"""QEMU's command line for a microVM. Pure: descriptors are numbers here, and nothing is opened.

Measured with QEMU 7.2: PIT and PIC stay on (without them a guest hangs under TCG); an `i8042` gives the keyboard that
SendCtrlAltDel types on and makes `reboot=k` work. Left to itself a PC kernel reboots by jumping into the firmware, which QEMU
does not notice: the guest starts a second time on devices that were never reset, and crashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

# By this name QEMU finds the device's properties.
BALLOON_DEVICE = "balloon0"
CHANNEL_PORT = "org.firebuild.vsock.0"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# Firecracker's own, for a boot source without boot_args.
DEFAULT_BOOT_ARGS = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"
CMDLINE_MAX = 2048
# The microvm machine with ACPI has 24 virtio-mmio transports.
DEVICES_MAX = 24


@dataclass(frozen=True)
class DrivePlan:
    """One drive: `fd_set` is the number of its -add-fd set; rates are 0 for no limit, bytes and operations a second."""

    index: int
    descriptor: int
    read_only: bool
    block_device: bool
    flush: bool
    bytes_per_s: int = 0
    ops_per_s: int = 0

    @property
    def node(self) -> str:
        """The name of its topmost block node."""
        return f"drive{self.index}"


@dataclass(frozen=True)
class NetPlan:
    """One network interface on an open tap."""

    index: int
    descriptor: int
    mac: str
    mtu: int | None = None


@dataclass(frozen=True)
class BalloonPlan:
    """The balloon: what the guest is offered."""

    deflate_on_oom: bool
    page_reporting: bool


@dataclass(frozen=True)
class MachinePlan:
    """All that the command line is made from. Descriptors are those that QEMU inherits.

    `ram` is the file that holds the guest's memory: shared, or mapped copy-on-write where `ram_shared` is false.
    `incoming`: the machine waits for a saved state, and has no kernel of its own.
    """

    name: str
    kvm: bool
    vcpu_count: int
    smt: bool
    mem_size_mib: int
    kernel: str | None
    initrd: str | None
    boot_args: str
    console: int
    qmp: int
    ram: int
    ram_shared: bool = True
    incoming: bool = False
    channel: int | None = None
    drives: Sequence[DrivePlan] = ()
    nets: Sequence[NetPlan] = ()
    entropy: bool = False
    entropy_bytes: int = 0
    entropy_period_ms: int = 0
    balloon: BalloonPlan | None = None
    sandbox: bool = True
    extra_fds: Sequence[int] = field(default=())

    def descriptors(self) -> list[int]:
        """The descriptors that QEMU must inherit."""
        numbers = [self.console, self.qmp, self.ram, *(drive.descriptor for drive in self.drives)]
        numbers += [net.descriptor for net in self.nets]
        return [*numbers, *([self.channel] if self.channel is not None else []), *self.extra_fds]


def plan_boot_args(given: str | None, *, root: tuple[str | None, bool] | None, tsc_khz: int | None) -> str:
    """The guest's command line: what was given, `pci=off` and `root=` as Firecracker adds them, and what the machine needs.

    `reboot=k` (unless a way to reboot was given) makes a reboot end QEMU; `tsc_early_khz` is the TSC's rate under TCG.
    `root`: the root drive's partition UUID (or None) and whether it is read-only. All goes ahead of ` -- `, behind which
    stand init's arguments. Without `tsc_early_khz` a guest on a busy host fails to calibrate its clock, and hangs.
    """
    kernel, separator, init = (DEFAULT_BOOT_ARGS if given is None else given).partition(" -- ")
    words = [kernel.strip()] if kernel.strip() else []
    words.append("pci=off")
    if root is not None:
        partuuid, read_only = root
        words += [f"root=PARTUUID={partuuid}" if partuuid else "root=/dev/vda", "ro" if read_only else "rw"]
    if not any(word.startswith("reboot=") for word in kernel.split()):
        words.append("reboot=k")
    if tsc_khz is not None and "tsc_early_khz=" not in kernel:
        words.append(f"tsc_early_khz={tsc_khz}")
    return " ".join(words) + separator + init


def plan_drive_file(drive: DrivePlan, fd_set: int, node: str) -> dict[str, object]:
    """The block node that reads and writes a drive's file through a descriptor set."""
    return {
        "driver": "host_device" if drive.block_device else "file",
        "node-name": node,
        "filename": f"/dev/fdset/{fd_set}",
        "read-only": drive.read_only,
        "auto-read-only": False,
        # Firecracker takes no lock either; a disk that several machines share is read-only.
        "locking": "off",
        "cache": {"direct": False, "no-flush": not drive.flush},
    }


def plan_drive_raw(drive: DrivePlan, file_node: str) -> dict[str, object]:
    """The node between a drive's file and its throttle."""
    return {"driver": "raw", "node-name": f"{drive.node}-raw", "file": file_node, "read-only": drive.read_only}


def plan_limits(bytes_per_s: int, ops_per_s: int) -> dict[str, int]:
    """A throttle group's limits; 0 is no limit."""
    return {"bps-total": bytes_per_s, "iops-total": ops_per_s}


def plan_command(plan: MachinePlan) -> list[str]:
    """The whole command line, program first."""
    argv = ["qemu-system-x86_64", "-name", plan.name, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-S"]
    if plan.sandbox:
        argv += ["-sandbox", SANDBOX]
    argv += ["-M", "microvm,acpi=on,memory-backend=ram,suppress-vmdesc=on", "-global", "virtio-mmio.force-legacy=false"]
    # A saved state is the devices' alone; it carries no description of the machine that QEMU could compare.
    argv += ["-global", "migration.send-configuration=off"]
    argv += ["-accel", "kvm" if plan.kvm else "tcg", "-cpu", "host" if plan.kvm else "max"]
    argv += ["-smp", _smp(plan.vcpu_count, plan.smt), "-m", f"size={plan.mem_size_mib}M"]
    argv += ["-object", _ram(plan), "-device", "i8042"]
    if plan.kernel is not None:
        argv += ["-kernel", plan.kernel]
    if plan.initrd is not None:
        argv += ["-initrd", plan.initrd]
    argv += ["-incoming", "defer"] if plan.incoming else ["-append", plan.boot_args]
    argv += ["-chardev", f"socket,id=qmp,fd={plan.qmp}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"socket,id=console,fd={plan.console}", "-serial", "chardev:console"]
    for drive in plan.drives:
        argv += _drive(drive)
    for net in plan.nets:
        argv += _net(net)
    if plan.channel is not None:
        argv += ["-device", "virtio-serial-device,max_ports=2"]
        argv += ["-chardev", f"socket,id=channel,fd={plan.channel}"]
        argv += ["-device", f"virtserialport,chardev=channel,nr=1,name={CHANNEL_PORT}"]
    if plan.entropy:
        rate = f",max-bytes={plan.entropy_bytes},period={plan.entropy_period_ms}" if plan.entropy_bytes else ""
        argv += ["-device", "virtio-rng-device" + rate]
    if plan.balloon is not None:
        switches = {"deflate-on-oom": plan.balloon.deflate_on_oom, "free-page-reporting": plan.balloon.page_reporting}
        given = "".join(f",{name}={'on' if value else 'off'}" for name, value in switches.items())
        argv += ["-device", f"virtio-balloon-device,id={BALLOON_DEVICE}{given}"]
    return argv


def _ram(plan: MachinePlan) -> str:
    share = "on" if plan.ram_shared else "off"
    return f"memory-backend-file,id=ram,size={plan.mem_size_mib}M,mem-path=/dev/fd/{plan.ram},share={share}"


def _smp(count: int, smt: bool) -> str:
    threads = 2 if smt and count > 1 else 1
    return f"cpus={count},sockets=1,cores={count // threads},threads={threads}"


# A host without room is the guest's I/O error, as with Firecracker. QEMU's own default stops the whole machine, silently.
_TELL_ERRORS = "werror=report,rerror=report"


def _drive(drive: DrivePlan) -> list[str]:
    file_node = f"{drive.node}-file0"
    fd_set = drive.index + 1
    limits = "".join(f",x-{name}={value}" for name, value in plan_limits(drive.bytes_per_s, drive.ops_per_s).items())
    top = {"driver": "throttle", "node-name": drive.node, "throttle-group": f"{drive.node}-limits",
           "file": f"{drive.node}-raw", "read-only": drive.read_only}  # fmt: skip
    return [
        "-add-fd", f"fd={drive.descriptor},set={fd_set}",
        "-object", f"throttle-group,id={drive.node}-limits{limits}",
        "-blockdev", _json(plan_drive_file(drive, fd_set, file_node)),
        "-blockdev", _json(plan_drive_raw(drive, file_node)),
        "-blockdev", _json(top),
        "-device", f"virtio-blk-device,drive={drive.node},id={drive.node}-device,discard=off,write-zeroes=off,{_TELL_ERRORS}",
    ]  # fmt: skip


def _net(net: NetPlan) -> list[str]:
    mtu = f",host_mtu={net.mtu}" if net.mtu is not None else ""
    return [
        "-netdev", f"tap,id=net{net.index},fd={net.descriptor}",
        "-device", f"virtio-net-device,netdev=net{net.index},mac={net.mac}{mtu}",
    ]  # fmt: skip


def _json(value: dict[str, object]) -> str:
    return msgspec.json.encode(value).decode("ascii")
