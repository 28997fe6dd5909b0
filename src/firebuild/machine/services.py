"""What the life of machines needs, and the lock that whoever changes a machine holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from firebuild.host.deadline import Deadline
from firebuild.host.locks import hold_lock

if TYPE_CHECKING:
    from firebuild.layout import Layout, MachineLayout
    from firebuild.machine.state import MachineRecords
    from firebuild.names import MachineId
    from firebuild.network.conflist import NetworkSettings

_LOCK_S = 150.0


class MachineServices(msgspec.Struct, frozen=True):
    """What the life of machines needs. `vmm_binary`: a program that takes Firecracker's arguments; None: the emulator."""

    layout: Layout
    records: MachineRecords
    networks: NetworkSettings
    vmm_binary: str | None = None


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
