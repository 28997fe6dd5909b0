"""`firebuild exec`: run a command in a running machine."""

from __future__ import annotations

from contextlib import ExitStack

import click

from firebuild.cli.options import START_FAILURES, parse_environment
from firebuild.cli.output import print_error, write_output
from firebuild.engine.core import Engine
from firebuild.errors import GuestError, UsageError
from firebuild.guest.exec import ExecSpec, open_exec, start_exec
from firebuild.host.deadline import Deadline

_START_S = 60.0


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Hand on standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Start the command and return; its output is lost.")
@click.option("-u", "--user", default="", help="User, or user:group; a name or a number.")
@click.option("-w", "--workdir", default="", help="Working directory.")
@click.option("-e", "--env", multiple=True, help="Environment variable K=V.")
@click.option("--env-file", multiple=True, help="File of environment variables.")
@click.option("--vmm-id", help="The machine, where the first argument is the command.")
@click.argument("words", metavar="[MACHINE] COMMAND...", nargs=-1, type=click.UNPROCESSED)
def exec_(
    interactive: bool, tty: bool, detach: bool, user: str, workdir: str, env: tuple[str, ...], env_file: tuple[str, ...],
    vmm_id: str | None, words: tuple[str, ...],
) -> int:  # fmt: skip
    """Run a command in a running machine. Exit status: the command's; 126, 127 if it cannot be started; 125 if firebuild fails."""
    from firebuild.cli import terminal
    from firebuild.engine.machines import get_running

    machine, command = (vmm_id, words) if vmm_id else (words[0] if words else "", words[1:])
    argv = list(command[1:] if command[:1] == ("--",) else command)
    if not machine or not argv:
        raise UsageError("name a machine and a command", hint="firebuild exec MACHINE COMMAND")
    if detach and (interactive or tty):
        raise UsageError(
            "-d does not go with -i or -t", hint="a command that nobody follows has neither input nor terminal"
        )
    if tty and interactive:
        terminal.require_terminal()
    with Engine(reads_only=True) as engine:
        record = get_running(engine, machine)
        vsock = engine.layout.machine(record.spec.id).vsock
    rows, cols = terminal.terminal_size()
    variables = parse_environment(env_file, env)
    spec = ExecSpec(
        argv=argv, env=[f"{name}={value}" for name, value in variables.items()], user=user, workdir=workdir, tty=tty,
        stdin=interactive, rows=rows, cols=cols,
    )  # fmt: skip
    try:
        if detach:
            start_exec(vsock, spec, Deadline(_START_S, "starting the command"))
            return 0
        with ExitStack() as stack:
            session = stack.enter_context(open_exec(vsock, spec))
            if tty and interactive:
                stack.enter_context(terminal.raw_terminal())
                stack.enter_context(terminal.follow_resizes(session))
            else:
                stack.enter_context(terminal.pass_signals(terminal.ENDING_SIGNALS, session.send_signal))
            if interactive:
                stack.enter_context(terminal.forward_input(session))
            return session.wait(write_output)
    except GuestError as error:
        if error.guest_code not in START_FAILURES:
            raise
        print_error(error)
        return START_FAILURES[error.guest_code]
