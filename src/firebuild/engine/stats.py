"""Use case: what running machines use of the host."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.machines import get_running
from firebuild.host.usage import Usage, measure_usage
from firebuild.machine.state import MachineRecord, State
from firebuild.network.attach import find_attachments


class Sample(msgspec.Struct, frozen=True):
    """A machine's usage at a moment. `time_s`: of a clock that only goes forward. The guest receives what its tap sends."""

    record: MachineRecord
    usage: Usage
    time_s: float

    def cpu_percent(self, before: Sample | None) -> float:
        """Of one processor of the host, since `before`; 0 without it."""
        if before is None or self.time_s <= before.time_s:
            return 0.0
        return 100 * max(0.0, self.usage.cpu_s - before.usage.cpu_s) / (self.time_s - before.time_s)


def select_machines(engine: Engine, names: Sequence[str]) -> list[MachineRecord]:
    """The machines of these names, which must run; without names all that run. Raises NotFoundError, MachineError."""
    if names:
        return [get_running(engine, name) for name in names]
    running = (State.RUNNING, State.PAUSED)
    return [record for record in engine.machines.records.list_all() if record.effective_state in running]


def take_samples(engine: Engine, records: Iterable[MachineRecord]) -> list[Sample]:
    """What each of these machines has used so far; those that have ended meanwhile are left out."""
    samples = []
    for record in records:
        taps = [each.tap for each in find_attachments(engine.networks, record.spec.id)]
        if record.progress.vmm is None or not record.alive:
            continue
        usage = measure_usage(record.progress.vmm.pid, taps)
        if usage is not None:
            samples.append(Sample(record, usage, time.monotonic()))
    return samples
