"""Snapshots of a microVM: written while it is paused, loaded into a process that has none; refusals in Firecracker's words."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from firebuild.emulator import API_VERSION
from firebuild.emulator.faults import Fault, not_served, os_text
from firebuild.emulator.log import Log
from firebuild.emulator.loop import Loop
from firebuild.emulator.memory import Changes, MemoryFileError, open_saved, save_changes, save_whole
from firebuild.emulator.models import SnapshotCreate, SnapshotLoad
from firebuild.emulator.resources import Resources
from firebuild.emulator.runtime import LaunchOptions, Runtime, Saved
from firebuild.emulator.statefile import SavedMachine, SavedNet, StateFileError, load_state_file, save_state_file
from firebuild.errors import FirebuildError
from firebuild.host.kvm import find_cpu_model

_CREATE = "Create snapshot error: "
_LOAD = "Load snapshot error: Failed to restore from snapshot: "
_STATE = f"{_LOAD}Failed to get snapshot state from file: "
_MEMORY = f"{_LOAD}Failed to load guest memory: Error creating guest memory from file: "
_BUILD = f"{_LOAD}Failed to build microVM from snapshot: "
NOT_PAUSED = f"{_CREATE}Cannot save the microVM state: Operation not allowed: save/restore unavailable while running"
CONFIGURED = "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."


def create_snapshot(runtime: Runtime, resources: Resources, request: SnapshotCreate) -> None:
    """PUT /snapshot/create for a paused machine: the memory's file, then the state's. Raises Fault."""
    size = resources.machine.mem_size_mib << 20
    memory_id = secrets.token_hex(16)
    save = save_changes if request.snapshot_type == "Diff" else save_whole

    def save_memory(changes: Changes | None) -> None:
        try:
            save(Path(request.mem_file_path), runtime.memory, size, memory_id, runtime.owner, changes)
        except OSError as error:
            raise Fault(f"{_CREATE}Cannot perform write on the memory backing file: {os_text(error)}") from error

    try:
        state, channel = runtime.save(save_memory)
        header = SavedMachine(
            vmm_version=API_VERSION,
            qemu_version=runtime.qemu_version,
            accelerator=runtime.accelerator,
            cpu_model=find_cpu_model() or "",
            machine=resources.machine,
            drives=[drive.config for drive in resources.drives],
            nets=[SavedNet(net.config, net.mac) for net in resources.nets],
            vsock=resources.vsock,
            channel=channel,
            entropy=resources.entropy,
            balloon=resources.balloon,
            mmds_config=resources.mmds_config,
            memory_id=memory_id,
        )
        save_state_file(Path(request.snapshot_path), header, state)
    except FirebuildError as error:
        raise Fault(f"{_CREATE}Cannot save the microVM state: {error}") from error
    except OSError as error:
        raise Fault(f"{_CREATE}Cannot perform write on the snapshot backing file: {os_text(error)}") from error


def load_snapshot(
    loop: Loop, log: Log, old: Resources, request: SnapshotLoad, *, instance_id: str, mmds_limit_bytes: int,
    options: LaunchOptions, on_exit: Callable[[int], None],
) -> tuple[Resources, Runtime]:  # fmt: skip
    """PUT /snapshot/load: the machine as it was, paused. `old` has only a metadata store to give. Raises Fault."""
    memory_path = _check_request(old, request)
    try:
        header, state = load_state_file(Path(request.snapshot_path))
    except OSError as error:
        raise Fault(f"{_STATE}Failed to open snapshot file: {os_text(error)}") from error
    except StateFileError as error:
        raise Fault(f"{_STATE}Failed to load snapshot state from file: {error}") from error
    _check_host(header)
    resources = Resources(loop, log, instance_id=instance_id, mmds_limit_bytes=mmds_limit_bytes)
    try:
        _restore_resources(resources, header, request)
        memory = _open_memory(Path(memory_path), header, options)
        resources.mmds = old.mmds
        if resources.mmds_config is not None:
            resources.mmds.version = resources.mmds_config.version
            resources.mmds.imds_compat = resources.mmds_config.imds_compat
        runtime = Runtime(loop, log, resources, on_exit)
        runtime.start(instance_id, options, Saved(header, state, memory))
    except FirebuildError as error:
        resources.close()
        raise Fault(f"{_BUILD}{error}") from error
    except OSError as error:
        resources.close()
        raise Fault(f"{_BUILD}{os_text(error)}") from error
    except BaseException:
        resources.close()
        raise
    return resources, runtime


def _check_request(old: Resources, request: SnapshotLoad) -> str:
    """The memory file's path. Raises Fault."""
    backend = request.mem_backend
    if (backend is None) == (request.mem_file_path is None):
        what = "missing field" if backend is None else "too many fields"
        text = "is required" if backend is None else "exclusively is required"
        raise Fault(
            "An error occurred when deserializing the json body of a request: "
            f"{what}: either `mem_backend` or `mem_file_path` {text}."
        )
    if old.configured:
        raise Fault(CONFIGURED)
    if backend is not None and backend.backend_type == "Uffd":
        raise not_served("the memory backend Uffd of a snapshot")
    if request.clock_realtime:
        raise not_served("the field `clock_realtime` of a snapshot: its guests have no kvmclock")
    if request.huge_pages == "2M":
        raise Fault(f"{_MEMORY}Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd.")
    path = backend.backend_path if backend is not None else request.mem_file_path
    assert path is not None
    return path


