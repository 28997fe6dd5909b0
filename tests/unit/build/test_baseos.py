"""Base operating systems without a machine: the shipped Dockerfiles, the names, and an image moved onto another system."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.build.check import check_image, make_options
from firebuild.build.plan import find_base_name
from firebuild.build.services import BuildRequest
from firebuild.dockerfile.stages import parse_dockerfile
from firebuild.engine.docker_image import count_shared, plan_move
from firebuild.engine.machines import RunRequest, plan_entrypoint, plan_init, plan_users
from firebuild.errors import UsageError
from firebuild.names import Digest, Reference, baseos_reference, baseos_stands_for, parse_reference
from firebuild.store.blobs import Descriptor
from firebuild.store.images import CONFIG_TYPE, History, Image, ImageConfig, Manifest, RootFs, RunConfig

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "baseos" / "_").glob("*/*/Dockerfile"))
USERS = {"debian": "debian", "ubuntu": "ubuntu", "alpine": "alpine"}


def make_image(layers: str = "", run: RunConfig | None = None, history: list[History] | None = None) -> Image:
    """An image with a layer for each letter."""
    digests = [Digest(f"sha256:{letter * 64}") for letter in layers]
    descriptors = [Descriptor("application/x", digest, 1) for digest in digests]
    config = ImageConfig(
        "amd64", "linux", config=run or RunConfig(), rootfs=RootFs(diff_ids=list(digests)), history=history or []
    )
    digest = Digest("sha256:" + "0" * 64)
    manifest = Manifest(schema_version=2, config=Descriptor(CONFIG_TYPE, digest, 2), layers=descriptors)
    return Image(None, digest, manifest, digest, config, descriptors, None, 0)


def test_what_is_shipped() -> None:
    names = {f"{file.parts[-3]}:{file.parts[-2]}" for file in SHIPPED}
    assert {"debian:bookworm", "debian:bookworm-slim", "debian:trixie", "ubuntu:24.04", "alpine:3.20"} <= names


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: "-".join(file.parts[-3:-1]))
def test_a_shipped_file_passes_its_checks_and_names_its_image(file: Path) -> None:
    asked: list[Reference] = []

    def find_image(reference: Reference) -> Image:
        asked.append(reference)
        return make_image("a", RunConfig(env=["PATH=/bin"], cmd=["bash"]))

    request = BuildRequest(dockerfile=file.read_bytes(), name=str(file))
    report = check_image(request, find_image, lambda: None)
    assert report.passed and not report.warnings, report
    name = find_base_name(parse_dockerfile(request.dockerfile, "Dockerfile"), make_options(request, None))
    assert [reference.familiar for reference in asked] == [name] == [f"{file.parts[-3]}:{file.parts[-2]}"]
    text = file.read_text()
    # Found where its name says, its user named, no host key left in it, and no command to run in place of the system.
    assert f"LABEL org.firebuild.user={USERS[file.parts[-3]]}\nCMD []\n" in text
    assert "rm -f /etc/ssh/ssh_host_*" in text
    assert len(text.splitlines()) < 50


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("debian:bookworm-slim", "baseos.internal/debian:bookworm-slim"),
        ("org/name:1", "baseos.internal/org/name:1"),
        ("quay.io/org/name:1", "baseos.internal/quay.io/org/name:1"),
        ("127.0.0.1:5000/a:1", "baseos.internal/127.0.0.1__5000/a:1"),
        ("baseos.internal/debian:12", "baseos.internal/debian:12"),
    ],
)
def test_the_name_in_the_store(text: str, stored: str) -> None:
    reference = baseos_reference(parse_reference(text))
    assert reference.familiar == stored
    if text != stored:
        assert baseos_stands_for(reference).familiar == text


def test_a_registry_without_such_a_name() -> None:
    with pytest.raises(UsageError):
        baseos_reference(parse_reference("[::1]:5000/a:1"))


def test_the_base_is_found_through_arguments_and_stages() -> None:
    text = b"ARG RELEASE=12\nFROM debian:$RELEASE AS system\nFROM alpine:3 AS other\nFROM system\n"
    request = BuildRequest(dockerfile=text, build_args={"RELEASE": "13"})
    dockerfile = parse_dockerfile(text, "Dockerfile")
    assert find_base_name(dockerfile, make_options(request, None)) == "debian:13"
    assert find_base_name(dockerfile, make_options(request, "other")) == "alpine:3"


def test_an_image_is_moved_onto_a_system_without_what_both_have() -> None:
    base = make_image(
        "abx", RunConfig(labels={"org.firebuild.init": "system", "org.firebuild.user": "debian", "b": "1"})
    )
    history = [
        History(created_by="a"),
        History(created_by="b"),
        History(created_by="env", empty_layer=True),
        History(created_by="c"),
    ]
    image = make_image("abc", RunConfig(cmd=["serve"], labels={"own": "1"}), history)
    shared = count_shared(base, image)
    layers, config = plan_move(base, image, shared)
    assert shared == 2
    assert [layer.digest[7] for layer in layers] == [diff_id[7] for diff_id in config.rootfs.diff_ids] == list("abxc")
    assert config.config.cmd == ["serve"]
    assert config.config.labels == {"org.firebuild.init": "system", "org.firebuild.user": "debian", "own": "1"}
    assert [entry.created_by for entry in config.history] == ["c"]
    foreign = make_image("de")
    assert count_shared(base, foreign) == 0
    assert len(plan_move(base, foreign, 0)[0]) == 5


def test_who_is_pid_1() -> None:
    system = make_image(run=RunConfig(labels={"org.firebuild.init": "system"}))
    assert plan_init(system, RunRequest("a")) == "system"
    assert plan_init(system, RunRequest("a", init="direct")) == "direct"
    assert plan_init(make_image(), RunRequest("a")) == "direct"
    assert plan_entrypoint(system, RunRequest("a")).cmd == []
    with pytest.raises(UsageError):
        plan_entrypoint(system, RunRequest("a", init="direct"))


def test_who_gets_the_keys() -> None:
    image = make_image(run=RunConfig(labels={"org.firebuild.user": "debian"}))
    assert plan_users(image, RunRequest("a", ssh_keys="k\n")) == {"debian": "k\n"}
    assert plan_users(image, RunRequest("a", ssh_keys="k\n", ssh_users=("root", "x"))) == {"root": "k\n", "x": "k\n"}
    assert plan_users(image, RunRequest("a")) == {}
    for bad in (RunRequest("a", ssh_users=("root",)), RunRequest("a", ssh_keys="k\n")):
        with pytest.raises(UsageError):
            plan_users(make_image(), bad)
