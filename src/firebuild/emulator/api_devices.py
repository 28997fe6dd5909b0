"""The API's paths of the balloon, CPU templates, pmem and memory hotplug: served, or refused by name at the right time."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from firebuild.emulator.faults import NOT_PREBOOT, Fault, not_served
from firebuild.emulator.http import Response
from firebuild.emulator.instance import NOT_STARTED, Instance
from firebuild.emulator.models import (
    BalloonConfig,
    BalloonHinting,
    BalloonStatsUpdate,
    BalloonUpdate,
    CpuConfig,
    MemoryHotplug,
    MemoryHotplugUpdate,
    Pmem,
    PmemUpdate,
    parse_body,
    shown,
)

Route = Callable[[bytes, list[str]], Response]
_NO_DEVICE = "Failed perform action on device: Device not found"
_DONE = Response(204)


class DeviceRoutes:
    """The handlers of these paths. A machine has no pmem device and no memory to plug, so what asks for them finds none."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.routes: dict[tuple[str, str], Route] = {
            ("GET", "balloon"): self._get_balloon,
            ("PUT", "balloon"): self._put_balloon,
            ("PATCH", "balloon"): self._patch_balloon,
            ("PUT", "cpu-config"): self._put_cpu_config,
            ("PUT", "pmem"): self._put_pmem,
            ("PATCH", "pmem"): self._patch_pmem,
            ("GET", "hotplug"): self._hotplug("GET"),
            ("PUT", "hotplug"): self._hotplug("PUT"),
            ("PATCH", "hotplug"): self._hotplug("PATCH"),
        }

    @property
    def _started(self) -> bool:
        return self._instance.state != NOT_STARTED

    # The balloon.

    def _get_balloon(self, _: bytes, rest: list[str]) -> Response:
        if not rest:
            return _json(shown(self._instance.balloon_config()))
        if rest[0] == "statistics":
            return _json(self._instance.balloon_statistics())
        if rest[0] != "hinting":
            raise Fault(f"Unrecognized GET request path `{rest[0]}`.")
        if rest[1:2] != ["status"]:
            raise Fault(f"Unrecognized GET request path `/hinting/{''.join(rest[1:2])}`.")
        raise self._no_hinting()

    def _put_balloon(self, body: bytes, _: list[str]) -> Response:
        config = parse_body(body, BalloonConfig)
        self._instance.require_preboot().set_balloon(config)
        return _DONE

    def _patch_balloon(self, body: bytes, rest: list[str]) -> Response:
        if rest[:1] == ["hinting"]:
            if rest[1:2] == ["start"]:
                parse_body(body or b"{}", BalloonHinting)
            elif rest[1:2] != ["stop"]:
                raise Fault(f"Unrecognized PATCH request path `/hinting/{''.join(rest[1:2])}`.")
            raise self._no_hinting()
        if not body:
            raise Fault("Empty PATCH request.")
        if rest[:1] == ["statistics"]:
            self._instance.set_balloon_interval(parse_body(body, BalloonStatsUpdate).stats_polling_interval_s)
        else:
            self._instance.resize_balloon(parse_body(body, BalloonUpdate).amount_mib)
        return _DONE

    def _no_hinting(self) -> Fault:
        if not self._started:
            return Fault(NOT_PREBOOT)
        if self._instance.resources.balloon is None:
            return Fault(f"Balloon update error: {_NO_DEVICE}")
        return Fault("Balloon update error: Balloon: Attempting to use hinting when not enabled")

    # What a machine of the emulator does not have.

    def _put_cpu_config(self, body: bytes, _: list[str]) -> Response:
        config = parse_body(body, CpuConfig)
        self._instance.require_preboot()
        if config != CpuConfig():
            raise not_served("custom CPU templates")
        return _DONE

    def _put_pmem(self, body: bytes, rest: list[str]) -> Response:
        device_id = checked_id(rest)
        if parse_body(body, Pmem).id != device_id:
            raise Fault("The id from the path does not match the id from the body!")
        if self._started:
            raise Fault("PCI is not enabled")
        raise not_served("pmem devices")

    def _patch_pmem(self, body: bytes, rest: list[str]) -> Response:
        device_id = checked_id(rest)
        update = parse_body(body, PmemUpdate)
        if update.id != device_id:
            raise Fault("The id from the path does not match the id from the body!")
        if not self._started:
            raise Fault(NOT_PREBOOT)
        if update.rate_limiter is None:
            return _DONE
        raise Fault(
            f"Pmem config error: Unable to patch the pmem device: {_NO_DEVICE} Please verify the request arguments."
        )

    def _hotplug(self, method: str) -> Route:
        kinds: dict[str, type[MemoryHotplug | MemoryHotplugUpdate]] = {
            "PUT": MemoryHotplug, "PATCH": MemoryHotplugUpdate,
        }  # fmt: skip

        def answer(body: bytes, rest: list[str]) -> Response:
            if rest[:1] != ["memory"]:
                raise Fault(f"Invalid request method and/or path: {method} hotplug.")
            if method in kinds:
                parse_body(body, kinds[method])
            if method == "PUT":
                self._instance.require_preboot()
                raise not_served("memory hotplug")
            if not self._started:
                raise Fault(NOT_PREBOOT)
            prefix = "Internal VMM error" if method == "GET" else "Memory hotplug update error"
            raise Fault(f"{prefix}: {_NO_DEVICE}")

        return answer


def checked_id(rest: list[str]) -> str:
    """The id that a path names. Raises Fault."""
    if not rest or not rest[0]:
        raise Fault("The ID cannot be empty.")
    if not all(char == "_" or char.isalnum() for char in rest[0]):
        raise Fault("API Resource IDs can only contain alphanumeric characters and underscores.")
    return rest[0]


def _json(value: object) -> Response:
    return Response(200, msgspec.json.encode(value))
