"""Which format skopeo is told to keep, by what a registry's manifest or index says; and Docker's types in OCI's words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from firebuild.images.arrival import DOCKER_FORMAT, plan_format
from firebuild.images.ocilayout import to_oci_manifest
from firebuild.names import oci_layer_type

OCI = "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
ARM = {"mediaType": OCI, "platform": {"architecture": "arm64", "os": "linux"}}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"schemaVersion": 2, "mediaType": OCI}, ()),
        ({"schemaVersion": 2, "config": {}}, ()),
        ({"schemaVersion": 2, "mediaType": DOCKER}, DOCKER_FORMAT),
        ({"schemaVersion": 1, "fsLayers": []}, DOCKER_FORMAT),
        ({"manifests": [ARM, {"mediaType": DOCKER, "platform": {"architecture": "amd64"}}]}, DOCKER_FORMAT),
        ({"manifests": [ARM, {"mediaType": DOCKER}]}, DOCKER_FORMAT),
        ({"mediaType": DOCKER.replace("manifest", "manifest.list"), "manifests": [{"mediaType": OCI}]}, ()),
        ({"manifests": []}, ()),
        ({"manifests": 7}, ()),
        ([], ()),
    ],
)
def test_formats(document: Any, expected: tuple[str, ...]) -> None:
    assert plan_format(json.dumps(document).encode(), "amd64") == expected


def test_what_is_no_json_is_left_to_skopeo() -> None:
    assert plan_format(b"<html>", "amd64") == plan_format(b"[" * 100_000, "amd64") == ()


@pytest.mark.parametrize(
    ("docker", "oci"),
    [
        ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("diff.tar", "diff.tar"),
    ],
)
def test_types_of_layers(docker: str, oci: str) -> None:
    assert oci_layer_type(docker) == oci


def test_a_manifest_of_docker_s_becomes_oci_s_and_oci_s_stays() -> None:
    layer = {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": "sha256:1", "size": 1}
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:2", "size": 2}
    data = json.dumps({"schemaVersion": 2, "mediaType": DOCKER, "config": config, "layers": [layer]}).encode()
    made = json.loads(to_oci_manifest(data))
    assert made["mediaType"] == OCI and made["config"]["digest"] == "sha256:2"
    assert made["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert made["layers"] == [{**layer, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}]
    own = json.dumps({"mediaType": OCI}, indent=3).encode()
    assert to_oci_manifest(own) is own
