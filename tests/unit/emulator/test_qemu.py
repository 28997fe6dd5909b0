"""QEMU's command line: what a plan becomes, and what is added to the guest's."""

from __future__ import annotations

import json

import pytest

from firebuild.emulator.qemu import (
    DEFAULT_BOOT_ARGS,
    SANDBOX,
    DrivePlan,
    MachinePlan,
    NetPlan,
    plan_boot_args,
    plan_command,
)


@pytest.mark.parametrize(
    ("given", "root", "khz", "expected"),
    [
        ("console=ttyS0", None, 2600000, "console=ttyS0 pci=off reboot=k tsc_early_khz=2600000"),
        ("console=ttyS0", None, None, "console=ttyS0 pci=off reboot=k"),
        ("a", (None, False), None, "a pci=off root=/dev/vda rw reboot=k"),
        ("a", ("0eaa91a0-01", True), None, "a pci=off root=PARTUUID=0eaa91a0-01 ro reboot=k"),
        ("a -- init args", (None, True), 5, "a pci=off root=/dev/vda ro reboot=k tsc_early_khz=5 -- init args"),
        ("tsc_early_khz=7", None, 5, "tsc_early_khz=7 pci=off reboot=k"),
        ("", None, None, "pci=off reboot=k"),
        ("reboot=t", None, None, "reboot=t pci=off"),
        (None, None, None, DEFAULT_BOOT_ARGS + " pci=off"),
    ],
)
def test_boot_args(given: str | None, root: tuple[str | None, bool] | None, khz: int | None, expected: str) -> None:
    assert plan_boot_args(given, root=root, tsc_khz=khz) == expected


def plan(**changes: object) -> MachinePlan:
    values: dict[str, object] = {
        "name": "m", "kvm": False, "vcpu_count": 2, "smt": False, "mem_size_mib": 256, "kernel": "/dev/fd/9",
        "initrd": None, "boot_args": "a b", "console": 3, "qmp": 4, "ram": 8,
    }  # fmt: skip
    return MachinePlan(**{**values, **changes})  # type: ignore[arg-type]


def after(argv: list[str], flag: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv[:-1]) if word == flag]


def test_a_machine_is_confined_and_starts_stopped() -> None:
    argv = plan_command(plan())
    assert after(argv, "-sandbox") == [SANDBOX]
    assert {"-S", "-no-reboot", "-nodefaults", "-no-user-config"} <= set(argv)
    assert after(argv, "-accel") == ["tcg"] and after(argv, "-cpu") == ["max"]
    assert "-sandbox" not in plan_command(plan(sandbox=False))
    assert after(plan_command(plan(kvm=True)), "-cpu") == ["host"]


def test_memory_is_shared_by_who_boots_and_private_to_who_is_restored() -> None:
    booted, restored = plan_command(plan()), plan_command(plan(kernel=None, ram_shared=False, incoming=True))
    assert "memory-backend-file,id=ram,size=256M,mem-path=/dev/fd/8,share=on" in after(booted, "-object")
    assert "memory-backend-file,id=ram,size=256M,mem-path=/dev/fd/8,share=off" in after(restored, "-object")
    assert after(restored, "-incoming") == ["defer"] and "-incoming" not in booted
    assert not {"-kernel", "-initrd", "-append"} & set(restored)
    assert 8 in plan().descriptors()


def test_threads_only_with_smt() -> None:
    assert after(plan_command(plan(vcpu_count=4, smt=True)), "-smp") == ["cpus=4,sockets=1,cores=2,threads=2"]
    assert after(plan_command(plan(vcpu_count=3)), "-smp") == ["cpus=3,sockets=1,cores=3,threads=1"]
    assert after(plan_command(plan(vcpu_count=1, smt=True)), "-smp") == ["cpus=1,sockets=1,cores=1,threads=1"]


def test_drives_are_descriptors() -> None:
    drives = [
        DrivePlan(0, 20, read_only=True, block_device=False, flush=False),
        DrivePlan(1, 21, read_only=False, block_device=True, flush=True, bytes_per_s=1000, ops_per_s=5),
    ]
    argv = plan_command(plan(drives=drives))
    assert after(argv, "-add-fd") == ["fd=20,set=1", "fd=21,set=2"]
    nodes = {node["node-name"]: node for node in map(json.loads, after(argv, "-blockdev"))}
    first, second = nodes["drive0-file0"], nodes["drive1-file0"]
    assert (first["driver"], first["filename"], first["read-only"]) == ("file", "/dev/fdset/1", True)
    assert first["cache"] == {"direct": False, "no-flush": True}
    assert (second["driver"], second["filename"], second["read-only"]) == ("host_device", "/dev/fdset/2", False)
    assert second["cache"] == {"direct": False, "no-flush": False}
    assert "throttle-group,id=drive1-limits,x-bps-total=1000,x-iops-total=5" in after(argv, "-object")
    devices = [device for device in after(argv, "-device") if device.startswith("virtio-blk")]
    assert [device.split(",")[1] for device in devices] == ["drive=drive0", "drive=drive1"]
    assert plan(drives=drives).descriptors() == [3, 4, 8, 20, 21]


def test_nets_channel_and_entropy() -> None:
    argv = plan_command(
        plan(nets=[NetPlan(0, 30, "06:00:00:00:00:01", 1400)], channel=31, entropy=True, entropy_bytes=9,
             entropy_period_ms=100)
    )  # fmt: skip
    assert after(argv, "-netdev") == ["tap,id=net0,fd=30"]
    devices = after(argv, "-device")
    assert "virtio-net-device,netdev=net0,mac=06:00:00:00:00:01,host_mtu=1400" in devices
    assert "virtserialport,chardev=channel,nr=1,name=org.firebuild.vsock.0" in devices
    assert "virtio-rng-device,max-bytes=9,period=100" in devices
