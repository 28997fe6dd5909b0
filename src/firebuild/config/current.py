"""What this invocation runs with: the command line resolves the settings once, and the engine takes them from here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path

from firebuild.config.profiles import Profile, find_current, get_profile
from firebuild.config.settings import KEYS, Resolved, resolve_settings
from firebuild.layout import DEFAULT_PROFILE, DEFAULT_PROFILE_FOLDER

_CURRENT: ContextVar[Resolved | None] = ContextVar("firebuild_settings", default=None)


def profile_folder(given: str | None, environment: Mapping[str, str]) -> Path:
    """The folder of profiles: the flag's, else the environment's, else the system's."""
    return Path(given or environment.get("FIREBUILD_PROFILE_CONF_DIR") or DEFAULT_PROFILE_FOLDER).absolute()


def load_profile(folder: Path, given: str | None, environment: Mapping[str, str]) -> Profile:
    """The profile that counts: the flag's, the environment's, the chosen one, the default one. Raises ConfigError, NotFoundError."""
    name = given or environment.get("FIREBUILD_PROFILE") or find_current(folder) or DEFAULT_PROFILE
    return get_profile(folder, name, KEYS)


def use_settings(resolved: Resolved | None) -> None:
    """Let the engines that are made from now on have these settings; None: what environment and profile say then."""
    _CURRENT.set(resolved)


def current_settings() -> Resolved:
    """The settings of this invocation. Raises ConfigError, NotFoundError."""
    resolved = _CURRENT.get()
    if resolved is not None:
        return resolved
    environment = os.environ
    profile = load_profile(profile_folder(None, environment), None, environment)
    return resolve_settings({}, environment, profile)
