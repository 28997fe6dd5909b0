"""`firebuild stop|kill|rm|purge`: machines ended and removed."""

from __future__ import annotations

import click

from firebuild.cli.options import machine_names
from firebuild.cli.output import note, print_error
from firebuild.cli.several import each_machine, note_synced
from firebuild.engine.core import Engine


@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option("-t", "--time", "--timeout", "timeout_s", type=click.FloatRange(0, 86400),
              help="Seconds until force is used; without it as `run --stop-timeout` said, else 10.")  # fmt: skip
def stop(machines: tuple[str, ...], vmm_ids: tuple[str, ...], timeout_s: float | None) -> int:
    """Stop machines: their stop signal, then force."""
    return _end(machine_names(machines, vmm_ids), timeout_s)


@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option("--shutdown-timeout", "timeout_s", type=click.FloatRange(0, 86400), default=15.0, show_default=True,
              help="Seconds that the guest gets to end in order; 0: none.")  # fmt: skip
@click.option(
    "-s", "--signal", "signal_name", help="Send the entrypoint this signal, and no more; KILL: force at once."
)
def kill(machines: tuple[str, ...], vmm_ids: tuple[str, ...], timeout_s: float, signal_name: str | None) -> int:
    """Terminate machines: in order within the time that they get, then by force. With --signal: only signal them."""
    from firebuild.engine.life import send_signal

    names = machine_names(machines, vmm_ids)
    if signal_name is None:
        return _end(names, timeout_s)
    return each_machine(names, lambda engine, name: send_signal(engine, name, signal_name))


def _end(names: list[str], timeout_s: float | None) -> int:
    from firebuild.engine.machines import end_machine, settle_folders

    def end(engine: Engine, name: str) -> None:
        machine_id = end_machine(engine, name, timeout_s=timeout_s).spec.id
        note_synced(settle_folders(engine, machine_id))

    return each_machine(names, end)


@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option("-f", "--force", is_flag=True, help="Kill running machines first.")
@click.option(
    "-v", "--volumes", is_flag=True, expose_value=False,
    help="Taken as docker takes it: what is in no named volume goes with the machine in any case, named volumes stay.",
)  # fmt: skip
def rm(machines: tuple[str, ...], vmm_ids: tuple[str, ...], force: bool) -> int:
    """Remove ended machines with their disks and logs."""
    from firebuild.engine.machines import remove

    return each_machine(machine_names(machines, vmm_ids), lambda engine, name: remove(engine, name, force=force))


@click.command()
def purge() -> int:
    """Remove all ended machines and everything that crashes left."""
    from firebuild.engine.machines import purge as purge_machines
    from firebuild.engine.space import spare_room

    with Engine() as engine, spare_room(engine):
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
@click.option("--life", type=int)
def machine_ended(machine_id: str, life: int | None) -> None:
    """Called by the supervisor when its VMM has ended."""
    from firebuild.config.settings import load_settings
    from firebuild.engine.machines import note_end
    from firebuild.engine.space import spare_room

    # The supervisor's environment says it all: the profile may be another by now, or gone.
    with Engine(load_settings()[0]) as engine, spare_room(engine):
        note_end(engine, machine_id, life)


@click.command("machine-changed", hidden=True)
@click.argument("machine_id")
@click.option("--health", type=click.Choice(["starting", "healthy", "unhealthy"]))
@click.option("--restarts", type=int)
def machine_changed(machine_id: str, health: str | None, restarts: int | None) -> None:
    """Called by the supervisor when its guest has told something new of itself."""
    from firebuild.config.settings import load_settings
    from firebuild.engine.machines import note_change

    with Engine(load_settings()[0]) as engine:
        note_change(engine, machine_id, health=health, restarts=restarts)
