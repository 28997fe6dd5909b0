"""What snapshots cost: a restore against a cold boot, many clones against one, an idle clone's memory, and the pause.

All through the command line, with real guests, as ratios of what was measured in turn in one run. The first byte is what `exec`
of `echo` in the new machine prints. Needs root and a state with a kernel and the image (`--image`), which it works in; the machines
and snapshots that it makes are removed. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from firebuild.engine.core import Engine
from tests.support.cli import PROGRAM

MEMORY_MIB = 256


def firebuild(*words: str) -> str:
    """A command that must succeed; its output."""
    return subprocess.run([str(PROGRAM), *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def to_first_byte(name: str, *words: str) -> float:
    """Seconds from the command to the first byte that the new machine's guest says."""
    began = time.perf_counter()
    firebuild("run", "-d", "--name", name, *words)
    assert firebuild("exec", name, "--", "echo", "on") == "on\n"
    return time.perf_counter() - began


def private_bytes(name: str) -> int:
    """What the QEMU of a machine has alone: pages that no other process maps."""
    with Engine() as engine:
        vmm = engine.machines.records.get(name).progress.vmm
    assert vmm is not None
    [child] = Path(f"/proc/{vmm.pid}/task/{vmm.pid}/children").read_text().split()
    lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) << 10


def measure_pause(source: str) -> float:
    """Seconds for which the saved machine stood still, by its VMM's log."""
    with Engine() as engine:
        record = engine.machines.records.get(source)
        text = engine.layout.machine(record.spec.id).vmm_log.read_text()
    seen = [line.split()[0] for line in text.splitlines() if 'Patch request on "/vm"' in line][-2:]
    first, last = (float(stamp[17:]) + 60 * int(stamp[14:16]) for stamp in seen)
    return (last - first) % 3600


def copy_memory(folder: Path) -> float:
    """Seconds for one copy of as many bytes as the guest has RAM, to a file where the snapshots are."""
    target = folder / "bench-copy"
    data = os.urandom(1 << 20)
    began = time.perf_counter()
    with open(target, "wb") as file:
        for _ in range(MEMORY_MIB):
            file.write(data)
    took = time.perf_counter() - began
    target.unlink()
    return took


def main() -> None:
    """Measure, print, and remove what was made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian:bookworm-slim")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clones", type=int, default=32)
    parser.add_argument("--network", default="machines", help="the machines' network; `none` leaves its cost out")
    options = parser.parse_args()
    command = (
        "--memory",
        str(MEMORY_MIB),
        "--network",
        options.network,
        "--from",
        options.image,
        "--",
        "sleep",
        "1000000",
    )
    names: list[str] = ["bench-source"]
    try:
        firebuild("run", "-d", "--name", "bench-source", *command)
        firebuild("snapshot", "create", "bench-source", "bench-snapshot")
        with Engine() as engine:
            folder = engine.layout.snapshots
            used = engine.snapshots.used_bytes(engine.snapshots.get("bench-snapshot"))
        pause, copy = measure_pause("bench-source"), copy_memory(folder)
        cold: list[float] = []
        restored: list[float] = []
        for number in range(options.rounds):
            for kind, words, into in (
                ("cold", command, cold),
                ("warm", ("--from-snapshot", "bench-snapshot"), restored),
            ):
                name = f"bench-{kind}{number}"
                names.append(name)
                into.append(to_first_byte(name, *words))
        clone = f"bench-warm{options.rounds - 1}"
        print(f"restore to the first byte / cold boot: {statistics.median(restored) / statistics.median(cold):.3f}"
              f"  ({statistics.median(restored):.2f} s / {statistics.median(cold):.2f} s)")  # fmt: skip
        print(f"private memory of an idle clone / its RAM: {private_bytes(clone) / (MEMORY_MIB << 20):.3f}")
        print(f"pause of a full snapshot / one copy of the RAM: {pause / copy:.2f}  ({pause:.3f} s / {copy:.3f} s; "
              f"the snapshot takes {used >> 20} MiB)")  # fmt: skip
        many = [f"bench-many-{number}" for number in range(1, options.clones + 1)]
        names += many
        began = time.perf_counter()
        firebuild("run", "--from-snapshot", "bench-snapshot", "-n", str(options.clones), "--name", "bench-many")
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(lambda name: firebuild("exec", name, "--", "echo", "on"), many))
        took = time.perf_counter() - began
        ideal = min(restored) * options.clones / (os.cpu_count() or 1)
        print(f"{options.clones} clones all answering / the ideal: {took / ideal:.2f}  ({took:.1f} s)")
    finally:
        subprocess.run([str(PROGRAM), "rm", "-f", *names], stdout=subprocess.DEVNULL, check=False)
        subprocess.run([str(PROGRAM), "snapshot", "rm", "-f", "bench-snapshot"], stdout=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    main()
