"""Whether a kernel can be a firebuild guest: its configuration and modules against what the guest side needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from firebuild.errors import KernelError
from firebuild.kernels.vmlinux import KernelFile

Level = Literal["error", "warning"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that a kernel lacks. `subject`: a configuration option or a module."""

    level: Level
    subject: str
    message: str


class _Need(msgspec.Struct, frozen=True):
    """Any of `options` will do. `module`: its name where the option may be `m`; none if it must be built in."""

    level: Level
    options: tuple[str, ...]
    module: str | None
    purpose: str


_NEEDS = (
    _Need("error", ("BLK_DEV_INITRD",), None, "vminit comes in an initramfs"),
    _Need("error", ("DEVTMPFS",), None, "vminit finds the drives in /dev"),
    _Need("error", ("PROC_FS",), None, "vminit mounts /proc"),
    _Need("error", ("SYSFS",), None, "vminit mounts /sys"),
    _Need("error", ("TMPFS",), None, "vminit mounts /run and /dev/shm"),
    _Need("error", ("UNIX98_PTYS",), None, "`exec -t` needs terminals"),
    _Need("error", ("EXT4_FS",), "ext4", "root disks are ext4"),
    _Need("error", ("VIRTIO_MMIO", "VIRTIO_PCI"), "virtio_mmio", "the VMM's devices are on virtio-mmio"),
    _Need("error", ("VIRTIO_BLK",), "virtio_blk", "drives are virtio block devices"),
    _Need("error", ("VIRTIO_NET",), "virtio_net", "networks are virtio network devices"),
    _Need("error", ("INET",), None, "networks are IP networks"),
    _Need("warning", ("OVERLAY_FS",), "overlay", "without it machines need `--root-mode copy`, and builds cannot run"),
    _Need("warning", ("VIRTIO_VSOCKETS",), "vmw_vsock_virtio_transport", "Firecracker's channel to the guest is vsock"),
    _Need("warning", ("VIRTIO_CONSOLE",), "virtio_console", "the emulator's channel to the guest is virtio-serial"),
    _Need(
        "warning", ("ACPI", "VIRTIO_MMIO_CMDLINE_DEVICES"), None, "the guest finds its devices by ACPI or its command line"
    ),
    _Need("warning", ("SERIAL_8250_CONSOLE",), None, "the console log is the first serial port"),
    _Need("warning", ("HW_RANDOM_VIRTIO",), "virtio_rng", "without it early randomness may be slow"),
    _Need("warning", ("PID_NS",), None, "build steps run in namespaces of their own"),
    _Need("warning", ("NET_NS",), None, "`RUN --network=none` needs network namespaces"),
)  # fmt: skip


def check_config(config: Mapping[str, str], modules: Collection[str]) -> list[Finding]:
    """What a kernel of this configuration lacks, errors first. `modules`: the names that its initramfs will load."""
    findings = []
    for need in _NEEDS:
        states = [config.get(f"CONFIG_{option}", "n") for option in need.options]
        name = f"CONFIG_{need.options[0]}"
        if "y" in states:
            continue
        if "m" not in states:
            findings.append(Finding(need.level, name, f"{name} is not set: {need.purpose}"))
        elif need.module is None:
            findings.append(Finding(need.level, name, f"{name} is a module, and must be built in: {need.purpose}"))
        elif need.module not in modules:
            message = f"{name} is a module, and `{need.module}` is not among the modules given: {need.purpose}"
            findings.append(Finding(need.level, need.module, message))
    return sorted(findings, key=lambda finding: finding.level != "error")


def check_kernel(
    kernel: KernelFile, *, config: Mapping[str, str] | None, modules: Collection[str], architecture: str
) -> list[Finding]:
    """All findings about a kernel. `config`: one given beside the file; else the embedded one is used.

    Raises KernelError for a kernel of another architecture.
    """
    if kernel.architecture != architecture:
        raise KernelError(f"the kernel is for {kernel.architecture}; guests of this host are {architecture}")
    findings = []
    if kernel.format == "bzImage":
        findings.append(
            Finding(
                "warning", "format", "the vmlinux in this bzImage cannot be taken out: Firecracker will not boot it"
            )
        )
    elif kernel.format == "elf" and not kernel.pvh and architecture == "x86_64":
        findings.append(Finding("warning", "CONFIG_PVH", "it has no PVH entry point: the emulator cannot boot it"))
    known = config or kernel.config
    if known is None:
        findings.append(
            Finding("warning", "config", "its configuration is neither embedded nor given, so it was not checked")
        )
    else:
        findings += check_config(known, modules)
    return sorted(findings, key=lambda finding: finding.level != "error")


def require_usable(findings: Collection[Finding], subject: str) -> None:
    """Raises KernelError with every error among the findings."""
    errors = [finding.message for finding in findings if finding.level == "error"]
    if errors:
        raise KernelError(
            f"{subject} cannot be a guest's kernel: {len(errors)} needed feature{'s are' if len(errors) > 1 else ' is'} missing",
            hint="set the options, or give the modules with --modules",
            details="\n".join(errors),
        )
