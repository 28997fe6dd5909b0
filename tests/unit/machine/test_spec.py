"""A machine's spec: what the user's words for it mean."""

from __future__ import annotations

import pytest

from firebuild.errors import UsageError
from firebuild.machine.spec import NetworkJoin, RestartPolicy, parse_network_join, parse_restart_policy


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


@pytest.mark.parametrize(
    ("text", "join"),
    [
        ("a", NetworkJoin("a")),
        ("a:ip=10.1.2.3,ip6=fd00::3,alias=web,alias=www", NetworkJoin("a", ["10.1.2.3", "fd00::3"], ["web", "www"])),
        ("name=a,ip=10.1.2.3", NetworkJoin("a", ["10.1.2.3"])),
    ],
)
def test_networks_to_join(text: str, join: NetworkJoin) -> None:
    assert parse_network_join(text) == join


@pytest.mark.parametrize(
    "text",
    ["", ":ip=10.1.2.3", "a:ip=ten", "a:ip=fd00::3", "a:ip6=10.1.2.3", "a:mac=x", "a:name=b", "a:ip=", "a:alias=b c",
     "a:ip=10.1.2.3,ip=10.1.2.4"],
)  # fmt: skip
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_network_join(text)
