"""The keys that detach: as they are written, and as they are typed."""

from __future__ import annotations

import pytest

from firebuild.cli.detach_keys import DEFAULT_DETACH_KEYS, DetachKeys, parse_detach_keys
from firebuild.errors import UsageError


def test_sequences_as_they_are_written() -> None:
    assert parse_detach_keys(DEFAULT_DETACH_KEYS) == b"\x10\x11"
    assert parse_detach_keys("ctrl-a,d") == b"\x01d"
    assert parse_detach_keys("ctrl-@,ctrl-[,ctrl-_") == b"\x00\x1b\x1f"
    assert parse_detach_keys("") == b""
    for bad in ("ctrl-", "ctrl-1", "ab", "a,,b", "é", "ctrl-P"):
        with pytest.raises(UsageError, match="not a key"):
            parse_detach_keys(bad)


@pytest.mark.parametrize(
    ("typed", "handed_on"),
    [
        (["ab\x10\x11"], ["ab!"]),
        (["ab\x10", "\x11"], ["ab", "!"]),
        (["\x10", "x", "\x11"], ["", "\x10x", "\x11"]),
        (["\x10", "\x10\x11"], ["", "\x10!"]),
        (["\x10\x10", "z"], ["\x10", "\x10z"]),
    ],
)
def test_sequences_as_they_are_typed(typed: list[str], handed_on: list[str]) -> None:
    keys = DetachKeys(parse_detach_keys(DEFAULT_DETACH_KEYS))
    taken = [keys.take(piece.encode()) for piece in typed]
    assert [data.decode() + ("!" if found else "") for data, found in taken] == handed_on


def test_without_keys_everything_is_handed_on() -> None:
    assert DetachKeys(b"").take(b"\x10\x11") == (b"\x10\x11", False)
