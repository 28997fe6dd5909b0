"""Images and names: OCI's documents, the index as the atomic pointer, damage with a name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from firebuild.errors import NotFoundError, StoreError, UsageError
from firebuild.names import Digest, Reference, parse_reference
from firebuild.store.blobs import BlobStore, Descriptor
from firebuild.store.images import (
    REFERENCE_ANNOTATION,
    Image,
    ImageConfig,
    ImageStore,
    RootFs,
    RunConfig,
    compute_chain_id,
    parse_config,
    parse_manifest,
)

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    blobs = BlobStore(tmp_path / "store")
    blobs.ensure()
    return ImageStore(blobs)


def add_image(images: ImageStore, name: str | None, content: bytes = b"layer", **config: Any) -> Image:
    layer = images.blobs.put(content, LAYER_TYPE)
    document = ImageConfig(
        architecture="amd64",
        os="linux",
        created="2026-01-02T03:04:05Z",
        config=RunConfig(**config),
        rootfs=RootFs(diff_ids=[layer.digest]),
    )
    return images.commit_image(document, [layer], [parse_reference(name)] if name else [], {"k": "v"})


def test_commit_find_and_list(images: ImageStore) -> None:
    made = add_image(images, "debian:bookworm-slim", env=["PATH=/bin"], cmd=["sh"])
    found = images.get_image(parse_reference("debian:bookworm-slim"))
    assert found == made
    assert found.reference == "docker.io/library/debian:bookworm-slim"
    assert found.config.config.env == ["PATH=/bin"] and found.config.config.cmd == ["sh"]
    assert found.manifest.annotations == {"k": "v"}
    assert found.size == sum(images.blobs.size(digest) for digest in images.blobs.list_digests())
    assert images.list_images() == [made]
    assert images.find_image(parse_reference("debian:other")) is None
    assert images.find_image(Reference(domain="oci-layout", path="c", tag=None, digest=None)) is None


def test_commit_is_reproducible(images: ImageStore, tmp_path: Path) -> None:
    other = ImageStore(BlobStore(tmp_path / "other"))
    other.blobs.ensure()
    labels = {"b": "2", "a": "1"}
    one = add_image(images, "x:1", labels=labels)
    two = add_image(other, "x:1", labels=dict(reversed(labels.items())))
    assert one.manifest_digest == two.manifest_digest
    assert images.blobs.index.read_bytes() == other.blobs.index.read_bytes()


def test_the_index_is_an_oci_index_with_full_names(images: ImageStore) -> None:
    image = add_image(images, "examples/redis:7")
    index = json.loads(images.blobs.index.read_bytes())
    assert index["schemaVersion"] == 2
    assert index["manifests"] == [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest_digest,
            "size": images.blobs.size(image.manifest_digest),
            "annotations": {REFERENCE_ANNOTATION: "docker.io/examples/redis:7"},
        }
    ]


def test_the_written_config_has_ocis_keys(images: ImageStore) -> None:
    image = add_image(
        images, "x:1", exposed_ports={"80/tcp": {}}, working_dir="/w", stop_signal="SIGINT", on_build=["RUN x"]
    )
    document = json.loads(images.blobs.read(image.config_digest))
    assert document["config"] == {
        "ExposedPorts": {"80/tcp": {}},
        "WorkingDir": "/w",
        "StopSignal": "SIGINT",
        "OnBuild": ["RUN x"],
    }
    assert document["rootfs"] == {"type": "layers", "diff_ids": [digest_of(b"layer")]}


def test_nulls_and_unknown_keys_of_docker_are_taken() -> None:
    config = parse_config(
        b'{"architecture":"amd64","os":"linux","docker_version":"1","config":{"Env":null,"Entrypoint":null,"Volumes":null,'
        b'"Healthcheck":{"Test":["CMD","x"],"Interval":1000000000},"Image":"","OnBuild":null},"rootfs":{"type":"layers",'
        b'"diff_ids":[]},"history":[{"created_by":"x","empty_layer":true}],"os.version":"1.2"}'
    )
    assert config.config.env == [] and config.config.entrypoint == [] and config.config.volumes == {}
    assert config.config.healthcheck is not None and config.config.healthcheck.interval == 10**9
    assert config.history[0].empty_layer and config.os_version == "1.2"


def test_retagging_moves_the_name_and_untag_removes_it(images: ImageStore) -> None:
    old = add_image(images, "app:1", b"old")
    new = add_image(images, "app:1", b"new")
    assert images.get_image(parse_reference("app:1")).manifest_digest == new.manifest_digest
    images.tag(parse_reference("app:old"), old.manifest_digest)
    assert set(images.list_references().values()) == {old.manifest_digest, new.manifest_digest}
    images.untag(parse_reference("app:1"))
    with pytest.raises(NotFoundError, match=r"no image `app:1`"):
        images.untag(parse_reference("app:1"))
    assert list(images.list_references()) == ["docker.io/library/app:old"]
    assert images.load_image(new.manifest_digest).config == new.config, "untagged bytes stay"


def test_unknown_names_suggest_similar_ones(images: ImageStore) -> None:
    add_image(images, "debian:bookworm-slim")
    add_image(images, "examples/redis:7")
    with pytest.raises(NotFoundError) as caught:
        images.get_image(parse_reference("debian:bookworm"))
    assert "`debian:bookworm-slim`" in (caught.value.hint or "")
    with pytest.raises(NotFoundError) as caught:
        images.get_image(parse_reference("example/redis:7"))
    assert "`examples/redis:7`" in (caught.value.hint or "")
    with pytest.raises(NotFoundError) as caught:
        images.get_image(parse_reference("quite.different/thing:0"))
    assert "image ls" in (caught.value.hint or "")


def test_digest_references(images: ImageStore) -> None:
    image = add_image(images, "app:1")
    assert images.find_image(parse_reference(f"app@{image.manifest_digest}")) is not None
    assert images.find_image(parse_reference(f"app:nonsense@{image.manifest_digest}")) is not None
    assert images.find_image(parse_reference(f"ap@{image.manifest_digest}")) is None
    listed = Digest("sha256:" + "7" * 64)
    images.tag(parse_reference(f"app:2@{listed}"), image.manifest_digest)
    for name in (f"app@{listed}", "app:2", f"app:2@{listed}"):
        assert images.get_image(parse_reference(name)).manifest_digest == image.manifest_digest
    images.untag(parse_reference(f"app:2@{listed}"))
    assert list(images.list_references()) == ["docker.io/library/app:1"]


def test_by_id(images: ImageStore) -> None:
    one = add_image(images, "a:1", b"1")
    add_image(images, "b:1", b"2")
    images.tag(parse_reference("a:2"), one.manifest_digest)
    for prefix in (one.config_digest, one.config_digest[7:19], one.manifest_digest[7:19]):
        assert images.get_by_id(prefix).manifest_digest == one.manifest_digest
    for prefix in ("", "xyz", "0" * 64, "sha256:"):
        with pytest.raises(NotFoundError):
            images.get_by_id(prefix)


def test_an_ambiguous_id_is_refused(images: ImageStore) -> None:
    for number in range(40):  # 40 images and 16 first digits: two share one
        add_image(images, f"a:{number}", str(number).encode())
    first = [image.config_digest[7] for image in images.list_images()]
    shared = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(UsageError, match="beginning of"):
        images.get_by_id(shared)


def test_missing_layer_or_wrong_count_is_refused(images: ImageStore) -> None:
    config = ImageConfig("amd64", "linux", rootfs=RootFs(diff_ids=[digest_of(b"x")]))
    with pytest.raises(StoreError, match="is missing from the store"):
        images.commit_image(config, [Descriptor(LAYER_TYPE, digest_of(b"x"), 1)], [parse_reference("a:1")])
    with pytest.raises(StoreError, match="manifest has 0 layers"):
        images.commit_image(config, [], [parse_reference("a:1")])
    layer = images.blobs.put(b"x", LAYER_TYPE)
    with pytest.raises(StoreError, match="has not the size"):
        images.commit_image(config, [Descriptor(LAYER_TYPE, layer.digest, 99)], [parse_reference("a:1")])
    assert images.list_references() == {}


def test_an_image_without_layers_works(images: ImageStore) -> None:
    image = images.commit_image(ImageConfig("amd64", "linux"), [], [parse_reference("empty:1")])
    assert image.chain_id == digest_of(b"")


def test_chain_id_is_ocis() -> None:
    one, two, three = (digest_of(name) for name in (b"1", b"2", b"3"))
    assert compute_chain_id([one]) == one
    expected = digest_of(f"{digest_of(f'{one} {two}'.encode())} {three}".encode())
    assert compute_chain_id([one, two, three]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "does not parse"),
        (b"[]", "not an object"),
        (b'{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}', "index"),
        (
            b'{"schemaVersion":1,"config":{"mediaType":"x","digest":"sha256:%s","size":1},"layers":[]}' % (b"a" * 64),
            "schema version 1",
        ),
        (
            b'{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:../x","size":1},"layers":[]}',
            "does not parse",
        ),
        (
            b'{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:%s","size":-1},"layers":[]}' % (b"a" * 64),
            "does not parse",
        ),
        (b"[" * 100000, "does not parse"),
    ],
)
def test_bad_manifests(text: bytes, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        parse_manifest(text)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"architecture":1,"os":"linux"}', b'{"os":"linux"}', b"\xff", b'{"a":' * 90000]
)
def test_bad_configs(text: bytes) -> None:
    with pytest.raises(StoreError, match="does not parse"):
        parse_config(text)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"schemaVersion":"x"}', b'{"schemaVersion":2,"manifests":[{"digest":"../x"}]}']
)
def test_a_damaged_index_is_a_store_error(images: ImageStore, content: bytes) -> None:
    images.blobs.index.write_bytes(content)
    with pytest.raises(StoreError, match=r"index `.*index\.json` is damaged"):
        images.list_images()


def test_damage_names_the_image_and_spares_the_others(images: ImageStore) -> None:
    bad = add_image(images, "bad:1", b"bad")
    add_image(images, "good:1", b"good")
    path = images.blobs.path(bad.config_digest)
    path.chmod(0o600)
    path.write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"the image `bad:1` is damaged: the blob sha256:"):
        images.get_image(parse_reference("bad:1"))
    assert images.get_image(parse_reference("good:1")).reference == "docker.io/library/good:1"
    seen: list[str] = []
    listed = images.list_images(lambda name, error: seen.append(name))
    assert [image.reference for image in listed] == ["docker.io/library/good:1"]
    assert seen == ["docker.io/library/bad:1"]
