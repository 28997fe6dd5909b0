"""Processes found by an environment variable that they inherited: what a killed parent left running."""

from __future__ import annotations

import os
import signal

from firebuild.host.identity import ProcessIdentity, find_identity, send_signal, wait_gone


def find_marked_processes(name: str, value: str) -> list[ProcessIdentity]:
    """Live processes other than this one that were started with `name=value` in their environment (proc(5), environ)."""
    marker = f"{name}={value}".encode()
    found: list[ProcessIdentity] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        # The identity is taken first: if the number is reused in between, the identity no longer matches and nothing is sent.
        identity = find_identity(int(entry))
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:
            continue  # It ended, or it is not ours to read.
        if identity is not None and marker in variables:
            found.append(identity)
    return found


def kill_marked_processes(name: str, value: str, *, timeout_s: float = 10.0) -> bool:
    """SIGKILL the processes that find_marked_processes names and wait for them; False if one outlived `timeout_s`."""
    victims = find_marked_processes(name, value)
    for victim in victims:
        send_signal(victim, signal.SIGKILL)
    return all(wait_gone(victim, timeout_s) for victim in victims)
