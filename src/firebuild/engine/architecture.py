"""This host's architecture, in OCI's words."""

from __future__ import annotations

import os

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def host_architecture() -> str:
    """This host's architecture in OCI's words, `amd64`."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)
