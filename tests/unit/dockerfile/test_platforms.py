"""Platform strings against the table of containerd's platforms package."""

from __future__ import annotations

import pytest

from firebuild.dockerfile.platforms import is_same_platform, normalize_platform, parse_platform
from firebuild.dockerfile.scope import Platform
from firebuild.errors import DockerfileError

HOST = Platform("linux", "amd64")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/amd64/v2", Platform("linux", "amd64", "v2")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/x86-64", Platform("linux", "amd64")),
        ("linux/arm64", Platform("linux", "arm64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64", "v8")),
        ("linux/arm64/8", Platform("linux", "arm64", "v8")),
        ("linux/arm64/9.0", Platform("linux", "arm64", "v9")),
        ("linux/arm", Platform("linux", "arm")),
        ("linux/arm/7", Platform("linux", "arm", "v7")),
        ("linux/arm/v6", Platform("linux", "arm", "v6")),
        ("linux/armhf", Platform("linux", "arm")),
        ("linux/armel", Platform("linux", "arm", "v6")),
        ("linux/i386", Platform("linux", "386")),
        ("linux/riscv64", Platform("linux", "riscv64")),
        ("linux/what", Platform("linux", "what")),
        ("what/amd64", Platform("what", "amd64")),
        ("macos/arm64", Platform("darwin", "arm64")),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", "", "10.0.17763")),
        ("windows(a%2Bb)/amd64", Platform("windows", "amd64", "", "a+b")),
        ("linux()/amd64", Platform("linux", "amd64")),
        ("amd64", Platform("linux", "amd64")),
        ("X86_64", Platform("linux", "amd64")),
        ("arm64", Platform("linux", "arm64")),
        ("arm", Platform("linux", "arm")),
        ("armel", Platform("linux", "arm", "v6")),
        ("linux", Platform("linux", "amd64")),
        ("windows", Platform("windows", "amd64")),
        ("freebsd(14)", Platform("freebsd", "amd64", "", "14")),
    ],
)
def test_parse(text: str, expected: Platform) -> None:
    assert parse_platform(text, HOST) == expected


def test_what_is_left_out_is_the_hosts() -> None:
    assert parse_platform("linux", Platform("linux", "arm", "v6")) == Platform("linux", "arm", "v6")
    assert parse_platform("linux", Platform("linux", "arm", "v7")) == Platform("linux", "arm")
    assert parse_platform("linux", Platform("linux", "arm64", "v8")) == Platform("linux", "arm64")
    assert parse_platform("amd64", Platform("freebsd", "arm64")) == Platform("freebsd", "amd64")


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "linux/", "/amd64", "linux/amd64/v1/x", "linux/*", "*", "what", "linux amd64", "linux/amd 64",
        "linux(1/amd64", "linux(+feature)/amd64", "linux(1)x/amd64", "linux/amd64(1)", "x" * 300, "linux/am\x1b[2Jd64",
    ],
)  # fmt: skip
def test_malformed(text: str) -> None:
    with pytest.raises(DockerfileError) as raised:
        parse_platform(text, HOST)
    assert raised.value.hint
    assert raised.value.message.isprintable()


def test_a_misspelt_one_has_a_suggestion() -> None:
    with pytest.raises(DockerfileError) as raised:
        parse_platform("amd46", HOST)
    assert raised.value.hint == "did you mean `amd64`?"


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        (Platform("Linux", "x86_64"), Platform("linux", "amd64")),
        (Platform("linux", "arm64", "v8"), Platform("linux", "arm64")),
        (Platform("linux", "arm"), Platform("linux", "arm", "v7")),
        (Platform("linux", "amd64", "v3", "6.1"), Platform("linux", "amd64", "v3", "6.1")),
    ],
)
def test_normalize(platform: Platform, expected: Platform) -> None:
    assert normalize_platform(platform) == expected
    assert normalize_platform(expected) == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/x86_64", "linux/amd64", True),
        ("linux/arm", "linux/arm/v7", True),
        ("linux/arm/v6", "linux/arm", False),
        ("linux/amd64", "linux/amd64/v2", False),
        ("linux/amd64", "linux/386", False),
        ("windows(1)/amd64", "windows(2)/amd64", True),
        ("windows/amd64", "linux/amd64", False),
    ],
)
def test_same(one: str, other: str, same: bool) -> None:
    assert is_same_platform(parse_platform(one, HOST), parse_platform(other, HOST)) is same
