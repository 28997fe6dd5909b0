"""What skopeo's failures mean, which registries are this host, what archives hold."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from firebuild.errors import ImageError
from firebuild.images.listing import list_archive
from firebuild.images.skopeo import classify_failure, is_loopback

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


def write_archive(path: Path, files: dict[str, object]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_docker_archives(tmp_path: Path) -> None:
    manifest = [
        {"Config": "c", "RepoTags": ["a:1", "a:2"], "Layers": []},
        {"Config": "d", "RepoTags": None, "Layers": []},
    ]
    listing = list_archive(write_archive(tmp_path / "x", {"manifest.json": manifest, "repositories": {}}))
    assert (listing.transport, listing.names, listing.selectors) == (
        "docker-archive",
        [["a:1", "a:2"], []],
        [":@0", ":@1"],
    )


def test_oci_archives(tmp_path: Path) -> None:
    name = {"org.opencontainers.image.ref.name": "docker.io/library/a:1"}
    index = {"manifests": [{"digest": "x", "annotations": name}]}
    listing = list_archive(write_archive(tmp_path / "x", {"./index.json": index, "./oci-layout": {}}))
    assert (listing.transport, listing.names, listing.selectors) == ("oci-archive", [["docker.io/library/a:1"]], [""])
    full = {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "docker.io/library/a:1"}
    index = {"manifests": [{"digest": "x", "annotations": full}, {"digest": "y", "annotations": name}]}
    listing = list_archive(write_archive(tmp_path / "y", {"index.json": index, "oci-layout": {}}))
    assert listing.names == [["docker.io/library/a:1"]] * 2 and listing.selectors == [":1", ":docker.io/library/a:1"]


@pytest.mark.parametrize(
    "files",
    [
        {}, {"etc/passwd": b"root"}, {"manifest.json": b"{"}, {"manifest.json": []}, {"manifest.json": {"a": 1}},
        {"index.json": {"manifests": []}, "oci-layout": {}}, {"index.json": [], "oci-layout": {}}, {"index.json": {}, "oci-layout": {}},
        {"index.json": {"manifests": [{}, {}]}, "oci-layout": {}}, {"manifest.json": b" " * (5 << 20)},
    ],
)  # fmt: skip
def test_what_is_no_image_archive(tmp_path: Path, files: dict[str, object]) -> None:
    with pytest.raises(ImageError, match="archive"):
        list_archive(write_archive(tmp_path / "x", files))


@pytest.mark.parametrize("content", [b"", b"hello" * 1000])
def test_what_is_no_tar_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ImageError, match="cannot be read"):
        list_archive(tmp_path / "x")
