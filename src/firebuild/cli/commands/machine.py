"""`firebuild machine fork`: what is done with machines and has no word of its own."""

from __future__ import annotations

import click

from firebuild.cli.options import parse_environment
from firebuild.engine.core import Engine


@click.group()
def machine() -> None:
    """Machines: fork."""


@machine.command()
@click.argument("source", metavar="MACHINE")
@click.option("-n", "--count", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--name", help="The machine's name, or what the names of several begin with.")
@click.option("--rm", "auto_remove", is_flag=True, help="Remove the machines when they have ended.")
@click.option("--env", "-e", multiple=True, help="Environment variable K=V, for what `exec` runs.")
@click.option("--label", "labels", multiple=True, help="Label K=V.")
def fork(
    source: str, count: int, name: str | None, auto_remove: bool, env: tuple[str, ...], labels: tuple[str, ...]
) -> int:
    """Start machines that go on where a running one is now, with its memory and disks. Prints their ids; MACHINE goes on too."""
    from firebuild.cli.cloning import start_several
    from firebuild.engine.snapshots import CloneRequest
    from firebuild.engine.snapshots import fork as fork_machine

    request = CloneRequest(
        snapshot="", count=count, name=name, auto_remove=auto_remove, env=parse_environment((), env),
        labels=dict(label.partition("=")[::2] for label in labels),
    )  # fmt: skip
    with Engine() as engine:
        return start_several(lambda done: fork_machine(engine, source, request, done=done))
