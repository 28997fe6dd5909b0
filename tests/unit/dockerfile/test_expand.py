"""The expansion of words: BuildKit's table of shapes, the names used, limits, and a property test against a model."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.dockerfile.expand import MAX_EXPANDED_LENGTH, Budget, Syntax, expand
from firebuild.dockerfile.pattern import MAX_PATTERN_LENGTH, replace, trim_prefix, trim_suffix
from firebuild.errors import DockerfileError

VARIABLES = {"PWD": "/home", "SHELL": "bash", "NULL": "", "WIDE": "a  b", "한": "글"}

EXPANDED = [
    ("hello", "hello"),
    ("he'll'o", "hello"),
    (r"he\'llo", "he'llo"),
    (r"abc\tdef", "abctdef"),
    (r'"abc\tdef"', r"abc\tdef"),
    (r'"abc\\tdef"', r"abc\tdef"),
    (r"'abc\tdef'", r"abc\tdef"),
    ("hello\\", "hello"),
    ("hello\\\\", "hello\\"),
    (r"'hello\'", "hello\\"),
    ("\"''\"", "''"),
    ("$.", "$."),
    ("a$", "a$"),
    ("he$1x", "hex"),
    ("$12x", "x"),
    ("$001aaa", "aaa"),
    ("$@@@", "@@"),
    ("${?:-bbb}", "bbb"),
    ("$pwd.", "."),
    ("he$PWD", "he/home"),
    (r"he\$PWD", "he$PWD"),
    (r"he\\$PWD", r"he\/home"),
    (r'"he\$PWD"', "he$PWD"),
    (r"\${}aaa", "${}aaa"),
    ("he${PWD}x", "he/homex"),
    ("'$PWD'", "$PWD"),
    ("\"he'$PWD'\"", "he'/home'"),
    ("${XXX:-000}", "000"),
    ("${NULL:-000}", "000"),
    ("${NULL-000}", ""),
    ("${XXX-000}", "000"),
    ("${PWD:-000}", "/home"),
    ("${XXX:-$PWD}", "/home"),
    ("${XXX:-${YYY:-yyy}}", "yyy"),
    ("${XXX:+000}", ""),
    ("${PWD:+000}", "000"),
    ("${NULL:+000}", ""),
    ("${NULL+000}", "000"),
    ("${PWD:+${PWD}:}x", "/home:x"),
    (r"${XXX:-\$PWD:}", "$PWD:"),
    (r"${XXX:-\${PWD}z}", "${PWDz}"),
    ("${XXX:-bbb {foo}", "bbb {foo"),
    ("${aaa}}", "}"),
    ("${PWD?}", "/home"),
    ("${NULL?}", ""),
    ("${PWD:?no}", "/home"),
    ("안녕$한", "안녕글"),
    ("${PWD#/}", "home"),
    ("${PWD#*o}", "me"),
    ("${PWD##*o}", "me"),
    ("${PWD%o*}", "/h"),
    ("${PWD%%m*}", "/ho"),
    ("${PWD#}", "/home"),
    ("${XXX#a}", ""),
    ("${PWD/o/0}", "/h0me"),
    ("${PWD//[/x}", "/home"),
    ("${PWD//?/x}", "xxxxx"),
    (r"${PWD//\//-}", "-home"),
    ("${PWD/#/x}", "/home"),
    ("${NULL/*/x}", "x"),
    ("${WIDE// /_}", "a__b"),
    ("a<<b", "a<<b"),
]

REFUSED = [
    "he'llo",
    r"he\\'llo",
    '"hello',
    r'"hello\"',
    "${}",
    "he${}xx",
    "${.}",
    "${PWD",
    "${PWD:",
    "${PWD:=000}",
    "${PWD=000}",
    "${XXX:YYY}",
    "${XXX?}",
    "${XXX:?}",
    "${NULL:?}",
    "${{aaa}",
    "${:}",
    "${:-bbb}",
    "${aaa:-${foo}",
    "${PWD:#x}",
    "${PWD:%%x}",
    "${PWD/a}",
    "${PWD//}",
    r"${PWD#\x}",
    "${PWD#\\\\\\\\\\}",
]

WORDS = [
    ("hello", ["hello"]),
    ("hello${hi}bye", ["hellobye"]),
    ("hello${WIDE}bye", ["helloa", "bbye"]),
    ('hello"${WIDE}"bye', ["helloa  bbye"]),
    ('hello "${WIDE}"bye', ["hello", "a  bbye"]),
    (r"hello\ there", ["hello there"]),
    ("  a\tb  ", ["a", "b"]),
    ('"" a', ["a"]),
    ("a <<  EOF b", ["a", "<<  EOF", "b"]),
    ("x${NO:-y z}w", ["xy", "zw"]),
]


@pytest.mark.parametrize(("text", "expected"), EXPANDED)
def test_expanded(text: str, expected: str) -> None:
    assert expand(text, VARIABLES).text == expected


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(DockerfileError):
        expand(text, VARIABLES)


@pytest.mark.parametrize(("text", "expected"), WORDS)
def test_words(text: str, expected: list[str]) -> None:
    assert list(expand(text, VARIABLES).words) == expected


def test_backquote_as_escape() -> None:
    syntax = Syntax(escape="`")
    assert expand('C:\\dir\\$PWD `$PWD "`"" ``', VARIABLES, syntax=syntax).text == 'C:\\dir\\/home $PWD " `'


def test_quotes_and_unset_names_can_be_kept() -> None:
    text = "echo \"$PWD\" '$PWD' ${NO} $NO ${NO:-x} ${NO/a/b}"
    syntax = Syntax(raw_quotes=True, keep_unset=True)
    assert expand(text, VARIABLES, syntax=syntax).text == "echo \"/home\" '$PWD' ${NO} $NO ${NO:-x} ${NO/a/b}"


def test_heredoc_text_keeps_quotes() -> None:
    assert expand("'$PWD' \"x\" \\$PWD", VARIABLES, syntax=Syntax(quotes=False)).text == "'/home' \"x\" $PWD"


def test_names_are_reported() -> None:
    result = expand("${PWD:+$SHELL} ${NO-${NULL}} '$HIDDEN' ${PWD#$ALSO}", VARIABLES)
    assert result.used == {"PWD", "SHELL", "NULL"}
    assert result.unset == {"NO", "ALSO"}


def test_message_of_required_variable() -> None:
    with pytest.raises(DockerfileError, match="`TOKEN` is not set: give it with /home"):
        expand("${TOKEN:?give it with $PWD}", VARIABLES)
    with pytest.raises(DockerfileError, match="`NULL` is empty"):
        expand("${NULL:?}", VARIABLES)


def test_result_is_bounded() -> None:
    with pytest.raises(DockerfileError, match="expands to more than"):
        expand("$A" * 2000, {"A": "x" * 64})
    assert len(expand("$A" * 1024, {"A": "x" * 64}).text) == MAX_EXPANDED_LENGTH
    with pytest.raises(DockerfileError, match="exceeds"):
        expand("${A//x/$B}", {"A": "x" * 1000, "B": "y" * 1000})


def test_nesting_is_bounded() -> None:
    with pytest.raises(DockerfileError, match="nested"):
        expand("${a:-" * 5000 + "}" * 5000, {})


def test_work_is_bounded() -> None:
    value = "a" * 60_000
    with pytest.raises(DockerfileError, match="too much work"):
        expand("${NO:+${A#*b}}" * 1000, {"A": value})
    with pytest.raises(DockerfileError, match="too much work"):
        expand("${B:+$A}" * 20_000, {"A": value}, budget=Budget(copied=1_000_000))


def test_hostile_pattern_is_linear() -> None:
    value = "a" * 60_000
    assert expand("${A%%*a*a*a*a*a*a*a*a*b}", {"A": value}).text == value
    assert expand("${A//*a*a*a*a*b/x}", {"A": value}).text == value
    with pytest.raises(DockerfileError, match="longer than"):
        trim_prefix("x", "?" * (MAX_PATTERN_LENGTH + 1), longest=True)


def _as_regex(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern))


_values = st.text("aab\n", max_size=9)
_patterns = st.text("ab*?", max_size=5)


@given(_values, _patterns, st.booleans())
def test_trims_against_all_prefixes_and_suffixes(value: str, pattern: str, longest: bool) -> None:
    regex = _as_regex(pattern)
    prefixes = [end for end in range(len(value) + 1) if regex.fullmatch(value[:end])]
    suffixes = [end for end in range(len(value) + 1) if regex.fullmatch(value[len(value) - end :])]
    choose = max if longest else min
    assert trim_prefix(value, pattern, longest=longest) == value[choose(prefixes, default=0) :]
    assert trim_suffix(value, pattern, longest=longest) == value[: len(value) - choose(suffixes, default=0)]


@given(_values, _patterns, st.sampled_from(["", "X", "ab"]), st.booleans())
def test_replaces_against_a_scan(value: str, pattern: str, replacement: str, every: bool) -> None:
    regex = _as_regex(pattern)
    result = ""
    position = 0
    replaced = False
    after_match = False
    while position <= len(value):
        ends = [end for end in range(len(value), position - 1, -1) if regex.fullmatch(value[position:end])]
        if ends and not (replaced and not every) and not (ends[0] == position and after_match):
            result += replacement
            replaced = True
            after_match = ends[0] > position
            if after_match:
                position = ends[0]
                continue
        else:
            after_match = False
        result += value[position : position + 1]
        position += 1
        after_match = False
    assert replace(value, pattern, replacement, every=every, limit=10_000) == result


class _Piece:
    """A piece of a word as it is written, and what it must become: the model of the property test."""

    def __init__(self, written: str, meant: str, used: set[str], unset: set[str]) -> None:
        self.written = written
        self.meant = meant
        self.used = used
        self.unset = unset


_MODEL = {"SET": "value", "EMPTY": "", "SPACED": "a b"}
_names = st.sampled_from(["SET", "EMPTY", "SPACED", "UNSET", "OTHER"])
_plain = st.text("abé/.,=:-+ ", min_size=1, max_size=4).map(lambda text: _Piece(text, text, set(), set()))
_single = st.text('ab$"{} \\', max_size=4).map(lambda text: _Piece(f"'{text}'", text, set(), set()))
_escaped = st.sampled_from("$'\"\\ab{}").map(lambda char: _Piece(f"\\{char}", char, set(), set()))
_reference = _names.map(
    lambda name: _Piece(f"${{{name}}}", _MODEL.get(name, ""), {name} & _MODEL.keys(), {name} - _MODEL.keys())
)


def _join(pieces: list[_Piece]) -> _Piece:
    return _Piece(
        "".join(piece.written for piece in pieces),
        "".join(piece.meant for piece in pieces),
        set().union(*(piece.used for piece in pieces)),
        set().union(*(piece.unset for piece in pieces)),
    )


def _double_quoted(piece: _Piece) -> _Piece:
    return _Piece(f'"{piece.written}"', piece.meant, piece.used, piece.unset)


def _conditional(name: str, operator: str, word: _Piece) -> _Piece:
    value = _MODEL.get(name)
    missing = value is None or (operator.startswith(":") and not value)
    present = "" if operator.endswith("+") else value or ""
    if operator.endswith("+"):
        missing, present = not missing, ""
    meant = word.meant if missing else present
    used = word.used | ({name} & _MODEL.keys())
    return _Piece(f"${{{name}{operator}{word.written}}}", meant, used, word.unset | ({name} - _MODEL.keys()))


_in_double_quotes = st.lists(st.one_of(_plain, _reference), max_size=3).map(_join).map(_double_quoted)
_pieces = st.recursive(
    st.one_of(_plain, _single, _escaped, _reference, _in_double_quotes),
    lambda inner: st.builds(
        _conditional, _names, st.sampled_from([":-", "-", ":+", "+"]), st.lists(inner, max_size=3).map(_join)
    ),
    max_leaves=8,
)


@given(st.lists(_pieces, max_size=5).map(_join))
def test_expansion_against_the_model(piece: _Piece) -> None:
    result = expand(piece.written, _MODEL)
    assert result.text == piece.meant
    assert result.used == piece.used
    assert result.unset == piece.unset


@given(st.text("$A{}:-+?#%/*'\"\\ <`a", max_size=20), st.sampled_from("\\`"))
def test_any_text_expands_or_is_refused(text: str, escape: str) -> None:
    try:
        expand(text, {"A": "xax"}, syntax=Syntax(escape=escape))
    except DockerfileError as error:
        assert error.message