def _check_host(header: SavedMachine) -> None:
    """What can be known before QEMU has started: it tells its own version. Raises Fault."""
    here = find_cpu_model() or ""
    if header.vmm_version != API_VERSION:
        raise Fault(f"{_LOAD}Invalid snapshot state: it is of the API version {header.vmm_version}, not {API_VERSION}")
    if header.cpu_model != here:
        raise Fault(f"{_LOAD}Invalid snapshot state: it was made on the CPU `{header.cpu_model}`, not on `{here}`")


def _restore_resources(resources: Resources, header: SavedMachine, request: SnapshotLoad) -> None:
    taps = {change.iface_id: change.host_dev_name for change in request.network_overrides}
    if not taps.keys() <= {net.config.iface_id for net in header.nets}:
        raise Fault(f"{_STATE}Unknown Network Device.")
    if request.vsock_override is not None and header.vsock is None:
        raise Fault(f"{_STATE}Unknown Vsock Device.")
    dirty = request.track_dirty_pages or request.enable_diff_snapshots
    resources.machine = msgspec.structs.replace(header.machine, track_dirty_pages=dirty)
    try:
        for drive in header.drives:
            resources.set_drive(drive)
        for net in header.nets:
            name = taps.get(net.config.iface_id, net.config.host_dev_name)
            resources.set_net(msgspec.structs.replace(net.config, host_dev_name=name))
            resources.nets[-1].mac = net.mac
        if header.vsock is not None:
            path = request.vsock_override.uds_path if request.vsock_override is not None else header.vsock.uds_path
            resources.set_vsock(msgspec.structs.replace(header.vsock, uds_path=path))
        resources.entropy = header.entropy
        resources.balloon = header.balloon
        if header.mmds_config is not None:
            resources.set_mmds_config(header.mmds_config)
    except Fault as fault:
        raise Fault(f"{_BUILD}Failed to restore devices: {fault.message}", fault.status) from fault


def _open_memory(path: Path, header: SavedMachine, options: LaunchOptions) -> int:
    owner = options.uid if os.geteuid() == 0 else None
    try:
        # What a guest gives up into its balloon QEMU cuts out of the file, whoever else has it mapped.
        private = header.balloon is not None
        return open_saved(path, header.machine.mem_size_mib << 20, header.memory_id, owner, private=private)
    except OSError as error:
        raise Fault(f"{_MEMORY}Failed to load guest memory: {os_text(error)}") from error
    except MemoryFileError as error:
        raise Fault(f"{_MEMORY}Failed to restore guest memory: {error}") from error
