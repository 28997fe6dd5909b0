"""Output by a template: the part of Go's text/template that docker's `--format` is used with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from firebuild.errors import UsageError

_ACTION = r"(?s)\{\{-?\s*(.*?)\s*-?\}\}"
_FIELD = r"(?:(?P<function>json|upper|lower|len)\s+)?(?P<path>\.|(?:\.[A-Za-z_][A-Za-z0-9_]*)+)"
_ESCAPES = {"\\t": "\t", "\\n": "\n"}


def render_template(template: str, document: Mapping[str, Any]) -> str:
    """The text with each `{{.Field}}`, `{{json .Field}}`, `{{json .}}`, `{{upper .Field}}`, `{{lower .Field}}` and
    `{{len .Field}}` replaced; `\\t` and `\\n` are a tab and a newline. Raises UsageError naming what it does not know."""

    def replace(match: re.Match[str]) -> str:
        action = re.fullmatch(_FIELD, match[1])
        if action is None:
            raise UsageError(
                f"`{match[0][:100]}` is not understood in --format", hint="write `{{.Name}}` or `{{json .}}`"
            )
        value = _find(document, action["path"], match[0])
        return _show(action["function"], value, match[0])

    text = template
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    done = re.sub(_ACTION, replace, text)
    if "{{" in re.sub(_ACTION, "", text):
        raise UsageError(f"`{template[:100]}` opens `{{{{` and does not close it")
    return done


def check_template(template: str, keys: Iterable[str]) -> None:
    """Raises UsageError for a template that names something else than these fields, or does not parse."""
    render_template(template, dict.fromkeys(keys, ""))


def is_template(text: str) -> bool:
    """Whether a value of --format is a template."""
    return "{{" in text


def _find(document: Mapping[str, Any], path: str, shown: str) -> Any:
    value: Any = document
    for name in path.split(".")[1:]:
        if not name:
            continue
        if not isinstance(value, Mapping) or name not in value:
            known = list(value) if isinstance(value, Mapping) else []
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1)
            hint = f"did you mean `.{near[0]}`?" if near else f"there are {', '.join(known)}" if known else None
            raise UsageError(f"`{shown[:100]}` names the field `{name}`, which is not there", hint=hint)
        value = value[name]
    return value


def _show(function: str | None, value: Any, shown: str) -> str:
    if function == "json":
        return msgspec.json.encode(value).decode()
    if function == "len":
        if not isinstance(value, Sequence | Mapping):
            raise UsageError(f"`{shown[:100]}` asks for the length of what has none")
        return str(len(value))
    text = _plain(value)
    return text.upper() if function == "upper" else text.lower() if function == "lower" else text


def _plain(value: Any) -> str:
    """As Go prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<no value>"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{_plain(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(_plain, value)) + "]"
    return str(value)
