"""`firebuild profile create|ls|inspect|use|rm`, and the same as `profile-create`, `profile-ls`, `profile-inspect`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from firebuild.cli.equip import read_flags, setting_name
from firebuild.cli.options import format_option
from firebuild.cli.output import note, print_json, print_rows
from firebuild.config.current import profile_folder
from firebuild.config.settings import PROPERTY_FLAGS, SETTINGS
from firebuild.errors import UsageError


@click.group()
def profile() -> None:
    """Profiles: settings under a name; machines, images and kernels of their own."""


def _folder_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--profile-conf-dir", "conf_dir", help="The folder of profiles.")(function)


def _find_folder(given: str | None) -> Path:
    return profile_folder(given, os.environ)


def _name_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.argument("name", required=False)(function)
    return click.option("--profile", "given", help="The profile's name.")(function)


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for key, prop in reversed(PROPERTY_FLAGS.items()):
        function = click.option(f"--{key}", setting_name(key), help=f"Short for the property {prop}.")(function)
    for setting in reversed(SETTINGS):
        text = setting.help[0].upper() + setting.help[1:] + "."
        function = click.option(f"--{setting.key}", setting_name(setting.key), multiple=setting.many, help=text)(
            function
        )
    return function


def _one_name(name: str | None, given: str | None) -> str:
    if name and given:
        raise UsageError("name the profile once: as an argument or with --profile")
    if not (name or given):
        raise UsageError("name a profile", hint="--profile=NAME")
    return name or given or ""


@profile.command()
@_name_options
@_folder_option
@_settings_options
@click.option("--overwrite", is_flag=True, help="Make the profile anew: forget what it held before.")
def create(name: str | None, given: str | None, conf_dir: str | None, overwrite: bool, **settings: Any) -> None:
    """Make a profile, or change the given settings of one that exists. Folders and programs must exist."""
    from firebuild.engine.profiles import create_profile

    made = create_profile(_find_folder(conf_dir), _one_name(name, given), read_flags(settings), overwrite=overwrite)
    note(f"profile {made.name}: {made.path}")


@profile.command()
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@_folder_option
@format_option
def ls(quiet: bool, conf_dir: str | None, format_name: str) -> None:
    """List profiles; `*` marks the one that commands use which name none."""
    from firebuild.config.profiles import find_current, list_profiles
    from firebuild.engine.profiles import load_values
    from firebuild.errors import FirebuildError
    from firebuild.layout import DEFAULT_PROFILE

    folder = _find_folder(conf_dir)
    names = sorted({DEFAULT_PROFILE, *list_profiles(folder)})
    if quiet:
        for name in names:
            click.echo(name)
        return
    current = find_current(folder) or DEFAULT_PROFILE
    rows, objects = [], []
    for name in names:
        try:
            values = load_values(folder, name)
        except FirebuildError as error:
            note(f"warning: {error.message}")
            continue
        rows.append([("* " if name == current else "  ") + name, values.state, values.run, values.storage_provider])
        objects.append(
            {"name": name, "current": name == current, "run-cache": values.state, "chroot-base": values.run,
             "storage-provider": values.storage_provider}
        )  # fmt: skip
    print_rows(format_name, ["  NAME", "RUN CACHE", "CHROOT BASE", "STORAGE PROVIDER"], rows, objects)


@profile.command()
@_name_options
@_folder_option
def inspect(name: str | None, given: str | None, conf_dir: str | None) -> None:
    """Show a profile as JSON: what it sets, and what follows from it."""
    from firebuild.engine.profiles import describe_profile

    print_json(describe_profile(_find_folder(conf_dir), _one_name(name, given)))


@profile.command()
@_name_options
@_folder_option
def use(name: str | None, given: str | None, conf_dir: str | None) -> None:
    """Choose the profile of all commands that name none. `default` is the one without a file."""
    from firebuild.engine.profiles import use_profile

    chosen = _one_name(name, given)
    use_profile(_find_folder(conf_dir), chosen)
    note(f"commands that name no profile use {chosen} now")


@profile.command()
@_name_options
@_folder_option
def rm(name: str | None, given: str | None, conf_dir: str | None) -> None:
    """Remove a profile that has no machines. Its folders and what is in them stay."""
    from firebuild.engine.profiles import remove_profile

    gone = _one_name(name, given)
    values = remove_profile(_find_folder(conf_dir), gone)
    click.echo(gone)
    note(f"what it stored stays in `{values.state}`")
