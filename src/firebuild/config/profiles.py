"""Profiles: files of settings and of flags by command, each one TOML file that is written whole.

<conf-dir>/<name>.toml          version = 1, settings by their keys, then a table for each command's flags; 0600
<conf-dir>/.current             the name of the profile that `profile use` chose
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import ConfigError, NotFoundError
from firebuild.host.files import map_os_error, sync_folder, write_atomic
from firebuild.layout import DEFAULT_PROFILE
from firebuild.names import parse_object_name

VERSION = 1
_SIZE_LIMIT = 1 << 20
_SUFFIX = ".toml"
_HEADER = r"\s*\[([^\[\]]+)\]\s*(?:#.*)?"
_KEY = r'\s*("?)([A-Za-z0-9_.-]+)\1\s*='
_BARE = r"[A-Za-z0-9_-]+"


class Profile(msgspec.Struct, frozen=True):
    """One profile. `settings`: texts by key, pairs one a line; `commands`: values of flags, nested as the commands are.

    `text`: the file as it is, for line numbers; `path`: empty for a profile that no file describes.
    """

    name: str
    path: str = ""
    settings: Mapping[str, str] = {}
    commands: Mapping[str, Any] = {}
    text: str = ""

    def locate(self, *keys: str) -> str:
        """Where a value stands, for people: `profile standard (/etc/firebuild/profiles/standard.toml:3)`."""
        line = find_line(self.text, keys)
        return f"profile {self.name} ({self.path}{f':{line}' if line else ''})"


def profile_path(folder: Path, name: str) -> Path:
    """The file of a profile. Raises UsageError for what cannot be a profile's name."""
    return folder / f"{parse_object_name('profile', name)}{_SUFFIX}"


def find_profile(folder: Path, name: str, known: Collection[str]) -> Profile | None:
    """The profile of that name, or None. `known`: the keys of settings. Raises ConfigError naming file and line, UsageError."""
    path = profile_path(folder, name)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"the profile `{path}` cannot be read: {error.strerror}") from error
    return parse_profile(name, str(path), data, known)


def get_profile(folder: Path, name: str, known: Collection[str]) -> Profile:
    """As find_profile; the profile `default` needs no file. Raises NotFoundError with names like it."""
    profile = find_profile(folder, name, known)
    if profile is not None:
        return profile
    if name == DEFAULT_PROFILE:
        return Profile(name)
    hint = _nearest(name, list_profiles(folder)) or f"make it: firebuild profile-create --profile={name}"
    raise NotFoundError(f"there is no profile `{name}` in `{folder}`", hint=hint)


def list_profiles(folder: Path) -> list[str]:
    """The names of all profiles that have a file, sorted. Raises ConfigError."""
    try:
        return sorted(
            name.removesuffix(_SUFFIX) for name in os.listdir(folder) if name.endswith(_SUFFIX) and name[0] != "."
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"the folder of profiles `{folder}` cannot be read: {error.strerror}") from error


def parse_profile(name: str, path: str, data: bytes, known: Collection[str]) -> Profile:
    """Decode a profile's file. Raises ConfigError naming file, line and key, with the nearest key there is."""
    import tomllib

    try:
        if len(data) > _SIZE_LIMIT:
            raise ValueError("it is larger than 1 MiB")
        text = data.decode()
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the profile `{path}` does not parse: {error}") from error
    version = raw.pop("version", None)
    if version != VERSION:
        raise ConfigError(
            f"the profile `{path}` has the version {version!r}; this firebuild knows {VERSION}",
            hint=f"its first line is `version = {VERSION}`",
        )
    settings: dict[str, str] = {}
    commands: dict[str, Any] = {}
    for key, value in raw.items():
        if key in known:
            settings[key] = _as_text(value, path, text, key)
        elif isinstance(value, dict):
            commands[key] = value
        else:
            raise unknown_key(path, text, (key,), known, "a setting")
    return Profile(name, path, settings, commands, text)


