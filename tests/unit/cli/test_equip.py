"""What every command gets: the profile's and the environment's values for its flags, and flags that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from firebuild.cli.equip import equip, get_choice
from firebuild.config.current import current_settings, use_settings
from firebuild.errors import ConfigError, NotFoundError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("FIREBUILD_PROFILE", "FIREBUILD_STATE", "FIREBUILD_RUN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "p.toml").write_text(
        "version = 1\nrun-cache = '/cache'\n[go]\nmemory = 300\nflag = true\nlist = ['a', 'b c']\nenv = {A = '1'}\n"
    )
    monkeypatch.setenv("FIREBUILD_PROFILE_CONF_DIR", str(tmp_path))
    return tmp_path


def call(*arguments: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    @click.command()
    @click.option("--memory", "-m", "--mem", "memory", default="256")
    @click.option("--flag/--no-flag", default=False)
    @click.option("--list", "items", multiple=True)
    @click.option("--env", multiple=True)
    def go(**options: Any) -> None:
        settings = current_settings().settings
        seen.update(options, state=settings.state, cpus=settings.build_cpus, choice=get_choice())

    equip(go, ("go",))
    equip(go, ("go",))
    try:
        go.main(list(arguments), standalone_mode=False)
    finally:
        use_settings(None)
    return seen


def test_a_command_without_a_profile(folder: Path) -> None:
    seen = call("--build-cpu", "7")
    assert (seen["memory"], seen["state"], seen["cpus"]) == ("256", "/var/lib/firebuild", 7)
    assert (seen["choice"].profile.name, seen["choice"].origin) == ("default", "default")


def test_the_profile_gives_defaults(folder: Path) -> None:
    seen = call("--profile", "p")
    assert (seen["memory"], seen["flag"], seen["items"], seen["env"]) == ("300", True, ("a", "b c"), ("A=1",))
    assert seen["state"] == "/cache"


def test_the_environment_wins_over_the_profile_and_flags_over_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIREBUILD_PROFILE", "p")
    monkeypatch.setenv("FIREBUILD_GO_MEM", "400")
    monkeypatch.setenv("FIREBUILD_GO_FLAG", "no")
    monkeypatch.setenv("FIREBUILD_STATE", "/other")
    seen = call()
    assert (seen["memory"], seen["flag"], seen["state"]) == ("400", False, "/other")
    seen = call("-m", "500", "--flag", "--run-cache=/third", "--list", "x")
    assert (seen["memory"], seen["flag"], seen["state"], seen["items"]) == ("500", True, "/third", ("x",))


def test_what_is_refused(folder: Path) -> None:
    for flag in ("--tracing-enable", "--tracing-log-enable", "--tracing-collector-host-port=1:2"):
        with pytest.raises(UsageError, match=f"{flag.partition('=')[0]}: this firebuild sends no traces"):
            call(flag)
    with pytest.raises(NotFoundError, match="no profile `q`"):
        call("--profile", "q")
    with (folder / "p.toml").open("a") as file:
        file.write("memroy = 1\n")
    with pytest.raises(ConfigError, match=r"line 8: `go\.memroy` is not a flag of `firebuild go`") as caught:
        call("--profile=p")
    assert caught.value.hint == "did you mean `memory`?"
