"""Durations, sizes, signals, heredoc words, mount fields and excerpts: the small grammars."""

from __future__ import annotations

import pytest

from firebuild.dockerfile.errors import did_you_mean, printable, shown
from firebuild.dockerfile.excerpt import render_excerpt
from firebuild.dockerfile.flags import FLAGS
from firebuild.dockerfile.heredoc import HeredocWord, parse_heredoc_word
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.mounts import Mount, parse_mount, split_csv
from firebuild.dockerfile.parser import INSTRUCTION_NAMES
from firebuild.dockerfile.values import parse_boolean, parse_duration_ns, parse_ports, parse_signal, parse_size_bytes
from firebuild.errors import DockerfileError

SECOND = 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("5s", 5 * SECOND),
        ("1m30s", 90 * SECOND),
        ("1.5h", 5400 * SECOND),
        (".5s", SECOND // 2),
        ("1.s", SECOND),
        ("+1ms", 10**6),
        ("-1µs", -1000),
        ("1us1ns", 1001),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert parse_duration_ns(text) == expected


@pytest.mark.parametrize("text", ["", "5", "s", ".s", "1d", "1 s", "--1s", "1s2", "9999999999h"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(DockerfileError):
        parse_duration_ns(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("32", 32), ("1k", 1024), ("64m", 64 << 20), ("1.5GiB", 3 << 29), ("2 tb", 2 << 40), ("1P", 1 << 50)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1x", "1ki", "m", "1  m", "99999999999p"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(DockerfileError):
        parse_size_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("9", 9), ("SIGTERM", 15), ("quit", 3), ("sigusr1", 10), ("RTMIN", 34), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)],
)
def test_signals(text: str, expected: int) -> None:
    assert parse_signal(text) == expected


def test_booleans() -> None:
    assert parse_boolean("True") is True
    assert parse_boolean("0") is False
    with pytest.raises(DockerfileError):
        parse_boolean("yes")


def test_ports_are_listed_once() -> None:
    assert parse_ports(["80", "80/tcp", "[::1]:9:90/sctp"]) == ("80/tcp", "90/sctp")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<<EOF", HeredocWord("EOF", True, False)),
        ("<<-EOF", HeredocWord("EOF", True, True)),
        ("<<'EOF'", HeredocWord("EOF", False, False)),
        ('<<EO"F"', HeredocWord("EOF", False, False)),
        ("<< EOF", HeredocWord("EOF", True, False)),
        ("<<- EOF", HeredocWord("EOF", True, True)),
        ("<< -EOF", HeredocWord("-EOF", True, False)),
        ("3<<E", HeredocWord("E", True, False, 3)),
        ("<<$EOF", HeredocWord("$EOF", True, False)),
        (r"<<eo\'f", HeredocWord("eo'f", True, False)),
        (r"<<'e'o\'f", HeredocWord("eo'f", False, False)),
        ("<<'a b'", HeredocWord("a b", False, False)),
        ("", None),
        ("<<", None),
        ("<<-", None),
        ("<EOF", None),
        ("<<<EOF", None),
        ("<<EOF sh", None),
        ("a<<EOF", None),
        ("<<''", None),
    ],
)
def test_heredoc_words(text: str, expected: HeredocWord | None) -> None:
    assert parse_heredoc_word(text) == expected


@pytest.mark.parametrize("text", ["<<'EOF", '<<"EOF', "<<EOF'"])
def test_bad_heredoc_words(text: str) -> None:
    with pytest.raises(DockerfileError):
        parse_heredoc_word(text)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("a=b,c", ["a=b", "c"]),
        ('"a=b,c",d', ["a=b,c", "d"]),
        ('"a""b"', ['a"b']),
        ("a,,b,", ["a", "", "b", ""]),
    ],
)
def test_csv(text: str, fields: list[str]) -> None:
    assert split_csv(text) == fields


@pytest.mark.parametrize("text", ['a"b', '"a', '"a"b,c'])
def test_bad_csv(text: str) -> None:
    with pytest.raises(DockerfileError):
        split_csv(text)


def as_written(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("target=/x", Mount(type="bind", target="/x", read_only=True)),
        ("target=/x,rw", Mount(type="bind", target="/x")),
        ("target=/x,readwrite=false", Mount(type="bind", target="/x", read_only=True)),
        ("TYPE=Cache,dst=/x,ro", Mount(type="cache", target="/x", read_only=True)),
        (
            "type=cache,target=/x,sharing=Private,mode=0700,uid=1,gid=2",
            Mount(type="cache", target="/x", sharing="private", mode=0o700, uid=1, gid=2),
        ),
        ("type=tmpfs,target=/x,size=1k", Mount(type="tmpfs", target="/x", size_bytes=1024)),
        (
            "type=secret,id=t,env=TOKEN,required",
            Mount(type="secret", id="t", env="TOKEN", required=True, read_only=True),
        ),
        ("type=secret,target=/t", Mount(type="secret", target="/t", read_only=True)),
        ("type=ssh", Mount(type="ssh", read_only=True)),
        ("from=b,src=/o,destination=/x", Mount(type="bind", stage="b", source="/o", target="/x", read_only=True)),
    ],
)
def test_mounts(text: str, mount: Mount) -> None:
    assert parse_mount(text, as_written) == mount


@pytest.mark.parametrize(
    "text",
    [
        "type=cache,required",
        "type=bind,uid=1,target=/x",
        "required,type=secret,id=x",
        "type=secret,from=x,id=y",
        "type=secret",
        "type=cache,sharing=open",
        "type=cache,sharing=",
        "ro=perhaps",
        "type=cache,uid=-1",
        "type=cache,uid=4294967296",
        "type=tmpfs,size=big",
        "nonsense",
        "",
    ],
)
def test_bad_mounts(text: str) -> None:
    with pytest.raises(DockerfileError):
        parse_mount(text, as_written)


def test_every_flag_belongs_to_an_instruction() -> None:
    assert FLAGS.keys() <= set(INSTRUCTION_NAMES)


def test_excerpt_at_the_edges() -> None:
    lines = ("one", "two", "three", "four", "five", "six", "")
    assert render_excerpt(lines, Location(1, 1, 1, 4)) == "1 | >>> one\n2 |     two\n3 |     three"
    assert render_excerpt(lines, Location(6, 1, 6, 4)) == "4 |     four\n5 |     five\n6 | >>> six"
    assert render_excerpt((), Location(1, 1, 1, 1)) == ""


def test_excerpt_of_a_long_instruction_shows_the_very_line() -> None:
    lines = tuple(f"line {number}" for number in range(1, 101))
    rendered = render_excerpt(lines, Location(3, 1, 98, 1), line=50)
    assert " 50 | >>> line 50" in rendered
    assert "  3 | >>> line 3" in rendered
    assert " 98 | >>> line 98" in rendered
    assert "100 |     line 100" in rendered
    assert rendered.count("…") == 2
    assert " 20 |" not in rendered


def test_text_of_strangers_is_made_printable() -> None:
    assert printable("a\x1b[31m\x00\udcff\u202e\t") == "a\\x1b[31m\\x00\\xff\\u202e\t"
    assert shown("x" * 200) == "`" + "x" * 79 + "…`"


def test_did_you_mean() -> None:
    assert did_you_mean("COPPY", INSTRUCTION_NAMES) == "did you mean `COPY`?"
    assert did_you_mean("zzz", INSTRUCTION_NAMES) is None
    assert did_you_mean("x" * 100_000, INSTRUCTION_NAMES) is None
