"""`--check`: what is said of a Dockerfile without building it, and what a build says in passing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from firebuild.build.check import CheckReport, check_image
from firebuild.build.services import BuildRequest
from firebuild.build.sources.spec import ImageContext
from firebuild.dockerfile.errors import LocatedDockerfileError
from firebuild.dockerfile.ignore import IgnoreRules, parse_ignore
from firebuild.errors import DockerfileError, NotFoundError, RegistryError
from firebuild.events.model import WarningRaised
from firebuild.names import Digest, Reference, parse_reference
from firebuild.store.blobs import Descriptor
from firebuild.store.images import CONFIG_TYPE, Image, ImageConfig, Manifest, RunConfig
from tests.unit.build.fakes import Workshop

DIGEST = Digest("sha256:" + "0" * 64)


def make_image(run: RunConfig, architecture: str = "amd64") -> Image:
    """An image of which only the configuration is known."""
    manifest = Manifest(schema_version=2, config=Descriptor(CONFIG_TYPE, DIGEST, 2), layers=[])
    config = ImageConfig(architecture=architecture, os="linux", config=run)
    return Image(
        reference=None,
        manifest_digest=DIGEST,
        manifest=manifest,
        config_digest=DIGEST,
        config=config,
        layers=[],
        created=None,
        size=0,
    )


IMAGES = {
    "debian:12": make_image(RunConfig(env=["PATH=/bin", "LANG=C"])),
    "arm:1": make_image(RunConfig(), architecture="arm64"),
    "onbuild:1": make_image(RunConfig(on_build=["ARG late=1", "RUN echo $late"])),
}


class Finder:
    """Finds the images above; `far` ones are not at hand, all others do not exist."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, reference: Reference) -> Image:
        self.asked.append(reference.familiar)
        if reference.familiar.startswith("far"):
            raise RegistryError("the registry cannot be reached", reason="unreachable")
        if reference.familiar not in IMAGES:
            raise NotFoundError(f"there is no {reference.familiar}")
        return IMAGES[reference.familiar]


def check(
    text: str, *, target: str | None = None, build_args: Mapping[str, str] | None = None, ignore: str | None = None
) -> CheckReport:
    request = BuildRequest(dockerfile=text.encode(), target=target, build_args=build_args or {})
    return check_image(request, Finder(), lambda: None if ignore is None else parse_ignore(ignore.encode()))


def rules(report: CheckReport) -> list[tuple[int, str]]:
    return [(warning.line, warning.rule.name) for warning in report.warnings]


def test_a_good_file_passes() -> None:
    report = check("FROM debian:12 AS base\nENV A=$LANG\nFROM scratch\nCOPY --from=base / /\n")
    assert report.passed and report.warnings == () and report.notices == ()


def test_all_stages_are_looked_at() -> None:
    text = "FROM debian:12 AS one\nENV A=$B\nFROM one AS two\nENV a b\nFROM scratch\nENV c d\n"
    assert rules(check(text)) == [
        (2, "UndefinedVar"),
        (4, "LegacyKeyValueFormat"),
        (6, "LegacyKeyValueFormat"),
    ]


def test_a_target_needs_its_stages_only() -> None:
    text = "FROM debian:12 AS one\nENV A=$B\nFROM one AS two\nENV a b\nFROM nowhere\nENV c d\n"
    report = check(text, target="two")
    assert rules(report) == [(2, "UndefinedVar"), (4, "LegacyKeyValueFormat")]
    assert report.error is None


def test_images_are_asked_for_once() -> None:
    finder = Finder()
    text = "FROM debian:12 AS one\nFROM debian:12 AS two\nFROM far:1\nFROM far:1\n"
    check_image(BuildRequest(dockerfile=text.encode()), finder, lambda: None)
    assert sorted(finder.asked) == ["debian:12", "far:1"]


def test_the_base_image_is_known() -> None:
    report = check("FROM arm:1 AS one\nFROM onbuild:1\nCOPY $late /\n")
    assert rules(report) == [(1, "InvalidBaseImagePlatform")]


def test_the_ignore_file_is_known() -> None:
    assert rules(check("FROM scratch\nCOPY a/b /\n", ignore="a\n")) == [(2, "CopyIgnoredFile")]


def test_an_image_that_is_not_at_hand_is_a_notice() -> None:
    report = check("FROM far:1 AS one\nENV A=$B\nFROM one\nENV a b\nFROM debian:12\nENV A=$B\n")
    assert report.error is None
    assert [text for text in report.notices if "far:1" in text and "cannot be reached" in text] == list(report.notices)
    assert rules(report) == [(4, "LegacyKeyValueFormat"), (6, "UndefinedVar")]


