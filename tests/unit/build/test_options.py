"""Options of a build that change what runs: stages without the cache, commands before and after, the host's certificates."""

from __future__ import annotations

from typing import Any

import pytest

from firebuild.errors import GuestError
from tests.unit.build.fakes import FakeGuest, Workshop

TWO = """FROM debian:12 AS one
RUN first
FROM debian:12
COPY --from=one /ran/1 /x
RUN second
"""


def test_only_the_steps_of_a_filtered_stage_run_again(workshop: Workshop) -> None:
    workshop.commands["first"] = lambda guest, tree, spec, output: tree.update({"ran/1": b"same"}) or 0
    first, _ = workshop.build(TWO)
    second, recorder = workshop.build(TWO, no_cache_filter=["ONE"])
    assert (second.steps, second.cached) == (3, 2)
    assert [spec.argv[-1] for spec in workshop.guest.ran] == ["first"]
    assert second.image.config.rootfs == first.image.config.rootfs
    assert not [text for text in recorder.notes().values() if text.startswith("rebuilt")]


def test_a_filter_for_a_stage_that_is_not_there(workshop: Workshop) -> None:
    error = workshop.fail(TWO, no_cache_filter=["onne"])
    assert "onne" in error.message and error.hint is not None and "did you mean `one`?" in error.hint


def test_commands_before_and_after_run_as_root_in_the_target_alone_and_are_cached(workshop: Workshop) -> None:
    text = "FROM debian:12 AS one\nRUN first\nFROM one\nUSER redis\nWORKDIR /w\nENV A=1\nRUN second\n"
    options: dict[str, Any] = {"pre_commands": ["before"], "post_commands": ["after", "last"]}
    result, recorder = workshop.build(text, **options)
    ran = [(spec.argv, spec.user, spec.workdir) for spec in workshop.guest.ran]
    assert ran == [
        (["/bin/sh", "-c", "first"], "", "/"),
        (["/bin/sh", "-c", "before"], "0:0", "/"),
        (["/bin/sh", "-c", "second"], "redis", "/w"),
        (["/bin/sh", "-c", "after"], "0:0", "/"),
        (["/bin/sh", "-c", "last"], "0:0", "/"),
    ]
    assert "A=1" in workshop.guest.ran[-1].env and "A=1" not in workshop.guest.ran[1].env
    assert result.image.config.config.user == "redis"
    made = [entry.created_by for entry in result.image.config.history if "firebuild --" in (entry.created_by or "")]
    assert made == [
        "RUN /bin/sh -c before # firebuild --pre-build-command",
        "RUN /bin/sh -c after # firebuild --post-build-command",
        "RUN /bin/sh -c last # firebuild --post-build-command",
    ]
    assert "[stage-1 1/5] --pre-build-command before" in recorder.titles().values()
    again, _ = workshop.build(text, **options)
    assert not again.booted
    changed, _ = workshop.build(text, pre_commands=["before"], post_commands=["after", "other"])
    assert (changed.steps, changed.cached) == (6, 5)


def test_a_command_after_the_build_that_fails(workshop: Workshop) -> None:
    workshop.commands["after"] = lambda guest, tree, spec, output: 3
    error = workshop.fail("FROM debian:12\nRUN first\n", post_commands=["after"])
    assert "--post-build-command after" in error.message and "3" in error.message


def test_the_host_s_certificates_reach_runs_and_no_key(workshop: Workshop) -> None:
    first, _ = workshop.build("FROM debian:12\nRUN first\n", ca_bundle="PEM")
    assert [spec.ca_bundle for spec in workshop.guest.ran] == ["PEM"]
    second, _ = workshop.build("FROM debian:12\nRUN first\n")
    assert not second.booted and second.image.id == first.image.id


def test_a_step_that_is_killed_names_the_memory(workshop: Workshop) -> None:
    workshop.commands["hungry"] = lambda guest, tree, spec, output: 137
    hint = workshop.fail("FROM debian:12\nRUN hungry\n").hint
    assert hint is not None and "--mem" in hint and "FIREBUILD_BUILD_MEM" in hint


def test_the_machine_is_open_before_the_first_step_is_reported(workshop: Workshop) -> None:
    _, recorder = workshop.build("FROM debian:12\nRUN first\n")
    titles = list(recorder.titles().values())
    assert titles.index("[internal] boot the build machine") < titles.index("[2/2] RUN first")


def test_proxies_reach_runs_and_neither_the_image_nor_the_key(workshop: Workshop) -> None:
    text = "FROM debian:12\nRUN first\n"
    first, _ = workshop.build(text, build_args={"http_proxy": "http://user:word@proxy:1"})
    assert {"HTTP_PROXY=http://user:word@proxy:1", "http_proxy=http://user:word@proxy:1"} <= set(
        workshop.guest.ran[0].env
    )
    assert "proxy" not in str(first.image.config)
    assert not workshop.build(text)[0].booted
    rows = workshop.database.query("SELECT explain FROM steps")
    assert rows and not any("proxy" in row["explain"] for row in rows)


def test_a_name_like_a_stage_s_is_told_so(workshop: Workshop) -> None:
    error = workshop.fail("FROM debian:12 AS builder\nRUN first\nFROM debian:12\nCOPY --from=biulder /x /\n")
    assert "`biulder` is none of the stages above" in error.message
    assert error.hint == "did you mean `builder`? the stages are builder"


def test_a_result_that_does_not_fit_its_disk_names_the_setting(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FakeGuest, stack: list[str], drive: str) -> None:
        raise GuestError("No space left on device", guest_code="no-space")

    monkeypatch.setattr(FakeGuest, "merge_disk", refuse)
    error = workshop.fail("FROM debian:12\nRUN first\n")
    assert "root disk" in error.message and error.hint is not None and "FIREBUILD_ROOT_DISK" in error.hint


def test_a_source_date_is_part_of_the_key_and_bounds_the_times_of_layers(workshop: Workshop) -> None:
    text = "FROM debian:12\nRUN first\n"
    workshop.build(text)
    dated, recorder = workshop.build(text, build_args={"SOURCE_DATE_EPOCH": "5"})
    assert dated.booted and recorder.reason("first") == "rebuilt: SOURCE_DATE_EPOCH changed"
    assert workshop.guest.limits == [5]
    assert not workshop.build(text, build_args={"SOURCE_DATE_EPOCH": "5"})[0].booted
