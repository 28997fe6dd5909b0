"""A build machine: one guest without a root disk, for the length of one build."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from firebuild.errors import GuestError, MachineError
from firebuild.guest.build import BuildGuest
from firebuild.guest.control import request_poweroff
from firebuild.host.deadline import Deadline
from firebuild.host.interrupts import hold_interrupts
from firebuild.layout import MachineLayout
from firebuild.machine.console import find_crash
from firebuild.machine.evidence import collect_evidence
from firebuild.machine.lifecycle import (
    end_processes,
    finish_machine,
    start_machine,
)
from firebuild.machine.services import MachineServices, hold_machine
from firebuild.machine.spec import Boot, DriveSpec, MachineSpec
from firebuild.machine.supervisor import open_owner, open_supervisor
from firebuild.names import new_machine_id
from firebuild.store.disks import make_blank

_POWEROFF_S = 120.0


class BuildMachine(msgspec.Struct, frozen=True):
    """An open build machine. Drives are named as the guest names them (`vda` …), in the order given."""

    guest: BuildGuest
    work_drive: str
    base_drives: list[str]
    result_drives: list[str]
    cache_drives: list[str] = []


class BuildMachineSize(msgspec.Struct, frozen=True):
    """How large a build machine is. `memory_mib`: MiB; `network`: a network's name, or None for none.

    `allow`: what it may reach beside the outside. `work_bytes`: the work disk's size; it is sparse.
    """

    cpus: int
    memory_mib: int
    network: str | None
    boot_timeout_s: float
    work_bytes: int
    allow: Sequence[str] = ()


@contextmanager
def open_build_machine(
    services: MachineServices,
    boot: Boot,
    size: BuildMachineSize,
    *,
    kernel_name: str,
    kernel_args: str,
    bases: Sequence[Path],
    results: Sequence[Path],
    purpose: str,
    caches: Sequence[Path] = (),
) -> Iterator[BuildMachine]:
    """Boot a build machine with a blank work disk, base disks (read-only), blank result disks, and disks of caches.

    Leaving the block well powers the guest off in order, so that the result disks are complete; a guest that does not
    end cleanly is an error. Leaving it by an exception kills the machine. Either way nothing of it is left.
    Raises FirebuildError.
    """
    names = [f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    machine_id = new_machine_id()
    paths = services.layout.machine(machine_id)
    drives = [DriveSpec("work", str(paths.work_disk), read_only=False)]
    drives += [DriveSpec(f"base{i}", str(path), read_only=True) for i, path in enumerate(bases)]
    drives += [DriveSpec(f"result{i}", str(path), read_only=False) for i, path in enumerate(results)]
    drives += [DriveSpec(f"cache{i}", str(path), read_only=False) for i, path in enumerate(caches)]
    if len(drives) > len(names):
        raise MachineError(f"a build machine has at most {len(names)} drives; this build needs {len(drives)}")
    spec = MachineSpec(
        id=machine_id, name=f"build-{secrets.token_hex(6)}", kind="build", hostname="build", kernel=kernel_name,
        cpus=size.cpus, memory_mib=size.memory_mib, network=size.network, kernel_args=kernel_args, drives=drives,
        mmds=False, boot_timeout_s=size.boot_timeout_s, labels={"purpose": purpose}, allow=list(size.allow),
    )  # fmt: skip

    def make_work_disk(machine: MachineLayout) -> None:
        make_blank(machine.work_disk, size.work_bytes, label="work")

    with open_owner() as owner:
        start_machine(services, spec, boot, prepare=make_work_disk, owner=owner)
        with tied_running(services, spec):
            guest = BuildGuest(paths.vsock)
            guest.setup(names[0])
            first_result = 1 + len(bases)
            first_cache = first_result + len(results)
            yield BuildMachine(
                guest=guest,
                work_drive=names[0],
                base_drives=names[1:first_result],
                result_drives=names[first_result:first_cache],
                cache_drives=names[first_cache : len(drives)],
            )
            power_off(services, spec)


@contextmanager
def tied_running(services: MachineServices, spec: MachineSpec) -> Iterator[None]:
    """The time in which a machine runs that this process has started; an exception kills it, and nothing of it is left after."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, GuestError) and error.guest_code == "lost":
            # Read before the machine's folder goes.
            _explain_loss(error, services.layout.machine(spec.id))
        with hold_interrupts(), hold_machine(services, spec.id):
            end_processes(services, spec.id)
        raise
    finally:
        with hold_interrupts():
            finish_machine(services, spec.id, None)


def _explain_loss(error: GuestError, paths: MachineLayout) -> None:
    crash = find_crash(paths.console_log)
    if crash is not None:
        error.hint = f"the build machine's {crash}: give it more memory with --mem, or look at its last words above"
    else:
        error.hint = "its VMM ended without a word of the guest: killed, or out of memory on the host; see `dmesg`"
    evidence = collect_evidence(paths)
    if evidence:
        error.details = f"{error.details}\n{evidence}" if error.details else evidence


def power_off(services: MachineServices, spec: MachineSpec) -> None:
    """End such a machine in order, so that its disks are complete. Raises MachineError, GuestError, DeadlineError."""
    paths = services.layout.machine(spec.id)
    what = f"the {spec.kind} machine"
    deadline = Deadline(_POWEROFF_S, f"powering off {what}")
    with open_supervisor(paths) as link:
        if link is None:
            raise MachineError(f"the supervisor of {what} was lost, so its disks are not used")
        request_poweroff(paths.vsock, deadline)
        event = link.find_event(deadline)
        while event is not None and event.get("event") != "vmm-exit":
            event = link.find_event(deadline)
    if event is None or event.get("status") != 0:
        raise MachineError(f"{what} did not end cleanly, so its disks are not used")