def test_an_image_that_does_not_exist_is_an_error() -> None:
    report = check("FROM debian:12 AS one\nENV a b\nFROM nowhere\n")
    assert rules(report) == [(2, "LegacyKeyValueFormat")]
    assert isinstance(report.error, NotFoundError) and "Dockerfile:3:1" in report.error.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("FROM debian:12\nENV a b\nWORKDIR ${X:?it is needed}\n", 3),
        ("FROM debian:12\nENV a b\nCOPY --from=5 a b\n", 3),
        ("FROM debian:12 AS unused\nENV a b\nSTOPSIGNAL NOPE\nFROM debian:12\n", 3),
        ("# check=error=true\nFROM debian:12\nENV a b\n", 3),
        ("FROM --platform=linux/arm64 debian:12 AS arm64\nENV a b\n", 1),
        ("FROM --platform=not:one debian:12 AS x\nENV a b\n", 1),
    ],
)
def test_what_a_build_would_end_with_is_the_error_beside_the_warnings(text: str, line: int) -> None:
    report = check(text)
    assert "LegacyKeyValueFormat" in [name for _, name in rules(report)]
    assert not report.passed and report.error is not None
    assert f"Dockerfile:{line}:" in report.error.message


def test_a_file_that_does_not_parse_has_an_error_only() -> None:
    report = check("FROM scratch\nNONSENSE\n")
    assert isinstance(report.error, LocatedDockerfileError) and report.error.line == 2
    assert report.warnings == () and report.lines == ()


def test_a_target_that_is_not_there() -> None:
    assert isinstance(check("FROM scratch AS a\n", target="b").error, NotFoundError)


def test_a_malformed_ignore_file_is_an_error_beside_the_warnings() -> None:
    report = check("FROM scratch\nENV a b\n", ignore="[\n")
    assert isinstance(report.error, DockerfileError)
    assert rules(report) == [(2, "LegacyKeyValueFormat")]


@pytest.mark.parametrize(
    ("context", "unknown"),
    [(ImageContext(parse_reference("debian:12")), ["B"]), (ImageContext(None), ["B", "LANG"])],
    ids=["an image", "scratch"],
)
def test_a_named_context_takes_the_place_of_a_stage(context: ImageContext, unknown: list[str]) -> None:
    text = b"FROM nowhere AS tools\nENV a b\nFROM tools\nENV A=$B C=$LANG\nFROM one/image\nENV A=$B C=$LANG\n"
    request = BuildRequest(dockerfile=text, contexts={"tools": context, "one/image": context})
    report = check_image(request, Finder(), lambda: None)
    assert report.error is None and report.notices == ()
    assert [(warning.line, warning.message.split("`")[1]) for warning in report.warnings] == [
        (line, f"${name}") for line in (4, 6) for name in unknown
    ]


def test_what_the_planner_says_is_a_notice_once() -> None:
    report = check("FROM scratch AS a\nFROM scratch AS b\n", build_args={"TYPO": "1"})
    assert len(report.notices) == 1 and "TYPO" in report.notices[0]
    assert report.passed


def test_no_ignore_file_is_read_as_none() -> None:
    def load() -> IgnoreRules | None:
        return None

    assert check_image(BuildRequest(dockerfile=b"FROM scratch\nCOPY a /\n"), Finder(), load).passed


def test_a_build_prints_the_warnings_of_the_stages_that_it_needs(workshop: Workshop) -> None:
    text = "FROM debian:12 AS unused\nENV a b\nFROM debian:12 as base\nENV c d\nENV E=$LANG F=$G\nRUN a\n"
    _, recorder = workshop.build(text)
    assert [event.text for event in recorder.events if isinstance(event, WarningRaised)] == [
        "FromAsCasing: `as` is not in the case of `FROM` (line 3)",
        "LegacyKeyValueFormat: `ENV name value` is the old form; write `ENV name=value` (line 4)",
        "UndefinedVar: the variable `$G` is not defined (line 5)",
    ]


def test_a_build_ends_where_warnings_are_errors(workshop: Workshop) -> None:
    error = workshop.fail("# check=error=true\nFROM debian:12\nENV a b\nRUN a\n")
    assert isinstance(error, DockerfileError) and "LegacyKeyValueFormat" in error.message
    assert workshop.boots == 0
    workshop.build("# check=error=true;skip=LegacyKeyValueFormat\nFROM debian:12\nENV a b\nRUN a\n")


def test_a_build_for_another_platform_is_refused(workshop: Workshop) -> None:
    error = workshop.fail("FROM --platform=linux/s390x debian:12\nRUN a\n")
    assert "linux/s390x" in error.message and "linux/amd64" in error.message
    for same in ("linux/amd64", "amd64", "linux/x86_64/v1", "$TARGETPLATFORM", "linux"):
        workshop.build(f"FROM --platform={same} debian:12\nRUN a\n")
