"""`firebuild attach`: the entrypoint of a running machine, with its own input and output."""

from __future__ import annotations

import sys

import click

from firebuild.cli import terminal
from firebuild.cli.detach_keys import DEFAULT_DETACH_KEYS, parse_detach_keys
from firebuild.cli.options import machine_arguments, machine_name
from firebuild.cli.output import note
from firebuild.engine.core import Engine

_NO_EXIT_CODE = 125


@click.command("attach")
@click.option("--no-stdin", is_flag=True, help="Only look: hand on no input.")
@click.option(
    "--sig-proxy/--no-sig-proxy", default=True, show_default=True,
    help="Pass the signals that this command gets on, where no terminal does. Without it Ctrl-C detaches.",
)  # fmt: skip
@click.option(
    "--detach-keys", default=DEFAULT_DETACH_KEYS, show_default=True,
    help="The keys that detach, where the entrypoint has a terminal; empty: none.",
)  # fmt: skip
@machine_arguments
def attach_(machine: str | None, vmm_id: str | None, no_stdin: bool, sig_proxy: bool, detach_keys: str) -> int:
    """See what the entrypoint of a running machine prints from now on, and type to it, as `run -i` and `run -t` said.

    Exit status: the entrypoint's; 0 after the keys that detach.
    """
    from firebuild.cli.attaching import AttachPlan, Detached, attach
    from firebuild.engine.life import wait
    from firebuild.engine.machines import get_running
    from firebuild.errors import GuestError, MachineError

    name = machine_name(machine, vmm_id)
    keys = parse_detach_keys(detach_keys)
    with Engine(reads_only=True) as engine:
        record = get_running(engine, name)
        spec = record.spec
        if spec.tty and spec.stdin and not no_stdin:
            terminal.require_terminal()
        plan = AttachPlan(stdin=not no_stdin, keys=keys, ends_input=spec.stdin_once, signals=sig_proxy)
        try:
            status = attach(engine.layout.machine(spec.id).vsock, plan, tty=spec.tty)
        except Detached:
            note(f"\r\ndetached from {spec.name}, which goes on")
            return 0
        except GuestError as error:
            if error.guest_code not in ("lost", "protocol"):
                raise MachineError(
                    f"nobody can attach to {spec.name}: {error.message}", hint=f"see `firebuild inspect {spec.name}`"
                ) from error
            # The machine is ending, or was killed: its end tells.
            code = wait(engine, spec.id)
            if code is None:
                raise
            status = code
    sys.stdout.flush()
    return status
