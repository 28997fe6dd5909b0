"""fsck: finds every kind of damage, names it, sets it aside, and says nothing of a sound store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firebuild.errors import StoreError
from firebuild.names import parse_reference
from firebuild.store.blobs import BlobStore
from firebuild.store.disks import DiskStore
from firebuild.store.fsck import check_store
from firebuild.store.images import Image, ImageConfig, ImageStore, RootFs


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "store")
    store.ensure()
    return store


def add_image(blobs: BlobStore, name: str, content: bytes) -> Image:
    layer = blobs.put(content, "application/vnd.oci.image.layer.v1.tar")
    config = ImageConfig("amd64", "linux", rootfs=RootFs(diff_ids=[layer.digest]))
    return ImageStore(blobs).commit_image(config, [layer], [parse_reference(name)])


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_sound_store_is_clean(blobs: BlobStore) -> None:
    add_image(blobs, "a:1", b"one")
    add_image(blobs, "b:1", b"two")
    seen: list[str] = []
    report = check_store(blobs, progress=seen.append)
    assert report.clean and (report.images, report.blobs) == (2, 6)
    assert "docker.io/library/a:1" in seen


def test_leftovers_are_swept_and_no_problem(blobs: BlobStore) -> None:
    (blobs.root / "ingest" / "left").write_bytes(b"x")
    report = check_store(blobs)
    assert report.clean and report.swept == 1


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
@pytest.mark.parametrize("damage", [b"", b"bit rot"])
def test_damage_is_named_set_aside_and_can_be_mended(blobs: BlobStore, part: str, damage: bytes) -> None:
    image = add_image(blobs, "a:1", b"one")
    add_image(blobs, "b:1", b"two")
    digest = {"layer": image.layers[0].digest, "config": image.config_digest, "manifest": image.manifest_digest}[part]
    content = blobs.path(digest).read_bytes()
    overwrite(blobs.path(digest), damage)

    looked = check_store(blobs, repair=False)
    assert blobs.has(digest) and {problem.object for problem in looked.problems} == {digest, "docker.io/library/a:1"}

    report = check_store(blobs)
    assert [(problem.kind, problem.object) for problem in report.problems] == [
        ("blob", digest),
        ("image", "docker.io/library/a:1"),
    ]
    assert "set aside" in report.problems[0].action and digest in report.problems[1].message
    assert not blobs.has(digest)
    (aside,) = (blobs.root / "quarantine").iterdir()
    assert aside.read_bytes() == damage
    with pytest.raises(StoreError):
        check = ImageStore(blobs)
        check.tag(parse_reference("again:1"), image.manifest_digest)
    assert ImageStore(blobs).find_image(parse_reference("b:1")) is not None
    blobs.put(content, "t")
    assert check_store(blobs).clean


def test_a_missing_blob_is_named(blobs: BlobStore) -> None:
    image = add_image(blobs, "a:1", b"one")
    blobs.remove(image.layers[0].digest)
    (problem,) = check_store(blobs).problems
    assert problem.kind == "image" and image.layers[0].digest in problem.message


def test_a_damaged_index_is_one_problem(blobs: BlobStore) -> None:
    add_image(blobs, "a:1", b"one")
    blobs.index.write_bytes(b"")
    (problem,) = check_store(blobs).problems
    assert problem.kind == "index"


def test_a_hand_edited_size_is_found(blobs: BlobStore) -> None:
    image = add_image(blobs, "a:1", b"one")
    manifest = json.loads(blobs.read(image.manifest_digest))
    manifest["layers"][0]["size"] = 99
    edited = blobs.put(json.dumps(manifest).encode(), "t")
    index = json.loads(blobs.index.read_bytes())
    index["manifests"][0]["digest"] = edited.digest
    blobs.index.write_text(json.dumps(index))
    (problem,) = check_store(blobs).problems
    assert "another size" in problem.message


def test_damaged_disks_are_removed(blobs: BlobStore, tmp_path: Path) -> None:
    disks = DiskStore(tmp_path / "disks")
    good = DiskStore.disk_key("sha256:x", {})
    for number, record in enumerate(["", "{", '{"key":"x","size_bytes":4,"chain_id":"c"}']):
        folder = disks.root / DiskStore.disk_key("c", {"n": number})
        folder.mkdir(parents=True)
        (folder / "disk.ext4").write_bytes(b"disk")
        (folder / "disk.json").write_text(record)
    folder = disks.root / good
    folder.mkdir()
    (folder / "disk.ext4").write_bytes(b"disk")
    (folder / "disk.json").write_text(json.dumps({"key": good, "size_bytes": 4, "chain_id": "sha256:x"}))
    report = check_store(blobs, disks)
    assert len(report.problems) == 3 and report.disks == 4
    assert disks.list_keys() == [good]
    assert check_store(blobs, disks).clean
