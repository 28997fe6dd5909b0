"""`firebuild top`: the processes in a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from firebuild.cli.options import machine_arguments, machine_name
from firebuild.cli.output import format_size, note, print_table
from firebuild.cli.template import check_template, is_template, render_template
from firebuild.engine.core import Engine
from firebuild.errors import UsageError

if TYPE_CHECKING:
    from firebuild.guest.control import GuestProcess

_FIELDS = ("PID", "PPID", "User", "State", "Time", "Memory", "Elapsed", "Command")


@click.command()
@machine_arguments
@click.option("--format", "format_name", default="table", show_default=True,
              help="table, json (one object a line), or a template: {{.PID}}.")  # fmt: skip
def top(machine: str | None, vmm_id: str | None, format_name: str) -> None:
    """Show the processes in a running machine, as its kernel counts them; the image need have no `ps`."""
    from firebuild.engine.life import list_processes

    if is_template(format_name):
        check_template(format_name, _FIELDS)
    elif format_name not in ("table", "json"):
        raise UsageError(f"`{format_name}` is not an output format", hint="choose table, json or a template: {{.Key}}")
    with Engine(reads_only=True) as engine:
        found = list_processes(engine, machine_name(machine, vmm_id))
    rows = [_row(process) for process in found.processes]
    if format_name == "table":
        print_table([name.upper() for name in _FIELDS], rows)
    elif format_name == "json":
        for process in found.processes:
            click.echo(msgspec.json.encode(process).decode())
    else:
        for row in rows:
            fields: dict[str, Any] = dict(zip(_FIELDS, row, strict=True))
            click.echo(render_template(format_name, fields))
    if found.more:
        note("there are more processes than are shown")


def _row(process: GuestProcess) -> list[str]:
    return [
        str(process.pid), str(process.ppid), process.user, process.state, _format_time(process.cpu_ms),
        format_size(process.memory_kib << 10), _format_time(process.elapsed_ms), process.command,
    ]  # fmt: skip


def _format_time(time_ms: int) -> str:
    minutes, seconds = divmod(time_ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}"
