"""Kernels: taken in, checked, kept, found, removed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from firebuild.errors import ConflictError, KernelError, NotFoundError, UsageError
from firebuild.kernels.check import check_config
from firebuild.kernels.fetch import import_kernel, parse_os_release, plan_packages
from firebuild.kernels.modules import Module
from firebuild.kernels.store import KernelStore
from firebuild.kernels.vmlinux import parse_kernel
from tests.unit.kernels.samples import VERSION, make_bzimage, make_elf, make_module

GOOD_CONFIG = "".join(
    f"CONFIG_{name}=y\n"
    for name in (
        "BLK_DEV_INITRD", "DEVTMPFS", "PROC_FS", "SYSFS", "TMPFS", "UNIX98_PTYS", "EXT4_FS", "VIRTIO_MMIO", "VIRTIO_BLK",
        "VIRTIO_NET", "INET", "OVERLAY_FS", "VIRTIO_VSOCKETS", "VIRTIO_CONSOLE", "ACPI", "SERIAL_8250_CONSOLE",
        "HW_RANDOM_VIRTIO", "PID_NS", "NET_NS",
    )
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> KernelStore:
    root = tmp_path / "kernels"
    root.mkdir()
    return KernelStore(root)


def publish(store: KernelStore, name: str, version: str = VERSION) -> None:
    store.publish(name, parse_kernel(make_elf(version=version), name), source="test")


def test_publish_find_list_remove(store: KernelStore) -> None:
    modules = [Module("virtio", make_module())]
    kernel = store.publish(
        "k1", parse_kernel(make_elf(), "x"), source="test", modules=modules, config="CONFIG_A=y\n", warnings=["w"]
    )
    assert store.get("k1") == kernel and list(store.list()) == [kernel]
    assert (kernel.version, kernel.format, kernel.module_names, kernel.warnings) == (VERSION, "elf", ["virtio"], ["w"])
    assert kernel.path.read_bytes() == make_elf()
    assert kernel.config is not None and kernel.config.read_text() == "CONFIG_A=y\n"
    assert stat.S_IMODE(kernel.path.stat().st_mode) == 0o444
    store.verify(kernel)
    store.remove("k1")
    assert store.find("k1") is None and list(store.list()) == []
    assert os.listdir(store.root) == [".lock"]
    with pytest.raises(NotFoundError):
        store.remove("k1")


def test_the_same_again_is_no_conflict_and_another_is(store: KernelStore) -> None:
    publish(store, "k1")
    first = store.get("k1")
    publish(store, "k1")
    assert store.get("k1") == first
    with pytest.raises(ConflictError, match="another kernel `k1`"):
        publish(store, "k1", "6.2.0")
    assert store.get("k1") == first


def test_the_default_is_chosen_or_the_newest(store: KernelStore) -> None:
    with pytest.raises(NotFoundError, match="no kernel yet"):
        store.default()
    publish(store, "old")
    publish(store, "new")
    assert store.default().name == "new"
    store.set_default("old")
    assert store.default().name == "old"
    with pytest.raises(NotFoundError):
        store.set_default("none")
    store.remove("old")
    assert store.default().name == "new"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "x" * 129, "a\0b", "-x", ".stage-x", "ä"])
def test_names_that_are_none(store: KernelStore, name: str) -> None:
    with pytest.raises(UsageError):
        store.find(name)
    with pytest.raises(UsageError):
        publish(store, name)


def test_unknown_names_say_what_there_is(store: KernelStore) -> None:
    publish(store, "k1")
    with pytest.raises(NotFoundError) as caught:
        store.get("k2")
    assert "k1" in (caught.value.hint or "")


@pytest.mark.parametrize("record", [b"", b"{", b'{"name":"k1"}'])
def test_damaged_records_are_named(store: KernelStore, record: bytes) -> None:
    publish(store, "k1")
    path = store.root / "k1" / "kernel.json"
    path.chmod(0o600)
    path.write_bytes(record)
    with pytest.raises(KernelError, match="the kernel `k1` is damaged"):
        store.get("k1")
    store.remove("k1")
    assert store.find("k1") is None


def test_a_truncated_or_changed_kernel_is_found(store: KernelStore) -> None:
    publish(store, "k1")
    kernel = store.get("k1")
    kernel.path.chmod(0o600)
    kernel.path.write_bytes(make_elf().replace(b"nothing", b"another").replace(b"gcc", b"xxx"))
    with pytest.raises(KernelError, match="should be sha256"):
        store.verify(kernel)
    kernel.path.write_bytes(b"")
    with pytest.raises(KernelError, match="0 bytes"):
        store.get("k1")


def test_leftovers_of_a_killed_publish_are_swept(store: KernelStore) -> None:
    (store.root / ".stage-dead").mkdir()
    (store.root / ".stage-dead" / "vmlinux").write_bytes(b"x")
    publish(store, "k1")
    assert sorted(os.listdir(store.root)) == [".lock", "k1"]


def import_sample(store: KernelStore, tmp_path: Path, *, config: str | None, modules: bool = False) -> None:
    (tmp_path / "vmlinux").write_bytes(make_elf(config=config))
    folder = tmp_path / "modules"
    if modules:
        folder.mkdir()
        for name in ("virtio_mmio", "virtio_blk"):
            (folder / f"{name}.ko").write_bytes(make_module())
    import_kernel(store, "k", tmp_path / "vmlinux", modules_dir=folder if modules else None, architecture="x86_64")


def test_import_with_a_good_config(store: KernelStore, tmp_path: Path) -> None:
    import_sample(store, tmp_path, config=GOOD_CONFIG)
    kernel = store.get("k")
    assert kernel.warnings == [] and kernel.modules is None and kernel.source == "file vmlinux"


def test_import_of_a_bzimage(store: KernelStore, tmp_path: Path) -> None:
    import gzip

    (tmp_path / "bzImage").write_bytes(make_bzimage(gzip.compress(make_elf(config=GOOD_CONFIG))))
    kernel = import_kernel(store, "k", tmp_path / "bzImage", architecture="x86_64")
    assert kernel.format == "elf" and kernel.path.read_bytes() == make_elf(config=GOOD_CONFIG)


def test_import_names_every_missing_feature(store: KernelStore, tmp_path: Path) -> None:
    config = GOOD_CONFIG.replace("CONFIG_EXT4_FS=y", "# CONFIG_EXT4_FS is not set").replace(
        "VIRTIO_BLK=y", "VIRTIO_BLK=m"
    )
    with pytest.raises(KernelError, match="2 needed features are missing") as caught:
        import_sample(store, tmp_path, config=config)
    assert "CONFIG_EXT4_FS is not set" in (caught.value.details or "")
    assert "`virtio_blk` is not among the modules" in (caught.value.details or "")
    assert list(store.list()) == []
    import_kernel(store, "forced", tmp_path / "vmlinux", architecture="x86_64", force=True)
    assert any("EXT4" in warning for warning in store.get("forced").warnings)


def test_modules_make_up_for_what_is_not_built_in(store: KernelStore, tmp_path: Path) -> None:
    config = GOOD_CONFIG.replace("VIRTIO_BLK=y", "VIRTIO_BLK=m").replace("VIRTIO_MMIO=y", "VIRTIO_MMIO=m")
    import_sample(store, tmp_path, config=config, modules=True)
    assert store.get("k").module_names == ["virtio_mmio", "virtio_blk"]


def test_modules_of_another_kernel_are_refused(store: KernelStore, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(make_elf(config=GOOD_CONFIG))
    (tmp_path / "virtio_mmio.ko").write_bytes(make_module(vermagic="5.4.0"))
    with pytest.raises(KernelError, match=r"is for the kernel 5\.4\.0, and the kernel is 6\.1"):
        import_kernel(store, "k", tmp_path / "vmlinux", modules_dir=tmp_path, architecture="x86_64")


def test_import_of_what_is_no_kernel(store: KernelStore, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "arm").write_bytes(make_elf(machine=183))
    for name, message in [
        ("text", "not a Linux kernel"),
        ("none", "does not exist"),
        (".", "is not a file"),
        ("arm", "is for aarch64"),
    ]:
        with pytest.raises(KernelError, match=message):
            import_kernel(store, "k", tmp_path / name, architecture="x86_64")
    (tmp_path / "vmlinux").write_bytes(make_elf(config=GOOD_CONFIG))
    (tmp_path / "empty").mkdir()
    for folder, message in [("empty", "holds no kernel modules"), ("none", "does not exist")]:
        with pytest.raises(KernelError, match=message):
            import_kernel(store, "k", tmp_path / "vmlinux", modules_dir=tmp_path / folder, architecture="x86_64")


def test_an_unknown_config_is_a_warning(store: KernelStore, tmp_path: Path) -> None:
    import_sample(store, tmp_path, config=None)
    assert any("was not checked" in warning for warning in store.get("k").warnings)


def test_errors_come_before_warnings() -> None:
    levels = [finding.level for finding in check_config({}, [])]
    assert levels == sorted(levels) and set(levels) == {"error", "warning"}


@pytest.mark.parametrize(
    ("text", "architecture", "expected"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "x86_64", ["linux-image-cloud-amd64", "linux-image-amd64"]),
        ("ID=debian\n", "aarch64", ["linux-image-cloud-arm64", "linux-image-arm64"]),
        ('ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n', "x86_64", ["linux-image-virtual", "linux-image-generic"]),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "x86_64", ["linux-image-virtual", "linux-image-generic"]),
    ],
)
def test_packages(text: str, architecture: str, expected: list[str]) -> None:
    assert plan_packages(parse_os_release(text), architecture) == expected


def test_other_distributions_are_told_what_to_do() -> None:
    with pytest.raises(KernelError, match="fedora") as caught:
        plan_packages(parse_os_release("ID=fedora\n"), "x86_64")
    assert "kernel import" in (caught.value.hint or "")
    with pytest.raises(KernelError, match="riscv64"):
        plan_packages(parse_os_release("ID=debian\n"), "riscv64")
