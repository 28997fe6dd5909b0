"""What is wrong with a body, in the words of Rust's serde, which are the words of Firecracker's answers.

Only the place in the text (`at line 1 column 17`) is left out. Types are msgspec's; the names that messages give them stand
beside the types: `rust_name` of a struct, `expected` in a type's extra data.
"""

from __future__ import annotations

from typing import Any

from msgspec import inspect

_KINDS: list[tuple[type[inspect.Type], type, str]] = [
    (inspect.BoolType, bool, "a boolean"),
    (inspect.StrType, str, "a string"),
    (inspect.ListType, list, "a sequence"),
    (inspect.DictType, dict, "a map"),
    (inspect.IntType, int, "an integer"),
]


def explain(value: Any, kind: Any) -> str | None:
    """The first thing that serde would refuse in a decoded JSON value of a type, or None."""
    return _explain(value, inspect.type_info(kind), None)


def _explain(value: Any, kind: inspect.Type, expected: str | None) -> str | None:
    if isinstance(kind, inspect.Metadata):
        if variants := (kind.extra or {}).get("variants"):
            return _explain_variant(value, list(variants))
        return _explain(value, kind.type, (kind.extra or {}).get("expected", expected))
    if isinstance(kind, inspect.UnionType):
        # The only unions here are optional values.
        [inner] = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return None if value is None else _explain(value, inner, expected)
    if isinstance(kind, inspect.StructType):
        return _explain_struct(value, kind)
    if isinstance(kind, inspect.LiteralType):
        return _explain_variant(value, [str(one) for one in kind.values])
    for type_, python, name in _KINDS:
        if isinstance(kind, type_):
            if type(value) is not python:
                return f"invalid type: {_called(value)}, expected {expected or name}"
            return _explain_inside(value, kind, expected or name)
    return None


def _explain_inside(value: Any, kind: inspect.Type, expected: str) -> str | None:
    if isinstance(kind, inspect.IntType):
        low, high = kind.ge, kind.le
        if (low is not None and value < low) or (high is not None and value > high):
            # serde_json reads what fits in no integer of 64 bits as a floating point number.
            fits = -(2**63) <= value < 2**64
            return f"invalid {'value' if fits else 'type'}: {_called(value)}, expected {expected}"
    items: list[tuple[Any, inspect.Type]] = []
    if isinstance(kind, inspect.ListType):
        items = [(item, kind.item_type) for item in value]
    elif isinstance(kind, inspect.DictType):
        items = [(item, kind.value_type) for item in value.values()]
    return next((words for item, type_ in items if (words := _explain(item, type_, None))), None)


def _explain_struct(value: Any, kind: inspect.StructType) -> str | None:
    if not isinstance(value, dict):
        return f"invalid type: {_called(value)}, expected struct {getattr(kind.cls, 'rust_name', kind.cls.__name__)}"
    fields = {field.encode_name: field for field in kind.fields}
    for name, item in value.items():
        if name not in fields:
            if kind.forbid_unknown_fields:
                return f"unknown field `{name}`, expected {_one_of(list(fields))}"
        elif words := _explain(item, fields[name].type, None):
            return words
    missing = next((name for name, field in fields.items() if field.required and name not in value), None)
    return f"missing field `{missing}`" if missing is not None else None


def _explain_variant(value: Any, variants: list[str]) -> str | None:
    if not isinstance(value, str):
        return "expected value"
    if value not in variants:
        return f"unknown variant `{value}`, expected {_one_of(variants)}"
    return None


def _called(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int() if -(2**63) <= value < 2**64:
            return f"integer `{value}`"
        case int() | float():
            return f"floating point `{float(value)}`"
        case str():
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'string "{quoted}"'
        case list():
            return "sequence"
        case _:
            return "map"


def _one_of(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " or ".join(quoted) if len(quoted) <= 2 else "one of " + ", ".join(quoted)
