"""Profile files: read strictly, written so that they read back, errors with file and line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.config.profiles import (
    Profile,
    find_current,
    find_line,
    find_profile,
    get_profile,
    list_profiles,
    parse_profile,
    remove_profile,
    save_current,
    save_profile,
)
from firebuild.config.settings import KEYS
from firebuild.errors import ConfigError, FirebuildError, NotFoundError, UsageError

TABLES = ("storage-provider-property-string",)


def parse(text: str) -> Profile:
    return parse_profile("p", "/p.toml", text.encode(), KEYS)


def test_settings_pairs_and_flags() -> None:
    profile = parse(
        'version = 1\nrun-cache = "/c"\nbuild-cpu = 3\n[storage-provider-property-string]\nrootfs-storage-root = "/r"\n'
        '[run]\nmemory = "1g"\n[image.pull]\ntls-verify = false\n'
    )
    assert profile.settings == {
        "run-cache": "/c",
        "build-cpu": "3",
        "storage-provider-property-string": "rootfs-storage-root=/r",
    }
    assert profile.commands == {"run": {"memory": "1g"}, "image": {"pull": {"tls-verify": False}}}
    assert profile.locate("run", "memory") == "profile p (/p.toml:7)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 1\n\nrun-cahce = '/c'\n", ["`/p.toml`, line 3", "`run-cahce` is not a setting", "`run-cache`"]),
        ("version = 1\nrun-cache = \n", ["/p.toml", "does not parse", "line 2"]),
        ("version = 2\n", ["version 2", "knows 1"]),
        ("run-cache = '/c'\n", ["version None"]),
        ("version = 1\nrun-cache = 1979-05-27\n", ["line 2", "neither a text nor a number"]),
        ("version = 1\nbuild-cpu = [[]]\n", ["line 2", "neither"]),
        ("\xff", ["does not parse"]),
        ("version = 1\nversion = 1\n", ["does not parse"]),
        ("version = 1\n" + "#" * (1 << 20), ["larger than 1 MiB"]),
    ],
)
def test_what_is_wrong_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_profile("p", "/p.toml", text.encode("latin-1"), KEYS)
    shown = f"{caught.value.message} {caught.value.hint}"
    for word in words:
        assert word in shown


@pytest.mark.parametrize(
    ("keys", "line"), [(("a",), 1), (("t", "b"), 3), (("t", "u"), 5), (("t", "u", "c"), 6), (("c",), None)]
)
def test_lines_are_found(keys: tuple[str, ...], line: int | None) -> None:
    assert find_line('a = 1\n[t]\nb = 2\n\n[t."u"] # more\n  "c" = 3\n', keys) == line


@given(
    st.dictionaries(st.sampled_from(["run-cache", "cni-bin-dir", "binary-jailer"]), st.text(max_size=30)),
    st.dictionaries(
        st.text("ab-_. é", min_size=1, max_size=5), st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    ),
)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str], flags: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("profiles")
    profile = Profile("p", settings=settings, commands={"run": flags} if flags else {})
    try:
        save_profile(folder, profile, TABLES)
    except UnicodeEncodeError:
        pytest.fail("a text that cannot be written")
    found = find_profile(folder, "p", KEYS)
    assert found is not None and dict(found.settings) == settings and dict(found.commands) == dict(profile.commands)


def test_files_names_and_the_chosen_one(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    path = save_profile(folder, Profile("one", settings={TABLES[0]: "k=v=w\nl="}), TABLES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and os.listdir(folder) == ["one.toml"]
    assert get_profile(folder, "one", KEYS).settings == {TABLES[0]: "k=v=w\nl="}
    assert get_profile(folder, "default", KEYS) == Profile("default")
    with pytest.raises(NotFoundError, match="no profile `on`") as caught:
        get_profile(folder, "on", KEYS)
    assert caught.value.hint == "did you mean `one`?"
    save_current(folder, "one")
    assert (list_profiles(folder), find_current(folder)) == (["one"], "one")
    remove_profile(folder, "one")
    assert (list_profiles(folder), find_current(folder)) == ([], None)
    with pytest.raises(NotFoundError):
        remove_profile(folder, "one")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\0", "ü", "x" * 300, ".current"])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    for action in (lambda: save_profile(tmp_path, Profile(name), ()), lambda: get_profile(tmp_path, name, KEYS)):
        with pytest.raises(UsageError):
            action()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.toml").mkdir()
    with pytest.raises(FirebuildError, match="cannot be read"):
        find_profile(tmp_path, "p", KEYS)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="cannot be read"):
        list_profiles(file)
