"""A helper machine: the root and volumes of an ended machine in a guest without network and entrypoint, for a copy.

The host never reads a guest's disk: where that is to be done, a guest does it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from firebuild.errors import MachineError
from firebuild.machine.build_machine import power_off, tied_running
from firebuild.machine.claims import RAW_DISK
from firebuild.machine.lifecycle import start_machine
from firebuild.machine.services import MachineServices, hold_machine
from firebuild.machine.spec import Boot, MachineSpec, RestartPolicy
from firebuild.machine.state import ENDED
from firebuild.machine.supervisor import open_owner
from firebuild.names import MachineId, new_machine_id


def plan_helper(spec: MachineSpec) -> MachineSpec:
    """The helper of a machine: its root and volumes, and nothing that would act."""
    return msgspec.structs.replace(
        spec, id=new_machine_id(), name=f"copy-{secrets.token_hex(6)}", kind="helper", network=None, joins=[], ports=[],
        address=None, allow=[], init="direct", restart=RestartPolicy(), health=None, mmds=False, auto_remove=False,
        remover=None, sync_back=False, tty=False, stdin=False, labels={}, users={},
        drives=[drive for drive in spec.drives if not drive.drive_id.startswith(RAW_DISK)],
    )  # fmt: skip


@contextmanager
def open_helper(services: MachineServices, machine_id: MachineId, boot: Boot) -> Iterator[Path]:
    """The vsock socket of a guest that has an ended machine's root. The machine cannot be started or removed meanwhile.

    Leaving the block well powers the guest off in order. Raises MachineError for a machine that has not ended; FirebuildError."""
    with hold_machine(services, machine_id):
        record = services.records.get(machine_id)
        if record.state not in ENDED:
            raise MachineError(f"the machine {record.spec.name} is {record.effective_state}")
        spec = plan_helper(record.spec)
        with open_owner() as owner:
            start_machine(services, spec, boot, prepare=lambda _: None, owner=owner)
            with tied_running(services, spec):
                yield services.layout.machine(spec.id).vsock
                power_off(services, spec)
