"""How this host is set up for strangers' guests: each item of Firecracker's production guide that can be read from the host.

The items and what they should be: Firecracker's docs/prod-host-setup.md. The files: the kernel's Documentation/ABI and
admin-guide.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from firebuild.host.cgroups import CONTROLLERS, find_hierarchies

_VULNERABILITIES = "sys/devices/system/cpu/vulnerabilities"
_HW_VULN = "https://docs.kernel.org/admin-guide/hw-vuln/index.html"


class Item(msgspec.Struct, frozen=True):
    """One item. `good`: None where the host does not tell. `found`: what was read; `mend`: what to do."""

    name: str
    good: bool | None
    found: str
    mend: str | None = None


def examine_kernel(root: Path = Path("/")) -> list[Item]:
    """What the kernel and the hardware say. `root`: where /proc and /sys are looked for."""
    return [
        _smt(root),
        _ksm(root),
        _swap(root),
        *_vulnerabilities(root),
        _memory(root),
        _groups(root),
        _boot_time(root),
        _timer(root),
        _huge_pages(root),
        _console(root),
        _audit(root),
    ]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _smt(root: Path) -> Item:
    active = _read(root / "sys/devices/system/cpu/smt/active")
    if active is None:
        return Item("smt", None, "this kernel does not tell of hardware threads")
    if active == "0":
        return Item("smt", True, "off: no two guests share a core")
    return Item(
        "smt", False, "on: guests can learn from each other on the threads of one core",
        "echo off > /sys/devices/system/cpu/smt/control, and `nosmt` on the host's kernel command line",
    )  # fmt: skip


def _ksm(root: Path) -> Item:
    run = _read(root / "sys/kernel/mm/ksm/run")
    if run in (None, "0"):
        return Item("ksm", True, "off" if run else "this kernel has none")
    mend = "echo 2 > /sys/kernel/mm/ksm/run" if run == "1" else "echo 0 > /sys/kernel/mm/ksm/run"
    return Item("ksm", False, f"run is {run}: equal pages of guests are shared, which tells of their content", mend)


def _swap(root: Path) -> Item:
    swaps = [line.split()[0] for line in (_read(root / "proc/swaps") or "").splitlines()[1:] if line.strip()]
    if not swaps:
        return Item("swap", True, "none")
    return Item(
        "swap", False, f"guests' memory may be written to {', '.join(swaps)}",
        "swapoff -a, and take it out of /etc/fstab; or encrypt it with a key of each boot",
    )  # fmt: skip


def _vulnerabilities(root: Path) -> Iterator[Item]:
    folder = root / _VULNERABILITIES
    found = {path.name: _read(path) or "" for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    if not found:
        yield Item("cpu vulnerabilities", None, "this kernel does not tell", "use a newer kernel")
        return
    bad = {name: text for name, text in found.items() if "vulnerable" in text.lower()}
    for name, text in bad.items():
        yield Item(f"cpu {name}", False, text, f"newer microcode and kernel, and no `mitigations=off`: see {_HW_VULN}")
    if not bad:
        yield Item("cpu vulnerabilities", True, f"{len(found)} looked at: mitigated, or not affected")
    line = _read(root / "proc/cmdline") or ""
    off = [word for word in line.split() if word.startswith("mitigations=") and _weakens(word)]
    if off:
        yield Item("cpu mitigations", False, f"`{off[0]}` on the kernel command line", "take it out")


def _weakens(word: str) -> bool:
    values = word.partition("=")[2].split(",")
    return "off" in values or any(value.startswith("no_guest") for value in values)


def _memory(root: Path) -> Item:
    controllers = sorted((root / "sys/devices/system/edac/mc").glob("mc[0-9]*"))
    if controllers:
        return Item("ecc memory", True, f"{len(controllers)} memory controllers report errors")
    return Item(
        "ecc memory", None, "no memory controller reports errors, so none can be seen",
        "use memory with error correction and target row refresh (Rowhammer)",
    )  # fmt: skip


def _groups(root: Path) -> Item:
    found = find_hierarchies(root)
    if found is None:
        return Item("control groups", False, "none that limit anything", "mount cgroup2 on /sys/fs/cgroup")
    missing = [name for name in CONTROLLERS if name not in found.mounts]
    if missing:
        return Item(
            "control groups", False, f"version {found.version} without {', '.join(missing)}",
            "enable the controllers on the kernel command line, or in the group above",
        )  # fmt: skip
    return Item("control groups", True, f"version {found.version} with {', '.join(CONTROLLERS)}")


def _boot_time(root: Path) -> Item:
    """Two remedies for what makes creating a machine slow since Linux 6.1."""
    pages = _read(root / "sys/module/kvm/parameters/nx_huge_pages")
    if pages is None:
        return Item("kvm nx_huge_pages", None, "the module kvm does not tell")
    multihit = _read(root / _VULNERABILITIES / "itlb_multihit") or "unknown"
    favor = "favordynmods" in (_read(root / "proc/mounts") or "") or "cgroup_favordynmods=true" in (
        _read(root / "proc/cmdline") or ""
    )
    found = f"{pages}; itlb_multihit: {multihit}; favordynmods {'on' if favor else 'off'}"
    affected = "not affected" not in multihit.lower()
    if affected and pages.lower() in ("never", "n"):
        return Item("kvm nx_huge_pages", False, found, "modprobe kvm nx_huge_pages=auto: this processor needs it")
    if favor or (not affected and pages.lower() in ("never", "n")):
        return Item("kvm nx_huge_pages", True, found)
    if affected:
        return Item(
            "kvm nx_huge_pages", False, found, "mount -o remount,favordynmods /sys/fs/cgroup: machines start sooner"
        )
    return Item("kvm nx_huge_pages", False, found, "modprobe kvm nx_huge_pages=never: machines start sooner")


def _timer(root: Path) -> Item:
    period = _read(root / "sys/module/kvm/parameters/min_timer_period_us")
    if period is None:
        return Item("kvm min_timer_period_us", None, "the module kvm does not tell")
    if period.isdigit() and int(period) > 0:
        return Item("kvm min_timer_period_us", True, f"{period}: the shortest period of a guest's timer")
    return Item(
        "kvm min_timer_period_us", False, f"{period}: a guest's timer may cost the host any time",
        "modprobe kvm min_timer_period_us=200, or longer",
    )  # fmt: skip


def _huge_pages(root: Path) -> Item:
    count = _read(root / "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    transparent = _read(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = transparent.partition("[")[2].partition("]")[0] if transparent else "none"
    return Item("huge pages", True, f"{count or 0} of 2 MiB reserved; transparent ones: {chosen}")


def _console(root: Path) -> Item:
    levels = (_read(root / "proc/sys/kernel/printk") or "").split()
    if not levels or not levels[0].isdigit():
        return Item("kernel console", None, "this kernel does not tell its log level")
    if int(levels[0]) <= 1:
        return Item("kernel console", True, f"log level {levels[0]}")
    return Item(
        "kernel console", False, f"log level {levels[0]}: a slow console holds up what makes the kernel log",
        "`quiet loglevel=1` on the host's kernel command line; now: dmesg -n 1",
    )  # fmt: skip


def _audit(root: Path) -> Item:
    logged = _read(root / "proc/sys/kernel/seccomp/actions_logged")
    if logged is None:
        return Item("seccomp log", None, "this kernel does not tell which seccomp actions it logs")
    missing = [action for action in ("kill_process", "kill_thread", "trap") if action not in logged.split()]
    if not missing:
        return Item("seccomp log", True, f"logged: {logged}")
    return Item(
        "seccomp log", False, f"a VMM that breaks its filter is not logged: {', '.join(missing)}",
        f"sysctl -w kernel.seccomp.actions_logged='{logged} {' '.join(missing)}'",
    )  # fmt: skip


def examine_paths(paths: Iterable[Path]) -> Item:
    """Whether only root can change these paths and what they lie in: the jailer trusts all that it is given."""
    looked: dict[Path, str] = {}
    for path in paths:
        real = Path(os.path.realpath(path))
        for each in (real, *real.parents):
            if each not in looked:
                looked[each] = _who_may_change(each)
    bad = [f"`{path}` {why}" for path, why in sorted(looked.items()) if why]
    if not bad:
        return Item("paths", True, f"{len(looked)} looked at: root's alone to change")
    return Item("paths", False, "; ".join(bad), "chown root, and chmod go-w")


def _who_may_change(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""
    if status.st_uid != 0:
        return f"belongs to user {status.st_uid}"
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # In a sticky folder nobody changes what is root's.
    if writable and not status.st_mode & stat.S_ISVTX:
        return f"may be changed by others (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def examine_users(first: int, last: int, root: Path = Path("/")) -> Item:
    """Whether the ids of VMMs are nobody else's on this host."""
    known: list[tuple[int, int, str]] = []
    for file in ("passwd", "group"):
        for fields in _fields(root / "etc" / file):
            if len(fields) > 2 and fields[2].isdigit():
                known.append((int(fields[2]), int(fields[2]), f"`{fields[0]}` of /etc/{file}"))
    for file in ("subuid", "subgid"):
        for fields in _fields(root / "etc" / file):
            if len(fields) > 2 and fields[1].isdigit() and fields[2].isdigit():
                known.append((int(fields[1]), int(fields[1]) + int(fields[2]) - 1, f"`{fields[0]}` of /etc/{file}"))
    meets = [who for low, high, who in known if low <= last and first <= high]
    if meets:
        return Item(
            "users",
            False,
            f"{first} to {last} are also those of {', '.join(meets[:5])}",
            "choose others with --jailer-ids",
        )
    return Item("users", True, f"{last - first + 1} of their own, {first} to {last}")


def _fields(path: Path) -> Sequence[list[str]]:
    return [line.split(":") for line in (_read(path) or "").splitlines()]
