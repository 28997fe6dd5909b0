"""Hostile Dockerfiles: huge, endless, deeply nested. Each ends in its error, in linear time."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.dockerfile.errors import LocatedDockerfileError
from firebuild.dockerfile.lexer import MAX_FILE_SIZE, MAX_INSTRUCTIONS
from firebuild.dockerfile.stages import parse_dockerfile


def refused(data: bytes) -> LocatedDockerfileError:
    with pytest.raises(LocatedDockerfileError) as caught:
        parse_dockerfile(data)
    return caught.value


def test_file_size() -> None:
    fits = b"FROM a\n#" + b"x\n#" * ((MAX_FILE_SIZE - 16) // 3)
    assert parse_dockerfile(fits).stages[0].base == "a"
    assert "at most 1048576" in refused(b"FROM a\n" + b"#" * MAX_FILE_SIZE).problem


def test_huge_line_costs_no_memory() -> None:
    data = b"RUN " + b"x" * (64 * 1024 * 1024)
    tracemalloc.start()
    try:
        assert "at most" in refused(data).problem
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_long_line() -> None:
    error = refused(b"FROM a\nRUN " + b"x" * 70_000)
    assert (error.line, error.problem) == (2, "the line is longer than 65535 characters")
    assert error.details is not None
    assert max(map(len, error.details.splitlines())) < 200


def test_long_instruction() -> None:
    error = refused(b"FROM a\nRUN x \\\n" + b"y" * 1000 + b" \\\n" + (b"y" * 1000 + b" \\\n") * 300)
    assert "the instruction is longer than" in error.problem


def test_million_lines() -> None:
    assert "no FROM" in refused(b"\n" * 1_000_000 + b"ARG a\n").problem
    assert "the file is empty" in refused(b"\n" * 1_000_000).problem
    assert parse_dockerfile(b"FROM a\nRUN x \\\n" + b"\n" * 1_000_000).stages[0].base == "a"


def test_many_instructions() -> None:
    assert len(parse_dockerfile(b"FROM a\n" * MAX_INSTRUCTIONS).stages) == MAX_INSTRUCTIONS
    error = refused(b"FROM a\n" * 100_000)
    assert (error.line, error.problem) == (1001, "the file has more than 1000 instructions")


def test_many_heredocs_on_a_line() -> None:
    line = b"RUN cat" + b" <<A" * 10_000
    assert "has no end" in refused(b"FROM a\n" + line + b"\nA\n").problem
    assert parse_dockerfile(b"FROM a\n" + line + b"\nA" * 10_000).stages[0].base == "a"


def test_deeply_nested_json_and_variables() -> None:
    assert "array of strings" in refused(b"FROM a\nRUN " + b"[" * 60_000).problem
    parse_dockerfile(b"FROM a\nRUN <<A " + b"${a:-" * 10_000 + b"\n")


def test_one_word_of_quotes() -> None:
    parse_dockerfile(b"FROM a\nENV a=" + b"\"'\\" * 20_000)


_lines = st.sampled_from(
    [
        "FROM a",
        "RUN x \\",
        "RUN <<E",
        "E",
        "COPY a /b",
        "# escape=`",
        "x `",
        "ENV a",
        "ENV a=b",
        "\t\\",
        "",
        "ONBUILD COPY <<E /x",
    ]
)


@given(st.one_of(st.binary(max_size=60), st.lists(_lines, max_size=8).map(lambda lines: "\n".join(lines).encode())))
def test_any_bytes_parse_or_are_refused_with_a_place(data: bytes) -> None:
    try:
        parsed = parse_dockerfile(data)
    except LocatedDockerfileError as error:
        assert error.message == f"Dockerfile:{error.line}:{error.column}: {error.problem}"
        assert error.message.isprintable()
        return
    last = len(parsed.source.lines)
    for stage in parsed.stages:
        for instruction in (stage.start, *stage.instructions):
            assert 1 <= instruction.location.start_line <= instruction.location.end_line <= last
