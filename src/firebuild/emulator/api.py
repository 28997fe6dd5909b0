"""Firecracker's API: each method and path with what it calls, and every refusal in Firecracker's form."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from firebuild.emulator import API_VERSION
from firebuild.emulator.api_devices import DeviceRoutes, checked_id
from firebuild.emulator.faults import NOT_PREBOOT, Fault
from firebuild.emulator.http import Request, Response
from firebuild.emulator.instance import NOT_STARTED, Instance
from firebuild.emulator.log import LEVELS
from firebuild.emulator.models import (
    Action,
    BootSource,
    Drive,
    DriveUpdate,
    Entropy,
    Logger,
    MachineConfig,
    MachineConfigUpdate,
    MetricsConfig,
    MmdsConfig,
    NetworkInterface,
    NetworkInterfaceUpdate,
    Serial,
    SnapshotCreate,
    SnapshotLoad,
    VmState,
    Vsock,
    parse_body,
    parse_json,
    shown,
)

_EMPTY = {"PUT": "Empty PUT request.", "PATCH": "Empty PATCH request."}


class Api:
    """Answers requests. `answer` never raises: what is wrong with a request is its answer."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.counters: dict[str, int] = {}
        self._routes: dict[tuple[str, str], Callable[[bytes, list[str]], Response]] = {
            ("GET", ""): lambda body, rest: _json(instance.describe()),
            ("GET", "version"): lambda body, rest: _json({"firecracker_version": API_VERSION}),
            ("GET", "vm"): self._get_vm_config,
            ("GET", "machine-config"): lambda body, rest: _json(shown(instance.resources.machine)),
            ("GET", "mmds"): self._get_mmds,
            ("PUT", "actions"): self._put_action,
            ("PUT", "boot-source"): self._put_boot_source,
            ("PUT", "drives"): self._put_drive,
            ("PUT", "entropy"): self._put_entropy,
            ("PUT", "logger"): self._put_logger,
            ("PUT", "machine-config"): self._put_machine_config,
            ("PUT", "metrics"): self._put_metrics,
            ("PUT", "mmds"): self._put_mmds,
            ("PUT", "network-interfaces"): self._put_net,
            ("PUT", "serial"): self._put_serial,
            ("PUT", "snapshot"): self._put_snapshot,
            ("PUT", "vsock"): self._put_vsock,
            ("PATCH", "drives"): self._patch_drive,
            ("PATCH", "machine-config"): self._patch_machine_config,
            ("PATCH", "mmds"): self._patch_mmds,
            ("PATCH", "network-interfaces"): self._patch_net,
            ("PATCH", "vm"): self._patch_vm,
            ("DELETE", "drives"): self._unplug,
            ("DELETE", "network-interfaces"): self._unplug,
            ("DELETE", "pmem"): self._unplug,
            **DeviceRoutes(instance).routes,
        }
        instance.metrics.add("api_server", lambda: self.counters)

    def answer(self, request: Request) -> Response:
        """The answer to a request."""
        log = self._instance.log
        parts = request.path.lstrip("/").rstrip("/").split("/")
        secret = not request.body or parts[0] == "mmds"
        shown = "" if secret else " with body " + json.dumps(request.body.decode("utf-8", "replace"))
        log.info(f'The API server received a {request.method.capitalize()} request on "{request.path}"{shown}.')
        self._count(f"{request.method.lower()}_requests")
        try:
            response = self._dispatch(request, parts)
        except Fault as fault:
            self._count(f"{request.method.lower()}_fails")
            log.error(f"Received Error. Status code: {fault.status}. Message: {fault.message}")
            return refuse(fault.status, fault.message)
        except Exception as error:  # noqa: BLE001 - a fault of the emulator's own must not end somebody's machine
            log.error("Internal error: " + "".join(traceback.format_exception(error)))
            return refuse(500, f"Internal error: {type(error).__name__}: {error}")
        log.info(f"The request was executed successfully. Status code: {response.status}.")
        return response

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1

    def _dispatch(self, request: Request, parts: list[str]) -> Response:
        method, name = request.method, parts[0]
        route = self._routes.get((method, name))
        if method in ("GET", "DELETE") and request.body:
            raise Fault("GET request cannot have a body." if method == "GET" else "Empty Delete request.")
        # The one kind of request to which a body is optional.
        if method in _EMPTY and not request.body and parts[:2] != ["balloon", "hinting"]:
            raise Fault(_EMPTY[method])
        if route is None:
            raise _no_route(method, name)
        return route(request.body, parts[1:])

    # GET

    def _get_vm_config(self, _: bytes, rest: list[str]) -> Response:
        if rest[:1] != ["config"]:
            raise _no_route("GET", "vm")
        return _json(self._instance.export())

    def _get_mmds(self, _: bytes, _rest: list[str]) -> Response:
        value = self._instance.mmds_value()
        return Response(200, b"{}" if value is None else msgspec.json.encode(value, order="sorted"))

    # PUT

    def _put_action(self, body: bytes, _: list[str]) -> Response:
        action = parse_body(body, Action).action_type
        if action == "InstanceStart":
            self._instance.start()
        elif action == "SendCtrlAltDel":
            self._instance.send_ctrl_alt_del()
        else:
            self._instance.flush_metrics()
        return _DONE

    def _put_boot_source(self, body: bytes, _: list[str]) -> Response:
        config = parse_body(body, BootSource)
        self._instance.require_preboot().set_boot(config)
        return _DONE

    def _put_drive(self, body: bytes, rest: list[str]) -> Response:
        drive_id = checked_id(rest)
        config = parse_body(body, Drive)
        if config.drive_id != drive_id:
            raise Fault("The id from the path does not match the id from the body!")
        self._refuse_hotplug()
        self._instance.resources.set_drive(config)
        return _DONE

    def _put_entropy(self, body: bytes, _: list[str]) -> Response:
        config = parse_body(body, Entropy)
        self._instance.require_preboot().set_entropy(config)
        return _DONE

    def _put_logger(self, body: bytes, _: list[str]) -> Response:
        config = parse_body(body, Logger)
        if config.level is not None and config.level.lower() not in LEVELS:
            raise Fault("An error occurred when deserializing the json body of a request: Invalid LevelFilter.")
        self._instance.set_logger(config)
        return _DONE

    def _put_machine_config(self, body: bytes, _: list[str]) -> Response:
        config = parse_body(body, MachineConfig)
        self._instance.require_preboot().set_machine(config)
        return _deprecated(config.cpu_template is not None)

    def _put_metrics(self, body: bytes, _: list[str]) -> Response:
        self._instance.set_metrics(parse_body(body, MetricsConfig))
        return _DONE

    def _put_mmds(self, body: bytes, rest: list[str]) -> Response:
        if not rest:
            self._instance.put_mmds(parse_json(body, strict=False))
            return _DONE
        if rest[0] != "config":
            raise Fault(f"Unrecognized PUT request path `{rest[0]}`.")
        config = parse_body(body, MmdsConfig)
        self._instance.require_preboot().set_mmds_config(config)
        return _deprecated(config.version == "V1")

    def _put_net(self, body: bytes, rest: list[str]) -> Response:
        iface_id = checked_id(rest)
        config = parse_body(body, NetworkInterface)
        _match_id(iface_id, config.iface_id)
        self._refuse_hotplug()
        self._instance.resources.set_net(config)
        return _DONE

    def _put_serial(self, body: bytes, _: list[str]) -> Response:
        config = parse_body(body, Serial)
        self._instance.require_preboot().set_serial(config)
        return _DONE

    def _put_snapshot(self, body: bytes, rest: list[str]) -> Response:
        if not rest:
            raise Fault("Missing snapshot operation type.")
        if rest[0] == "create":
            self._instance.create_snapshot(parse_body(body, SnapshotCreate))
            return _DONE
        if rest[0] != "load":
            raise _no_route("PUT", f"/snapshot/{rest[0]}")
        request = parse_body(body, SnapshotLoad)
        self._instance.load_snapshot(request)
        return _deprecated(request.mem_file_path is not None or request.enable_diff_snapshots)

    def _put_vsock(self, body: bytes, _: list[str]) -> Response:
        config = parse_body(body, Vsock)
        self._instance.require_preboot().set_vsock(config)
        return _deprecated(config.vsock_id is not None)

    # PATCH and DELETE

    def _patch_drive(self, body: bytes, rest: list[str]) -> Response:
        drive_id = checked_id(rest)
        update = parse_body(body, DriveUpdate)
        if update.drive_id != drive_id:
            raise Fault("The id from the path does not match the id from the body!")
        self._instance.update_drive(update)
        return _DONE

    def _patch_machine_config(self, body: bytes, _: list[str]) -> Response:
        update = parse_body(body, MachineConfigUpdate)
        if update == MachineConfigUpdate():
            raise Fault(_EMPTY["PATCH"])
        self._instance.require_preboot().update_machine(update)
        return _deprecated(update.cpu_template is not None)

    def _patch_mmds(self, body: bytes, _: list[str]) -> Response:
        self._instance.patch_mmds(parse_json(body, strict=False))
        return _DONE

    def _patch_net(self, body: bytes, rest: list[str]) -> Response:
        iface_id = checked_id(rest)
        update = parse_body(body, NetworkInterfaceUpdate)
        _match_id(iface_id, update.iface_id)
        self._instance.update_net(update)
        return _DONE

    def _patch_vm(self, body: bytes, _: list[str]) -> Response:
        if parse_body(body, VmState).state == "Paused":
            self._instance.pause()
        else:
            self._instance.resume()
        return _DONE

    def _unplug(self, _: bytes, rest: list[str]) -> Response:
        checked_id(rest)
        if self._instance.state == NOT_STARTED:
            raise Fault(NOT_PREBOOT)
        raise Fault("PCI is not enabled")

    def _refuse_hotplug(self) -> None:
        """After boot Firecracker takes new devices over PCI, which the emulator's machine does not have."""
        if self._instance.state != NOT_STARTED:
            raise Fault("PCI is not enabled")


_DONE = Response(204)


def refuse(status: int, message: str) -> Response:
    """An error's answer."""
    return _json({"fault_message": message}, status)


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(value))


def _deprecated(used: bool) -> Response:
    return Response(204, headers={"Deprecation": "true"} if used else {})


def _no_route(method: str, name: str) -> Fault:
    return Fault(f"Invalid request method and/or path: {method} {name}.")


def _match_id(from_path: str, from_body: str) -> None:
    if from_path != from_body:
        raise Fault(f"The id from the path [{from_path}] does not match the id from the body [{from_body}]!")
