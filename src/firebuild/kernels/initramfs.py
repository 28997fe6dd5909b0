"""The initramfs of a kernel: vminit as /init and the modules, as a deterministic newc cpio.

/init                  vminit, 0755
/dev/console, /dev/null
/modules/order         file names, one a line, in load order (empty if the kernel needs none)
/modules/<name>.ko     uncompressed

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Uncompressed: the guest would only spend time on it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from firebuild.errors import KernelError
from firebuild.host.files import open_atomic
from firebuild.kernels.modules import Module, unpack_modules
from firebuild.kernels.store import Kernel

_FORMAT = b"firebuild-initramfs-1"
_MTIME_S = 1


class CpioWriter:
    """Builds a newc archive in memory. Owner and times are fixed, so equal members give equal bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        """Add a member; `mode` with its file type bits, `device` major and minor of a device node."""
        self._inode += 1
        raw = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, _MTIME_S, len(data), 0, 0, *device, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        self._parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]

    def finish(self) -> bytes:
        """The whole archive, with its trailer, padded to blocks of 512."""
        self._inode = -1
        self.add("TRAILER!!!", 0)
        archive = b"".join(self._parts)
        return archive + bytes(-len(archive) % 512)


def make_initramfs(vminit: bytes, modules: Sequence[Module]) -> bytes:
    """The initramfs with this vminit and these modules, in load order."""
    cpio = CpioWriter()
    cpio.add("dev", stat.S_IFDIR | 0o755)
    cpio.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    cpio.add("dev/null", stat.S_IFCHR | 0o666, device=(1, 3))
    cpio.add("init", stat.S_IFREG | 0o755, vminit)
    cpio.add("modules", stat.S_IFDIR | 0o755)
    order = "".join(f"{module.name}.ko\n" for module in modules)
    cpio.add("modules/order", stat.S_IFREG | 0o644, order.encode())
    for module in modules:
        cpio.add(f"modules/{module.name}.ko", stat.S_IFREG | 0o644, module.data)
    return cpio.finish()


def ensure_initramfs(kernel: Kernel, vminit_path: Path, cache_dir: Path) -> Path:
    """The initramfs file for a kernel, made if it is not there; keyed by vminit's and the modules' content, 0444.

    Raises KernelError if vminit or the modules cannot be read, DiskFullError.
    """
    import hashlib

    try:
        vminit = vminit_path.read_bytes()
    except OSError as error:
        raise KernelError(f"vminit `{vminit_path}` cannot be read: {error.strerror}") from error
    if vminit[:4] != b"\x7fELF":
        raise KernelError(f"vminit `{vminit_path}` is not a program")
    key = hashlib.sha256(_FORMAT)
    key.update(hashlib.sha256(vminit).digest())
    key.update((kernel.modules_digest or "").encode())
    path = cache_dir / f"{key.hexdigest()}.cpio"
    if path.exists():
        return path
    modules = unpack_modules(kernel.modules) if kernel.modules else []
    with open_atomic(path, mode=0o444) as file:
        file.write(make_initramfs(vminit, modules))
    return path


def list_stale(cache_dir: Path, keep: Sequence[Path]) -> list[Path]:
    """The derived files that none of `keep` is: what garbage collection may remove."""
    kept = {os.fspath(path) for path in keep}
    return sorted(path for path in cache_dir.glob("*.cpio") if os.fspath(path) not in kept)
