"""`--secret` and `--ssh` as docker's command line has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.build.secrets import SecretSource
from firebuild.cli.lending import parse_lent
from firebuild.errors import UsageError

ENVIRONMENT = {"TOKEN": "value", "SSH_AUTH_SOCK": "/run/agent.sock"}


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("id=a,src=/x/y", "a", SecretSource(path=Path("/x/y"))),
        ("id=a,source=/x/y", "a", SecretSource(path=Path("/x/y"))),
        ("id=a,type=file,src=/x", "a", SecretSource(path=Path("/x"))),
        ("id=a,env=TOKEN", "a", SecretSource(env="TOKEN")),
        ("type=env,id=a,src=TOKEN", "a", SecretSource(env="TOKEN")),
        ("id=TOKEN", "TOKEN", SecretSource(env="TOKEN")),
        ("id=file", "file", SecretSource(path=Path("file").absolute())),
        ("type=env,id=OTHER", "OTHER", SecretSource(env="OTHER")),
        ('id=a,"src=/x,y"', "a", SecretSource(path=Path("/x,y"))),
    ],
)
def test_secrets(text: str, name: str, source: SecretSource) -> None:
    assert parse_lent([text], [], ENVIRONMENT).secrets == {name: source}


@pytest.mark.parametrize("text", ["", "a", "src=/x", "id=", "id=a,type=vault", "id=a,mode=1", 'id=a,"src=/x'])
def test_what_is_no_secret(text: str) -> None:
    with pytest.raises(UsageError):
        parse_lent([text], [], ENVIRONMENT)


def test_agents(tmp_path: Path) -> None:
    lent = parse_lent([], ["default", "work=/tmp/other.sock"], ENVIRONMENT)
    assert lent.agents == {"default": Path("/run/agent.sock"), "work": Path("/tmp/other.sock")}
    (tmp_path / "key").write_text("")
    for text, environment in (("default", {}), ("=x", ENVIRONMENT), (f"a={tmp_path}/key", {}), ("a=/x,/y", {})):
        with pytest.raises(UsageError):
            parse_lent([], [text], environment)
