"""Digests of structured things: sha256 over named fields, each with its length, so that no two inputs read alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

FieldValue = str | bytes | Sequence[str]


class FieldHash:
    """Takes fields one by one. A field: its name, then its values, each preceded by its length and their number."""

    def __init__(self, kind: str) -> None:
        self._hash = hashlib.sha256()
        self._add_text(kind)

    def add(self, name: str, value: FieldValue) -> None:
        """Add one field. The order of the calls counts."""
        self._add_text(name)
        values: Iterable[str | bytes]
        values = [value] if isinstance(value, str | bytes) else value
        values = list(values)
        self._hash.update(b"s" if isinstance(value, str | bytes) else b"l")
        self._hash.update(len(values).to_bytes(8, "big"))
        for item in values:
            self._add_text(item)

    def _add_text(self, text: str | bytes) -> None:
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        self._hash.update(len(data).to_bytes(8, "big"))
        self._hash.update(data)

    def hexdigest(self) -> str:
        """The digest so far: 64 hex digits."""
        return self._hash.hexdigest()


def compute_digest(kind: str, fields: Mapping[str, FieldValue]) -> str:
    """The digest of fields in the order of their names: 64 hex digits."""
    total = FieldHash(kind)
    for name in sorted(fields):
        total.add(name, fields[name])
    return total.hexdigest()


def short_digest(text: str) -> str:
    """16 hex digits that stand for a text which must not be kept itself."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def sha256_hex(data: bytes) -> str:
    """Plain sha256: 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
