"""Keys: no two inputs read alike, and every input that matters is in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebuild.build.commit import format_time
from firebuild.build.digest import FieldHash, compute_digest
from firebuild.build.explain import Explanation, compute_key, explain_miss, explain_step
from firebuild.build.steps import PlannedStep, RunAction
from firebuild.dockerfile.location import Location

ACTION = RunAction(argv=("/bin/sh", "-c", "make"), env=("A=1",), user="", workdir="/", network="default")
STEP = PlannedStep(
    id="0/0", title="RUN make", text="RUN make", location=Location(1, 1, 1, 9), action=ACTION, args={"A": "1"},
    position="Dockerfile#stage-0/0",
)  # fmt: skip


def key_of(step: PlannedStep, **options: Any) -> str:
    settings: dict[str, Any] = {"below": "sha256:1", "on_base": True, "platform": "linux/amd64", **options}
    return compute_key(step, explain_step(step, **settings))


@pytest.mark.parametrize(
    "change",
    [
        {"argv": ("/bin/sh", "-c", "make all")},
        {"argv": ("/bin/sh", "-c make")},
        {"env": ("A=2",)},
        {"env": ("A=1", "B=")},
        {"user": "app"},
        {"workdir": "/src"},
        {"network": "none"},
    ],
)
def test_every_part_of_a_command_is_in_its_key(change: dict[str, Any]) -> None:
    changed = msgspec.structs.replace(STEP, action=msgspec.structs.replace(ACTION, **change))
    assert key_of(changed) != key_of(STEP)


def test_what_is_below_and_the_platform_are_in_the_key_and_titles_are_not() -> None:
    assert key_of(STEP, below="sha256:2") != key_of(STEP)
    assert key_of(STEP, platform="linux/arm64") != key_of(STEP)
    assert key_of(msgspec.structs.replace(STEP, title="x", position="y", id="z")) == key_of(STEP)


def test_keys_do_not_change_between_versions_unnoticed() -> None:
    # Whoever changes how keys are computed raises KEY_VERSION: old records must miss.
    assert key_of(STEP) == "da6fd15ef7c8dfe022e1a743778edf275bbc95b55c7ac88c4eeb28cc46697469"


@given(
    st.lists(st.lists(st.text(max_size=3), max_size=3), max_size=3),
    st.lists(st.lists(st.text(max_size=3), max_size=3), max_size=3),
)
def test_lists_of_fields_never_collide(one: list[list[str]], other: list[list[str]]) -> None:
    def digest(fields: list[list[str]]) -> str:
        total = FieldHash("test")
        for values in fields:
            total.add("f", values)
        return total.hexdigest()

    assert (digest(one) == digest(other)) == (one == other)


def test_a_text_is_not_a_list_of_one() -> None:
    assert compute_digest("t", {"a": "x"}) != compute_digest("t", {"a": ["x"]})


def test_many_changed_files_are_counted() -> None:
    old = explain_step(STEP, below="1", on_base=True, platform="p", sources="a", files={f"f{n}": "1" for n in range(5)})
    new = msgspec.structs.replace(old, sources="b", files={f"f{n}": "2" for n in range(5)})
    assert explain_miss(old, new) == "file f0 changed, file f1 changed, 3 more files"
    assert explain_miss(msgspec.structs.replace(old, files={}), new) == "the copied files changed"
    assert explain_miss(None, new) is None


def test_an_explanation_survives_the_database() -> None:
    explanation = explain_step(STEP, below="1", on_base=False, platform="p", files={"a": "b"})
    assert msgspec.json.decode(msgspec.json.encode(explanation), type=Explanation) == explanation


def test_times_are_go_s() -> None:
    assert format_time(0) == "1970-01-01T00:00:00Z"
    assert format_time(1_700_000_000_123_000_000) == "2023-11-14T22:13:20.123Z"
