"""Images as Docker makes them keep all of their configuration and its digest, in and out; and `--pull` asks the registry."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from firebuild.build.build import build_image
from firebuild.build.services import BuildRequest, BuildResult
from firebuild.config.settings import load_settings
from firebuild.engine.bases import resolve_base
from firebuild.engine.core import Engine
from firebuild.errors import NotFoundError
from firebuild.names import parse_reference
from tests.support.cli import Cli
from tests.support.registry import put_docker_image, start_registry, tree_tar
from tests.unit.build.fakes import Recorder, Workshop

HEALTHCHECK = {"Test": ["CMD-SHELL", "true"], "Interval": 5 * 10**9, "Retries": 4}
# What OCI's image configuration has no field for, and Docker's has.
OWN = {"Healthcheck": HEALTHCHECK, "OnBuild": ["RUN echo triggered"], "Shell": ["/bin/bash", "-c"]}


def docker_config(layer: bytes, **run: Any) -> bytes:
    """A configuration in Docker's own form, with fields and a layout that nobody here would write."""
    diff_id = "sha256:" + hashlib.sha256(layer).hexdigest()
    return json.dumps(
        {
            "architecture": "amd64",
            "config": {"Hostname": "", "Env": ["PATH=/bin"], "Cmd": ["/bin/app"], "ArgsEscaped": True, **OWN, **run},
            "container_config": {"Cmd": ["none"]},
            "created": "2026-01-01T00:00:00Z",
            "docker_version": "20.10.7",
            "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "/bin/sh -c #(nop) ADD"}],
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        },
        indent=1,
    ).encode()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check(cli: Cli, name: str, config: bytes) -> dict[str, Any]:
    """The image's id is the digest of the configuration that its maker wrote, and nothing of it is lost."""
    inspected: dict[str, Any] = cli.json("image", "inspect", name)[0]
    assert inspected["Id"] == digest(config)
    assert {key: inspected["Config"][key] for key in OWN} == OWN
    return inspected


def test_a_docker_image_of_a_registry_stays_what_it_is(firebuild_cli: Cli, tmp_path: Path) -> None:
    cli, layer = firebuild_cli, tree_tar()
    config = docker_config(layer)
    with start_registry(tmp_path / "registry") as port:
        manifest = put_docker_image(port, "team/app:1", config, layer)
        name = f"127.0.0.1:{port}/team/app"
        cli.ok("image", "pull", f"{name}:1")
        assert check(cli, f"{name}:1", config)["Digest"] == digest(manifest)
        cli.ok("image", "pull", f"{name}@{digest(manifest)}")
        assert check(cli, f"{name}@{digest(manifest)}", config)["Digest"] == digest(manifest)

        cli.ok("image", "push", f"{name}:1", f"{name}:2")
        there = subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{name}:2"], check=True, capture_output=True
        ).stdout
        assert there == manifest, "what is pushed is what was pulled"

        assert check(cli, f"{name}:1", config)["Digest"] == digest(manifest)

    saved = [tmp_path / f"saved-{kind}.tar" for kind in ("oci-archive", "docker-archive")]
    for file, kind in zip(saved, ("oci-archive", "docker-archive"), strict=True):
        cli.ok("image", "save", "--format", kind, "-o", file, f"{name}:1")
    places = [f"oci:{tmp_path}/layout:x", f"oci-archive:{tmp_path}/o.tar:x", f"docker-archive:{tmp_path}/d.tar:app:x"]
    for place in places:
        cli.ok("image", "push", f"{name}:1", place)
    for file in saved:
        cli.ok("image", "rm", "--force", digest(config))
        cli.ok("image", "prune", "--all", "--force")
        cli.ok("image", "load", "-i", file)
        check(cli, f"{name}:1", config)
    for place in places:
        cli.ok("image", "pull", place, "back:1")
        check(cli, "back:1", config)
    cli.ok("fsck")


def test_docker_archives_keep_the_configuration(firebuild_cli: Cli, tmp_path: Path) -> None:
    """As Docker before 25 writes them: no manifest but the list, layers plain."""
    layer = tree_tar()
    config = docker_config(layer)
    archive = tmp_path / "saved.tar"
    with tarfile.open(archive, "w") as tar:
        listed = [{"Config": f"{digest(config)[7:]}.json", "RepoTags": ["saved:1"], "Layers": ["one/layer.tar"]}]
        for name, data in (
            ("one/layer.tar", layer), (f"{digest(config)[7:]}.json", config), ("manifest.json", json.dumps(listed).encode()),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    firebuild_cli.ok("image", "load", "-i", archive)
    loaded = check(firebuild_cli, "saved:1", config)
    firebuild_cli.ok("image", "pull", f"docker-archive:{archive}", "pulled:1")
    assert check(firebuild_cli, "pulled:1", config)["Digest"] == loaded["Digest"]
    manifest = json.loads((firebuild_cli.state / "store/blobs/sha256" / loaded["Digest"][7:]).read_text())
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert [entry["mediaType"] for entry in manifest["layers"]] == ["application/vnd.oci.image.layer.v1.tar"]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    settings = load_settings({"FIREBUILD_STATE": str(tmp_path / "state"), "FIREBUILD_RUN": str(tmp_path / "run")})[0]
    with Engine(settings) as opened:
        yield opened


def test_pull_asks_the_registry_and_names_the_base_that_changed(engine: Engine, tmp_path: Path) -> None:
    """The registry, skopeo and the store are real, the machine is not."""
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop")
    shop.database.close()
    shop.blobs, shop.images, shop.database = engine.blobs, engine.images, engine.database
    with start_registry(tmp_path / "registry") as port:
        name = f"127.0.0.1:{port}/base:1"
        text = f"FROM {name}\nRUN install\n"

        def build(*, pull: bool) -> tuple[BuildResult, Recorder]:
            recorder = Recorder()
            request = BuildRequest(dockerfile=text.encode(), progress=recorder)
            services = msgspec.structs.replace(shop.services(), resolve_base=partial(resolve_base, engine, pull=pull))
            return build_image(request, services), recorder

        first = put_docker_image(port, "base:1", docker_config(tree_tar(), OnBuild=None), tree_tar())
        built, _ = build(pull=True)
        assert built.booted and [base for _, base in built.bases] == [digest(first)]
        assert [entry.digest for entry in engine.images.get_image(parse_reference(name)).layers]
        blobs = set(engine.blobs.list_digests())
        again, _ = build(pull=True)
        assert not again.booted and again.cached == again.steps and again.image.id == built.image.id
        assert set(engine.blobs.list_digests()) == blobs, "nothing was fetched"

        changed = tree_tar(b"newer")
        second = put_docker_image(port, "base:1", docker_config(changed, OnBuild=None), changed)
        stored, _ = build(pull=False)
        assert not stored.booted, "without --pull the stored image is used"
        renewed, recorder = build(pull=True)
        assert renewed.booted and [base for _, base in renewed.bases] == [digest(second)]
        assert recorder.reason("RUN install") == f"rebuilt: the base image {name} changed"
        layers = json.loads(engine.blobs.read(renewed.image.manifest_digest))["layers"]
        assert all(layer["mediaType"].startswith("application/vnd.oci.image.layer.v1.tar") for layer in layers)
    with pytest.raises(NotFoundError) as caught:
        build(pull=True)
    assert name in caught.value.message and "cannot be reached" in caught.value.message
    assert caught.value.hint == "without --pull the stored image is used"
