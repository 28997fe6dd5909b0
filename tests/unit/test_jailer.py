"""A jailed start as it is planned, and how a VMM that differs from its plan is told."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from firebuild.emulator.main import VERSION_TEXT
from firebuild.errors import ConfigError, PathTooLongError, VmmError
from firebuild.host.isolation import Isolation
from firebuild.machine.isolation import find_differences
from firebuild.vmm import programs
from firebuild.vmm.jailer import Drive, Jailed, JailPlan, plan_jail
from firebuild.vmm.programs import choose_vmm
from firebuild.vmm.versions import Version

JAILED = Jailed("/opt/fc/firecracker", "/opt/fc/jailer", (1000, 1001))
OWN = {"mnt": 1, "pid": 2, "net": 3}


def _plan(base: Path, *, netns: str | None = None) -> JailPlan:
    return plan_jail(
        JAILED, vmm_id="m" * 20, uid=1000, base=base, kernel=Path("/k"), initramfs=Path("/i"), log=Path("/s/vmm.log"),
        drives=[Drive("rootfs", "/d", True, False, 1 << 40), Drive("upper", "/u", False, False, 1 << 30)],
        memory_bytes=1 << 28, netns=netns, cgroup=(2, "firebuild/" + "m" * 20),
    )  # fmt: skip


def test_the_jailers_arguments(tmp_path: Path) -> None:
    plan = _plan(tmp_path, netns="/run/netns/fb-m")
    text = " ".join(plan.launch.argv)
    assert text == (
        f"/opt/fc/jailer --id {'m' * 20} --exec-file /opt/fc/firecracker --uid 1000 --gid 1000"
        f" --chroot-base-dir {tmp_path} --netns /run/netns/fb-m --new-pid-ns"
        f" --resource-limit no-file=2048 --resource-limit fsize={(1 << 30) + (64 << 20)}"
        f" --cgroup-version 2 --parent-cgroup firebuild/{'m' * 20}"
        " -- --api-sock /api.sock --log-path /fb/vmm.log --level Info"
    )
    assert plan.root == tmp_path / "firecracker" / ("m" * 20) / "root"
    assert {key: (file.inside, file.read_only) for key, file in plan.files.items()} == {
        "kernel": ("/fb/kernel", True), "initramfs": ("/fb/initramfs", True), "log": ("/fb/vmm.log", False),
        "drive:rootfs": ("/fb/drive-rootfs", True), "drive:upper": ("/fb/drive-upper", False),
    }  # fmt: skip


def test_a_base_that_is_too_long_is_refused_and_a_long_one_is_not() -> None:
    assert _plan(Path("/" + "b" * 200))
    with pytest.raises(PathTooLongError, match="the kernel takes 4095"):
        _plan(Path("/" + "b" * 4050))


def test_each_difference_is_told(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    plan.root.mkdir(parents=True)
    status = plan.root.stat()
    good = Isolation(
        uids=[1000] * 4, gids=[1000] * 4, groups=[], no_new_privs=[1, 1], seccomp=[2, 2],
        root=(status.st_dev, status.st_ino), namespaces={"mnt": 4, "pid": 5, "net": 6},
        limits={"Max open files": ("2048", "2048"), "Max file size": (str(plan.fsize), str(plan.fsize))},
    )  # fmt: skip
    assert find_differences(plan, good, OWN, seccomp=True) == []
    worse: list[tuple[dict[str, object], str]] = [
        ({"uids": [1000, 0, 1000, 1000]}, "its users are [1000, 0, 1000, 1000] and not 1000"),
        ({"gids": [0] * 4}, "its groups are [0, 0, 0, 0] and not 1000"),
        ({"groups": [27, 1000]}, "it has the further groups [27]"),
        ({"no_new_privs": [1, 0]}, "it can gain privileges (NoNewPrivs is 0)"),
        ({"seccomp": [2, 0]}, "1 of its 2 threads have no seccomp filter"),
        ({"root": (0, 0)}, "its root is not the jail"),
        ({"namespaces": {**good.namespaces, "net": 3}}, "it is in the host's net namespace"),
        ({"namespaces": {**good.namespaces, "pid": 2}}, "it is in the host's pid namespace"),
        ({"limits": {}}, "its limit `Max open files` is None and not 2048"),
    ]
    for changes, words in worse:
        bad = msgspec.structs.replace(good, **changes)
        assert words in "; ".join(find_differences(plan, bad, OWN, seccomp=True))
    before_the_start = msgspec.structs.replace(good, seccomp=[0, 0])
    assert find_differences(plan, before_the_start, OWN, seccomp=False) == []


def test_firecracker_without_a_jailer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "firecracker"
    binary.write_bytes(Path("/proc/self/exe").read_bytes()[:64])
    binary.chmod(0o755)
    monkeypatch.setattr(programs, "_is_firecracker", lambda _: True)

    def choose(binary: str, jailer: str = "", **options: bool) -> programs.VmmChoice:
        without = options.get("without_jailer", False)
        return choose_vmm(binary, jailer, without_jailer=without, ids=(1000, 1001), find_installed=lambda: None)

    with pytest.raises(ConfigError, match="is Firecracker, and no jailer is given to start it in"):
        choose(str(binary))
    assert choose(str(binary), without_jailer=True) == programs.VmmChoice(str(binary))
    assert choose("") == programs.VmmChoice()
    with pytest.raises(ConfigError, match="no --binary-firecracker for it to start"):
        choose("", "/opt/fc/jailer")
    with pytest.raises(ConfigError, match="cannot be executed"):
        binary.chmod(0o644)
        choose(str(binary))


def test_the_emulator_in_a_jailer_is_refused_and_runs_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = Path(sys.executable).with_name("firecracker-emulator")
    jailer = tmp_path / "jailer"
    jailer.write_text("")
    jailer.chmod(0o755)
    monkeypatch.setattr(programs, "_ask_text", lambda _: VERSION_TEXT)

    def choose(*, without_jailer: bool) -> programs.VmmChoice:
        return choose_vmm(
            str(emulator), str(jailer), without_jailer=without_jailer, ids=(1000, 1001), find_installed=lambda: None
        )

    with pytest.raises(ConfigError, match="is the emulator, which a jailer cannot start"):
        choose(without_jailer=False)
    assert choose(without_jailer=True) == programs.VmmChoice(str(emulator))


def test_an_old_firecracker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("firecracker", "jailer"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(programs, "_ask", lambda *_: Version(1, 11, 0))
    with pytest.raises(VmmError, match=r"too old: firebuild needs 1\.12\.0"):
        choose_vmm(
            str(tmp_path / "firecracker"), str(tmp_path / "jailer"), without_jailer=False, ids=(1000, 1001),
            find_installed=lambda: None,
        )  # fmt: skip
