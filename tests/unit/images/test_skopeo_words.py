"""What skopeo's failures mean, which registries are this host, what archives hold."""

from __future__ import annotations

import pytest

from firebuild.errors import ImageError, UsageError
from firebuild.images.listing import docker_names
from firebuild.images.skopeo import classify_failure, describe_failure, is_loopback
from firebuild.images.transfer import parse_place

PREFIX = 'time="2026-01-01T00:00:00Z" level=fatal msg="initializing source docker://registry.example/x:1: '


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (PREFIX + 'dial tcp: lookup registry.example: no such host"', "unreachable"),
        (PREFIX + 'dial tcp 127.0.0.1:1: connect: connection refused"', "unreachable"),
        (PREFIX + 'dial tcp 192.0.2.1:443: i/o timeout"', "unreachable"),
        (PREFIX + 'received unexpected HTTP status: 503 Service Unavailable, status code 503"', "unreachable"),
        (PREFIX + 'reading manifest 1 in registry.example/x: manifest unknown: manifest unknown"', "not-found"),
        (PREFIX + 'reading manifest 1 in registry.example/x: unauthorized: authentication required"', "unauthorized"),
        (PREFIX + 'unable to retrieve auth token: invalid username/password: unauthorized"', "unauthorized"),
        (PREFIX + 'requested access to the resource is denied"', "unauthorized"),
        (PREFIX + 'http: server gave HTTP response to HTTPS client"', "tls"),
        (PREFIX + 'x509: certificate signed by unknown authority"', "tls"),
        (PREFIX + 'choosing an image from manifest list: no image found in manifest list for architecture s390x"', "platform"),
        (PREFIX + 'writing blob: Digest did not match, expected sha256:a, got sha256:b"', "damaged"),
        (PREFIX + 'writing blob: write /x: no space left on device"', "disk-full"),
        # A registry that answers with a status and nothing else.
        (PREFIX + 'reading manifest 1 in registry.example/x: StatusCode: 404, \\n"', "not-found"),
        (PREFIX + 'reading manifest 1 in registry.example/x: StatusCode: 403, \\n"', "unauthorized"),
        (PREFIX + 'fetching blob: StatusCode: 502, \\n"', "unreachable"),
        ("something else entirely", "other"),
        ("", "other"),
    ],
)  # fmt: skip
def test_failures_are_classified(stderr: str, reason: str) -> None:
    assert classify_failure(stderr)[0] == reason


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:5000", True), ("127.9.9.9", True), ("[::1]:5000", True),
        ("0.0.0.0:5000", False), ("docker.io", False), ("localhost.example", False), ("127.0.0.1.example", False),
        ("10.0.0.1:5000", False), ("[::]:5000", False), ("[::ffff:10.0.0.1]", False),
    ],
)  # fmt: skip
def test_loopback_is_written_out_loopback_only(domain: str, expected: bool) -> None:
    assert is_loopback(domain) is expected


def test_what_skopeo_says_is_told_without_its_logs_form() -> None:
    stderr = (
        "Getting image source signatures\nCopying blob sha256:1\n"
        'time="2026-01-01T00:00:00Z" level=debug msg="asked"\n'
        'time="2026-01-01T00:00:00Z" level=warning msg="failed, retrying"\n'
        'time="2026-01-01T00:00:00Z" level=fatal msg="reading \\"x\\": \x1b[31mdenied"\n'
    )
    assert describe_failure(stderr) == 'skopeo says: failed, retrying\nskopeo says: reading "x": denied'
    assert describe_failure("") is None
    assert describe_failure("no log line") == "skopeo says: no log line"


@pytest.mark.parametrize(
    ("manifest", "names"),
    [(b'[{"Config":"c","RepoTags":["a:1","a:2"],"Layers":[]},{"RepoTags":null}]', [["a:1", "a:2"], []])],
)
def test_names_of_docker_archives(manifest: bytes, names: list[list[str]]) -> None:
    assert docker_names(manifest, "the archive") == names


@pytest.mark.parametrize("manifest", [b"{", b"[]", b'{"a":1}', b'[{"RepoTags":"a"}]', b"[" * 100_000])
def test_indexes_that_do_not_parse(manifest: bytes) -> None:
    with pytest.raises(ImageError, match="archive"):
        docker_names(manifest, "the archive")


@pytest.mark.parametrize(
    ("text", "transport", "shown"),
    [
        ("debian:12", "docker", "debian:12"), ("docker://debian:12", "docker", "debian:12"), ("docker:dind", "docker", "docker:dind"),
        ("oci:/x/y", "oci", "oci:/x/y"), ("oci:/x:a:1", "oci", "oci:/x:a:1"), ("oci-archive:x.tar", "oci-archive", "oci-archive:x.tar"),
        ("docker-archive:x.tar:a:1", "docker-archive", "docker-archive:x.tar:a:1"),
        ("docker-daemon:a:1", "docker-daemon", "docker-daemon:a:1"),
    ],
)  # fmt: skip
def test_places(text: str, transport: str, shown: str) -> None:
    place = parse_place(text)
    assert (place.transport, str(place)) == (transport, shown)


@pytest.mark.parametrize(
    "text",
    ["oci:", "oci:a,b", "docker-daemon:", "docker-archive:\0", "../x", "a/../b", "x\0y", "ä:1", "a" * 300, "docker://"],
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError):
        parse_place(text)
