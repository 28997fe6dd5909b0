"""`firebuild config show`: every value in force, and where it came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click

from firebuild.cli.equip import flag_keys, flag_variables, get_choice, list_own_options
from firebuild.cli.options import format_option
from firebuild.cli.output import print_rows
from firebuild.config.current import current_settings
from firebuild.config.profiles import Profile, unknown_key
from firebuild.config.settings import SETTINGS


@click.group()
def config() -> None:
    """Settings: what is in force."""


@config.command()
@format_option
def show(format_name: str) -> None:
    """Show each setting with its value and its origin, and each flag that profile or environment give a value to.

    A flag wins over the environment, that over the profile, that over the default.
    """
    resolved = current_settings()
    chosen = get_choice()
    objects: list[dict[str, Any]] = [
        {"name": "profile", "value": chosen.profile.name, "origin": chosen.origin, "flag": "--profile"}
    ]
    for setting in SETTINGS:
        value = getattr(resolved.settings, setting.name)
        objects.append(
            {"name": setting.key, "value": value, "origin": resolved.origins[setting.name], "flag": f"--{setting.key}"}
        )
    objects += list(_list_command_flags(chosen.profile))
    rows = [[str(item["name"]), _as_word(item["value"]), str(item["origin"])] for item in objects]
    print_rows(format_name, ["SETTING", "VALUE", "ORIGIN"], rows, objects)


def _as_word(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value) if value not in ("", None) else "-"


def _list_command_flags(profile: Profile) -> Iterator[dict[str, Any]]:
    """Flags of commands that have a value beforehand. Raises ConfigError for what a profile gives to no command or flag."""
    from firebuild.cli.main import load_commands

    commands = dict(load_commands())
    for section, command in commands.items():
        table: Any = profile.commands
        for word in section:
            table = table.get(word, {}) if isinstance(table, dict) else {}
        for option in list_own_options(command):
            for key in flag_keys(option):
                variable = next((name for name in flag_variables(section, option) if os.environ.get(name)), None)
                if variable:
                    value, origin = os.environ[variable], f"environment {variable}"
                elif isinstance(table, dict) and key in table:
                    value, origin = table[key], profile.locate(*section, key)
                else:
                    continue
                yield {"name": f"{' '.join(section)} --{key}", "value": value, "origin": origin, "flag": f"--{key}"}
                break
    _refuse_unknown(profile.commands, (), commands, profile.path, profile.text)


def _refuse_unknown(
    table: Mapping[str, Any],
    above: tuple[str, ...],
    commands: Mapping[tuple[str, ...], click.Command],
    path: str,
    text: str,
) -> None:
    if above in commands:
        known = {key for option in list_own_options(commands[above]) for key in flag_keys(option)}
        what = f"a flag of `firebuild {' '.join(above)}`"
    else:
        known = {section[len(above)] for section in commands if section[: len(above)] == above}
        what = "a command" if not above else f"a command of `firebuild {' '.join(above)}`"
    for key, value in table.items():
        if key not in known:
            raise unknown_key(path, text, (*above, key), known, what)
        if above not in commands and isinstance(value, dict):
            _refuse_unknown(value, (*above, key), commands, path, text)
