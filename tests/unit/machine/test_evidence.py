"""What a failed start shows of its logs."""

from __future__ import annotations

from pathlib import Path

from firebuild.layout import MachineLayout
from firebuild.machine.evidence import collect_evidence


def test_the_last_lines_of_logs_and_no_whole_command_lines(tmp_path: Path) -> None:
    paths = MachineLayout(tmp_path / "state", tmp_path / "run", tmp_path / "lock")
    paths.state.mkdir()
    assert collect_evidence(paths) == ""
    paths.vmm_log.write_text("Starting qemu-system-x86_64 " + "-device x " * 400 + "\nThe guest has ended.\n")
    paths.console_log.write_text("".join(f"line {number}\n" for number in range(40)))
    console, vmm = collect_evidence(paths).split("last lines of the VMM log:\n")
    assert console.splitlines() == ["last lines of the console:", *(f"line {number}" for number in range(25, 40))]
    first, second = vmm.splitlines()
    assert first.startswith("Starting qemu") and first.endswith(" …") and len(first) < 300
    assert second == "The guest has ended."
