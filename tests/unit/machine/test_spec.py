"""A machine's spec: what the user's words for it mean."""

from __future__ import annotations

import pytest

from firebuild.errors import UsageError
from firebuild.machine.spec import RestartPolicy, parse_restart_policy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("no", RestartPolicy("no")),
        ("always", RestartPolicy("always")),
        ("unless-stopped", RestartPolicy("unless-stopped")),
        ("on-failure", RestartPolicy("on-failure", 0)),
        ("on-failure:3", RestartPolicy("on-failure", 3)),
    ],
)
def test_restart_policies(text: str, policy: RestartPolicy) -> None:
    assert parse_restart_policy(text) == policy


@pytest.mark.parametrize("text", ["", "yes", "always:2", "on-failure:", "on-failure:0", "on-failure:-1", "no\n"])
def test_what_is_no_restart_policy(text: str) -> None:
    with pytest.raises(UsageError, match="not a restart policy"):
        parse_restart_policy(text)
