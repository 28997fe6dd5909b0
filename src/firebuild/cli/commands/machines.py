"""`firebuild ls|inspect|stop|kill|rm|purge`: machines that exist."""

from __future__ import annotations

import click

from firebuild.cli.options import format_option, machine_arguments, machine_name, machine_names
from firebuild.cli.output import format_age, note, print_error, print_json, print_rows
from firebuild.engine.core import Engine
from firebuild.errors import FirebuildError
from firebuild.machine.state import ENDED, State


@click.command()
@click.option("-a", "--all", "show_all", is_flag=True, help="Show ended machines too.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@format_option
def ls(show_all: bool, quiet: bool, format_name: str) -> None:
    """List machines."""
    with Engine() as engine:
        records = engine.machines.records.list_all()
    objects, rows = [], []
    for record in records:
        state = record.effective_state
        if not show_all and state in ENDED and state is not State.LOST:
            continue
        progress = record.progress
        addresses = [address.split("/")[0] for address in progress.addresses]
        ports = ", ".join(str(port) for port in record.spec.ports)
        status = str(state) if progress.exit_code is None else f"{state} ({progress.exit_code})"
        rows.append(
            [record.spec.id, record.spec.name, record.spec.image, status, format_age(record.created_at_ns),
             ", ".join(addresses) or "-", ports or "-"]
        )  # fmt: skip
        objects.append(
            {
                "id": record.spec.id, "name": record.spec.name, "image": record.spec.image, "state": str(state),
                "running": state is State.RUNNING, "pid": progress.vmm.pid if progress.vmm else None,
                "started": progress.started_at_ns, "ip-address": addresses[0] if addresses else "",
                "exit-code": progress.exit_code, "ports": [str(port) for port in record.spec.ports],
                "profile": record.spec.profile,
            }
        )  # fmt: skip
    if quiet:
        for item in objects:
            click.echo(item["id"])
        return
    print_rows(format_name, ["ID", "NAME", "IMAGE", "STATE", "CREATED", "ADDRESS", "PORTS"], rows, objects)


@click.command()
@machine_arguments
def inspect(machine: str | None, vmm_id: str | None) -> None:
    """Show everything about a machine, as JSON."""
    from firebuild.engine.describe import describe_machine

    with Engine() as engine:
        print_json(describe_machine(engine, machine_name(machine, vmm_id)))


@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option("-t", "--time", "timeout_s", type=click.FloatRange(0, 86400), default=10.0, show_default=True,
              help="Seconds until force is used.")  # fmt: skip
def stop(machines: tuple[str, ...], vmm_ids: tuple[str, ...], timeout_s: float) -> int:
    """Stop machines: their stop signal, then force."""
    return _end(machine_names(machines, vmm_ids), timeout_s)


@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option("--shutdown-timeout", "timeout_s", type=click.FloatRange(0, 86400), default=15.0, show_default=True,
              help="Seconds that the guest gets to end in order; 0: none.")  # fmt: skip
def kill(machines: tuple[str, ...], vmm_ids: tuple[str, ...], timeout_s: float) -> int:
    """Terminate machines: in order within the time that they get, then by force."""
    return _end(machine_names(machines, vmm_ids), timeout_s)


def _end(names: list[str], timeout_s: float) -> int:
    from firebuild.engine.machines import end_machine

    status = 0
    with Engine() as engine:
        for name in names:
            try:
                end_machine(engine, name, timeout_s=timeout_s)
                click.echo(name)
            except FirebuildError as error:
                print_error(error)
                status = 1
    return status


@click.command()
@click.argument("machines", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Kill running machines first.")
def rm(machines: tuple[str, ...], force: bool) -> int:
    """Remove ended machines with their disks and logs."""
    from firebuild.engine.machines import remove

    status = 0
    with Engine() as engine:
        for name in machines:
            try:
                remove(engine, name, force=force)
                click.echo(name)
            except FirebuildError as error:
                print_error(error)
                status = 1
    return status


@click.command()
def purge() -> int:
    """Remove all ended machines and everything that crashes left."""
    from firebuild.engine.machines import purge as purge_machines

    with Engine() as engine:
        removed, repaired, failures = purge_machines(engine)
    for sentence in repaired:
        note(sentence)
    for name in removed:
        click.echo(name)
    for failure in failures:
        print_error(failure)
    note(f"{len(removed)} machine{'s' if len(removed) != 1 else ''} removed")
    return 1 if failures else 0


@click.command(hidden=True)
@click.argument("machine_id")
def machine_ended(machine_id: str) -> None:
    """Called by the supervisor when its VMM has ended."""
    from firebuild.config.settings import load_settings
    from firebuild.engine.machines import note_end

    # The supervisor's environment says it all: the profile may be another by now, or gone.
    with Engine(load_settings()[0]) as engine:
        note_end(engine, machine_id)
