"""`firebuild ssh`: log in to a machine over its own sshd."""

from __future__ import annotations

from pathlib import Path

import click

from firebuild.engine.core import Engine


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-l", "--user", help="Whom to log in as; without it the user whose keys the machine was given.")
@click.option(
    "-i", "--identity", "identities", multiple=True, type=click.Path(path_type=Path),
    help="File of a private key; without it those that ssh finds itself.",
)  # fmt: skip
@click.option("-t", "--tty", is_flag=True, help="A terminal also for a command.")
@click.argument("machine")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(user: str | None, identities: tuple[Path, ...], tty: bool, machine: str, command: tuple[str, ...]) -> None:
    """Log in to a running machine, or run COMMAND in it, with the ssh of this host and the sshd of the machine.

    The machine's host keys are known beforehand; they are kept with the machine. Exit status: the command's; 255 if ssh fails.
    """
    from firebuild.engine.ssh import plan_ssh
    from firebuild.host.process import become

    words = command[1:] if command[:1] == ("--",) else command
    with Engine(reads_only=True) as engine:
        argv = plan_ssh(
            engine, machine, user=user, identities=identities, options=["-t"] if tty else [], command=words
        )  # fmt: skip
    become(argv)
