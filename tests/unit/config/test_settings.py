"""The table of settings: who wins, what follows from what, and that no name stands for two things."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.cli.equip import flag_variables, list_own_options
from firebuild.cli.main import load_commands
from firebuild.config.profiles import Profile
from firebuild.config.settings import SETTINGS, Settings, load_settings, resolve_settings
from firebuild.errors import ConfigError


def test_flag_environment_profile_default() -> None:
    profile = Profile("p", path="/p.toml", settings={"build-cpu": "2", "build-mem": "2", "build-disk": "2"})
    environment = {"FIREBUILD_BUILD_CPU": "3", "FIREBUILD_BUILD_MEM": "3", "FIREBUILD_BOOT_TIMEOUT": ""}
    resolved = resolve_settings({"build-cpu": ["4"]}, environment, profile)
    settings, origins = resolved.settings, resolved.origins
    assert (settings.build_cpus, origins["build_cpus"]) == (4, "flag --build-cpu")
    assert (settings.build_memory_mib, origins["build_memory_mib"]) == (3, "environment FIREBUILD_BUILD_MEM")
    assert (settings.build_disk_bytes, origins["build_disk_bytes"]) == (2, "profile p (/p.toml)")
    assert (settings.boot_timeout_s, origins["boot_timeout_s"]) == (180.0, "default")


def test_each_profile_has_folders_of_its_own() -> None:
    default = load_settings({})[0]
    assert (default.state, default.run, default.profile) == ("/var/lib/firebuild", "/run/firebuild", "default")
    seen = {(default.state, default.run)}
    for name in ("one", "two"):
        settings = resolve_settings({}, {}, Profile(name)).settings
        assert settings.state == f"/var/lib/firebuild/profiles/{name}" and settings.profile == name
        seen.add((settings.state, settings.run))
    moved = resolve_settings({"run-cache": ["/elsewhere"]}, {}, None).settings
    seen.add((moved.state, moved.run))
    assert len({run for _, run in seen}) == len({state for state, _ in seen}) == 4
    assert all(len(run) < 40 for _, run in seen)


def test_pairs() -> None:
    key = "storage-provider-property-string"
    assert resolve_settings({key: ["a=b c", "d="]}, {}, None).settings.storage_strings == {"a": "b c", "d": ""}
    variable = "FIREBUILD_STORAGE_PROVIDER_PROPERTY_STRING"
    assert resolve_settings({}, {variable: "a=b c=d"}, None).settings.storage_strings == {"a": "b", "c": "d"}
    assert resolve_settings({"storage-provider-property-int64": ["n=7"]}, {}, None).settings.storage_integers == {
        "n": 7
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("build-cpu", "0"), ("build-cpu", "x"), ("boot-timeout", "nan"), ("root-disk", "-1"), ("run-cache", "a\0b"),
     ("storage-provider-property-string", "novalue"), ("storage-provider-property-int64", "a=b")],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_place(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"flag --{key}"):
        resolve_settings({key: [value]}, {}, None)
    with pytest.raises(ConfigError, match="profile p"):
        resolve_settings({}, {}, Profile("p", path="/p", settings={key: value}))


def test_no_name_stands_for_two_things() -> None:
    variables = [name for setting in SETTINGS for name in setting.variables]
    for section, command in load_commands():
        for option in list_own_options(command):
            variables += flag_variables(section, option)
    assert len(variables) == len(set(variables)), sorted(name for name in variables if variables.count(name) > 1)
    assert {setting.name for setting in SETTINGS} == set(Settings.__struct_fields__) - {"profile"}


def test_the_reference_lists_every_setting() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/profiles.md").read_text()
    for setting in SETTINGS:
        rows = [line for line in page.splitlines() if line.startswith((f"| `--{setting.key}`", f"| `--{setting.key} "))]
        assert len(rows) == 1 and all(f"`{name}`" in rows[0] for name in setting.variables), setting.key
