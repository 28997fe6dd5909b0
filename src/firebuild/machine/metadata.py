"""What a guest is told: the metadata document (MMDS) and the boot document (protocol/PROTOCOL.md, section 3)."""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Sequence
from typing import Any

import msgspec

from firebuild.errors import UsageError
from firebuild.machine.spec import HealthCheck, MachineSpec, RestartPolicy
from firebuild.network.attach import Attachment

MMDS_LIMIT_BYTES = 51200
# resolv.conf(5): a resolver reads no more of them.
NAMESERVERS_MAX = 3
MMDS_ADDRESS = "169.254.169.254"


def plan_metadata(spec: MachineSpec, attachments: Sequence[Attachment]) -> dict[str, Any]:
    """The object at `latest/meta-data`; every leaf is a string. Raises UsageError if it exceeds what MMDS holds."""
    entry = spec.entrypoint
    entrypoint = {
        "Cmd": entry.cmd,
        "EntryPoint": entry.entrypoint,
        "Env": entry.env,
        "Shell": entry.shell,
        "User": entry.user,
        "Workdir": entry.workdir,
    }
    document: dict[str, Any] = {
        "VMMID": spec.id,
        "ImageTag": spec.image,
        "LocalHostname": spec.hostname,
        "EntrypointJSON": msgspec.json.encode(entrypoint).decode(),
        "Env": dict(spec.env),
        "Users": {name: {"SSHKeys": keys} for name, keys in spec.users.items()},
        "Drives": {
            str(number): {
                "DriveID": drive.drive_id,
                "IsReadOnly": str(drive.read_only).lower(),
                "IsRootDevice": str(drive.drive_id == "rootfs").lower(),
                "PartUUID": "",
                "PathOnHost": drive.drive_id,
            }
            for number, drive in enumerate(spec.drives, start=1)
        },
        "Machine": {
            "CPU": str(spec.cpus),
            "CPUTemplate": "",
            "HTEnabled": "false",
            "KernelArgs": spec.kernel_args,
            "Mem": str(spec.memory_mib),
            "VMLinux": spec.kernel,
        },
        "Network": {
            "CniNetworkName": attachments[0].network if attachments else "",
            "Interfaces": {each.mac: _interface(each) for each in attachments},
        },
    }
    size = len(msgspec.json.encode({"latest": {"meta-data": document}}))
    if size > MMDS_LIMIT_BYTES:
        raise UsageError(
            f"the machine's metadata has {size} bytes; the metadata service holds {MMDS_LIMIT_BYTES}",
            hint="pass less in environment variables and SSH keys, or copy a file in with `firebuild cp`",
        )
    return document


def plan_ip_configuration(attachment: Attachment) -> dict[str, Any]:
    """The first address of an attachment, in the words of the original's `IPConfiguration`."""
    if not attachment.addresses:
        return {"Gateway": attachment.gateway or "", "IP": "", "IPAddr": "", "IPMask": "", "IPNet": "ip+net"}
    interface = ipaddress.ip_interface(attachment.addresses[0])
    return {
        "Gateway": attachment.gateway or "",
        "IP": str(interface.ip),
        "IPAddr": str(interface),
        "IPMask": interface.netmask.packed.hex(),
        "IPNet": "ip+net",
    }


def _interface(attachment: Attachment) -> dict[str, Any]:
    facts = plan_ip_configuration(attachment)
    facts |= {"HostDeviceName": attachment.tap, "IfName": attachment.interface}
    facts["NameServers"] = ",".join(attachment.nameservers)
    facts["CniNetworkName"] = attachment.network
    return facts


def _plan_mounts(spec: MachineSpec) -> list[dict[str, Any]]:
    """The drives to mount, by the kernel's names for them: in the order of the drives vda, vdb … vdz."""
    names = {drive.drive_id: f"vd{chr(ord('a') + number)}" for number, drive in enumerate(spec.drives)}
    return [
        {
            "drive": names[mount.drive_id], "target": mount.target, "read_only": mount.read_only, "seed": mount.seed,
        }
        for mount in spec.mounts
    ]  # fmt: skip


