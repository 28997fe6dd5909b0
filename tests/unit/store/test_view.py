"""The path view: the keys that users' scripts read, one safe path for each reference."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from firebuild.names import parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.disks import Disk
from firebuild.store.images import Image, ImageConfig, ImageStore, RunConfig
from firebuild.store.view import (
    BuildConfig,
    ensure_view,
    find_metadata,
    list_views,
    make_metadata,
    remove_view,
    view_folder,
)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    blobs = BlobStore(tmp_path / "store")
    blobs.ensure()
    run = RunConfig(
        cmd=["-dev"], entrypoint=["/bin/consul"], env=["A=1", "B=x=y"], exposed_ports={"8500/tcp": {}},
        volumes={"/data": {}}, labels={"l": "v"}, user="consul", working_dir="/srv",
    )  # fmt: skip
    config = ImageConfig("amd64", "linux", created="2021-03-28T10:00:00.123456789Z", config=run)
    return ImageStore(blobs).commit_image(config, [], [parse_reference("combust-labs/consul:1.9.4")])


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    path = tmp_path / "disk.ext4"
    path.write_bytes(b"disk")
    return Disk("a" * 64, path, 4, "sha256:x", None, {})


@pytest.mark.parametrize(
    ("reference", "folder"),
    [
        ("debian:bookworm-slim", "_/debian/bookworm-slim"),
        ("combust-labs/consul:1.9.4", "combust-labs/consul/1.9.4"),
        ("a/b/c:d", "a+b/c/d"),
        ("localhost:5000/team/app:1", "localhost:5000+team/app/1"),
        ("quay.io/app:1", "quay.io/app/1"),
        ("docker.io/quay.io/app:1", "docker.io+quay.io/app/1"),
        ("docker.io/localhost/app:1", "docker.io+localhost/app/1"),
    ],
)
def test_each_reference_has_its_own_folder(tmp_path: Path, reference: str, folder: str) -> None:
    assert view_folder(tmp_path, parse_reference(reference)) == tmp_path / folder


def test_a_digest_alone_has_no_folder(tmp_path: Path, image: Image, disk: Disk) -> None:
    reference = parse_reference(f"debian@sha256:{'a' * 64}")
    assert view_folder(tmp_path, reference) is None
    assert ensure_view(tmp_path, reference, disk.path, make_metadata(image, reference, kind="rootfs")) is None


def test_the_keys_and_the_link(tmp_path: Path, image: Image, disk: Disk) -> None:
    reference = parse_reference("combust-labs/consul:1.9.4")
    build = BuildConfig(build_args={"V": "1"}, dockerfile="Dockerfile")
    metadata = make_metadata(image, reference, kind="rootfs", disk=disk, build=build, parent={"Tag": "alpine:3.13"})
    folder = ensure_view(tmp_path / "rootfs", reference, disk.path, metadata)
    assert folder is not None and (folder / "rootfs").read_bytes() == b"disk"
    assert os.readlink(folder / "rootfs") == os.fspath(disk.path)
    document = json.loads((folder / "metadata.json").read_text())
    assert document | {"ManifestDigest": "", "ConfigDigest": "", "ChainId": ""} == {
        "Type": "rootfs",
        "CreatedAtUTC": 1616925600,
        "Image": {"Org": "combust-labs", "Image": "consul", "Version": "1.9.4"},
        "Tag": "combust-labs/consul:1.9.4",
        "Labels": {"l": "v"},
        "Ports": ["8500/tcp"],
        "Volumes": ["/data"],
        "Parent": {"Tag": "alpine:3.13"},
        "EntrypointInfo": {
            "Cmd": ["-dev"],
            "Entrypoint": ["/bin/consul"],
            "Env": {"A": "1", "B": "x=y"},
            "Shell": ["/bin/sh", "-c"],
            "User": "consul",
            "Workdir": "/srv",
        },
        "BuildConfig": {
            "BuildArgs": {"V": "1"},
            "Dockerfile": "Dockerfile",
            "DockerImage": "",
            "DockerImageBase": "",
            "PreBuildCommands": [],
            "PostBuildCommands": [],
        },
        "ManifestDigest": "",
        "ConfigDigest": "",
        "ChainId": "",
        "DiskKey": disk.key,
        "FactsDigest": "",
        "User": "consul",
        "Environment": {"A": "1", "B": "x=y"},
        "StopSignal": "",
        "Architecture": "amd64",
        "Steps": [],
    }
    assert find_metadata(tmp_path / "rootfs", reference) == metadata


def test_renewing_listing_and_removing(tmp_path: Path, image: Image, disk: Disk) -> None:
    root = tmp_path / "rootfs"
    names = ["debian:12", "debian:13", "localhost:5000/team/app:1"]
    for name in names * 2:
        reference = parse_reference(name)
        ensure_view(root, reference, disk.path, make_metadata(image, reference, kind="baseos"))
    assert sorted(reference.familiar for reference, _, _ in list_views(root)) == names
    other = disk.path.with_name("other.ext4")
    other.write_bytes(b"other")
    folder = ensure_view(
        root, parse_reference("debian:12"), other,
        make_metadata(image, parse_reference("debian:12"), kind="baseos"),
    )  # fmt: skip
    assert folder is not None and (folder / "rootfs").read_bytes() == b"other"
    for name in names:
        remove_view(root, parse_reference(name))
        remove_view(root, parse_reference(name))
    assert list(root.iterdir()) == [] and other.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_a_broken_view_counts_as_none(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "_/debian/12"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_bytes(content)
    assert find_metadata(tmp_path, parse_reference("debian:12")) is None


@pytest.mark.parametrize("created", [None, "", "yesterday", "0000-00-00T00:00:00Z"])
def test_strange_times_are_zero(image: Image, created: str | None) -> None:
    import msgspec

    strange = msgspec.structs.replace(image, created=created)
    assert make_metadata(strange, parse_reference("a:1"), kind="rootfs").created_at_utc == 0
