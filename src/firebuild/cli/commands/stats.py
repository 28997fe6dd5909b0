"""`firebuild stats`: what running machines use of the host."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from firebuild.cli.output import format_size, print_table
from firebuild.cli.template import is_template, render_template
from firebuild.engine.core import Engine
from firebuild.errors import UsageError

if TYPE_CHECKING:
    from firebuild.engine.stats import Sample

_PERIOD_S = 1.0
_CLEAR = "\x1b[H\x1b[J"


@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option("--no-stream", is_flag=True, help="Show it once.")
@click.option("--format", "format_name", default="table", show_default=True,
              help="table, json (one object a line), or a template: {{.CPUPerc}}.")  # fmt: skip
def stats(machines: tuple[str, ...], vmm_ids: tuple[str, ...], no_stream: bool, format_name: str) -> None:
    """Show what machines use of the host, once a second: CPU (of one of the host's processors), memory of the VMM, network and
    block I/O. Without a name all that run. Ends with the machines named."""
    from firebuild.engine.stats import select_machines, take_samples

    if format_name not in ("table", "json") and not is_template(format_name):
        raise UsageError(f"`{format_name}` is not an output format", hint="choose table, json or a template: {{.Key}}")
    names = [*machines, *vmm_ids]
    with Engine(reads_only=True) as engine:
        records = select_machines(engine, names)
        before = {sample.record.spec.id: sample for sample in take_samples(engine, records)}
        while True:
            # A rate needs two looks.
            time.sleep(_PERIOD_S)
            if not names:
                records = select_machines(engine, names)
            samples = take_samples(engine, records)
            if not no_stream and format_name == "table" and sys.stdout.isatty():
                click.echo(_CLEAR, nl=False)
            _show([_fields(sample, before.get(sample.record.spec.id)) for sample in samples], format_name)
            if no_stream or (names and not samples):
                return
            before = {sample.record.spec.id: sample for sample in samples}


def _fields(sample: Sample, before: Sample | None) -> dict[str, Any]:
    """As docker's `stats --format` names them."""
    spec, usage = sample.record.spec, sample.usage
    limit = spec.memory_mib << 20
    return {
        "ID": spec.id, "Name": spec.name, "CPUPerc": f"{sample.cpu_percent(before):.2f}%",
        "MemUsage": f"{format_size(usage.memory_bytes)} / {format_size(limit)}",
        "MemPerc": f"{100 * usage.memory_bytes / limit:.2f}%",
        # What the tap sends, the guest receives.
        "NetIO": f"{format_size(usage.sent_bytes)} / {format_size(usage.received_bytes)}",
        "BlockIO": f"{format_size(usage.read_bytes)} / {format_size(usage.written_bytes)}", "PIDs": str(usage.processes),
    }  # fmt: skip


def _show(rows: Sequence[dict[str, Any]], format_name: str) -> None:
    if format_name == "table":
        headings = ["ID", "NAME", "CPU %", "MEM USAGE / MACHINE'S", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"]
        print_table(headings, [list(row.values()) for row in rows])
        return
    for row in rows:
        click.echo(msgspec.json.encode(row).decode() if format_name == "json" else render_template(format_name, row))
