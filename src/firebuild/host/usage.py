"""What a process and its descendants use of the host: processor time, memory, blocks, packets (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Collection

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Counters since the processes began, but for `memory_bytes`, which is what they hold now (resident, each page of
    shared memory counted once a process). `received_bytes`, `sent_bytes`: of the interfaces asked for."""

    cpu_s: float = 0.0
    memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    processes: int = 0


def measure_usage(pid: int, interfaces: Collection[str]) -> Usage | None:
    """The usage of a process with its descendants, and of the interfaces of these names in its network namespace; None where
    the process is gone."""
    ticks = os.sysconf("SC_CLK_TCK")
    cpu_s, memory, read, written, count = 0.0, 0, 0, 0, 0
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        stat, pages, io = _read(each, "stat"), _read(each, "statm"), _read(each, "io")
        if stat is None or pages is None or io is None:
            if each == pid:
                return None
            continue
        fields = stat[stat.rindex(")") + 2 :].split()
        cpu_s += (int(fields[11]) + int(fields[12])) / ticks
        memory += int(pages.split()[1]) * os.sysconf("SC_PAGE_SIZE")
        counters = dict(line.split(": ", 1) for line in io.splitlines())
        read += int(counters["read_bytes"])
        written += int(counters["write_bytes"])
        count += 1
        waiting += [int(child) for child in (_read(each, f"task/{each}/children") or "").split()]
    received, sent = _packets(pid, interfaces)
    return Usage(cpu_s, memory, read, written, received, sent, count)


def _packets(pid: int, interfaces: Collection[str]) -> tuple[int, int]:
    """Bytes that the interfaces received and sent together; those that are not there do not count."""
    received, sent = 0, 0
    for line in (_read(pid, "net/dev") or "").splitlines():
        name, colon, counters = line.partition(":")
        if colon and name.strip() in interfaces:
            fields = counters.split()
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def _read(pid: int, name: str) -> str | None:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
