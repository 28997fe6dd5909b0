"""Why a step was rebuilt: compared with the record that is most like it, in one line, and nothing false."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.build.fakes import Workshop

FIRST = """FROM debian:12 AS builder
ARG MODE=debug
ARG NAME=app.py
RUN make tools
COPY $NAME /src/
RUN compile
FROM debian:12
COPY --from=builder /etc /x
RUN install
"""


@pytest.fixture
def built(workshop: Workshop) -> Workshop:
    (workshop.context / "app.py").write_text("one")
    (workshop.context / "lib.py").write_text("lib")
    workshop.commands["compile"] = lambda guest, tree, spec, output: 0
    workshop.build(FIRST)
    return workshop


@pytest.mark.parametrize(
    ("edit", "options", "reasons"),
    [
        (("RUN make tools", "RUN make tools && true"), {},
         {"make tools": "the command changed", "COPY app.py": "an earlier step changed"}),
        (("RUN compile", "RUN fetch\nRUN compile"), {},
         {"fetch": "nothing like it is in the cache", "RUN compile": "the steps above it changed"}),
        (("RUN make tools\n", ""), {}, {"COPY app.py": "the steps above it changed"}),
        (("", ""), {"build_args": {"MODE": "release"}}, {"make tools": "build argument MODE changed"}),
        (("", ""), {"build_args": {"NAME": "lib.py"}}, {"COPY lib.py": "NAME changed, file lib.py is new, file app.py is gone"}),
        (("COPY $NAME", "COPY --chown=7 $NAME"), {}, {"COPY --chown": "its --chown changed"}),
        (("RUN compile", "RUN --network=none compile"), {}, {"compile": "its network changed"}),
        (("RUN compile", "USER redis\nRUN compile"), {}, {"compile": "the user changed"}),
        (("RUN compile", 'SHELL ["/bin/bash", "-c"]\nRUN compile'), {}, {"compile": "the shell that runs it changed"}),
        (("RUN compile", "ENV A=1\nRUN compile"), {}, {"compile": "environment variable A is new"}),
        (("FROM debian:12\n", "FROM other:1\n"), {},
         {"COPY --from": "upon the base image other:1, and built upon the base image debian:12"}),
        (("FROM debian:12\n", "FROM builder\n"), {},
         {"COPY --from": "upon the stage builder, and built upon the base image debian:12"}),
    ],
)  # fmt: skip
def test_an_edit_and_what_is_said(
    built: Workshop, edit: tuple[str, str], options: dict[str, Any], reasons: dict[str, str]
) -> None:
    built.add_image("other:1", {"bin/sh": b"another shell"}, None)
    _, recorder = built.build(FIRST.replace(*edit) if edit[0] else FIRST, **options)
    for part, reason in reasons.items():
        assert recorder.reason(part).endswith(reason), recorder.notes()


def test_a_file_that_changed_is_named_where_it_is_copied_and_nowhere_else(built: Workshop) -> None:
    (built.context / "app.py").write_text("two")
    _, recorder = built.build(FIRST)
    said = {title.partition("] ")[2]: text for title, text in recorder.notes().items() if text.startswith("rebuilt")}
    assert said == {
        "COPY app.py /src/": "rebuilt: file app.py changed",
        "RUN compile": "rebuilt: an earlier step changed",
        "COPY --from=builder /etc /x": "rebuilt: stage builder changed",
    }, "the copy gave the same layer, so that what follows was cached"


def test_another_dockerfile_of_the_same_path_is_not_named_as_the_cause(built: Workshop) -> None:
    _, recorder = built.build("FROM debian:12 AS builder\nRUN entirely different words\nFROM debian:12\nRUN whoami\n")
    assert {text for text in recorder.notes().values() if text.startswith("rebuilt")} == {
        "rebuilt: nothing like it is in the cache"
    }


def test_the_nearest_of_several_records_counts(built: Workshop) -> None:
    (built.context / "app.py").write_text("two")
    built.build(FIRST, build_args={"MODE": "release"})
    (built.context / "app.py").write_text("three")
    _, recorder = built.build(FIRST)
    assert recorder.reason("COPY app.py") == "rebuilt: file app.py changed"


def test_a_first_build_and_one_without_the_cache_say_nothing(workshop: Workshop) -> None:
    text = "FROM debian:12\nRUN one\n"
    for no_cache in (False, True):
        _, recorder = workshop.build(text, no_cache=no_cache)
        assert not [note for note in recorder.notes().values() if note.startswith("rebuilt")]
