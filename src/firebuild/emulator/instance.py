"""One microVM's life: what may be done before it starts, what afterwards, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from firebuild.emulator import API_VERSION
from firebuild.emulator.balloon import RunningBalloon
from firebuild.emulator.faults import NOT_POSTBOOT, NOT_PREBOOT, Fault, not_served, os_text
from firebuild.emulator.log import Log, Metrics
from firebuild.emulator.loop import Loop
from firebuild.emulator.mmds import LIMIT_EXCEEDED, NOT_INITIALIZED, StoreError
from firebuild.emulator.models import (
    BalloonConfig,
    ConfigFile,
    DriveUpdate,
    Logger,
    MetricsConfig,
    NetworkInterfaceUpdate,
    RateLimiter,
    SnapshotCreate,
    SnapshotLoad,
    shown,
)
from firebuild.emulator.resources import OpenDrive, Resources, open_drive
from firebuild.emulator.runtime import LaunchOptions, Runtime
from firebuild.emulator.snapshots import NOT_PAUSED, create_snapshot, load_snapshot
from firebuild.errors import FirebuildError

NOT_STARTED, RUNNING, PAUSED = "Not started", "Running", "Paused"
_METRICS_PERIOD_S = 60.0
_NO_DEVICE = "Failed perform action on device: Device not found"
T = TypeVar("T")


class Instance:
    """The microVM of this process. Methods raise Fault, which changes nothing and never ends the process."""

    def __init__(
        self, loop: Loop, log: Log, *, instance_id: str, mmds_limit_bytes: int, options: LaunchOptions,
        on_exit: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._loop = loop
        self.log = log
        self.metrics = Metrics(log)
        self.instance_id = instance_id
        self.state = NOT_STARTED
        self.resources = Resources(loop, log, instance_id=instance_id, mmds_limit_bytes=mmds_limit_bytes)
        self._mmds_limit_bytes = mmds_limit_bytes
        self.logger: Logger | None = None
        self.metrics_config: MetricsConfig | None = None
        self._options = options
        self._on_exit = on_exit
        self._runtime: Runtime | None = None
        self._balloon: RunningBalloon | None = None
        self.metrics.add("mmds", lambda: self.resources.mmds.counters)
        self.metrics.add("vsock", lambda: self.resources.channel.counters if self.resources.channel else {})

    def require_preboot(self) -> Resources:
        """The resources, which may be changed only before the start."""
        if self._runtime is not None:
            raise Fault(NOT_POSTBOOT)
        return self.resources

    def _require_running(self) -> Runtime:
        if self._runtime is None:
            raise Fault(NOT_PREBOOT)
        return self._runtime

    # What is asked.

    def describe(self) -> dict[str, Any]:
        """GET /."""
        return {
            "id": self.instance_id, "state": self.state, "vmm_version": API_VERSION, "app_name": "Firecracker",
        }  # fmt: skip

    def export(self) -> dict[str, Any]:
        """GET /vm/config."""
        document = self.resources.export()
        optional = {"logger": self.logger, "metrics": self.metrics_config}
        document.update((name, shown(value)) for name, value in optional.items() if value is not None)
        return document

    # The log and the metrics.

    def set_logger(self, config: Logger) -> None:
        """PUT /logger."""
        self.require_preboot()
        self.log.configure(
            path=config.log_path, level=config.level, show_level=config.show_level, show_origin=config.show_log_origin,
            module=config.module,
        )  # fmt: skip
        self.logger = config

    def set_metrics(self, config: MetricsConfig) -> None:
        """PUT /metrics."""
        self.require_preboot()
        self.metrics.configure(config.metrics_path, emit_id=config.emit_id, properties=config.properties)
        self.metrics_config = config

    def flush_metrics(self) -> None:
        """The action FlushMetrics."""
        self._require_running()
        self.metrics.write()

    # The metadata.

    def mmds_value(self) -> Any:
        """GET /mmds."""
        self._require_mmds()
        return self.resources.mmds.value

    def put_mmds(self, value: Any) -> None:
        """PUT /mmds."""
        self._change_mmds(self.resources.mmds.put, value)

    def patch_mmds(self, value: Any) -> None:
        """PATCH /mmds."""
        self._change_mmds(self.resources.mmds.patch, value)

    def _require_mmds(self) -> None:
        # After boot Firecracker finds the store by the interfaces that serve it.
        if self._runtime is not None and not self.resources.mmds_nets():
            raise Fault(f"MMDS error: {NOT_INITIALIZED}")

    def _change_mmds(self, change: Callable[[Any], None], value: Any) -> None:
        self._require_mmds()
        try:
            change(value)
        except StoreError as error:
            if str(error) == LIMIT_EXCEEDED:
                raise Fault(f"MMDS limit exceeded error: {error}", status=413) from error
            raise Fault(f"MMDS error: {error}") from error

    # The machine.

    def start(self) -> None:
        """The action InstanceStart."""
        resources = self.require_preboot()
        if resources.boot is None:
            raise Fault("Start microvm error: Cannot start microvm without kernel configuration.")
        resources.check_kernel()
        runtime = Runtime(self._loop, self.log, resources, self._ended)
        try:
            runtime.start(self.instance_id, self._options)
            self._start_balloon(resources, runtime)
            runtime.execute("cont")
        except FirebuildError as error:
            runtime.kill()
            hint = f" ({error.hint})" if error.hint else ""
            raise Fault(f"Start microvm error: {error}{hint}") from error
        except OSError as error:
            runtime.kill()
            raise Fault(f"Start microvm error: {os_text(error)}") from error
        self._runtime = runtime
        self.state = RUNNING
        self._tick()

    def _start_balloon(self, resources: Resources, runtime: Runtime) -> None:
        if resources.balloon is not None:
            self._balloon = RunningBalloon(
                resources.balloon, mem_size_mib=resources.machine.mem_size_mib, execute=runtime.execute
            )
            self._balloon.start()

    def create_snapshot(self, request: SnapshotCreate) -> None:
        """PUT /snapshot/create."""
        runtime = self._require_running()
        if self.state != PAUSED:
            raise Fault(NOT_PAUSED)
        create_snapshot(runtime, self.resources, request)

    def load_snapshot(self, request: SnapshotLoad) -> None:
        """PUT /snapshot/load."""
        old = self.require_preboot()
        resources, runtime = load_snapshot(
            self._loop, self.log, old, request, instance_id=self.instance_id, mmds_limit_bytes=self._mmds_limit_bytes,
            options=self._options, on_exit=self._ended,
        )  # fmt: skip
        old.close()
        self.resources, self._runtime = resources, runtime
        self.state = PAUSED
        try:
            self._start_balloon(resources, runtime)
        except FirebuildError as error:
            raise Fault(f"Load snapshot error: {error}") from error
        self._tick()
        if request.resume_vm:
            self.resume()

    def pause(self) -> None:
        """PATCH /vm, Paused."""
        self._execute("stop")
        self.state = PAUSED

    def resume(self) -> None:
        """PATCH /vm, Resumed."""
        self._execute("cont")
        self.state = RUNNING

    def send_ctrl_alt_del(self) -> None:
        """The action SendCtrlAltDel: typed on the guest's AT keyboard, as Firecracker does it."""
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        self._execute("send-key", {"keys": keys})

    def _execute(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        runtime = self._require_running()
        try:
            runtime.execute(command, arguments)
        except FirebuildError as error:
            raise Fault(f"Internal VMM error: {error}") from error

    # The balloon.

    def balloon_config(self) -> BalloonConfig:
        """GET /balloon."""
        if self.resources.balloon is not None:
            return self.resources.balloon
        if self._runtime is not None:
            raise Fault(f"Internal VMM error: {_NO_DEVICE}")
        raise Fault("Balloon config error: No balloon device found.")

    def balloon_statistics(self) -> dict[str, int]:
        """GET /balloon/statistics."""
        balloon = self._running_balloon("Internal VMM error")
        return self._on_balloon(balloon.statistics, "Internal VMM error")

    def resize_balloon(self, amount_mib: int) -> None:
        """PATCH /balloon."""
        balloon = self._running_balloon("Balloon update error")
        self._on_balloon(lambda: balloon.resize(amount_mib), "Balloon update error")

    def set_balloon_interval(self, interval_s: int) -> None:
        """PATCH /balloon/statistics."""
        balloon = self._running_balloon("Balloon update error")
        self._on_balloon(lambda: balloon.set_interval(interval_s), "Balloon update error")

    def _running_balloon(self, prefix: str) -> RunningBalloon:
        self._require_running()
        if self._balloon is None:
            raise Fault(f"{prefix}: {_NO_DEVICE}")
        return self._balloon

    def _on_balloon(self, do: Callable[[], T], prefix: str) -> T:
        try:
            return do()
        except FirebuildError as error:
            raise Fault(f"{prefix}: Balloon: {error}") from error

    # Drives and network interfaces.

    def update_drive(self, update: DriveUpdate) -> None:
        """PATCH /drives/{id}: another file, other limits, or both."""
        runtime = self._require_running()
        prefix = "Drive config error: Unable to patch the block device: "
        suffix = " Please verify the request arguments."
        found = self.resources.find_drive(update.drive_id)
        if found is None:
            raise Fault(f"{prefix}Failed perform action on device: Device not found{suffix}")
        if update.path_on_host is None and update.rate_limiter is None:
            raise Fault(f"{prefix}Block: Running method expected different backend.{suffix}")
        index, drive = found
        try:
            if update.path_on_host is not None:
                config = msgspec.structs.replace(drive.config, path_on_host=update.path_on_host)
                drive = self._swap_drive(runtime, index, open_drive(config))
            if update.rate_limiter is not None:
                limits = _merged_limits(drive.config.rate_limiter, update.rate_limiter)
                drive.config = msgspec.structs.replace(drive.config, rate_limiter=limits)
                runtime.limit_drive(drive.plan(index))
        except FirebuildError as error:
            raise Fault(f"{prefix}{error}{suffix}") from error
        except (OSError, ValueError) as error:
            reason = os_text(error) if isinstance(error, OSError) else str(error)
            raise Fault(
                f"{prefix}Block: Virtio backend error: Error manipulating the backing file: {reason} "
                f"{update.path_on_host}{suffix}"
            ) from error

    def _swap_drive(self, runtime: Runtime, index: int, drive: OpenDrive) -> OpenDrive:
        try:
            old_bytes = os.lseek(self.resources.drives[index].descriptor, 0, os.SEEK_END)
            new_bytes = os.lseek(drive.descriptor, 0, os.SEEK_END)
            if drive.read_only and new_bytes != old_bytes:
                raise not_served("a file of another size for a running machine's read-only drive")
            runtime.replace_drive_file(drive.plan(index), new_bytes if new_bytes != old_bytes else None)
        except BaseException:
            os.close(drive.descriptor)
            raise
        os.close(self.resources.drives[index].descriptor)
        self.resources.drives[index] = drive
        return drive

    def update_net(self, update: NetworkInterfaceUpdate) -> None:
        """PATCH /network-interfaces/{id}: only rate limiters can be changed."""
        self._require_running()
        net = next((net for net in self.resources.nets if net.config.iface_id == update.iface_id), None)
        if net is None:
            raise Fault(f"Network config error: Unable to update the net device: {_NO_DEVICE}")
        given = {
            name: _merged_limits(getattr(net.config, name), limiter)
            for name in ("rx_rate_limiter", "tx_rate_limiter")
            if (limiter := getattr(update, name)) is not None
        }
        net.config = msgspec.structs.replace(net.config, **given)
        self.resources.tell_unkept_limits(net.config)

    # The whole at once, and the end.

    def configure(self, config: ConfigFile) -> None:
        """What --config-file says, in Firecracker's order; it does not start the machine."""
        resources = self.resources
        if config.logger is not None:
            self.set_logger(config.logger)
        if config.metrics is not None:
            self.set_metrics(config.metrics)
        if config.machine_config is not None:
            resources.set_machine(config.machine_config)
        resources.set_boot(config.boot_source)
        for drive in config.drives:
            resources.set_drive(drive)
        for net in config.network_interfaces:
            resources.set_net(net)
        if config.vsock is not None:
            resources.set_vsock(config.vsock)
        if config.mmds_config is not None:
            resources.set_mmds_config(config.mmds_config)
        if config.entropy is not None:
            resources.set_entropy(config.entropy)
        if config.balloon is not None:
            resources.set_balloon(config.balloon)

    def _tick(self) -> None:
        try:
            self.metrics.write()
        except Fault as fault:
            self.log.warning(fault.message)
        self._loop.call_later(_METRICS_PERIOD_S, self._tick)

    def _ended(self, status: int) -> None:
        if status == 0:
            self.log.info("The guest has ended.")
        else:
            self.log.error(f"QEMU ended with status {status}.")
        self._on_exit(0 if status == 0 else 1)

    def close(self) -> None:
        """End the machine if it runs, and leave nothing behind."""
        if self._runtime is not None:
            self._runtime.kill()
        try:
            self.metrics.write()
        except Fault as fault:
            self.log.warning(fault.message)
        self.metrics.close()
        self.resources.close()


def _merged_limits(old: RateLimiter | None, new: RateLimiter) -> RateLimiter:
    """Only what an update gives is changed."""
    old = old or RateLimiter()
    return RateLimiter(bandwidth=new.bandwidth or old.bandwidth, ops=new.ops or old.ops)
