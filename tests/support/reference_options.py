"""Tables of commands' options for the reference pages, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterable

import click

from firebuild.cli.commands.rootfs import rootfs
from firebuild.cli.retired import BUILD_OPTIONS


def option_rows() -> Iterable[tuple[str, str, str]]:
    """Those of `firebuild rootfs`."""
    return describe_options(rootfs)


def describe_options(command: click.Command) -> Iterable[tuple[str, str, str]]:
    """Each of a command's options: its names, what it takes, and its help."""
    for parameter in command.params:
        # What every command gets while it runs (--profile) is of a class of its own, and on its own page.
        if type(parameter) is not click.Option or parameter.hidden:
            continue
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        value = "" if parameter.is_flag else "many" if parameter.multiple else "one"
        text = parameter.help or ""
        if parameter.show_default and parameter.default is not None:
            text += f" [default: {parameter.default}]"
        yield names, value, text


def retired_rows() -> Iterable[tuple[str, str]]:
    """The options that have no effect, and why."""
    return [(f"`{option}`", reason) for option, reason in BUILD_OPTIONS.items()]
