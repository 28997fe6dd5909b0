"""Value types: references as Docker normalises them, ports, sizes, and names that must be refused."""

from __future__ import annotations

import pytest

from firebuild.errors import FirebuildError, UsageError
from firebuild.names import (
    parse_hostname,
    parse_machine_name,
    parse_object_name,
    parse_port_mappings,
    parse_reference,
    parse_size,
)

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:bookworm-slim", "docker.io/library/debian:bookworm-slim", "debian:bookworm-slim"),
        ("examples/redis:7", "docker.io/examples/redis:7", "examples/redis:7"),
        ("docker.io/library/debian:1", "docker.io/library/debian:1", "debian:1"),
        ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000/x:1"),
        ("reg.example/team/app:1.0-rc1", "reg.example/team/app:1.0-rc1", "reg.example/team/app:1.0-rc1"),
        ("[::1]:5000/a:b", "[::1]:5000/a:b", "[::1]:5000/a:b"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        ("a__b/c-d.e:T_1", "docker.io/a__b/c-d.e:T_1", "a__b/c-d.e:T_1"),
        ("FOO/bar", "FOO/bar:latest", "FOO/bar:latest"),
    ],
)
def test_references_are_normalised(text: str, full: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert (reference.full, reference.familiar) == (full, familiar)
    assert parse_reference(reference.full) == reference


@pytest.mark.parametrize(
    "text",
    ["", ":", "Debian", "a/../b:1", "a//b", "-a", "a:..", "a:" + "x" * 129, "a" * 300, "a@sha256:12", "a b", "a\0b",
     "é", "0" * 64, "/a", "a/", "a:b:c", "http://a/b"],
)  # fmt: skip
def test_what_is_no_reference_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="is not an image reference"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("80", ["80:80/tcp"]),
        ("8080:80", ["8080:80/tcp"]),
        ("127.0.0.1:6399:6379", ["127.0.0.1:6399:6379/tcp"]),
        ("[::1]:53:53/udp", ["[::1]:53:53/udp"]),
        ("8000-8001:80-81", ["8000:80/tcp", "8001:81/tcp"]),
    ],
)
def test_port_mappings(text: str, shown: list[str]) -> None:
    assert [str(mapping) for mapping in parse_port_mappings(text)] == shown


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "a", "1:2:3:4", "300.1.1.1:1:1", "1-2:1", "2-1", "80/sctp", "1:1/tcp/udp"]
)
def test_what_is_no_port_mapping_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_port_mappings(text)


@pytest.mark.parametrize(
    ("text", "size"), [("512m", 512 << 20), ("2g", 2 << 30), ("1024", 1024), ("1KiB", 1024), ("3MB", 3 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_size_without_a_unit_takes_the_default_one() -> None:
    assert parse_size("128", default_unit="m") == 128 << 20


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1.5g", "1 g"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "..", "a/b", "a" * 64, "-a", "é", "a b", "a\n"])
def test_what_is_no_name_is_refused(text: str) -> None:
    for parse in (parse_machine_name, parse_hostname):
        if parse is parse_hostname and text == "a" * 64:
            continue
        with pytest.raises(FirebuildError):
            parse(text)


@pytest.mark.parametrize("text", ["", "..", ".a", "a/b", "a\0", "x" * 129])
def test_object_names_are_safe_as_file_names(text: str) -> None:
    with pytest.raises(UsageError):
        parse_object_name("kernel", text)
