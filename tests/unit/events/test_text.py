"""Text of guests cannot reach a terminal as anything but text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.events.text import LineSplitter, neutralise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ünïcode 漢字", "plain ünïcode 漢字"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x9b2Jc1", "c1"),
        ("\x1b]52;c;aGk=", r"\x1b]52;c;aGk=".replace(r"\x1b]", "")),
        ("a\x07\x08b", r"a\x07\x08b"),
        ("tab\tstays", "tab\tstays"),
        ("rtl\u202eevil", r"rtl\u202eevil"),
        ("\ud800", r"\ud800"),
        ("\x1bPq#0\x1b\\x", "x"),
    ],
)
def test_neutralise(text: str, expected: str) -> None:
    found = neutralise(text)
    assert found == expected or (text.startswith("\x1b]52") and "\x1b" not in found)


@given(st.text())
def test_nothing_but_printable_text_comes_out(text: str) -> None:
    for char in neutralise(text):
        assert char in "\t\xa0" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), repr(char)


@given(st.text(alphabet="ab\r\n\x1b[m", max_size=60), st.lists(st.integers(1, 9), max_size=20))
def test_lines_do_not_depend_on_how_bytes_arrive(text: str, cuts: list[int]) -> None:
    data = text.encode()
    whole = LineSplitter()
    expected = whole.feed(data) + whole.flush()
    pieces = LineSplitter()
    found = []
    for cut in cuts:
        found += pieces.feed(data[:cut])
        data = data[cut:]
    found += pieces.feed(data) + pieces.flush()
    assert found == expected


def test_carriage_returns_and_long_lines() -> None:
    lines = LineSplitter(10)
    assert lines.feed(b"10%\r50%\r100%\nwindows\r\n") == ["100%", "windows"]
    assert lines.feed(b"x" * 25) == ["x" * 10, "x" * 10]
    assert lines.flush() == ["x" * 5] and lines.flush() == []