def unknown_key(path: str, text: str, keys: tuple[str, ...], known: Collection[str], what: str) -> ConfigError:
    """The error for a key that nobody knows. `what`: what it should have been."""
    line = find_line(text, keys)
    where = f"`{path}`, line {line}" if line else f"`{path}`"
    return ConfigError(f"the profile {where}: `{'.'.join(keys)}` is not {what}", hint=_nearest(keys[-1], known))


def find_line(text: str, keys: tuple[str, ...]) -> int | None:
    """The line (from 1) on which a key or a table's heading stands, or None where it is written in another way."""
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.fullmatch(_HEADER, line):
            table = [part.strip().strip('"') for part in header[1].split(".")]
            if table == list(keys):
                return number
        elif (match := re.match(_KEY, line)) and [*table, match[2]] == list(keys):
            return number
    return None


def save_profile(folder: Path, profile: Profile, tables: Collection[str]) -> Path:
    """Write a profile, whole and durable or not at all; returns its file. `tables`: the settings that are pairs.

    Comments of an earlier file are not kept. Raises UsageError, DiskFullError, HostError.
    """
    path = profile_path(folder, profile.name)
    lines = ["# A firebuild profile: see docs/reference/profiles.md.", f"version = {VERSION}"]
    for key, text in profile.settings.items():
        if key not in tables:
            lines.append(f"{key} = {_as_toml(text)}")
    for key in tables:
        if given := profile.settings.get(key):
            pairs = (pair.partition("=")[::2] for pair in given.splitlines())
            lines += ["", f"[{key}]", *(f"{_as_key(name)} = {_as_toml(value)}" for name, value in pairs)]
    lines += _format_tables(profile.commands, ())
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise map_os_error(error, f"making the folder `{folder}`") from error
    write_atomic(path, ("\n".join(lines) + "\n").encode())
    return path


def remove_profile(folder: Path, name: str) -> None:
    """Remove a profile's file, and the choice if it was the chosen one. Raises NotFoundError, HostError."""
    path = profile_path(folder, name)
    try:
        path.unlink()
        if find_current(folder) == name:
            (folder / ".current").unlink(missing_ok=True)
        sync_folder(folder)
    except FileNotFoundError:
        raise NotFoundError(f"there is no profile `{name}` in `{folder}`", hint="see `firebuild profile ls`") from None
    except OSError as error:
        raise map_os_error(error, f"removing the profile `{path}`") from error


def find_current(folder: Path) -> str | None:
    """The profile that `profile use` chose, or None. Raises ConfigError."""
    try:
        name = (folder / ".current").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the chosen profile in `{folder}` cannot be read: {error}") from error
    return name or None


def save_current(folder: Path, name: str) -> None:
    """Choose a profile for every command that names none. Raises DiskFullError, HostError."""
    write_atomic(folder / ".current", f"{name}\n".encode())


def _nearest(name: str, known: Collection[str]) -> str | None:
    import difflib

    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else None


def _as_text(value: Any, path: str, text: str, key: str) -> str:
    if isinstance(value, dict) and all(_is_plain(item) for item in value.values()):
        return "\n".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, list) and all(_is_plain(item) for item in value):
        return "\n".join(str(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    if _is_plain(value):
        return str(value)
    line = find_line(text, (key,))
    raise ConfigError(f"the profile `{path}`{f', line {line}' if line else ''}: `{key}` is neither a text nor a number")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _format_tables(tables: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for name, table in tables.items():
        path = (*above, name)
        plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
        below = {key: value for key, value in table.items() if isinstance(value, dict)}
        if plain:
            heading = ".".join(_as_key(part) for part in path)
            lines += ["", f"[{heading}]", *(f"{_as_key(key)} = {_as_toml(value)}" for key, value in plain.items())]
        lines += _format_tables(below, path)
    return lines


def _as_key(text: str) -> str:
    return text if re.fullmatch(_BARE, text) else _as_toml(text)


def _as_toml(value: Any) -> str:
    # JSON's strings, numbers and flat lists are TOML's too, but for DEL, which TOML wants escaped.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
