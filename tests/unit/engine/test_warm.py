"""Which machines start warm, from which snapshot, and what of them is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from firebuild.engine.warm import LABEL, find_obstacle, plan_key, plan_template
from firebuild.layout import Layout
from firebuild.machine.metadata import plan_boot_document
from firebuild.machine.spec import (
    Boot,
    DiskLimits,
    DriveSpec,
    Entrypoint,
    MachineSpec,
    MountSpec,
    NetworkJoin,
    VmmExtras,
)
from firebuild.names import MachineId, parse_port_mappings


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    for name in ("vmlinux", "initramfs", "disk"):
        (tmp_path / name).write_text(name)
    return Boot(tmp_path / "vmlinux", tmp_path / "initramfs")


@pytest.fixture
def spec(tmp_path: Path, boot: Boot) -> MachineSpec:
    own = tmp_path / "machines" / ("a" * 20)
    return MachineSpec(
        id=MachineId("a" * 20), name="web", kind="run", hostname="web", kernel="k", cpus=1, memory_mib=256, network="machines",
        drives=[
            DriveSpec("rootfs", str(tmp_path / "disk"), read_only=True),
            DriveSpec("upper", str(own / "upper.ext4"), read_only=False),
        ],
        disk_size_bytes=1 << 30, env={"TOKEN": "x"}, users={"root": "key"}, entrypoint=Entrypoint(cmd=["serve"]),
        ports=[*parse_port_mappings('8080:80')], labels={"a": "b"}, joins=[NetworkJoin("machines", ["10.0.0.9"], ["www"])],
    )  # fmt: skip


def key(spec: MachineSpec, boot: Boot, **changes: Any) -> str:
    facts = {"program": None, "vmm": "1", "host": "none a"} | changes
    return plan_key(spec, boot, **facts)


def test_what_is_that_machines_alone_is_not_in_the_key(spec: MachineSpec, boot: Boot) -> None:
    other = msgspec.structs.replace(
        spec, id=MachineId("b" * 20), name="other", hostname="other", env={}, users={}, entrypoint=Entrypoint(), ports=[],
        labels={}, joins=[NetworkJoin("other")], drives=[spec.drives[0], DriveSpec("upper", "/elsewhere/upper.ext4", read_only=False)],
    )  # fmt: skip
    assert key(spec, boot) == key(other, boot)


def test_whatever_the_guest_depends_on_is_another_key(spec: MachineSpec, boot: Boot, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"cpus": 2}, {"memory_mib": 512}, {"disk_size_bytes": 2 << 30}, {"kernel_args": "quiet"}, {"read_only": True},
        {"mmds": False}, {"joins": [*spec.joins, NetworkJoin("more")]}, {"disk_limits": DiskLimits(iops=7)},
        {"joins": [], "network": None}, {"drives": spec.drives[:1]}, {"extras": VmmExtras(balloon_mib=64)},
    ]  # fmt: skip
    keys = [key(spec, boot), *(key(msgspec.structs.replace(spec, **change), boot) for change in changes)]
    keys += [key(spec, boot, **{name: "other"}) for name in ("program", "vmm", "host")]
    for name in ("vmlinux", "initramfs", "disk"):
        (tmp_path / name).write_text("another one")
        keys.append(key(spec, boot))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"init": "system"}, "init"),
        ({"root_mode": "copy"}, "copy"),
        ({"mounts": [MountSpec("v0", "/data")]}, "volumes"),
        ({"extras": VmmExtras(huge_pages="2M")}, "2 MiB"),
        ({"drives": [DriveSpec("x", "/x", read_only=True)] * 3}, "volumes"),
    ],
)
def test_who_cannot_start_warm_is_told_why(spec: MachineSpec, change: dict[str, Any], word: str) -> None:
    assert find_obstacle(spec) is None
    obstacle = find_obstacle(msgspec.structs.replace(spec, **change))
    assert obstacle is not None and word in obstacle


def test_nothing_of_the_first_machine_is_in_the_template(spec: MachineSpec, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    template = plan_template(spec, layout.machine)
    assert (template.env, template.users, template.ports, template.entrypoint) == ({}, {}, [], Entrypoint())
    assert template.id != spec.id and template.labels == {LABEL: "template"} and template.auto_remove
    assert template.drives[0] == spec.drives[0]
    assert template.drives[1].path == str(layout.machine(template.id).state / "upper.ext4")
    assert template.joins == [NetworkJoin("machines")]
    document = plan_boot_document(template, [])
    assert document["start_entrypoint"] is False and plan_boot_document(spec, [])["start_entrypoint"] is True
