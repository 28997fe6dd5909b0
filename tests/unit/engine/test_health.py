"""Health checks: what the image and the user say together, by Docker's rules."""

from __future__ import annotations

import pytest

from firebuild.engine.health import HealthOptions, change_health, parse_health_time, plan_health
from firebuild.errors import UsageError
from firebuild.machine.spec import HealthCheck
from firebuild.store.images import Healthcheck, RunConfig

IMAGE = RunConfig(
    shell=["/bin/bash", "-c"], healthcheck=Healthcheck(test=["CMD-SHELL", "probe"], interval=5 * 10**9, retries=7)
)


def test_an_images_check_with_dockers_defaults() -> None:
    check = plan_health(IMAGE, HealthOptions())
    assert check == HealthCheck(
        argv=["/bin/bash", "-c", "probe"], interval_ms=5000, timeout_ms=30000, start_period_ms=0, start_interval_ms=5000,
        retries=7, test=["CMD-SHELL", "probe"],
    )  # fmt: skip
    bare = RunConfig(healthcheck=Healthcheck(test=["CMD", "/probe", "-q"]))
    plain = plan_health(bare, HealthOptions())
    assert plain is not None
    assert (plain.argv, plain.interval_ms, plain.retries) == (["/probe", "-q"], 30000, 3)


def test_the_user_wins_where_he_speaks() -> None:
    check = plan_health(
        IMAGE, HealthOptions(command="true", timeout_ns=2 * 10**9, interval_ns=0, start_period_ns=10**6)
    )
    assert check is not None
    assert (check.argv, check.timeout_ms, check.interval_ms) == (["/bin/bash", "-c", "true"], 2000, 5000)
    assert (check.start_period_ms, check.retries) == (1, 7)
    changed = change_health(check, [], HealthOptions(retries=1))
    assert changed is not None
    assert (changed.retries, changed.timeout_ms, changed.argv) == (1, 2000, ["/bin/sh", "-c", "true"])


@pytest.mark.parametrize("test", [[], ["NONE"]])
def test_no_check(test: list[str]) -> None:
    config = RunConfig(healthcheck=Healthcheck(test=test))
    assert plan_health(config, HealthOptions()) is None
    with pytest.raises(UsageError, match="no health check to change"):
        plan_health(config, HealthOptions(retries=2))
    assert plan_health(IMAGE, HealthOptions(disabled=True)) is None
    with pytest.raises(UsageError, match="choose one"):
        plan_health(IMAGE, HealthOptions(disabled=True, command="true"))


def test_a_kind_that_nobody_knows_is_refused() -> None:
    for test in (["CMD"], ["EXEC", "x"], ["CMD-SHELL"], ["CMD-SHELL", "a", "b"]):
        with pytest.raises(UsageError, match="no known kind"):
            plan_health(RunConfig(healthcheck=Healthcheck(test=test)), HealthOptions())


def test_times() -> None:
    assert parse_health_time("1m30s", "--x") == 90 * 10**9
    assert parse_health_time("0s", "--x") == 0
    for text in ("30", "1us", "-1s", "9000h", "soon"):
        with pytest.raises(UsageError, match="--health-timeout"):
            parse_health_time(text, "--health-timeout")
