"""The CNI runner: one plugin after the other, as the CNI specification 1.1.0 has it (sections 2 to 5)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import CniError, DeadlineError, MissingProgramError, NetworkError, ProcessError
from firebuild.host.bounded import run_bounded
from firebuild.host.deadline import Deadline
from firebuild.host.marked import kill_marked_processes
from firebuild.names import PortMapping

PLUGIN_TIMEOUT_S = 60.0
OUTPUT_MAX_BYTES = 4 << 20
_SHOWN_OUTPUT = 2000
_PACKAGE_HINT = "run: apt-get install containernetworking-plugins"

Config = dict[str, Any]
Result = dict[str, Any]


class RuntimeArguments(msgspec.Struct, frozen=True):
    """What the runtime asks of plugins; each part reaches only plugins that declare its capability."""

    ports: tuple[PortMapping, ...] = ()
    ips: tuple[str, ...] = ()
    mac: str | None = None
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Invocation(msgspec.Struct, frozen=True):
    """What all calls of one attachment share. `arguments`: CNI_ARGS, as `IP=10.1.2.3`, or empty."""

    network: str
    cni_version: str
    container_id: str
    netns_path: str
    bin_dirs: tuple[Path, ...]
    runtime: RuntimeArguments
    interface: str = "eth0"
    arguments: str = ""


def plan_runtime_config(plugin: Mapping[str, Any], runtime: RuntimeArguments) -> Config:
    """The `runtimeConfig` of one plugin: the capabilities that it declares and that are asked for (CONVENTIONS.md)."""
    asked: Config = {}
    if runtime.ports:
        asked["portMappings"] = [_port_entry(port) for port in runtime.ports]
    if runtime.ips:
        asked["ips"] = list(runtime.ips)
    if runtime.mac is not None:
        asked["mac"] = runtime.mac
    if runtime.nameservers or runtime.search or runtime.options:
        asked["dns"] = {
            "servers": list(runtime.nameservers),
            "searches": list(runtime.search),
            "options": list(runtime.options),
        }
    declared = plugin.get("capabilities") or {}
    return {name: value for name, value in asked.items() if declared.get(name) is True}


def _port_entry(port: PortMapping) -> Config:
    entry: Config = {"hostPort": port.host_port, "containerPort": port.guest_port, "protocol": port.protocol}
    if port.host_address:
        entry["hostIP"] = port.host_address
    return entry


def plan_plugin_config(invocation: Invocation, plugin: Mapping[str, Any], previous: Result | None) -> Config:
    """What one plugin gets on its standard input (section 3, "Deriving execution configuration")."""
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    config["cniVersion"] = invocation.cni_version
    config["name"] = invocation.network
    runtime_config = plan_runtime_config(plugin, invocation.runtime)
    if runtime_config:
        config["runtimeConfig"] = runtime_config
    if previous is not None:
        config["prevResult"] = previous
    return config


def get_plugin(bin_dirs: Sequence[Path], kind: str) -> Path:
    """The program of a plugin. Raises MissingProgramError naming the folders that were searched."""
    for folder in bin_dirs:
        path = folder / kind
        if path.is_file() and os.access(path, os.X_OK):
            return path
    folders = ", ".join(f"`{folder}`" for folder in bin_dirs)
    raise MissingProgramError(f"the CNI plugin `{kind}` is not in {folders or 'any folder'}", hint=_PACKAGE_HINT)


def check_plugins(bin_dirs: Sequence[Path], plugins: Sequence[Mapping[str, Any]]) -> None:
    """Raises MissingProgramError if a plugin, or the IPAM plugin that it calls, is not installed."""
    for plugin in plugins:
        get_plugin(bin_dirs, plugin["type"])
        ipam = (plugin.get("ipam") or {}).get("type")
        if isinstance(ipam, str) and ipam:
            get_plugin(bin_dirs, ipam)


def add_plugin(
    invocation: Invocation, plugin: Mapping[str, Any], previous: Result | None, deadline: Deadline
) -> Result:
    """ADD by one plugin; returns its result, as the next one's `prevResult`. Raises CniError, MissingProgramError, DeadlineError."""
    kind = plugin["type"]
    output = _run(invocation, "ADD", plugin, previous, deadline)
    result = _parse_object(output)
    if result is None:
        raise _bad(invocation, kind, "ADD", f"it printed no JSON object as its result, but: {_shown(output)}")
    if _is_error(result):
        raise _bad(invocation, kind, "ADD", f"it exited with status 0 but printed an error: {_shown(output)}")
    if result.get("cniVersion", invocation.cni_version) != invocation.cni_version:
        raise _bad(invocation, kind, "ADD", f"its result has another `cniVersion` than asked: {_shown(output)}")
    return result


