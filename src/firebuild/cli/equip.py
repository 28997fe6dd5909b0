"""What every command gets beside its own flags: the profile, the settings, and values for its flags from both and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from firebuild.cli.log_options import make_log_options
from firebuild.config.current import load_profile, profile_folder, use_settings
from firebuild.config.profiles import Profile, find_current, unknown_key
from firebuild.config.settings import PROPERTY_FLAGS, SETTINGS, Flags, resolve_settings
from firebuild.errors import UsageError

PREFIX = "FIREBUILD"
_TRACING = {"tracing-enable": True, "tracing-collector-host-port": False, "tracing-log-enable": True}
_PROFILE = "firebuild_profile"
_FOLDER = "firebuild_profile_folder"
_CHOICE = "firebuild.choice"


class Choice(NamedTuple):
    """The profile that counts, and who chose it, for people."""

    profile: Profile
    origin: str


def flag_keys(option: click.Parameter) -> list[str]:
    """An option's long names without their dashes; the negative names of a switch are not among them."""
    return [name[2:] for name in option.opts if name.startswith("--") and len(name) > 3]


def flag_variables(section: Sequence[str], option: click.Parameter) -> list[str]:
    """The environment variables of an option: FIREBUILD_RUN_MEM for `run --mem`."""
    words = ["_".join((*section, key)) for key in flag_keys(option)]
    return [f"{PREFIX}_{word.upper().replace('-', '_').replace('.', '_')}" for word in words]


def list_own_options(command: click.Command) -> list[click.Option]:
    """The options that a command has itself."""
    return [
        option for option in command.params if isinstance(option, click.Option) and not isinstance(option, _Equipment)
    ]


def equip(command: click.Command, section: tuple[str, ...], *, plain: bool = False) -> None:
    """Add the flags of profile and settings to a command, and let its own take values from profile and environment.

    `section`: the command's words, `("image", "pull")`. `plain`: a command about profiles, or an inner one, that is
    itself under none. Groups are equipped with all their commands; a second time changes nothing.
    """
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            equip(child, (*section, name), plain=plain)
        return
    if any(isinstance(option, _Equipment) for option in command.params):
        return
    taken = {name for option in command.params for name in option.opts}
    for option in list_own_options(command):
        if option.envvar is None:
            option.envvar = flag_variables(section, option)
    added: list[click.Option] = [_Refusal(name, switch) for name, switch in _TRACING.items()]
    added += make_log_options()
    if not plain:
        added += [_ProfileOption(section), _Equipment(["--profile-conf-dir", _FOLDER], help="The folder of profiles.")]
        added += [_SettingOption(setting.key, many=setting.many) for setting in SETTINGS]
        added += [_SettingOption(key) for key in PROPERTY_FLAGS]
    command.params += [option for option in added if not taken.intersection(option.opts)]


class _Equipment(click.Option):
    """An option that is not handed to the command's function."""

    def __init__(self, names: list[str], **attributes: Any) -> None:
        super().__init__(names, expose_value=False, **attributes)


class _SettingOption(_Equipment):
    """A setting's flag. The profile's option reads what is given."""

    def __init__(self, key: str, *, many: bool = False) -> None:
        super().__init__([f"--{key}", setting_name(key)], hidden=True, multiple=many)


class _Refusal(_Equipment):
    """A flag of the original firebuild that this one does not have: refused by name."""

    def __init__(self, name: str, switch: bool) -> None:
        super().__init__([f"--{name}"], is_flag=switch, hidden=True, default=None, callback=_refuse)


def _refuse(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value:
        raise UsageError(f"{option.opts[0]}: this firebuild sends no traces", hint=f"leave {option.opts[0]} out")


class _ProfileOption(_Equipment):
    """--profile. Eager: once it is read, the settings are in force, and the command's flags have their defaults."""

    def __init__(self, section: tuple[str, ...]) -> None:
        super().__init__(["--profile", _PROFILE], is_eager=True, help="The profile to work in.")
        self._section = section

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        value, args = super().handle_parse_result(ctx, opts, args)
        if not ctx.resilient_parsing:
            given = str(opts[_PROFILE]) if opts.get(_PROFILE) else None
            folder = profile_folder(opts.get(_FOLDER), os.environ)
            profile = load_profile(folder, given, os.environ)
            ctx.meta[_CHOICE] = Choice(profile, _tell_origin(given, folder))
            use_settings(resolve_settings(read_flags(opts), os.environ, profile))
            ctx.default_map = plan_defaults(profile, self._section, ctx.command)
        return value, args


def _tell_origin(given: str | None, folder: Path) -> str:
    if given:
        return "flag --profile"
    if os.environ.get("FIREBUILD_PROFILE"):
        return "environment FIREBUILD_PROFILE"
    return f"chosen with `profile use` in {folder}" if find_current(folder) else "default"


def get_choice() -> Choice:
    """The profile of the running command, which is not a plain one."""
    choice = click.get_current_context().meta[_CHOICE]
    assert isinstance(choice, Choice)
    return choice


def setting_name(key: str) -> str:
    """The name under which click keeps a setting's flag."""
    return f"setting_{key.replace('-', '_').replace('.', '_')}"


def read_flags(opts: Mapping[str, Any]) -> Flags:
    """The settings' flags among what was parsed, as texts by key."""
    flags: dict[str, list[str]] = {}
    for setting in SETTINGS:
        value = opts.get(setting_name(setting.key))
        if isinstance(value, str):
            flags[setting.key] = [value]
        elif isinstance(value, list | tuple) and value:
            flags[setting.key] = [str(item) for item in value]
    for key, prop in PROPERTY_FLAGS.items():
        value = opts.get(setting_name(key))
        if isinstance(value, str):
            flags.setdefault("storage-provider-property-string", []).append(f"{prop}={value}")
    return flags


def plan_defaults(profile: Profile, section: Sequence[str], command: click.Command) -> dict[str, Any]:
    """What a profile says of a command's flags, by click's names. Raises ConfigError for a flag that the command has not."""
    table: Any = profile.commands
    for word in section:
        table = table.get(word) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping):
        return {}
    options = {key: option for option in list_own_options(command) for key in flag_keys(option)}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        option = options.get(key)
        if option is None or option.name is None:
            raise unknown_key(
                profile.path, profile.text, (*section, key), options, f"a flag of `firebuild {' '.join(section)}`"
            )
        defaults[option.name] = _as_default(option, value)
    return defaults


def _as_default(option: click.Option, value: Any) -> Any:
    if not option.multiple:
        return value
    if isinstance(value, Mapping):
        return [f"{name}={item}" for name, item in value.items()]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
