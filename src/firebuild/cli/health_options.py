"""The options of `run` and `update` that say how a machine's health is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from firebuild.engine.health import HealthOptions

F = TypeVar("F", bound=Callable[..., Any])

_TIMES = (
    ("interval", "The time between two checks; without it the image's, else 30s."),
    ("timeout", "How long a check may take; without it the image's, else 30s."),
    ("start-period", "How long after a start failures do not count; without it the image's, else 0s."),
    ("start-interval", "The time between two checks in the start period; without it the image's, else 5s."),
)


def health_options(function: F) -> F:
    """`--health-cmd`, its times and retries, `--no-healthcheck`."""
    decorators = [
        click.option("--health-cmd", help="Check the machine's health with this shell command: 0 is healthy.")
    ]
    decorators += [click.option(f"--health-{name}", metavar="TIME", help=text) for name, text in _TIMES]
    decorators += [
        click.option("--health-retries", type=click.IntRange(0, 2**31 - 1),
                     help="So many failures in a row are unhealthy; without it the image's, else 3."),
        click.option("--no-healthcheck", is_flag=True, help="Check no health, whatever the image says."),
    ]  # fmt: skip
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def parse_health_options(options: Mapping[str, Any]) -> HealthOptions:
    """The options as they were given. Raises UsageError."""
    from firebuild.engine.health import HealthOptions, parse_health_time

    times: dict[str, int] = {}
    for name, _ in _TIMES:
        text = options[f"health_{name.replace('-', '_')}"]
        if text is not None:
            times[f"{name.replace('-', '_')}_ns"] = parse_health_time(text, f"--health-{name}")
    return HealthOptions(
        command=options["health_cmd"], retries=options["health_retries"], disabled=options["no_healthcheck"], **times
    )
