"""Starting machines from a snapshot or from a running machine: what came of each is printed, and what failed is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from firebuild.cli.options import parse_environment
from firebuild.cli.output import print_error
from firebuild.engine.core import Engine
from firebuild.engine.snapshots import CloneRequest, Clones, run_clones
from firebuild.errors import UsageError
from firebuild.machine.state import MachineRecord
from firebuild.names import parse_port_mappings

# Of the options of `run`, those that can be said of a machine that has been started already.
_APPLY = frozenset(
    ("from_snapshot", "count", "name", "hostname", "daemonize", "auto_remove", "ports", "env", "env_file", "label",
     "boot_timeout", "cidfile")
)  # fmt: skip


def plan_clones(options: Mapping[str, Any], name: str) -> CloneRequest:
    """The request of these options of `run`. Raises UsageError for those that come too late."""
    context = click.get_current_context()
    for option, value in options.items():
        given = context.get_parameter_source(option) is ParameterSource.COMMANDLINE
        if given and value not in (None, ()) and option not in _APPLY:
            word = next(param.opts[0] for param in context.command.params if param.name == option)
            what = "a command or an image" if option == "words" else word
            raise UsageError(
                f"{what} does not go with --from-snapshot: the machine goes on as it was saved",
                hint="these do: -n, --name, --hostname, -d, --rm, -p, -e, --env-file, --label, --boot-timeout, --cidfile",
            )
    if options["cidfile"] and options["count"] > 1:
        raise UsageError("--cidfile holds one machine's id", hint="leave it out; the ids are printed")
    return CloneRequest(
        snapshot=name,
        count=options["count"],
        name=options["name"],
        hostname=options["hostname"],
        ports=[mapping for text in options["ports"] for mapping in parse_port_mappings(text)],
        env=parse_environment(options["env_file"], options["env"]),
        labels=dict(text.partition("=")[::2] for text in options["label"]),
        auto_remove=options["auto_remove"] and (options["daemonize"] or options["count"] > 1),
        boot_timeout_s=options["boot_timeout"],
    )


def start_one(engine: Engine, request: CloneRequest) -> MachineRecord:
    """The one machine of a request. Raises what kept it from starting."""
    clones = run_clones(engine, request)
    for _, error in clones.failed:
        raise error
    return clones.started[0]


def start_several(start: Callable[[Callable[[MachineRecord], None]], Clones]) -> int:
    """Start them, print each one's id as soon as it runs, and say which do not; the exit status."""
    clones = start(lambda record: click.echo(record.spec.id))
    for name, error in clones.failed:
        error.message = f"{name}: {error.message}"
        print_error(error)
    return 1 if clones.failed else 0
