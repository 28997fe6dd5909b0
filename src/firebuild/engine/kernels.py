"""Use cases of kernels: pulled, imported, removed, and made ready to boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from firebuild.engine.core import Engine
from firebuild.errors import BusyError
from firebuild.kernels.store import Kernel
from firebuild.layout import get_bundled
from firebuild.machine.spec import Boot
from firebuild.machine.state import ENDED
from firebuild.names import parse_object_name


def pull_kernel(engine: Engine, *, name: str | None, report: Callable[[str], None]) -> Kernel:
    """Fetch the distribution's cloud kernel, and make its initramfs. Raises KernelError, MissingProgramError."""
    from firebuild.kernels.fetch import pull_kernel as pull_into
    from firebuild.kernels.initramfs import ensure_initramfs

    checked = None if name is None else parse_object_name("kernel", name)
    kernel = pull_into(engine.kernels, name=checked, progress=report)
    ensure_initramfs(kernel, get_bundled("vminit"), engine.layout.initramfs)
    return kernel


def import_kernel(engine: Engine, *, vmlinux: Path, modules: Path | None, name: str | None) -> Kernel:
    """Take in a kernel of the user's, and make its initramfs. Raises KernelError, ConflictError."""
    from firebuild.kernels.fetch import import_kernel as import_into
    from firebuild.kernels.initramfs import ensure_initramfs

    checked = parse_object_name("kernel", name or vmlinux.name)
    kernel = import_into(engine.kernels, checked, vmlinux, modules_dir=modules)
    ensure_initramfs(kernel, get_bundled("vminit"), engine.layout.initramfs)
    return kernel


def get_boot(engine: Engine, name: str | None) -> tuple[Kernel, Boot]:
    """A kernel (without a name the default one) and what to boot with it. Raises NotFoundError, KernelError, HostError.

    The initramfs is keyed by vminit and the modules: a new firebuild makes a new one, and no image changes.
    """
    from firebuild.kernels.initramfs import ensure_initramfs

    kernel = engine.kernels.default() if name is None else engine.kernels.get(parse_object_name("kernel", name))
    initramfs = ensure_initramfs(kernel, get_bundled("vminit"), engine.layout.initramfs)
    return kernel, Boot(kernel=kernel.path, initramfs=initramfs)


def remove_kernel(engine: Engine, name: str) -> None:
    """Remove a kernel. Raises NotFoundError, BusyError while a machine that has not ended, or a snapshot, uses it."""
    from firebuild.engine.warm import forget_kernel

    kernel = engine.kernels.get(parse_object_name("kernel", name))
    for record in engine.machines.records.list_all(kind=None):
        if record.spec.kernel == kernel.name and record.state not in ENDED:
            raise BusyError(f"the kernel {kernel.name} is used by the machine {record.spec.name}")
    forget_kernel(engine, kernel.name)
    for snapshot in engine.snapshots.list_all():
        if snapshot.spec.kernel == kernel.name:
            raise BusyError(
                f"the kernel {kernel.name} is used by the snapshot {snapshot.name}",
                hint=f"remove that first: firebuild snapshot rm {snapshot.name}",
            )
    engine.kernels.remove(kernel.name)
