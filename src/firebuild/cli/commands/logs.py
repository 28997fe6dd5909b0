"""`firebuild logs`: what a machine's entrypoint printed."""

from __future__ import annotations

import collections
import datetime
from collections.abc import Iterable, Iterator

import click

from firebuild.cli.options import machine_arguments, machine_name
from firebuild.cli.output import write_output
from firebuild.engine.core import Engine
from firebuild.errors import UsageError
from firebuild.machine.logs import LogEntry, follow_entries, parse_since, read_entries


@click.command()
@machine_arguments
@click.option("-f", "--follow", is_flag=True, help="Go on until the machine has ended.")
@click.option("-n", "--tail", default="all", show_default=True, help="Show that many last lines only.")
@click.option("--since", help="Show what came after a time (RFC 3339) or an age such as 10m.")
@click.option("-t", "--timestamps", is_flag=True, help="Show the time of each line.")
@click.option("--console", is_flag=True, help="Show the guest's console instead: the kernel's and vminit's messages.")
def logs(
    machine: str | None, vmm_id: str | None, follow: bool, tail: str, since: str | None, timestamps: bool, console: bool
) -> None:
    """Show what a machine's entrypoint printed: its standard output and standard error."""
    with Engine() as engine:
        record = engine.machines.records.get(machine_name(machine, vmm_id))
        paths = engine.layout.machine(record.spec.id)
    if console:
        if paths.console_log.exists():
            write_output("stdout", paths.console_log.read_bytes())
        return
    entries: Iterable[LogEntry] = read_entries(paths.output_log)
    if since is not None:
        try:
            start = parse_since(since, datetime.datetime.now(datetime.UTC))
        except ValueError:
            raise UsageError(
                f"`{since}` is neither a time nor an age", hint="write 2026-01-31T12:00:00Z or 10m"
            ) from None
    else:
        start = ""
    if follow:
        entries = follow_entries(paths)
    for entry in _select(entries, tail, start, follow):
        prefix = f"{entry.time} ".encode() if timestamps else b""
        write_output(entry.stream, prefix + entry.data)


def _select(entries: Iterable[LogEntry], tail: str, start: str, follow: bool) -> Iterator[LogEntry]:
    wanted = (entry for entry in entries if entry.time >= start)
    if tail == "all":
        yield from wanted
        return
    if not tail.isdigit():
        raise UsageError(f"`{tail}` is not a number of lines", hint="write a number, or all")
    if follow:
        raise UsageError("--tail goes with the log as it stands; leave out --follow")
    yield from collections.deque(wanted, maxlen=int(tail))
