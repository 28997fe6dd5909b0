"""What FROM, COPY --from and a target refer to, and ONBUILD triggers read back."""

from __future__ import annotations

import pytest

from firebuild.dockerfile import nodes
from firebuild.dockerfile.errors import LocatedDockerfileError
from firebuild.dockerfile.location import Location
from firebuild.dockerfile.stages import list_duplicate_names, parse_dockerfile, parse_trigger, relocate
from firebuild.errors import DockerfileError, NotFoundError

TEXT = b"""FROM image AS Base
FROM base AS mid
FROM other
FROM again AS base
FROM Base AS last
"""


def test_labels_and_names() -> None:
    stages = parse_dockerfile(TEXT).stages
    assert [stage.label for stage in stages] == ["base", "mid", "stage-2", "base", "last"]
    assert stages[4].base == "Base"
    assert list_duplicate_names(stages) == [stages[3]]


def test_base_is_the_nearest_stage_above_of_exactly_that_name() -> None:
    parsed = parse_dockerfile(TEXT)
    stages = parsed.stages
    assert parsed.find_base(stages[0], "base") is None
    assert parsed.find_base(stages[1], "base") is stages[0]
    assert parsed.find_base(stages[4], "base") is stages[3]
    assert parsed.find_base(stages[4], "Base") is None
    assert parsed.find_base(stages[4], "1") is None


def test_copy_source() -> None:
    parsed = parse_dockerfile(TEXT)
    stages = parsed.stages
    assert parsed.find_copy_source(stages[4], "MID") is stages[1]
    assert parsed.find_copy_source(stages[4], "base") is stages[3]
    assert parsed.find_copy_source(stages[4], "2") is stages[2]
    assert parsed.find_copy_source(stages[4], "nginx:1") is None
    assert parsed.find_mount_source(stages[4], "2") is None
    assert parsed.find_mount_source(stages[4], "Mid") is stages[1]


@pytest.mark.parametrize("reference", ["last", "4", "3", "base", "99", "-1"])
def test_copy_source_must_come_before(reference: str) -> None:
    parsed = parse_dockerfile(TEXT)
    with pytest.raises(DockerfileError, match=r"does not come before|no stage with the index"):
        parsed.find_copy_source(parsed.stages[3], reference)


def test_mount_source_must_come_before() -> None:
    parsed = parse_dockerfile(TEXT)
    with pytest.raises(DockerfileError, match="does not come before"):
        parsed.find_mount_source(parsed.stages[1], "last")


def test_target() -> None:
    parsed = parse_dockerfile(TEXT)
    assert parsed.get_target(None).index == 4
    assert parsed.get_target("Mid").index == 1
    assert parsed.get_target("2").index == 2
    with pytest.raises(NotFoundError, match="no stage `mad`") as caught:
        parsed.get_target("mad")
    assert caught.value.hint == "did you mean `mid`? the stages are base, mid, 2, base, last"


def test_directive() -> None:
    parsed = parse_dockerfile(b"# syntax=docker/dockerfile:1\nFROM a\n")
    assert parsed.directive("syntax") == "docker/dockerfile:1"
    assert parsed.directive("check") is None


@pytest.mark.parametrize(
    "text",
    [
        "ONBUILD RUN make   -j",
        "ONBUILD COPY --from=x a /b",
        "ONBUILD RUN <<EOF\necho hi\nEOF",
        "ONBUILD COPY <<-A <<'B' /x/\n\ta\n\tA\n$b\nB",
        "onbuild run x \\\n  y",
    ],
)
def test_trigger_read_back_is_what_was_meant(text: str) -> None:
    onbuild = parse_dockerfile(f"FROM a\n{text}\n".encode()).stages[0].instructions[0]
    assert isinstance(onbuild, nodes.Onbuild)
    location = Location(9, 1, 9, 2)
    read = relocate(parse_trigger(onbuild.trigger), location)
    assert read.location == location
    again = relocate(onbuild.parsed, location)
    assert type(read) is type(again)
    assert {field: getattr(read, field) for field in read.__struct_fields__ if field not in ("text", "mounts")} == {
        field: getattr(again, field) for field in again.__struct_fields__ if field not in ("text", "mounts")
    }


@pytest.mark.parametrize(
    "trigger", ["FROM x", "ONBUILD RUN x", "MAINTAINER me", "RUN a\nRUN b", "FOO", "", "RUN <<EOF"]
)
def test_bad_trigger_of_an_image(trigger: str) -> None:
    with pytest.raises(LocatedDockerfileError) as caught:
        parse_trigger(trigger, "ONBUILD of debian:12")
    assert caught.value.file_name == "ONBUILD of debian:12"
