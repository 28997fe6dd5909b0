"""Which kind of host this is: whether hardware virtualization is really there, and why firebuild thinks so."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

import msgspec


class HostKind(StrEnum):
    """KVM: hardware virtualization. PVM: /dev/kvm is there but no stock guest kernel can run on it. NONE: no /dev/kvm."""

    KVM = "kvm"
    PVM = "pvm"
    NONE = "none"


class HostMode(msgspec.Struct, frozen=True):
    """What was found: `kind`, `reason` (a sentence without a final period), `usable`: this process may open /dev/kvm."""

    kind: HostKind
    reason: str
    usable: bool


def find_host_mode(root: Path = Path("/")) -> HostMode:
    """Decide by CPU flags and kernel modules. /dev/kvm is never opened: it may open, create machines and still run no kernel.

    Module `kvm_pvm` interprets supervisor code and fails at the first instruction that it does not know, so a device
    without `vmx` or `svm` in /proc/cpuinfo, and without `kvm_intel` or `kvm_amd`, is not hardware virtualization.
    `root` is where /proc, /sys and /dev are looked for. aarch64 has no such CPU flag: there the device is the evidence.
    """
    device = root / "dev/kvm"
    modules = root / "sys/module"
    if not device.exists():
        return HostMode(HostKind.NONE, "there is no /dev/kvm", usable=False)
    usable = os.access(device, os.R_OK | os.W_OK)
    if (modules / "kvm_pvm").exists():
        return HostMode(
            HostKind.PVM, "the module kvm_pvm serves /dev/kvm: it runs no stock guest kernel", usable=usable
        )
    flags = _cpu_flags(root / "proc/cpuinfo")
    if flags is None:
        return HostMode(HostKind.KVM, "/dev/kvm is there", usable=usable)
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in flags:
            if not (modules / module).exists():
                return HostMode(
                    HostKind.PVM, f"the CPU has `{flag}` but the module {module} is not loaded", usable=usable
                )
            return HostMode(HostKind.KVM, f"the CPU has `{flag}` and the module {module} is loaded", usable=usable)
    return HostMode(
        HostKind.PVM, "/dev/kvm is there but the CPU shows neither `vmx` nor `svm`: it runs no stock guest kernel",
        usable=usable,
    )  # fmt: skip


def find_cpu_khz(root: Path = Path("/")) -> int | None:
    """The clock rate of the first CPU in kHz ("cpu MHz" of /proc/cpuinfo), or None where the kernel does not tell."""
    for name, value in _cpuinfo(root / "proc/cpuinfo"):
        if name == "cpu MHz":
            try:
                return round(float(value) * 1000) or None
            except ValueError:
                return None
    return None


def find_cpu_model(root: Path = Path("/")) -> str | None:
    """The first CPU's model name ("model name" of /proc/cpuinfo), or None where the kernel does not tell."""
    return next((value for name, value in _cpuinfo(root / "proc/cpuinfo") if name == "model name" and value), None)


def _cpu_flags(path: Path) -> set[str] | None:
    """The first CPU's flags, or None on an architecture whose /proc/cpuinfo has no x86 flags."""
    for name, value in _cpuinfo(path):
        if name == "flags":
            return set(value.split())
    return None


def _cpuinfo(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return [(name.strip(), value.strip()) for name, _, value in pairs]
