"""Which VMM the settings in force name, and within which limits it works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firebuild.config.settings import parse_id_range, parse_memory_max
from firebuild.host.cgroups import Limits
from firebuild.machine.services import VmmSettings

if TYPE_CHECKING:
    from firebuild.engine.core import Engine
    from firebuild.vmm.programs import VmmChoice

_PERIOD_US = 100_000


def plan_vmm_settings(engine: Engine) -> VmmSettings:
    """How VMMs are started by this engine. Nothing is looked at on the host yet."""
    settings = engine.settings

    def choose() -> VmmChoice:
        from firebuild.vmm.programs import choose_vmm

        return choose_vmm(
            settings.vmm_binary, settings.binary_jailer, without_jailer=settings.without_jailer,
            ids=parse_id_range(settings.jailer_ids), find_installed=lambda: _find_installed(engine),
        )  # fmt: skip

    return VmmSettings(
        choose=choose,
        memory_max=parse_memory_max(settings.vmm_memory_max),
        limits=Limits(
            cpu_us=round(settings.vmm_cpu_max * _PERIOD_US), pids=settings.vmm_pids_max,
            read_bps=settings.vmm_io_read_bps, write_bps=settings.vmm_io_write_bps,
            read_iops=settings.vmm_io_read_iops, write_iops=settings.vmm_io_write_iops,
        ),
        cgroup_parent=settings.vmm_cgroup_parent,
    )  # fmt: skip


def _find_installed(engine: Engine) -> tuple[str, str] | None:
    """The newest installed Firecracker and its jailer, where this host can run its guests."""
    from firebuild.host.kvm import HostKind, find_host_mode

    if not engine.layout.firecracker.is_dir():
        return None
    mode = find_host_mode()
    if mode.kind is not HostKind.KVM or not mode.usable:
        return None
    from firebuild.engine.firecracker import list_firecrackers

    installed = list_firecrackers(engine)
    return (str(installed[-1].firecracker), str(installed[-1].jailer)) if installed else None
