"""A host's fitness for strangers' guests, read from files that stand for /proc, /sys and /etc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firebuild.host.production import examine_kernel, examine_paths, examine_users

GOOD = {
    "sys/devices/system/cpu/smt/active": "0\n",
    "sys/kernel/mm/ksm/run": "0\n",
    "proc/swaps": "Filename Type Size Used Priority\n",
    "sys/devices/system/cpu/vulnerabilities/meltdown": "Not affected\n",
    "sys/devices/system/cpu/vulnerabilities/spectre_v2": "Mitigation: Enhanced IBRS\n",
    "sys/devices/system/cpu/vulnerabilities/itlb_multihit": "Not affected\n",
    "proc/cmdline": "root=/dev/sda quiet loglevel=1\n",
    "sys/devices/system/edac/mc/mc0/size_mb": "1024\n",
    "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n",
    "sys/module/kvm/parameters/nx_huge_pages": "never\n",
    "sys/module/kvm/parameters/min_timer_period_us": "200\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "16\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "proc/sys/kernel/printk": "1 4 1 7\n",
    "proc/sys/kernel/seccomp/actions_logged": "kill_process kill_thread trap errno\n",
}
BAD = {
    "smt": ("sys/devices/system/cpu/smt/active", "1\n", "on: guests can learn"),
    "ksm": ("sys/kernel/mm/ksm/run", "1\n", "run is 1"),
    "swap": ("proc/swaps", "Filename Type\n/dev/sdb2 partition 1 2 3\n", "may be written to /dev/sdb2"),
    "cpu meltdown": ("sys/devices/system/cpu/vulnerabilities/meltdown", "Vulnerable\n", "Vulnerable"),
    "cpu spectre_v2": (
        "sys/devices/system/cpu/vulnerabilities/spectre_v2", "Mitigation: IBRS; SMT vulnerable\n", "SMT vulnerable",
    ),
    "cpu mitigations": ("proc/cmdline", "mitigations=off\n", "`mitigations=off`"),
    "control groups": ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n", "version 2 without io"),
    "kvm nx_huge_pages": ("sys/devices/system/cpu/vulnerabilities/itlb_multihit", "KVM: Mitigation\n", "never; itlb"),
    "kvm min_timer_period_us": ("sys/module/kvm/parameters/min_timer_period_us", "0\n", "0: a guest's timer"),
    "kernel console": ("proc/sys/kernel/printk", "7 4 1 7\n", "log level 7"),
    "seccomp log": ("proc/sys/kernel/seccomp/actions_logged", "kill_process errno\n", "kill_thread, trap"),
}  # fmt: skip


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_host_as_the_guide_wants_it(tmp_path: Path) -> None:
    items = examine_kernel(_write(tmp_path, GOOD))
    assert [item for item in items if not item.good] == []
    assert {item.name: item.found for item in items}["huge pages"] == "16 of 2 MiB reserved; transparent ones: madvise"


@pytest.mark.parametrize("name", BAD)
def test_each_item_that_is_not(tmp_path: Path, name: str) -> None:
    file, text, words = BAD[name]
    items = examine_kernel(_write(tmp_path, {**GOOD, file: text}))
    (bad,) = [item for item in items if item.good is False]
    assert bad.name == name
    assert words in bad.found
    assert bad.mend


def test_a_host_that_does_not_tell_is_neither_good_nor_bad(tmp_path: Path) -> None:
    found = {item.name: item.good for item in examine_kernel(_write(tmp_path, {"proc/mounts": ""}))}
    assert found["smt"] is found["cpu vulnerabilities"] is found["ecc memory"] is found["seccomp log"] is None
    assert found["control groups"] is False


def test_paths_that_others_may_change(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open/jailer").touch()
    (tmp_path / "open").chmod(0o775)
    item = examine_paths([tmp_path / "open/jailer"])
    assert item.good is False
    assert f"`{tmp_path}/open` " in item.found
    if os.geteuid() == 0:
        assert item.found == f"`{tmp_path}/open` may be changed by others (mode 775)"
        (tmp_path / "open").chmod(0o755)
        assert examine_paths([tmp_path / "open/jailer"]).good is True


def test_users_that_are_somebody_elses(tmp_path: Path) -> None:
    root = _write(tmp_path, {"etc/passwd": "root:x:0:0\nweb:x:5000:5000\n", "etc/subuid": "me:100000:65536\n"})
    assert examine_users(6000, 7000, root).good is True
    assert examine_users(4000, 6000, root).found == "4000 to 6000 are also those of `web` of /etc/passwd"
    assert "`me` of /etc/subuid" in examine_users(165535, 170000, root).found