def _plan_interfaces(attachments: Sequence[Attachment]) -> list[dict[str, Any]]:
    """The interfaces; of each IP version the first gateway is the machine's, and no other."""
    interfaces: list[dict[str, Any]] = []
    gateways: dict[str, str] = {}
    for each in attachments:
        interface: dict[str, Any] = {
            "name": each.interface, "mac": each.mac, "addresses": list(each.addresses), "gateway": None, "mtu": each.mtu,
        }  # fmt: skip
        for key, gateway in (("gateway", each.gateway), ("gateway6", each.gateway6)):
            if gateway is not None and key not in gateways:
                gateways[key] = interface[key] = gateway
        interfaces.append(interface)
    return interfaces


def _plan_dns(attachments: Sequence[Attachment]) -> dict[str, Any]:
    """The name servers of the network with the default route, else of the first that has any; before them those of networks
    without a way out, which refuse to answer what they do not know."""
    ordered = sorted(attachments, key=lambda each: each.gateway is None and each.gateway6 is None)
    chosen = next((each for each in ordered if each.nameservers), ordered[0] if ordered else None)
    if chosen is None:
        return {"nameservers": [], "search": [], "options": []}
    closed = [each.resolver for each in attachments if each.resolver and not (each.gateway or each.gateway6)]
    servers = [*closed[: NAMESERVERS_MAX - 1], *chosen.nameservers]
    return {"nameservers": list(dict.fromkeys(servers)), "search": chosen.search, "options": chosen.options}


def plan_boot_document(
    spec: MachineSpec, attachments: Sequence[Attachment], *, await_attach: bool = False
) -> dict[str, Any]:
    """The boot document. With MMDS it holds no metadata: the guest fetches them there.

    `await_attach`: the first who attaches starts the entrypoint.
    """
    mmds = spec.mmds and spec.kind == "run" and bool(attachments)
    document: dict[str, Any] = {
        "id": spec.id,
        "kind": "build" if spec.kind == "build" else "run",
        "init": spec.init,
        "root": None,
        "interfaces": _plan_interfaces(attachments),
        "dns": _plan_dns(attachments),
        "mmds": {"address": MMDS_ADDRESS, "interface": "eth0"} if mmds else None,
        "metadata": None,
        "stop_signal": parse_signal(spec.entrypoint.stop_signal),
        "start_entrypoint": spec.kind == "run" and not spec.template,
        "tty": spec.tty,
        "stdin": spec.stdin,
        "await_attach": await_attach,
        "volumes": list(spec.volumes),
        "mounts": _plan_mounts(spec),
        "restart": plan_restart(spec.restart),
        "health": _health(spec.health),
    }
    if spec.kind != "build":
        upper = "vdb" if spec.root_mode == "overlay" else None
        document["root"] = {
            "mode": spec.root_mode,
            "lower": "vda",
            "upper": upper,
            "read_only": spec.read_only and spec.kind == "run",
        }
        if not mmds:
            document["metadata"] = plan_metadata(spec, attachments)
    return document


def plan_restart(policy: RestartPolicy) -> dict[str, Any]:
    """A restart policy in the guest's words."""
    # What tells unless-stopped from always is a start of the host's, of which the guest knows nothing.
    name = "always" if policy.name == "unless-stopped" else policy.name
    return {"policy": name, "most": policy.most or None}


def _health(check: HealthCheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    document: dict[str, Any] = msgspec.to_builtins(check)
    # For people.
    del document["test"]
    return document


def parse_signal(text: str) -> int:
    """A signal's number from `SIGTERM`, `TERM` or `15`. Raises UsageError."""
    if text.isdigit() and 1 <= int(text) <= 64:
        return int(text)
    name = text.upper()
    try:
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except KeyError:
        raise UsageError(f"`{text}` is not a signal") from None
