"""The distribution's kernel by apt: fetched, unpacked, not installed; its initramfs complete."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from firebuild.errors import BusyError, KernelError, ProcessError
from firebuild.host import process
from firebuild.kernels import fetch
from firebuild.kernels.fetch import Distribution, import_kernel, pull_kernel
from firebuild.kernels.initramfs import ensure_initramfs
from firebuild.kernels.modules import unpack_modules
from firebuild.kernels.store import Kernel, KernelStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KernelStore:
    return KernelStore(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def kernel(store: KernelStore) -> Kernel:
    before = installed_packages()
    lines: list[str] = []
    pulled = pull_kernel(store, progress=lines.append)
    assert any(line.startswith("downloading linux-image-") for line in lines)
    assert installed_packages() == before, "nothing was installed"
    return pulled


def installed_packages() -> bytes:
    return subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version} ${Status}\\n", "linux-*"], check=True, capture_output=True
    ).stdout


def test_the_kernel_is_an_elf_with_what_guests_need(kernel: Kernel, store: KernelStore) -> None:
    assert kernel.format == "elf" and kernel.version and kernel.version in kernel.name
    assert kernel.path.read_bytes()[:4] == b"\x7fELF"
    assert not [warning for warning in kernel.warnings if "PVH" in warning or "VIRTIO" in warning], kernel.warnings
    assert kernel.config is not None and "CONFIG_VIRTIO_BLK" in kernel.config.read_text()
    assert store.default().name == kernel.name
    store.verify(kernel)
    assert not [name for name in os.listdir(store.root) if name.startswith((".stage", ".pull-"))]


def test_modules_come_in_an_order_that_loads(kernel: Kernel) -> None:
    assert kernel.modules is not None
    order = [module.name for module in unpack_modules(kernel.modules)]
    assert order == kernel.module_names
    for first, then in [("virtio", "virtio_mmio"), ("virtio_ring", "virtio_blk"), ("virtio_mmio", "virtio_console")]:
        if first in order and then in order:
            assert order.index(first) < order.index(then)


def test_the_initramfs_is_one_that_cpio_reads(kernel: Kernel, tmp_path: Path) -> None:
    path = ensure_initramfs(kernel, Path("/bin/true"), tmp_path)
    listing = subprocess.run(["cpio", "-t"], input=path.read_bytes(), check=True, capture_output=True).stdout.decode()
    assert listing.split()[:6] == ["dev", "dev/console", "dev/null", "init", "modules", "modules/order"]
    assert listing.count(".ko") == len(kernel.module_names)


def test_one_pull_at_a_time_and_leftovers_swept(kernel: Kernel, store: KernelStore) -> None:
    (store.root / ".pull-dead").mkdir()
    (store.root / ".pull-dead" / "file").write_bytes(b"x")
    with fetch._open_pull_folder(store.root) as folder:
        assert os.listdir(folder) == [] and not (store.root / ".pull-dead").exists()
        with pytest.raises(BusyError, match="kernel pull"):
            pull_kernel(store)
    assert not folder.exists()


def test_pulling_again_changes_nothing(kernel: Kernel, store: KernelStore) -> None:
    assert pull_kernel(store) == kernel


def test_an_imported_copy_equals_the_original(kernel: Kernel, store: KernelStore) -> None:
    assert kernel.config is not None
    with pytest.raises(KernelError, match="cannot be a guest's kernel"):
        import_kernel(store, "bare", kernel.path, config_file=kernel.config)
    assert store.find("bare") is None
    copy = import_kernel(store, "copy", kernel.path)
    assert copy.digest == kernel.digest and copy.warnings
    store.remove("copy")


def test_no_such_package(store: KernelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "plan_packages", lambda *_: ["linux-image-of-nobody"])
    with pytest.raises(KernelError, match="apt knows none of the packages linux-image-of-nobody") as caught:
        pull_kernel(store)
    assert "apt-get update" in (caught.value.hint or "")
    with pytest.raises(KernelError, match="not a package name"):
        fetch._is_known("--help")


def test_a_failed_download_leaves_nothing(kernel: Kernel, store: KernelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    original = process.run

    def offline(argv: list[str], **options: object) -> object:
        if "download" in argv:
            raise ProcessError("`apt-get` failed", status=100, details="Could not resolve the mirror's name")
        return original(argv, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fetch, "run", offline)
    before = sorted(os.listdir(store.root))
    with pytest.raises(KernelError, match="cannot be downloaded") as caught:
        pull_kernel(store, name="other")
    assert "resolve" in (caught.value.details or "")
    assert sorted(os.listdir(store.root)) == before


def test_another_distribution(store: KernelStore) -> None:
    with pytest.raises(KernelError, match="fedora"):
        pull_kernel(store, distribution=Distribution("fedora", (), "40"))
