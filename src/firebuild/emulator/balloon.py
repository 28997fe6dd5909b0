"""The memory balloon: Firecracker's configuration and statistics on QEMU's virtio-balloon device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from firebuild.emulator.faults import Fault, not_served
from firebuild.emulator.models import BalloonConfig
from firebuild.emulator.qemu import BALLOON_DEVICE

_PATH = f"/machine/peripheral/{BALLOON_DEVICE}"
_MIB = 1 << 20
_PAGE = 4096
_UNKNOWN = 2**64 - 1
# Firecracker's names of what the guest tells (virtio 1.2, 5.5.6.3) → QEMU's.
_STATISTICS = {
    "swap_in": "stat-swap-in",
    "swap_out": "stat-swap-out",
    "major_faults": "stat-major-faults",
    "minor_faults": "stat-minor-faults",
    "free_memory": "stat-free-memory",
    "total_memory": "stat-total-memory",
    "available_memory": "stat-available-memory",
    "disk_caches": "stat-disk-caches",
    "hugetlb_allocations": "stat-htlb-pgalloc",
    "hugetlb_failures": "stat-htlb-pgfail",
}
Execute = Callable[[str, dict[str, Any] | None], Any]


def check_balloon(config: BalloonConfig, *, mem_size_mib: int) -> None:
    """Refuse what cannot be configured. Raises Fault."""
    if config.free_page_hinting:
        raise not_served("the field `free_page_hinting` of the balloon")
    if config.amount_mib > mem_size_mib:
        raise Fault("Balloon config error: Amount of pages requested is too large.")


class RunningBalloon:
    """The balloon of a running machine. `execute` runs a QMP command; what it raises is passed on."""

    def __init__(self, config: BalloonConfig, *, mem_size_mib: int, execute: Execute) -> None:
        self.config = config
        self._mem_size_mib = mem_size_mib
        self._execute = execute

    def start(self) -> None:
        """Set what the guest finds at its start."""
        if self.config.amount_mib:
            self._set_target(self.config.amount_mib)
        if self.config.stats_polling_interval_s:
            self._set_interval(self.config.stats_polling_interval_s)

    def resize(self, amount_mib: int) -> None:
        """Another target. Raises Fault."""
        if amount_mib > self._mem_size_mib:
            raise Fault(f"Balloon update error: Balloon: Requested memory should be less than {amount_mib}MiB")
        self._set_target(amount_mib)
        self.config.amount_mib = amount_mib

    def set_interval(self, interval_s: int) -> None:
        """Another time between two statistics; they cannot be switched on or off. Raises Fault."""
        if interval_s == self.config.stats_polling_interval_s:
            return
        if not interval_s or not self.config.stats_polling_interval_s:
            raise Fault("Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation.")
        self._set_interval(interval_s)
        self.config.stats_polling_interval_s = interval_s

    def statistics(self) -> dict[str, int]:
        """What the guest told last, and the balloon's size. Raises Fault where they are off."""
        if not self.config.stats_polling_interval_s:
            raise Fault("Internal VMM error: Balloon: Received stats query when stats are disabled.")
        actual_mib = self._mem_size_mib - self._execute("query-balloon", None)["actual"] // _MIB
        told = self._execute("qom-get", {"path": _PATH, "property": "guest-stats"})["stats"]
        sizes = {
            "target_pages": self.config.amount_mib * (_MIB // _PAGE),
            "actual_pages": actual_mib * (_MIB // _PAGE),
            "target_mib": self.config.amount_mib,
            "actual_mib": actual_mib,
        }
        return sizes | {
            ours: told[theirs]
            for ours, theirs in _STATISTICS.items()
            if told.get(theirs, _UNKNOWN) not in (-1, _UNKNOWN)
        }

    def _set_target(self, amount_mib: int) -> None:
        # QEMU counts what the guest keeps, and takes no zero: a guest that keeps nothing is one that keeps a page.
        self._execute("balloon", {"value": max(_PAGE, (self._mem_size_mib - amount_mib) * _MIB)})

    def _set_interval(self, interval_s: int) -> None:
        arguments = {"path": _PATH, "property": "guest-stats-polling-interval", "value": interval_s}
        self._execute("qom-set", arguments)
