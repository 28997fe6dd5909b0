"""Health checks as they are asked for: the image's with the user's changes, by Docker's rules."""

from __future__ import annotations

import msgspec

from firebuild.dockerfile.values import parse_duration_ns
from firebuild.errors import DockerfileError, UsageError
from firebuild.machine.spec import HealthCheck
from firebuild.store.images import Healthcheck, RunConfig

_DEFAULT_INTERVAL_NS = 30 * 10**9
_DEFAULT_TIMEOUT_NS = 30 * 10**9
_DEFAULT_START_INTERVAL_NS = 5 * 10**9
_DEFAULT_RETRIES = 3
_LEAST_NS = 10**6
_LONGEST_NS = 366 * 86400 * 10**9


class HealthOptions(msgspec.Struct, frozen=True):
    """What the user says of the health check. `command`: for the image's shell. Times in nanoseconds; None and 0: the image's,
    else the default."""

    command: str | None = None
    interval_ns: int | None = None
    timeout_ns: int | None = None
    start_period_ns: int | None = None
    start_interval_ns: int | None = None
    retries: int | None = None
    disabled: bool = False

    @property
    def given(self) -> bool:
        """Whether the user says anything."""
        return self != HealthOptions()


def parse_health_time(text: str, flag: str) -> int:
    """Nanoseconds of `30s`, `1m30s`, `500ms`; 0 is the default. Raises UsageError naming the flag."""
    try:
        value = parse_duration_ns(text)
    except DockerfileError as error:
        raise UsageError(f"{flag}: {error.message}", hint=error.hint) from None
    if value and not _LEAST_NS <= value <= _LONGEST_NS:
        raise UsageError(f"{flag} is at least 1ms and at most a year, not `{text}`")
    return value


def plan_health(config: RunConfig, options: HealthOptions) -> HealthCheck | None:
    """The check of a machine from this image, None where there is none. Raises UsageError where nothing would be checked."""
    if options.disabled:
        if options != HealthOptions(disabled=True):
            raise UsageError("--no-healthcheck and --health-…: choose one")
        return None
    image = config.healthcheck or Healthcheck()
    test = ["CMD-SHELL", options.command] if options.command else list(image.test)
    if not test or test[0] == "NONE":
        if options.given:
            raise UsageError("the image has no health check to change", hint="give one with --health-cmd")
        return None
    return HealthCheck(
        argv=_argv(test, config.shell),
        interval_ms=_ms(options.interval_ns or image.interval or _DEFAULT_INTERVAL_NS),
        timeout_ms=_ms(options.timeout_ns or image.timeout or _DEFAULT_TIMEOUT_NS),
        start_period_ms=_ms(options.start_period_ns or image.start_period, least=0),
        start_interval_ms=_ms(options.start_interval_ns or image.start_interval or _DEFAULT_START_INTERVAL_NS),
        retries=options.retries or image.retries or _DEFAULT_RETRIES,
        test=test,
    )


def change_health(check: HealthCheck | None, shell: list[str], options: HealthOptions) -> HealthCheck | None:
    """A machine's check with the user's changes. Raises UsageError."""
    before = RunConfig(shell=shell)
    if check is not None:
        before.healthcheck = Healthcheck(
            test=list(check.test), interval=check.interval_ms * 10**6, timeout=check.timeout_ms * 10**6,
            start_period=check.start_period_ms * 10**6, start_interval=check.start_interval_ms * 10**6,
            retries=check.retries,
        )  # fmt: skip
    return plan_health(before, options)


def _argv(test: list[str], shell: list[str]) -> list[str]:
    kind, words = test[0], test[1:]
    if kind == "CMD" and words:
        return words
    if kind == "CMD-SHELL" and len(words) == 1:
        return [*(shell or ["/bin/sh", "-c"]), words[0]]
    raise UsageError(
        f"the image's health check `{' '.join(test)[:100]}` is of no known kind",
        hint="leave it out with --no-healthcheck, or give another with --health-cmd",
    )


def _ms(time_ns: int, *, least: int = 1) -> int:
    # An image may say anything.
    return max(least, min(time_ns, _LONGEST_NS) // 10**6)