def delete_plugin(
    invocation: Invocation, plugin: Mapping[str, Any], previous: Result | None, deadline: Deadline
) -> None:
    """DEL by one plugin. Raises CniError, MissingProgramError, DeadlineError."""
    output = _run(invocation, "DEL", plugin, previous, deadline)
    answer = _parse_object(output)
    if answer is not None and _is_error(answer):
        raise _bad(invocation, plugin["type"], "DEL", f"it exited with status 0 but printed an error: {_shown(output)}")


def collect_plugin(
    bin_dirs: tuple[Path, ...],
    network: str,
    cni_version: str,
    plugin: Mapping[str, Any],
    valid: Sequence[tuple[str, str]],
    deadline: Deadline,
) -> None:
    """GC by one plugin: it clears away what belongs to none of these (container id, interface). Raises CniError,
    MissingProgramError, DeadlineError."""
    # No container is meant; this is what its processes are known by.
    invocation = Invocation(network, cni_version, f"gc-{network}", "", bin_dirs, RuntimeArguments(), interface="")
    named = [{"containerID": container, "ifname": interface} for container, interface in valid]
    output = _run(invocation, "GC", {**plugin, "cni.dev/valid-attachments": named}, None, deadline)
    answer = _parse_object(output)
    if answer is not None and _is_error(answer):
        raise _bad(invocation, plugin["type"], "GC", f"it exited with status 0 but printed an error: {_shown(output)}")


def _run(
    invocation: Invocation, command: str, plugin: Mapping[str, Any], previous: Result | None, deadline: Deadline
) -> bytes:
    kind = plugin["type"]
    program = get_plugin(invocation.bin_dirs, kind)
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": invocation.container_id,
        "CNI_NETNS": invocation.netns_path,
        "CNI_IFNAME": invocation.interface,
        "CNI_PATH": os.pathsep.join(str(folder) for folder in invocation.bin_dirs),
    }
    if invocation.arguments:
        environment["CNI_ARGS"] = invocation.arguments
    config = plan_plugin_config(invocation, plugin, previous)
    timeout_s = min(PLUGIN_TIMEOUT_S, deadline.check())
    try:
        done = run_bounded(
            [str(program)], environment=environment, stdin=json.dumps(config).encode(), timeout_s=timeout_s,
            most_bytes=OUTPUT_MAX_BYTES,
        )  # fmt: skip
    except DeadlineError as error:
        # The plugin itself is gone by now; a child that it left behind, and that held its output open, may not be.
        kill_marked_processes("CNI_CONTAINERID", invocation.container_id)
        raise DeadlineError(
            f"the network `{invocation.network}`: the CNI plugin `{kind}` did not finish {command} within {timeout_s:.3g} s",
            details=error.details,
        ) from None
    except ProcessError as error:
        raise _bad(invocation, kind, command, error.message) from None
    except OSError as error:  # A file of the wrong format, for example.
        raise _bad(invocation, kind, command, f"`{program}` cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise _plugin_error(invocation, kind, command, done.returncode, done.stdout, done.stderr)
    return done.stdout


def _plugin_error(invocation: Invocation, kind: str, command: str, status: int, out: bytes, err: bytes) -> NetworkError:
    ending = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
    log = err.decode("utf-8", "replace").strip()[-_SHOWN_OUTPUT:]
    answer = _parse_object(out)
    if answer is None:
        said = f" and printed: {_shown(out)}" if out.strip() else " and printed nothing"
        return _bad(invocation, kind, command, f"it {ending}{said}", details=log)
    if not _is_error(answer):
        said = f"it {ending} but printed what is not an error: {_shown(out)}"
        return _bad(invocation, kind, command, said, details=log)
    code = answer["code"] if isinstance(answer.get("code"), int) else 0
    details = "\n".join(part for part in (str(answer.get("details") or ""), log) if part)
    message = f"{answer.get('msg') or 'no message'} (code {code})"
    return _bad(invocation, kind, command, message, code=code, details=details)


def _bad(invocation: Invocation, kind: str, command: str, reason: str, *, code: int = 0, details: str = "") -> CniError:
    return CniError(
        f"the network `{invocation.network}`: the CNI plugin `{kind}` failed on {command}: {reason}",
        cni_code=code,
        details=details or None,
    )


def _parse_object(output: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_error(answer: Mapping[str, Any]) -> bool:
    """Whether an object is an error (section 5) and not a result; some plugins leave `cniVersion` out."""
    return "msg" in answer or "code" in answer


def _shown(output: bytes) -> str:
    text = output.decode("utf-8", "replace").strip()
    return json.dumps(text if len(text) <= 200 else text[:200] + " …", ensure_ascii=False)
