"""Control groups, planned for both versions and made in folders that stand for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.errors import HostError
from firebuild.host.cgroups import (
    Cgroup,
    Hierarchies,
    Limits,
    check_values,
    find_hierarchies,
    make_cgroup,
    plan_cgroup,
    plan_values,
)

ALL = Limits(memory_bytes=1 << 28, cpu_us=150000, pids=64, read_bps=1 << 20, write_iops=50)


def _host(root: Path, mounts: str, controllers: str | None) -> Path:
    (root / "proc").mkdir()
    (root / "proc/mounts").write_text(mounts)
    for line in mounts.splitlines():
        (root / line.split()[1].lstrip("/")).mkdir(parents=True, exist_ok=True)
    if controllers is not None:
        (root / "sys/fs/cgroup/cgroup.controllers").write_text(controllers)
    return root


def test_version_two_where_it_has_controllers(tmp_path: Path) -> None:
    root = _host(tmp_path, "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "cpuset cpu io memory pids\n")
    found = find_hierarchies(root)
    assert found == Hierarchies(2, dict.fromkeys(("memory", "cpu", "pids", "io"), "/sys/fs/cgroup"))


def test_version_one_beside_a_version_two_without_controllers(tmp_path: Path) -> None:
    mounts = "".join(f"cgroup /cg/{name} cgroup rw,{name} 0 0\n" for name in ("cpu", "memory", "blkio"))
    root = _host(tmp_path, "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n" + mounts, "hugetlb\n")
    assert find_hierarchies(root) == Hierarchies(1, {"memory": "/cg/memory", "cpu": "/cg/cpu", "io": "/cg/blkio"})


def test_a_host_without_groups_or_with_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert find_hierarchies(tmp_path) is None
    (tmp_path / "proc/mounts").write_text("cgroup /hidden cgroup rw,memory 0 0\n")
    assert find_hierarchies(tmp_path) is None


def test_what_is_written_in_version_one() -> None:
    assert [(value.file, value.text) for value in plan_values(ALL, 1, "8:0")] == [
        ("memory.limit_in_bytes", "268435456"), ("memory.memsw.limit_in_bytes", "268435456"),
        ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000"), ("pids.max", "64"),
        ("blkio.throttle.read_bps_device", "8:0 1048576"), ("blkio.throttle.write_iops_device", "8:0 50"),
    ]  # fmt: skip


def test_what_is_written_in_version_two() -> None:
    assert [(value.file, value.text) for value in plan_values(ALL, 2, "8:0")] == [
        ("memory.max", "268435456"), ("memory.swap.max", "0"), ("cpu.max", "150000 100000"), ("pids.max", "64"),
        ("io.max", "8:0 rbps=1048576 wbps=max riops=max wiops=50"),
    ]  # fmt: skip


def test_limits_that_cannot_be_set_are_refused_before_anything_is_made() -> None:
    with pytest.raises(HostError, match="lies on no disk of its own"):
        plan_values(ALL, 2, None)
    values = plan_values(Limits(pids=1), 1, None)
    with pytest.raises(HostError, match="shows no control groups"):
        plan_cgroup(None, "firebuild", "m", values)
    with pytest.raises(HostError, match=r"control groups \(version 1\) lack pids"):
        plan_cgroup(Hierarchies(1, {"memory": "/cg/memory"}), "firebuild", "m", values)
    assert plan_cgroup(None, "firebuild", "m", []) is None


def test_version_two_hands_controllers_down_and_reads_back(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.subtree_control").write_text("cpu")
    hierarchies = Hierarchies(2, dict.fromkeys(("memory", "pids"), str(tmp_path)))
    group = plan_cgroup(hierarchies, "a/b", "m", plan_values(Limits(memory_bytes=4096, pids=5), 2, None))
    assert group is not None and group.folders == [str(tmp_path / "a/b/m")]
    make_cgroup(group)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (tmp_path / "a/b/m/pids.max").read_text() == "5"
    with pytest.raises(HostError, match="exists already"):
        make_cgroup(group)
    (tmp_path / "a/b/m/memory.max").write_text("max\n")
    with pytest.raises(HostError, match=r"memory.max` is `max` and not `4096`, as was asked for"):
        check_values(group)


def test_a_process_that_is_not_in_its_group(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("17\n18\n")
    group = Cgroup(2, [str(tmp_path)])
    check_values(group, pid=18)
    with pytest.raises(HostError, match="the VMM 19 is not in its control group"):
        check_values(group, pid=19)
