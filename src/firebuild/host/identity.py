"""Who a process is: its number and its start time together, so that a reused number is never signalled."""

from __future__ import annotations

import functools
import os
import select
import signal

import msgspec


class ProcessIdentity(msgspec.Struct, frozen=True):
    """A process: `pid` and `start_time` (clock ticks since boot, field 22 of /proc/PID/stat, proc(5))."""

    pid: int
    start_time: int


@functools.cache
def get_boot_id() -> str:
    """What tells one boot of this host from another (random(4), `/proc/sys/kernel/random/boot_id`)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def find_identity(pid: int) -> ProcessIdentity | None:
    """The identity of a live process, or None. A zombie counts as dead."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces and parentheses: fields are counted behind its last parenthesis.
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return ProcessIdentity(pid, int(fields[19]))


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether exactly this process still runs."""
    return find_identity(identity.pid) == identity


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signal exactly this process, through a pidfd; False if it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)


def wait_gone(identity: ProcessIdentity, timeout_s: float) -> bool:
    """Wait until the process is gone; False if `timeout_s` passes first."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(identity):
            return True
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
        return bool(ready)
    finally:
        os.close(descriptor)


def kill_and_wait(identity: ProcessIdentity, *, grace_s: float, kill_s: float = 10.0) -> bool:
    """SIGTERM, then after `grace_s` SIGKILL; True when the process is gone."""
    if not send_signal(identity, signal.SIGTERM) or wait_gone(identity, grace_s):
        return True
    return not send_signal(identity, signal.SIGKILL) or wait_gone(identity, kill_s)
