"""A machine as JSON, in the shape that the original's users know (its `inspect`)."""

from __future__ import annotations

from typing import Any

import msgspec

from firebuild.engine.core import Engine
from firebuild.engine.views import plan_metadata
from firebuild.errors import StoreError, UsageError
from firebuild.host.cgroups import Limits
from firebuild.machine.metadata import plan_ip_configuration
from firebuild.machine.spec import HealthCheck
from firebuild.machine.state import MachineRecord
from firebuild.machine.telling import Health, Told, find_told
from firebuild.names import Digest
from firebuild.network.attach import Attachment, find_attachments


def describe_machine(engine: Engine, name: str) -> dict[str, Any]:
    """Everything about a machine. Raises NotFoundError."""
    record = engine.machines.records.get(name)
    spec, progress = record.spec, record.progress
    attachments = find_attachments(engine.networks, spec.id)
    attachment = attachments[0] if attachments else None
    paths = engine.layout.machine(spec.id)
    told = find_told(engine.machines, record)
    return {
        "Type": "run",
        "VMMID": spec.id,
        "Name": spec.name,
        "Profile": spec.profile,
        "State": _state(record, told),
        "RestartCount": told.restarts,
        "Pid": {"Pid": progress.vmm.pid if progress.vmm else 0},
        "StartedAtUTC": 0 if progress.started_at_ns is None else progress.started_at_ns // 10**9,
        "RunCache": str(paths.state),
        "Rootfs": _rootfs(engine, record),
        "CNI": {
            "VethName": attachment.host_interface if attachment else "",
            "NetName": spec.network or "",
            "NetNS": str(attachment.netns_path) if attachment else "",
        },
        "Drivers": [
            {
                "DriveID": drive.drive_id,
                "IsReadOnly": drive.read_only,
                "IsRootDevice": drive.drive_id == "rootfs",
                "PartUUID": "",
                "PathOnHost": drive.path,
            }
            for drive in spec.drives
        ],
        "Mounts": _mounts(record),
        "Configs": {
            "CNI": {
                "BinDir": engine.settings.cni_bin_dir,
                "ConfDir": engine.settings.cni_conf_dir,
                "CacheDir": str(engine.networks.cache_dir),
            },
            "Jailer": {
                "BinaryFirecracker": engine.settings.vmm_binary,
                "BinaryJailer": engine.settings.binary_jailer,
                "ChrootBase": str(engine.layout.run),
                "NetNS": str(attachment.netns_path) if attachment else "",
                "UID": progress.uid,
                "GID": progress.uid,
                "Cgroups": list(progress.cgroups),
                "Limits": _limits(spec.limits),
            },
            "Machine": {
                "CNINetworkName": spec.network or "",
                "CPU": spec.cpus,
                "CPUTemplate": "",
                "HTEnabled": False,
                "IPAddress": spec.address or "",
                "KernelArgs": spec.kernel_args,
                "Mem": spec.memory_mib,
                "NoMMDS": not spec.mmds,
                "RootDrivePartUUID": "",
                "SSHUser": ",".join(spec.users),
                "VMLinuxID": spec.kernel,
                "RootMode": spec.root_mode,
                "DiskSize": spec.disk_size_bytes,
            },
            "RunConfig": {
                "Name": spec.name,
                "Hostname": spec.hostname,
                "EnvVars": dict(spec.env),
                "Ports": [str(port) for port in record.ports],
                "Labels": dict(spec.labels),
                "EntrypointInfo": _entrypoint(record),
                "RestartPolicy": {"Name": spec.restart.name, "MaximumRetryCount": spec.restart.most},
                "Healthcheck": _healthcheck(spec.health),
            },
        },
        "NetworkInterfaces": [_interface(spec.mmds and each.number == 0, each) for each in attachments],
    }


def _limits(limits: Limits) -> dict[str, Any]:
    """Those that are set."""
    shown = {
        "Memory": limits.memory_bytes,
        "NanoCpus": limits.cpu_us * 10**4,
        "PidsLimit": limits.pids,
        "ReadBps": limits.read_bps,
        "WriteBps": limits.write_bps,
        "ReadIops": limits.read_iops,
        "WriteIops": limits.write_iops,
    }
    return {name: value for name, value in shown.items() if value}


def _mounts(record: MachineRecord) -> list[dict[str, Any]]:
    paths = {drive.drive_id: drive.path for drive in record.spec.drives}
    return [
        {
            "Type": "volume" if mount.volume else "bind",
            "Name": mount.volume,
            "Source": mount.folder or paths[mount.drive_id],
            "Destination": mount.target,
            "RW": not mount.read_only,
            "DriveID": mount.drive_id,
        }
        for mount in record.spec.mounts
    ]


def _state(record: MachineRecord, told: Told) -> dict[str, Any]:
    progress = record.progress
    return {
        "Status": str(record.effective_state),
        "ExitCode": progress.exit_code,
        "Reason": record.reason,
        "CreatedAtUTC": record.created_at_ns // 10**9,
        "ReadyAtUTC": None if progress.ready_at_ns is None else progress.ready_at_ns // 10**9,
        "EndedAtUTC": None if progress.ended_at_ns is None else progress.ended_at_ns // 10**9,
        "Health": _health(told.health),
    }


def _rootfs(engine: Engine, record: MachineRecord) -> dict[str, Any]:
    """What `metadata.json` says of the image that the machine was started from, under the name that was asked for; of an image
    that has been removed since, or is damaged, what the machine's own record knows."""
    spec = record.spec
    try:
        metadata = msgspec.to_builtins(plan_metadata(engine, spec.image, Digest(spec.image_digest)))
    except (StoreError, UsageError):
        metadata = {"Type": "rootfs", "EntrypointInfo": _entrypoint(record), "ManifestDigest": spec.image_digest}
    return {**metadata, "Tag": spec.image, "Digest": spec.image_digest}


def _entrypoint(record: MachineRecord) -> dict[str, Any]:
    entry = record.spec.entrypoint
    return {
        "Cmd": entry.cmd,
        "Entrypoint": entry.entrypoint,
        "Env": entry.env,
        "Shell": entry.shell,
        "User": entry.user,
        "Workdir": entry.workdir,
        "StopSignal": entry.stop_signal,
    }


def _health(health: Health | None) -> dict[str, Any] | None:
    """As docker shows it."""
    if health is None:
        return None
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [
            {"Start": each.start, "End": each.end, "ExitCode": each.code, "Output": each.output}
            for each in health.results
        ],
    }


def _healthcheck(check: HealthCheck | None) -> dict[str, Any] | None:
    """As docker shows it: times in nanoseconds."""
    if check is None:
        return None
    return {
        "Test": list(check.test),
        "Interval": check.interval_ms * 10**6,
        "Timeout": check.timeout_ms * 10**6,
        "StartPeriod": check.start_period_ms * 10**6,
        "StartInterval": check.start_interval_ms * 10**6,
        "Retries": check.retries,
    }


def _interface(mmds: bool, attachment: Attachment) -> dict[str, Any]:
    facts = plan_ip_configuration(attachment)
    facts |= {
        "IfName": attachment.interface,
        "NetName": attachment.network,
        "NameServers": list(attachment.nameservers),
    }
    return {
        "AllowMMDS": mmds,
        "InRateLimiter": None,
        "OutRateLimiter": None,
        "StaticConfiguration": {
            "MacAddress": attachment.mac,
            "HostDeviceName": attachment.tap,
            "IPConfiguration": facts,
        },
        "Addresses": list(attachment.addresses),
        "PortMappings": [msgspec.to_builtins(port) for port in attachment.ports],
    }
