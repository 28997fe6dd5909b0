"""`firebuild ls|inspect`: machines shown."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from firebuild.cli.filters import parse_filters
from firebuild.cli.options import machine_names
from firebuild.cli.output import format_age, format_time, is_json_log, print_error, print_json, print_table
from firebuild.cli.template import is_template, render_template
from firebuild.engine.core import Engine
from firebuild.errors import FirebuildError, UsageError
from firebuild.machine.state import HOST_REBOOT, MachineRecord, State

_HEADINGS = ("ID", "NAME", "IMAGE", "STATE", "CREATED", "ADDRESS", "PORTS")


@click.command()
@click.option("-a", "--all", "show_all", is_flag=True, help="Show ended machines too.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("-f", "--filter", "filters", multiple=True,
              help="id=, name=, status=, label=, image=, ancestor=, network=, publish=, health=, exited=, before=, since=.")  # fmt: skip
@click.option("-n", "--last", type=click.IntRange(0), help="Show that many newest machines, ended ones too.")
@click.option("-l", "--latest", is_flag=True, help="Show the newest machine, an ended one too.")
@click.option("--no-trunc", is_flag=True, help="Nothing is cut short in any case.")
@click.option("--format", "format_name", default="table", show_default=True,
              help="table, json (one object a line), or a template: {{.Key}}.")  # fmt: skip
def ls(
    show_all: bool, quiet: bool, filters: tuple[str, ...], last: int | None, latest: bool, no_trunc: bool,
    format_name: str,
) -> None:  # fmt: skip
    """List machines. Those that ended are shown with -a, or where a filter asks for a state."""
    from firebuild.engine.machine_list import FILTER_KEYS, list_machines

    if format_name not in ("table", "json") and not is_template(format_name):
        raise UsageError(f"`{format_name}` is not an output format", hint="choose table, json or a template: {{.Key}}")
    wanted = parse_filters(filters, FILTER_KEYS)
    with Engine(reads_only=True) as engine:
        records = list_machines(engine, wanted, show_all=show_all, last=1 if latest else last)
    if quiet:
        for record in records:
            click.echo(record.spec.id)
    elif format_name == "json" or (is_json_log() and format_name == "table"):
        for record in records:
            click.echo(msgspec.json.encode(_object(record)).decode())
    elif format_name == "table":
        print_table(_HEADINGS, [_row(record) for record in records])
    else:
        for record in records:
            click.echo(render_template(format_name, _fields(record)))


def _addresses(record: MachineRecord) -> list[str]:
    return [address.split("/")[0] for address in record.progress.addresses]


def _status(record: MachineRecord) -> str:
    state = record.effective_state
    detail = HOST_REBOOT if record.reason == HOST_REBOOT else record.health or record.progress.exit_code
    return str(state) if detail is None else f"{state} ({detail})"


def _row(record: MachineRecord) -> list[str]:
    spec = record.spec
    ports = ", ".join(str(port) for port in record.ports)
    addresses = ", ".join(_addresses(record))
    return [
        spec.id, spec.name, spec.image, _status(record), format_age(record.created_at_ns), addresses or "-", ports or "-"
    ]  # fmt: skip


def _object(record: MachineRecord) -> dict[str, Any]:
    spec, progress = record.spec, record.progress
    return {
        "id": spec.id, "name": spec.name, "image": spec.image, "state": str(record.effective_state),
        "running": record.effective_state in (State.RUNNING, State.PAUSED), "pid": progress.vmm.pid if progress.vmm else None,
        "created": format_time(record.created_at_ns), "started": format_time(progress.started_at_ns),
        "ip-address": next(iter(_addresses(record)), ""), "exit-code": progress.exit_code, "reason": record.reason,
        "health": record.health,
        "ports": [str(port) for port in record.ports], "labels": dict(spec.labels), "profile": spec.profile,
    }  # fmt: skip


def _fields(record: MachineRecord) -> dict[str, Any]:
    """As docker's `ps --format` names them, and Name, Address, Profile."""
    spec = record.spec
    entry = spec.entrypoint
    _, name, image, status, age, address, ports = _row(record)
    return {
        "ID": spec.id, "Name": name, "Names": name, "Image": image, "State": str(record.effective_state), "Status": status,
        "Command": " ".join([*entry.entrypoint, *entry.cmd]), "CreatedAt": format_time(record.created_at_ns),
        "RunningFor": age, "Address": "" if address == "-" else address, "Ports": "" if ports == "-" else ports,
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(spec.labels.items())),
        "Networks": ",".join(join.network for join in spec.networks), "Profile": spec.profile,
    }  # fmt: skip


@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option("-f", "--format", "format_name", default="json", show_default=True,
              help="json, or a template: {{.State.Status}}.")  # fmt: skip
def inspect(machines: tuple[str, ...], vmm_ids: tuple[str, ...], format_name: str) -> int:
    """Show everything about machines, as one JSON document each."""
    from firebuild.engine.describe import describe_machine

    if format_name != "json" and not is_template(format_name):
        raise UsageError(f"`{format_name}` is not an output format", hint="choose json or a template: {{.Key}}")
    status = 0
    with Engine(reads_only=True) as engine:
        for name in machine_names(machines, vmm_ids):
            try:
                document = describe_machine(engine, name)
            except FirebuildError as error:
                print_error(error)
                status = error.exit_status
                continue
            if format_name == "json":
                print_json(document)
            else:
                click.echo(render_template(format_name, document))
    return status
