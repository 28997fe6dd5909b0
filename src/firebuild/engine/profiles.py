"""Use cases of profiles: made, changed, shown, chosen, removed; each keeps to folders of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from firebuild.config import profiles
from firebuild.config.profiles import Profile
from firebuild.config.settings import KEYS, SETTINGS, Flags, Setting, Settings, parse_value, resolve_settings
from firebuild.errors import BusyError, ConfigError, ConflictError, FirebuildError, NotFoundError
from firebuild.layout import DEFAULT_PROFILE, Layout
from firebuild.names import MACHINE_ID_LENGTH, MachineId

TABLES = tuple(setting.key for setting in SETTINGS if setting.many)


def create_profile(folder: Path, name: str, flags: Flags, *, overwrite: bool) -> Profile:
    """Make a profile, or change the given settings of one that exists; with `overwrite` it is made anew from them alone.

    Raises ConfigError for folders and programs that do not exist and for what settings refuse, ConflictError for a folder
    of another profile, PathTooLongError, UsageError. Then nothing is changed.
    """
    profiles.profile_path(folder, name)
    old = None if overwrite else profiles.find_profile(folder, name, KEYS)
    settings = dict(old.settings) if old else {}
    for setting in SETTINGS:
        if given := flags.get(setting.key):
            settings[setting.key] = check_value(setting, given)
    profile = Profile(name, settings=settings, commands=old.commands if old else {})
    values = resolve_settings({}, {}, profile).settings
    Layout(Path(values.state), Path(values.run)).machine(MachineId("m" * MACHINE_ID_LENGTH)).check_lengths()
    _refuse_shared(folder, profile, values)
    check_storage(values)
    path = profiles.save_profile(folder, profile, TABLES)
    return msgspec.structs.replace(profile, path=str(path))


def check_value(setting: Setting, given: Any) -> str:
    """The text of a setting as it goes into a profile: paths absolute. Raises ConfigError for what does not exist."""
    text = "\n".join(given)
    parse_value(setting, text, f"flag --{setting.key}")
    if not text or setting.kind in ("", "pairs"):
        return _absolute_roots(text) if setting.kind == "pairs" else text
    if setting.kind == "program":
        path = os.path.abspath(text)
        if not os.path.isfile(path):
            raise ConfigError(f"--{setting.key}: there is no program `{path}`", hint=setting.help)
        if not os.access(path, os.X_OK):
            raise ConfigError(f"--{setting.key}: `{path}` cannot be executed", hint=f"chmod +x {path}")
        return path
    parts = [os.path.abspath(part) for part in (text.split(":") if setting.kind == "folders" else [text]) if part]
    for part in parts:
        if not os.path.isdir(part):
            raise ConfigError(f"--{setting.key}: there is no folder `{part}`", hint=f"make it: mkdir -p {part}")
    return ":".join(parts)


def _absolute_roots(text: str) -> str:
    pairs = (pair.partition("=") for pair in text.splitlines())
    return "\n".join(f"{key}={os.path.abspath(value) if key.endswith('-root') else value}" for key, _, value in pairs)


def check_storage(values: Settings) -> None:
    """Ask the storage provider whether it can work with these settings. Raises ConfigError, ConflictError."""
    from firebuild.store.provider import Place, get_provider

    layout = Layout(Path(values.state), Path(values.run))
    place = Place(layout.state, layout.rootfs, layout.kernels)
    get_provider(values.storage_provider, place, values.storage_strings, values.storage_integers).check()


def _refuse_shared(folder: Path, profile: Profile, values: Settings) -> None:
    """No two profiles share a folder: their machines, images and locks would meet."""
    mine = _own_folders(values)
    for other in {DEFAULT_PROFILE, *profiles.list_profiles(folder)} - {profile.name}:
        try:
            theirs = _own_folders(load_values(folder, other))
        except FirebuildError:
            continue  # A profile that is broken says so when it is used; it does not keep others from being made.
        for path, what in mine.items():
            if path in theirs:
                raise ConflictError(
                    f"the folder `{path}` ({what}) is the {theirs[path]} of the profile `{other}`",
                    hint="give each profile folders of its own",
                )


def _own_folders(values: Settings) -> dict[str, str]:
    found = {os.path.realpath(values.state): "run cache", os.path.realpath(values.run): "chroot base"}
    for prop, text in values.storage_strings.items():
        if prop.endswith("-root"):
            found[os.path.realpath(text)] = prop
    return found


def load_values(folder: Path, name: str) -> Settings:
    """The settings that a profile alone gives. Raises ConfigError, NotFoundError."""
    return resolve_settings({}, {}, profiles.get_profile(folder, name, KEYS)).settings


def describe_profile(folder: Path, name: str) -> Mapping[str, Any]:
    """A profile as JSON shows it. Raises ConfigError, NotFoundError."""
    profile = profiles.get_profile(folder, name, KEYS)
    values = resolve_settings({}, {}, profile).settings
    given: dict[str, Any] = {
        key: dict(pair.partition("=")[::2] for pair in text.splitlines()) if key in TABLES else text
        for key, text in profile.settings.items()
    }
    return {
        "Name": name,
        "File": profile.path,
        "Settings": given,
        "Commands": dict(profile.commands),
        "RunCache": values.state,
        "ChrootBase": values.run,
        "BinaryFirecracker": values.vmm_binary,
        "BinaryJailer": values.binary_jailer,
        "StorageProvider": values.storage_provider,
    }


def use_profile(folder: Path, name: str) -> None:
    """Choose a profile for the commands that name none. Raises NotFoundError, ConfigError."""
    profiles.get_profile(folder, name, KEYS)
    profiles.save_current(folder, name)


def remove_profile(folder: Path, name: str) -> Settings:
    """Remove a profile; what lies in its folders stays. Raises BusyError while it has machines, NotFoundError."""
    if name not in profiles.list_profiles(folder):
        raise NotFoundError(f"there is no profile `{name}` in `{folder}`", hint="see `firebuild profile ls`")
    values = load_values(folder, name)
    database_path = Layout(Path(values.state), Path(values.run)).database
    if database_path.exists():
        from firebuild.machine.state import MachineRecords
        from firebuild.store.database import Database

        with Database.open(database_path) as database:
            names = [record.spec.name for record in MachineRecords(database).list_all(kind=None)]
        if names:
            raise BusyError(
                f"the profile `{name}` has machines: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
                hint=f"firebuild kill and firebuild purge --profile={name} remove them",
            )
    profiles.remove_profile(folder, name)
    return values
