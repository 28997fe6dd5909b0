"""`firebuild start|restart|pause|resume|wait|port|rename`: what becomes of machines."""

from __future__ import annotations

import click

from firebuild.cli import terminal
from firebuild.cli.detach_keys import DEFAULT_DETACH_KEYS, parse_detach_keys
from firebuild.cli.options import START_FAILURES, machine_arguments, machine_name, machine_names
from firebuild.cli.output import note, print_error
from firebuild.cli.several import each_machine, note_synced
from firebuild.engine.core import Engine
from firebuild.errors import FirebuildError, GuestError, MachineError, NotFoundError, UsageError

_NO_EXIT_CODE = 125
_VMM_IDS = click.option("--vmm-id", "vmm_ids", multiple=True, help="A machine: id, beginning of its id, or name.")


@click.command()
@click.argument("machines", nargs=-1)
@_VMM_IDS
@click.option("-a", "--attach", "attaches", is_flag=True, help="Attach to the entrypoint, as `run` without -d does.")
@click.option("-i", "--interactive", is_flag=True, help="Attach, and hand standard input on where `run -i` said so.")
@click.option(
    "--detach-keys", default=DEFAULT_DETACH_KEYS, show_default=True,
    help="The keys that detach, where the entrypoint has a terminal; empty: none.",
)  # fmt: skip
def start(
    machines: tuple[str, ...], vmm_ids: tuple[str, ...], attaches: bool, interactive: bool, detach_keys: str
) -> int:
    """Start ended machines again, with their own disks, ports and logs; returns when their guests are ready.

    With -a or -i one machine, attached to it from its first moment; the exit status is then the entrypoint's.
    """
    from firebuild.engine.life import start_ended

    names = machine_names(machines, vmm_ids)
    keys = parse_detach_keys(detach_keys)
    if not attaches and not interactive:
        return each_machine(names, start_ended)
    if len(names) != 1:
        raise UsageError(f"-a and -i are for one machine, not for {len(names)}")
    return _start_attached(names[0], keys, interactive=interactive)


def _start_attached(name: str, keys: bytes, *, interactive: bool) -> int:
    from firebuild.cli.attaching import AttachPlan
    from firebuild.cli.foreground import follow_machine
    from firebuild.engine.life import start_ended
    from firebuild.machine.state import ENDED

    with Engine() as engine:
        record = engine.machines.records.get(name)
        spec = record.spec
        if record.effective_state not in ENDED:
            raise MachineError(f"the machine {spec.name} is running", hint=f"use: firebuild attach {spec.name}")
        typed = interactive and spec.stdin
        if interactive and not spec.stdin:
            note(f"note: {spec.name} was made without -i: its entrypoint has no input")
        if typed and spec.tty:
            terminal.require_terminal()
        start_ended(engine, spec.id, await_attach=True)
        plan = AttachPlan(stdin=typed, keys=keys, ends_input=spec.stdin_once)
        try:
            return follow_machine(engine, spec.id, remove=False, plan=plan, keep=True)
        except GuestError as error:
            if error.guest_code not in START_FAILURES:
                raise
            print_error(error)
            return START_FAILURES[error.guest_code]


@click.command()
@click.argument("machines", nargs=-1)
@_VMM_IDS
@click.option("-t", "--time", "--timeout", "timeout_s", type=click.FloatRange(0, 86400),
              help="Seconds until force is used; without it as `run --stop-timeout` said, else 10.")  # fmt: skip
def restart(machines: tuple[str, ...], vmm_ids: tuple[str, ...], timeout_s: float | None) -> int:
    """Stop machines, where they run, and start them again."""
    from firebuild.engine import life

    names = machine_names(machines, vmm_ids)
    return each_machine(names, lambda engine, name: life.restart(engine, name, timeout_s=timeout_s))


@click.command()
@click.argument("machines", nargs=-1)
@_VMM_IDS
def pause(machines: tuple[str, ...], vmm_ids: tuple[str, ...]) -> int:
    """Stop the processors of machines; memory, connections and disks stay. The guest's clock stands still meanwhile."""
    from firebuild.engine import life

    return each_machine(machine_names(machines, vmm_ids), life.pause)


@click.command()
@click.argument("machines", nargs=-1)
@_VMM_IDS
def resume(machines: tuple[str, ...], vmm_ids: tuple[str, ...]) -> int:
    """Let paused machines go on."""
    from firebuild.engine import life

    return each_machine(machine_names(machines, vmm_ids), life.resume)


@click.command()
@click.argument("machines", nargs=-1)
@_VMM_IDS
@click.option("--for", "--condition", "wanted", default="stopped", show_default=True,
              type=click.Choice(["stopped", "running", "healthy", "unhealthy"]), help="What is waited for.")  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), help="Seconds after which it is an error."
)
def wait(machines: tuple[str, ...], vmm_ids: tuple[str, ...], wanted: str, timeout_s: float | None) -> int:
    """Wait until machines have ended, and print the exit code of each: 125 where the entrypoint left none. Or until they are
    running, healthy or unhealthy; one that has ended will not be healthy, and is an error."""
    from firebuild.engine import life
    from firebuild.engine.machines import settle_folders
    from firebuild.host.deadline import Deadline

    status = 0
    with Engine() as engine:
        for name in machine_names(machines, vmm_ids):
            deadline = None if timeout_s is None else Deadline(timeout_s, f"waiting until {name} is {wanted}")
            try:
                if wanted != "stopped":
                    life.wait_for(engine, name, wanted, deadline)
                    continue
                machine_id = engine.machines.records.get(name).spec.id
                code = life.wait(engine, name, deadline)
                note_synced(settle_folders(engine, machine_id))
            except FirebuildError as error:
                print_error(error)
                status = 1
                continue
            if code is None:
                note(f"{name} ended without an exit code: see `firebuild inspect {name}`")
            click.echo(_NO_EXIT_CODE if code is None else code)
    return status


@click.command()
@machine_arguments
@click.argument("port", required=False)
def port(machine: str | None, vmm_id: str | None, port: str | None) -> None:
    """Show the published ports of a machine, or where one of its ports, as 80 or 80/udp, is published."""
    from firebuild.engine.life import list_ports

    if vmm_id and machine and port is None:
        machine, port = None, machine
    name = machine_name(machine, vmm_id)
    with Engine() as engine:
        mappings = list_ports(engine, name)
    if port is None:
        for item in mappings:
            click.echo(f"{item.guest_port}/{item.protocol} -> {_show(item.host_address)}:{item.host_port}")
        return
    number, _, protocol = port.partition("/")
    if not number.isdigit() or protocol not in ("", "tcp", "udp"):
        raise UsageError(f"`{port}` is not a port", hint="write 80, 80/tcp or 80/udp")
    found = [item for item in mappings if (str(item.guest_port), item.protocol) == (number, protocol or "tcp")]
    if not found:
        raise NotFoundError(f"the machine {name} does not publish the port {number}/{protocol or 'tcp'}")
    for item in found:
        click.echo(f"{_show(item.host_address)}:{item.host_port}")


def _show(address: str) -> str:
    return f"[{address}]" if ":" in address else address or "0.0.0.0"


@click.command()
@click.argument("machine")
@click.argument("new_name")
def rename(machine: str, new_name: str) -> None:
    """Give a machine another name. Its host name stays."""
    from firebuild.engine import life

    with Engine() as engine:
        life.rename(engine, machine, new_name)
