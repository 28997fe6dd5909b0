"""The rule that tells real hardware virtualization from a /dev/kvm that runs no kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.host.kvm import HostKind, find_cpu_khz, find_host_mode


def host(root: Path, *, flags: str | None, modules: tuple[str, ...] = (), device: bool = True) -> Path:
    (root / "proc").mkdir()
    lines = ["processor\t: 0", "cpu MHz\t\t: 2599.998", *([f"flags\t\t: fpu {flags}"] if flags is not None else [])]
    (root / "proc/cpuinfo").write_text("\n".join(lines) + "\n\nprocessor\t: 1\nflags\t\t: vmx svm\ncpu MHz\t: 1.0\n")
    for module in modules:
        (root / "sys/module" / module).mkdir(parents=True)
    (root / "dev").mkdir()
    if device:
        (root / "dev/kvm").touch()
    return root


@pytest.mark.parametrize(
    ("flags", "modules", "device", "kind", "word"),
    [
        ("vmx", ("kvm", "kvm_intel"), True, HostKind.KVM, "kvm_intel"),
        ("svm", ("kvm", "kvm_amd"), True, HostKind.KVM, "kvm_amd"),
        ("vmx", ("kvm", "kvm_intel"), False, HostKind.NONE, "no /dev/kvm"),
        ("sse2", ("kvm", "kvm_pvm"), True, HostKind.PVM, "kvm_pvm"),
        ("vmx", ("kvm", "kvm_intel", "kvm_pvm"), True, HostKind.PVM, "kvm_pvm"),
        ("sse2", ("kvm",), True, HostKind.PVM, "neither"),
        ("vmx", ("kvm",), True, HostKind.PVM, "not loaded"),
        (None, ("kvm",), True, HostKind.KVM, "/dev/kvm"),
    ],
)
def test_the_rule(
    tmp_path: Path, flags: str | None, modules: tuple[str, ...], device: bool, kind: HostKind, word: str
) -> None:
    mode = find_host_mode(host(tmp_path, flags=flags, modules=modules, device=device))
    assert mode.kind is kind
    assert word in mode.reason
    assert mode.usable is device


def test_the_clock_rate_is_the_first_cpus(tmp_path: Path) -> None:
    assert find_cpu_khz(host(tmp_path, flags="")) == 2_599_998


def test_a_host_that_tells_no_clock_rate(tmp_path: Path) -> None:
    assert find_cpu_khz(tmp_path) is None
