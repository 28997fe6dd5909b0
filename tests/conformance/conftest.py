"""The conformance tier: conversations in Firecracker's API with whatever program serves it. Each must leave the host as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.vmm import VARIABLE, Vmm, find_binary, start_vmm


@pytest.fixture(autouse=True)
def _leaves_nothing(ledger: None) -> None:
    """Every test of this tier runs under the leak ledger."""


def pytest_report_header() -> str:
    """Whom the tier asks."""
    return f"conformance: {find_binary() or f'the emulator ({VARIABLE} names another program)'}"


@pytest.fixture
def vmm() -> Iterator[Vmm]:
    """One that has just been started."""
    with start_vmm() as subject:
        yield subject


@pytest.fixture
def booted() -> Iterator[Vmm]:
    """One whose machine runs. Skipped where it starts none."""
    with start_vmm() as subject:
        ensure_booted(subject)
        yield subject


def ensure_booted(vmm: Vmm) -> None:
    """Start the machine, or skip the test with the reason why there is none."""
    vmm.api.put("/boot-source", {"kernel_image_path": "halting", "boot_args": "x"})
    answer = vmm.ask("PUT", "/actions", {"action_type": "InstanceStart"})
    if answer.status_code != 204:
        pytest.skip(f"this program starts no machine here: {answer.json['fault_message']}")
