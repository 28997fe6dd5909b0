"""Digests of structured things: sha256 over named fields, each with its length, so that no two inputs read alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

FieldValue = str | bytes | Sequence[str]


class FieldHash:
    """Takes fields one by one. A field: its name, then its values, each preceded by its length and their number."""

    def __init__(self, kind: str) -> None:
        self._hash = hashlib.sha256(_frame(kind))

    def add(self, name: str, value: FieldValue) -> None:
        """Add one field. The order of the calls counts."""
        single = isinstance(value, str | bytes)
        values = [value] if isinstance(value, str | bytes) else list(value)
        # Some thousand files have some fields each: one call of the hash is much cheaper than one for each part.
        parts = [_frame(name), b"s" if single else b"l", len(values).to_bytes(8, "big"), *map(_frame, values)]
        self._hash.update(b"".join(parts))

    def hexdigest(self) -> str:
        """The digest so far: 64 hex digits."""
        return self._hash.hexdigest()


def _frame(text: str | bytes) -> bytes:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return len(data).to_bytes(8, "big") + data


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
