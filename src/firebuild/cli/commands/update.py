"""`firebuild update`: what can be changed of a machine that exists."""

from __future__ import annotations

import click

from firebuild.cli.several import each_machine
from firebuild.errors import UsageError
from firebuild.names import parse_size


@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option("--disk-size", help="The size of its own disk, no smaller than it is: 20g. The machine must have ended.")
def update(machines: tuple[str, ...], vmm_ids: tuple[str, ...], disk_size: str | None) -> int:
    """Change machines. A disk that has become larger is used whole after the next start."""
    from firebuild.cli.options import machine_names
    from firebuild.engine.growth import grow_machine

    if disk_size is None:
        raise UsageError("nothing to change", hint="say what: --disk-size 20g")
    size_bytes = parse_size(disk_size, default_unit="m")
    return each_machine(machine_names(machines, vmm_ids), lambda engine, name: grow_machine(engine, name, size_bytes))
