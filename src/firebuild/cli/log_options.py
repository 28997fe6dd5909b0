"""The original's flags about its log, which every command takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from firebuild.cli.output import note, use_json_log
from firebuild.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

# The original's levels, by the words of its logger.
_LEVELS = {"trace": "DEBUG", "debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


def make_log_options() -> list[click.Option]:
    """New options, hidden, of which a command's function sees nothing."""
    return [
        click.Option(
            ["--log-as-json"], is_flag=True, hidden=True, expose_value=False, is_eager=True, callback=_as_json
        ),
        click.Option(["--log-level"], hidden=True, expose_value=False, callback=_set_level),
        click.Option(["--log-color"], is_flag=True, hidden=True, expose_value=False, callback=_say_nothing_to_colour),
        click.Option(
            ["--log-force-color"], is_flag=True, hidden=True, expose_value=False, callback=_say_nothing_to_colour
        ),
    ]


def log_calls_option(function: F) -> F:
    """The option that shows the calls of the VMM's API. The command's function does not see it."""
    return click.option(
        "--log-firecracker-http-calls", is_flag=True, expose_value=False, callback=_show_calls,
        help="Show each call of the VMM's API and its answer, on standard error.",
    )(function)  # fmt: skip


def _show_calls(context: click.Context, option: click.Parameter, value: Any) -> None:
    if not value:
        return
    import logging

    logger = logging.getLogger("firebuild.vmm.calls")
    logger.setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger.addHandler(handler)


def _as_json(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value:
        use_json_log()


def _set_level(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is None:
        return
    level = _LEVELS.get(str(value).lower())
    if level is None:
        raise UsageError(f"`{value}` is not a log level", hint=f"choose {', '.join(_LEVELS)}")
    import logging

    logging.basicConfig(level=level, stream=sys.stderr, format="%(name)s: %(message)s")


def _say_nothing_to_colour(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value:
        note(f"note: {option.opts[0]} has no effect: log lines have no colours")
