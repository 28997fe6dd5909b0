"""`firebuild update`: what can be changed of a machine that exists."""

from __future__ import annotations

from typing import Any

import click

from firebuild.cli.commands.run import run
from firebuild.cli.health_options import health_options, parse_health_options
from firebuild.cli.several import each_machine
from firebuild.errors import UsageError
from firebuild.machine.spec import parse_restart_policy
from firebuild.names import parse_size


def _refuse(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value not in (None, False, ()):
        raise UsageError(
            f"{option.opts[0]} of a machine that exists cannot be changed",
            hint="make another machine with `firebuild run`; `firebuild update --help` lists what can be changed",
        )


def _refuse_the_rest(command: click.Command) -> click.Command:
    """What `run` takes and `update` does not is refused by its name."""
    known = {name for option in command.params for name in option.opts}
    for option in run.params:
        names = [name for name in option.opts if name not in known and name != "-h"]
        if isinstance(option, click.Option) and names and option.expose_value:
            command.params.append(
                click.Option([*names, f"_{names[-1].strip('-').replace('-', '_')}"], is_flag=option.is_flag, multiple=not option.is_flag,
                             hidden=True, expose_value=False, callback=_refuse)
            )  # fmt: skip
    return command


@_refuse_the_rest
@click.command()
@click.argument("machines", nargs=-1)
@click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")
@click.option(
    "--restart", metavar="POLICY", help="When the entrypoint is started again; of a running machine from now on."
)
@click.option(
    "--stop-timeout", "stop_timeout_s", type=click.FloatRange(0, 86400), help="Seconds that `stop` waits before force."
)
@click.option("--label", multiple=True, help="Add or change a label: K=V.")
@click.option("--label-rm", multiple=True, help="Remove a label.")
@click.option("--cpus", "--cpu", "cpus", type=int, help="Processors, from the next start on.")
@click.option(
    "--memory", "--mem", "-m", "memory", help="Memory, from the next start on: MiB, or with a unit: 512m, 2g."
)
@click.option("--disk-size", help="The size of its own disk, no smaller than it is: 20g. The machine must have ended.")
@health_options
def update(machines: tuple[str, ...], vmm_ids: tuple[str, ...], **options: Any) -> int:
    """Change machines. Processors, memory, disk and health check can be changed of a machine that has ended, and count from its
    next start on; restart policy, stop timeout and labels at any time."""
    from firebuild.cli.options import machine_names
    from firebuild.engine.update import Changes, update_machine

    memory, disk_size, restart = options["memory"], options["disk_size"], options["restart"]
    changes = Changes(
        restart=None if restart is None else parse_restart_policy(restart),
        stop_timeout_s=options["stop_timeout_s"],
        labels=dict(text.partition("=")[::2] for text in options["label"]),
        forget_labels=list(options["label_rm"]),
        health=parse_health_options(options),
        cpus=options["cpus"],
        memory_mib=None if memory is None else parse_size(memory, default_unit="m") >> 20,
        disk_size_bytes=None if disk_size is None else parse_size(disk_size, default_unit="m"),
    )
    if changes == Changes():
        raise UsageError(
            "nothing to change", hint="say what, for example --restart always; see `firebuild update --help`"
        )
    return each_machine(machine_names(machines, vmm_ids), lambda engine, name: update_machine(engine, name, changes))
