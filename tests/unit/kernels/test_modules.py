"""Which modules a guest loads, and in which order."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from firebuild.errors import KernelError
from firebuild.images.compression import load_zstd
from firebuild.kernels.modules import (
    ModuleTree,
    load_modules,
    pack_modules,
    parse_modinfo,
    plan_modules,
    unpack_modules,
)
from tests.unit.kernels.samples import make_module


@pytest.fixture
def tree_root(tmp_path: Path) -> Path:
    """A tree as a distribution's: some modules compressed, dashes in file names, some things built in."""
    root = tmp_path / "6.1.0"
    modules = {
        "kernel/drivers/virtio/virtio.ko": make_module(),
        "kernel/drivers/virtio/virtio_ring.ko": make_module(),
        "kernel/drivers/virtio/virtio_mmio.ko.gz": gzip.compress(make_module(depends="virtio,virtio_ring")),
        "kernel/drivers/block/virtio-blk.ko.xz": lzma.compress(make_module(depends="virtio,virtio_ring")),
        "kernel/drivers/net/virtio_net.ko.zst": load_zstd().compress(make_module(depends="net_failover,virtio")),
        "kernel/net/net_failover.ko": make_module(depends="failover"),
        "kernel/net/failover.ko": make_module(),
        "kernel/fs/ext4.ko": make_module(depends="jbd2,mbcache", softdep="pre: crc32c"),
        "kernel/fs/jbd2.ko": make_module(),
        "kernel/crypto/crc32c_generic.ko": make_module(alias=("crypto-crc32c", "crc32c")),
        "kernel/crypto/md5.ko": make_module(alias=("md5",)),
    }
    for name, data in modules.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\nkernel/fs/mbcache.ko\n")
    (root / "modules.builtin.modinfo").write_bytes(b"loop.alias=block-major-7-*\0loop.license=GPL\0")
    return root


def test_closure_in_load_order(tree_root: Path) -> None:
    order, missing = plan_modules(ModuleTree(tree_root))
    assert missing == []
    assert sorted(order) == [
        "crc32c_generic", "ext4", "failover", "jbd2", "net_failover", "virtio", "virtio_blk", "virtio_mmio", "virtio_net",
        "virtio_ring",
    ]  # fmt: skip
    for first, then in [
        ("virtio_ring", "virtio_mmio"), ("virtio", "virtio_blk"), ("failover", "net_failover"),
        ("net_failover", "virtio_net"), ("jbd2", "ext4"), ("crc32c_generic", "ext4"),
    ]:  # fmt: skip
        assert order.index(first) < order.index(then)
    assert order[:2] == ["virtio_ring", "virtio"], "the order that a guest was seen to need"


def test_modules_come_uncompressed(tree_root: Path) -> None:
    loaded = {module.name: module.data for module in load_modules(ModuleTree(tree_root)).modules}
    assert loaded["virtio_blk"] == make_module(depends="virtio,virtio_ring")
    assert loaded["virtio_net"] == make_module(depends="net_failover,virtio")


def test_what_is_neither_there_nor_built_in_is_named(tree_root: Path) -> None:
    (tree_root / "kernel/drivers/virtio/virtio_mmio.ko.gz").unlink()
    (tree_root / "modules.builtin").write_text("")
    assert plan_modules(ModuleTree(tree_root))[1] == ["virtio_mmio", "overlay"]


def test_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(make_module(depends="b"))
    (tmp_path / "b.ko").write_bytes(make_module(softdep="pre: a post: c"))
    (tmp_path / "c.ko").write_bytes(make_module())
    assert plan_modules(ModuleTree(tmp_path), ["a"], []) == (["b", "c", "a"], [])


def test_packing_is_reproducible_and_reads_back(tree_root: Path, tmp_path: Path) -> None:
    modules = load_modules(ModuleTree(tree_root)).modules
    packed = pack_modules(modules)
    assert packed == pack_modules(load_modules(ModuleTree(tree_root)).modules)
    (tmp_path / "modules.tar").write_bytes(packed)
    assert unpack_modules(tmp_path / "modules.tar") == modules


@pytest.mark.parametrize("data", [b"", b"text", make_module()[:100], b"\x7fELF\x02\x01" + b"\xff" * 100])
def test_damaged_modules_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "virtio_mmio.ko").write_bytes(data)
    with pytest.raises(KernelError, match=r"virtio_mmio\.ko"):
        plan_modules(ModuleTree(tmp_path))
    with pytest.raises(KernelError, match="x"):
        parse_modinfo(data, "x")


def test_a_module_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(make_module())
    (tmp_path / "virtio_mmio.ko").symlink_to(tmp_path / "real")
    with pytest.raises(KernelError, match="is a link"):
        plan_modules(ModuleTree(tmp_path))


@pytest.mark.parametrize("data", [b"", b"nonsense" * 100, pack_modules([])[:100]])
def test_damaged_packs(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "modules.tar").write_bytes(data)
    with pytest.raises(KernelError, match=r"modules\.tar"):
        unpack_modules(tmp_path / "modules.tar")
