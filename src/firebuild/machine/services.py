"""What the life of machines needs, and the lock that whoever changes a machine holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from firebuild.host.cgroups import Limits
from firebuild.host.deadline import Deadline
from firebuild.host.locks import hold_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from firebuild.layout import Layout, MachineLayout
    from firebuild.machine.state import MachineRecords
    from firebuild.names import MachineId
    from firebuild.network.conflist import NetworkSettings
    from firebuild.vmm.programs import VmmChoice

_LOCK_S = 150.0


class VmmSettings(msgspec.Struct, frozen=True):
    """How VMMs are started. `choose`: the program, checked. `memory_max`: whether it is beside the guest's, and its bytes.

    `limits`: the others. `cgroup_parent`: the group that machines have theirs in."""

    choose: Callable[[], VmmChoice]
    memory_max: tuple[bool, int] = (False, 0)
    limits: Limits = Limits()
    cgroup_parent: str = "firebuild"


class MachineServices(msgspec.Struct, frozen=True):
    """What the life of machines needs."""

    layout: Layout
    records: MachineRecords
    networks: NetworkSettings
    vmm: VmmSettings


@contextmanager
def hold_machine(services: MachineServices, machine_id: MachineId) -> Iterator[MachineLayout]:
    """Hold the machine's lock for the block. Raises BusyError after a while. The lock's file goes with the record."""
    deadline = Deadline(_LOCK_S, "waiting for the machine")
    with try_hold_machine(services, machine_id, deadline) as paths:
        yield paths


@contextmanager
def try_hold_machine(
    services: MachineServices, machine_id: MachineId, deadline: Deadline | None = None
) -> Iterator[MachineLayout]:
    """As hold_machine, waiting until `deadline`, without one not at all."""
    paths = services.layout.machine(machine_id)
    with hold_lock(paths.lock, f"the machine {machine_id}", deadline=deadline):
        try:
            yield paths
        finally:
            if services.records.find(machine_id) is None:
                paths.lock.unlink(missing_ok=True)
