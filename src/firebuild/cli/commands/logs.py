"""`firebuild logs`: what a machine's entrypoint printed."""

from __future__ import annotations

import collections
import datetime
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from firebuild.cli.options import machine_arguments, machine_name
from firebuild.cli.output import write_output
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.machine.logs import LogEntry, follow_entries, parse_since, read_entries

_SHOWN_MAX = 64 << 20


@click.command()
@machine_arguments
@click.option("-f", "--follow", is_flag=True, help="Go on until the machine has ended.")
@click.option("-n", "--tail", default="all", show_default=True, help="Show that many last lines only.")
@click.option("--since", help="Show what came after a time (RFC 3339, or Unix seconds) or an age such as 10m or 1h30m.")
@click.option("--until", help="Show what came before a time or an age.")
@click.option("-t", "--timestamps", is_flag=True, help="Show the time of each line.")
@click.option("--console", is_flag=True, help="Show the guest's console instead: the kernel's and vminit's messages.")
@click.option("--vmm", is_flag=True, help="Show the VMM's own log instead.")
def logs(
    machine: str | None, vmm_id: str | None, follow: bool, tail: str, since: str | None, until: str | None,
    timestamps: bool, console: bool, vmm: bool,
) -> None:  # fmt: skip
    """Show what a machine's entrypoint printed: its standard output and standard error."""
    if tail != "all" and not tail.isdigit():
        raise UsageError(f"`{tail}` is not a number of lines", hint="write a number, or all")
    last = None if tail == "all" else int(tail)
    start, end = _moment(since, ""), _moment(until, "~")
    with Engine(reads_only=True) as engine:
        record = engine.machines.records.get(machine_name(machine, vmm_id))
        paths = engine.layout.machine(record.spec.id)
    if console and vmm:
        raise UsageError("--console and --vmm are two logs: choose one")
    if console or vmm:
        _refuse_whole("--vmm" if vmm else "--console", follow=follow, since=since, until=until, timestamps=timestamps)
        _show_whole(paths.vmm_log if vmm else paths.console_log, last)
        return
    if follow:
        entries: Iterable[LogEntry] = _until(follow_entries(paths, lambda so_far: _choose(so_far, start, last)), end)
    else:
        entries = _choose(_until(read_entries(paths.output_log), end), start, last)
    begins = {"stdout": True, "stderr": True}
    for entry in entries:
        # A long line comes in several entries: its time stands before the first.
        prefix = f"{entry.time} ".encode() if timestamps and begins[entry.stream] else b""
        begins[entry.stream] = entry.data.endswith(b"\n")
        write_output(entry.stream, prefix + entry.data)


def _moment(text: str | None, default: str) -> str:
    """As the log writes times, or what comes before or after all of them."""
    if text is None:
        return default
    try:
        return parse_since(text, datetime.datetime.now(datetime.UTC))
    except (ValueError, OverflowError):
        raise UsageError(f"`{text}` is neither a time nor an age", hint="write 2026-01-31T12:00:00Z or 10m") from None


def _refuse_whole(log: str, **given: object) -> None:
    for option, value in given.items():
        if value:
            raise UsageError(f"--{option} does not go with {log}: that log is shown as it is")


def _show_whole(path: Path, last: int | None) -> None:
    try:
        with open(path, "rb") as file:
            # A VMM writes its log itself: only its end is of use, however much there is.
            file.seek(max(0, os.fstat(file.fileno()).st_size - _SHOWN_MAX))
            data = file.read()
    except FileNotFoundError:
        data = b""
    if last is not None:
        data = b"".join(data.splitlines(keepends=True)[-last:] if last else [])
    write_output("stdout", data)


def _until(entries: Iterable[LogEntry], end: str) -> Iterator[LogEntry]:
    for entry in entries:
        if entry.time > end:
            return
        yield entry


def _choose(entries: Iterable[LogEntry], start: str, last: int | None) -> Iterable[LogEntry]:
    wanted = (entry for entry in entries if entry.time >= start)
    return wanted if last is None else _last_lines(wanted, last)


def _last_lines(entries: Iterable[LogEntry], count: int) -> list[LogEntry]:
    """The entries of the last lines; a long line has several entries, of which only the last ends with a newline."""
    kept: collections.deque[list[LogEntry]] = collections.deque(maxlen=count)
    line: list[LogEntry] = []
    for entry in entries:
        line.append(entry)
        if entry.data.endswith(b"\n"):
            kept.append(line)
            line = []
    if line:
        kept.append(line)
    return [entry for each in kept for entry in each]
