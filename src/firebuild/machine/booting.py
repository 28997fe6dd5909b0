"""How a guest begins in a VMM that waits for its configuration: by booting a kernel, or by going on where a snapshot was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firebuild.errors import MachineError, SnapshotError
from firebuild.guest.control import request_resume
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error
from firebuild.host.identity import ProcessIdentity, wait_gone
from firebuild.host.watch import wait_for_path
from firebuild.layout import MachineLayout
from firebuild.machine.extras import apply_extras
from firebuild.machine.isolation import Kept, check_kept
from firebuild.machine.metadata import MMDS_ADDRESS, plan_metadata
from firebuild.machine.services import MachineServices
from firebuild.machine.spec import Boot, MachineSpec, Restore, VmmExtras
from firebuild.network.attach import Attachment
from firebuild.vmm.models import (
    BootSource,
    Drive,
    MachineConfiguration,
    MmdsConfig,
    NetworkInterface,
    NetworkOverride,
    SnapshotLoad,
    VmmSetup,
    Vsock,
    make_limiter,
)
from firebuild.vmm.versions import parse_version

_GUEST_CID = 3


def check_unjailed(name: str, jailed: bool) -> None:
    """Raises SnapshotError for a jailed machine: its snapshot's files would have to be brought into the jail, and are not."""
    if jailed:
        raise SnapshotError(
            f"{name} runs under Firecracker's jailer, and snapshots of jailed machines are not made or restored yet",
            hint="with `--without-jailer=true`, or with the emulator, they are",
        )


def link_drives(spec: MachineSpec, paths: MachineLayout) -> None:
    """Give each drive the name by which an unjailed VMM knows it, and the VMM of a clone its own drive. Raises HostError."""
    try:
        for drive in spec.drives:
            paths.drive_link(drive.drive_id).symlink_to(drive.path)
    except OSError as error:
        raise map_os_error(error, f"naming the disks of {spec.name}") from error


def begin_guest(
    services: MachineServices,
    spec: MachineSpec,
    boot: Boot | Restore,
    paths: MachineLayout,
    kept: Kept,
    vmm: ProcessIdentity,
    attachments: Sequence[Attachment],
    document: dict[str, Any],
    deadline: Deadline,
) -> None:
    """Have the VMM begin, its API being about to appear. `document`: the boot document. Raises MachineError, VmmError, GuestError."""

    def vmm_lives() -> bool:
        supervisor = services.records.get(spec.id).progress.supervisor
        return supervisor is not None and not wait_gone(supervisor, 0) and not paths.exit_record.exists()

    jail = kept.jail
    api_socket = paths.api_socket if jail is None else jail.on_host(jail.api_socket)
    if not wait_for_path(api_socket, deadline, alive=vmm_lives):
        raise MachineError(f"the VMM of {spec.name} ended before its API was there")
    check_kept(kept, vmm.pid, spec.name, seccomp=False)
    mmds = spec.mmds and spec.kind == "run" and bool(attachments)
    metadata = {"latest": {"meta-data": plan_metadata(spec, attachments)}} if mmds else None
    if isinstance(boot, Restore):
        _restore(spec, boot, paths, attachments, metadata, deadline)
        request_resume(paths.vsock, document, deadline)
    else:
        _boot(spec, boot, paths, kept, attachments, metadata, deadline)
    if jail is not None:
        check_kept(kept, vmm.pid, spec.name, seccomp=True)


def _restore(
    spec: MachineSpec,
    saved: Restore,
    paths: MachineLayout,
    attachments: Sequence[Attachment],
    metadata: dict[str, Any] | None,
    deadline: Deadline,
) -> None:
    from firebuild.vmm.api import open_api

    with open_api(paths.api_socket, deadline) as api:
        version = api.get_version()
        if version != saved.vmm_version:
            raise SnapshotError(
                f"{spec.name} cannot go on from the snapshot: the VMM that made it was {saved.vmm_version}, this one is {version}",
                hint="make the snapshot anew with this VMM",
            )
        request = SnapshotLoad(
            snapshot_path=str(saved.state),
            mem_backend={"backend_path": str(saved.memory), "backend_type": "File"},
            network_overrides=[NetworkOverride(each.interface, each.tap) for each in attachments],
            vsock_override={"uds_path": str(paths.vsock)},
        )
        api.load_snapshot(request)
        if metadata is not None:
            api.put_metadata(metadata)
        api.resume()


def _boot(
    spec: MachineSpec,
    boot: Boot,
    paths: MachineLayout,
    kept: Kept,
    attachments: Sequence[Attachment],
    metadata: dict[str, Any] | None,
    deadline: Deadline,
) -> None:
    jail = kept.jail

    def seen(key: str, path: str | Path) -> str:
        return str(path) if jail is None else jail.files[key].inside

    setup = VmmSetup(
        machine=MachineConfiguration(vcpu_count=spec.cpus, mem_size_mib=spec.memory_mib),
        boot=BootSource(
            kernel_image_path=seen("kernel", boot.kernel),
            initrd_path=seen("initramfs", boot.initramfs),
            boot_args=spec.kernel_args,
        ),
        drives=[
            Drive(
                drive_id=drive.drive_id,
                path_on_host=seen(f"drive:{drive.drive_id}", paths.drive_link(drive.drive_id).name),
                is_read_only=drive.read_only,
                cache_type="Writeback" if drive.durable else "Unsafe",
                rate_limiter=make_limiter(spec.disk_limits.bytes, spec.disk_limits.iops),
            )
            for drive in spec.drives
        ],
        vsock=Vsock(guest_cid=_GUEST_CID, uds_path=str(paths.vsock) if jail is None else jail.vsock),
        interfaces=[
            NetworkInterface(iface_id=each.interface, host_dev_name=each.tap, guest_mac=each.mac)
            for each in attachments
        ],
        mmds_config=(
            MmdsConfig(network_interfaces=["eth0"], ipv4_address=MMDS_ADDRESS) if metadata is not None else None
        ),
        mmds=metadata,
    )
    from firebuild.vmm.api import open_api

    with open_api(paths.api_socket, deadline) as api:
        if spec.extras != VmmExtras():
            setup = apply_extras(setup, spec.extras, parse_version(api.get_version()))
        api.configure(setup)
        api.start_instance()
