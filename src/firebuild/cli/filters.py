"""`--filter KEY=VALUE` and ages like `24h`, as docker's command line has them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from firebuild.errors import UsageError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = r"(?:[0-9]+(?:\.[0-9]+)?[smhdw])+"
_PART = r"([0-9.]+)([smhdw])"


def parse_filters(texts: Iterable[str], keys: Collection[str]) -> dict[str, list[str]]:
    """The filters by key; values of one key are alternatives. Raises UsageError for a key that is none of `keys`."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise UsageError(f"`{text[:100]}` is not a filter", hint="write --filter KEY=VALUE")
        if key not in keys:
            from difflib import get_close_matches

            near = get_close_matches(key, keys, n=1)
            raise UsageError(
                f"`{key[:100]}` is not a key of --filter",
                hint=f"did you mean `{near[0]}`?" if near else f"the keys are {', '.join(sorted(keys))}",
            )
        found.setdefault(key, []).append(value)
    return found


def parse_age(text: str) -> float:
    """Seconds of `24h`, `1h30m`, `7d`. Raises UsageError."""
    if not re.fullmatch(_AGE, text):
        raise UsageError(f"`{text[:100]}` is not an age", hint="write for example 90s, 1h30m, 24h or 7d")
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, text))
