"""The wildcards of COPY and ADD sources: Go's filepath.Match for one path component."""

from __future__ import annotations

import re
from functools import lru_cache

from firebuild.errors import BuildError


def has_wildcard(text: str) -> bool:
    """Whether `text` holds an unescaped `*`, `?` or `[`."""
    index = 0
    while index < len(text):
        if text[index] in "*?[":
            return True
        index += 2 if text[index] == "\\" else 1
    return False


def unescape(component: str) -> str:
    """A component without wildcards as the name that it means."""
    return re.sub(r"\\(.)", r"\1", component, flags=re.DOTALL)


def escape_wildcards(text: str) -> str:
    """The pattern that matches this text alone."""
    return re.sub(r"([*?\[\\])", r"\\\1", text)


@lru_cache(maxsize=256)
def compile_component(component: str) -> re.Pattern[str]:
    """The pattern of one path component: `*`, `?`, `[a-z]`, `[^a]`, `\\x`. Raises BuildError where Go says ErrBadPattern."""
    parts: list[str] = []
    index = 0
    while index < len(component):
        char = component[index]
        index += 1
        if char == "*":
            # A run of stars means one; unrolled it would backtrack without end.
            if not parts or parts[-1] != "[^/]*":
                parts.append("[^/]*")
        elif char == "?":
            parts.append("[^/]")
        elif char == "[":
            text, index = _read_class(component, index)
            parts.append(text)
        elif char == "\\":
            if index == len(component):
                raise _bad(component)
            parts.append(re.escape(component[index]))
            index += 1
        else:
            parts.append(re.escape(char))
    return re.compile("".join(parts), re.DOTALL)


def match_component(component: str, name: str) -> bool:
    """Whether a file name matches a component. A leading dot is nothing special, as in Go."""
    return compile_component(component).fullmatch(name) is not None


def _read_class(component: str, index: int) -> tuple[str, int]:
    negated = component[index : index + 1] == "^"
    if negated:
        index += 1
    ranges: list[str] = []
    while component[index : index + 1] != "]" or not ranges:
        low, index = _read_class_char(component, index)
        high = low
        if component[index : index + 1] == "-":
            high, index = _read_class_char(component, index + 1)
        # A range that ends before it starts matches nothing, and is no error in Go.
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    body = "".join(ranges)
    if not body:
        return ("[^/]" if negated else "(?!)"), index + 1
    return (f"(?!/)[^{body}]" if negated else f"[{body}]"), index + 1


def _read_class_char(component: str, index: int) -> tuple[str, int]:
    char = component[index : index + 1]
    if char in ("", "-", "]"):
        raise _bad(component)
    if char == "\\":
        index += 1
        char = component[index : index + 1]
        if not char:
            raise _bad(component)
    return char, index + 1


def _bad(component: str) -> BuildError:
    return BuildError(f"`{component}` is not a valid pattern", hint="escape `[`, `*`, `?` and `\\` with a backslash")
