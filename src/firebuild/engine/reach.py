"""The guest through which a machine's files are reached: its own, or where it has ended a helper's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from firebuild.engine.core import Engine
from firebuild.engine.kernels import get_boot
from firebuild.engine.machines import get_running
from firebuild.engine.space import require_room
from firebuild.errors import NotFoundError
from firebuild.machine.helper import open_helper
from firebuild.machine.state import ENDED


@contextmanager
def open_files(engine: Engine, name: str, report: Callable[[str], None]) -> Iterator[Path]:
    """The vsock socket of a guest that has the machine's files. `report` is told of a helper that has to be started first.

    Raises MachineError for a paused machine; NotFoundError; FirebuildError."""
    record = engine.machines.records.get(name)
    if record.effective_state not in ENDED:
        yield engine.layout.machine(get_running(engine, name).spec.id).vsock
        return
    # One that ended unseen is ended first.
    engine.repair()
    record = engine.machines.records.get(record.spec.id)
    require_room(engine, 0, f"copying files of the machine {record.spec.name}")
    with engine.use_store(adds=False):
        for drive in record.spec.drives:
            if not Path(drive.path).exists():
                raise NotFoundError(f"the disk `{drive.path}` of the machine {record.spec.name} is gone")
        _, boot = get_boot(engine, record.spec.kernel)
        report(f"note: {record.spec.name} has ended: a helper machine is started for its files")
        with open_helper(engine.machines, record.spec.id, boot) as vsock:
            yield vsock
