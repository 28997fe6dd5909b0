"""The initramfs: the right members, the same bytes each time, made once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from firebuild.errors import KernelError
from firebuild.kernels.initramfs import ensure_initramfs, list_stale, make_initramfs
from firebuild.kernels.modules import Module
from firebuild.kernels.store import Kernel, KernelStore
from firebuild.kernels.vmlinux import parse_kernel
from tests.unit.kernels.samples import make_elf, make_module

VMINIT = b"\x7fELF vminit"


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """A reader of its own: name to mode, content and device numbers."""
    members: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    position = 0
    while True:
        assert data[position : position + 6] == b"070701" and position % 4 == 0
        fields = [int(data[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[position + 110 : position + 110 + name_size - 1].decode()
        assert data[position + 110 + name_size - 1] == 0
        begin = position + 110 + name_size
        begin += -begin % 4
        if name == "TRAILER!!!":
            assert not data[begin + size :].strip(b"\0")
            return members
        members[name] = (mode, data[begin : begin + size], (fields[9], fields[10]))
        position = begin + size
        position += -position % 4


def test_members() -> None:
    modules = [Module("virtio_ring", b"ring!"), Module("virtio", b"virtio")]
    archive = make_initramfs(VMINIT, modules)
    assert len(archive) % 512 == 0
    members = read_cpio(archive)
    assert list(members) == [
        "dev", "dev/console", "dev/null", "init", "modules", "modules/order", "modules/virtio_ring.ko", "modules/virtio.ko",
    ]  # fmt: skip
    assert members["init"][:2] == (stat.S_IFREG | 0o755, VMINIT)
    assert members["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert members["dev/null"] == (stat.S_IFCHR | 0o666, b"", (1, 3))
    assert members["modules/order"][1] == b"virtio_ring.ko\nvirtio.ko\n"
    assert members["modules/virtio_ring.ko"][1] == b"ring!"
    assert archive == make_initramfs(VMINIT, modules)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    root = tmp_path / "kernels"
    root.mkdir()
    return KernelStore(root).publish(
        "k", parse_kernel(make_elf(), "x"), source="t", modules=[Module("virtio", make_module())]
    )


def test_made_once_and_again_for_another_vminit(kernel: Kernel, tmp_path: Path) -> None:
    vminit = tmp_path / "vminit"
    vminit.write_bytes(VMINIT)
    cache = tmp_path / "initramfs"
    cache.mkdir()
    path = ensure_initramfs(kernel, vminit, cache)
    first = path.stat()
    assert ensure_initramfs(kernel, vminit, cache) == path and path.stat().st_ino == first.st_ino
    assert stat.S_IMODE(first.st_mode) == 0o444
    assert read_cpio(path.read_bytes())["modules/virtio.ko"][1] == make_module()
    vminit.write_bytes(VMINIT + b"2")
    other = ensure_initramfs(kernel, vminit, cache)
    assert other != path and list_stale(cache, [other]) == [path]


def test_without_modules(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    kernel = KernelStore(tmp_path / "kernels").publish("k", parse_kernel(make_elf(), "x"), source="t")
    (tmp_path / "vminit").write_bytes(VMINIT)
    path = ensure_initramfs(kernel, tmp_path / "vminit", tmp_path)
    assert read_cpio(path.read_bytes())["modules/order"][1] == b""


def test_bad_inputs_are_named(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="vminit"):
        ensure_initramfs(kernel, tmp_path / "none", tmp_path)
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(KernelError, match="is not a program"):
        ensure_initramfs(kernel, tmp_path / "script", tmp_path)
    (tmp_path / "vminit").write_bytes(VMINIT)
    assert kernel.modules is not None
    kernel.modules.unlink()
    with pytest.raises(KernelError, match=r"modules\.tar"):
        ensure_initramfs(kernel, tmp_path / "vminit", tmp_path)
    assert list(tmp_path.glob("*.cpio")) == []
