"""Blobs: whole, verified and 0444, or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from firebuild.errors import DiskFullError, HostError, StoreError
from firebuild.names import Digest
from firebuild.store.blobs import BlobStore

EMPTY = Digest("sha256:" + hashlib.sha256(b"").hexdigest())


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "store")
    store.ensure()
    return store


def ingest_names(blobs: BlobStore) -> list[str]:
    return sorted(os.listdir(blobs.root / "ingest"))


def test_put_is_readable_verified_and_read_only(blobs: BlobStore) -> None:
    descriptor = blobs.put(b"hello", "text/plain")
    assert descriptor.digest == digest_of(b"hello")
    assert (descriptor.size, descriptor.media_type) == (5, "text/plain")
    assert blobs.read(descriptor.digest) == b"hello"
    with blobs.open(descriptor.digest) as file:
        assert file.read() == b"hello"
    assert stat.S_IMODE(blobs.path(descriptor.digest).stat().st_mode) == 0o444
    assert blobs.list_digests() == [descriptor.digest]
    assert ingest_names(blobs) == []


def test_ensure_twice_keeps_everything(blobs: BlobStore) -> None:
    descriptor = blobs.put(b"x", "t")
    index = blobs.index.read_bytes()
    blobs.ensure()
    assert blobs.has(descriptor.digest) and blobs.index.read_bytes() == index


def test_without_commit_nothing_remains(blobs: BlobStore) -> None:
    with blobs.ingest("t") as writer:
        writer.write(b"lost")
        assert len(ingest_names(blobs)) == 1
    assert ingest_names(blobs) == [] and blobs.list_digests() == []


def test_an_exception_leaves_nothing(blobs: BlobStore) -> None:
    with pytest.raises(ValueError, match="mid"), blobs.ingest("t") as writer:
        writer.write(b"lost")
        raise ValueError("mid")
    assert ingest_names(blobs) == [] and blobs.list_digests() == []


def test_wrong_digest_is_refused_by_name(blobs: BlobStore) -> None:
    with pytest.raises(StoreError, match=f"expected {EMPTY}, got {digest_of(b'other')}"), blobs.ingest("t") as writer:
        writer.write(b"other")
        writer.commit(EMPTY)
    assert blobs.list_digests() == [] and ingest_names(blobs) == []


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "sha512:" + "a" * 64, "sha256:" + "a" * 64 + "\n"],
)
def test_what_is_no_digest_never_becomes_a_path(blobs: BlobStore, digest: str) -> None:
    with pytest.raises(StoreError, match="not a sha256 digest"):
        blobs.path(Digest(digest))


def test_damage_is_found_on_reading(blobs: BlobStore) -> None:
    descriptor = blobs.put(b"hello", "t")
    path = blobs.path(descriptor.digest)
    path.chmod(0o600)
    path.write_bytes(b"jello")
    with pytest.raises(StoreError, match="is damaged") as caught:
        blobs.read(descriptor.digest)
    assert digest_of(b"jello") in caught.value.message and "fsck" in (caught.value.hint or "")


def test_missing_and_oversized_blobs(blobs: BlobStore) -> None:
    with pytest.raises(StoreError, match="is missing from the store"):
        blobs.read(EMPTY)
    big = blobs.put(b"x" * 100, "t")
    with pytest.raises(StoreError, match="larger than 10 bytes"):
        blobs.read(big.digest, limit=10)


def test_the_same_blob_twice_is_one(blobs: BlobStore) -> None:
    first = blobs.put(b"same", "t")
    inode = blobs.path(first.digest).stat().st_ino
    os.utime(blobs.path(first.digest), (1, 1))
    assert blobs.put(b"same", "t") == first
    status = blobs.path(first.digest).stat()
    assert status.st_ino == inode
    assert status.st_mtime > 1, "a blob that is wanted again is fresh again"
    assert ingest_names(blobs) == []


def test_a_truncated_blob_is_replaced_by_a_whole_one(blobs: BlobStore) -> None:
    descriptor = blobs.put(b"whole", "t")
    path = blobs.path(descriptor.digest)
    path.chmod(0o600)
    path.write_bytes(b"")
    blobs.put(b"whole", "t")
    assert blobs.read(descriptor.digest) == b"whole"


@pytest.mark.parametrize("damage", [b"whore", b"whole\0", b"whol", b""])
@pytest.mark.parametrize("way", ["put", "adopt"])
def test_who_brings_a_damaged_blob_anew_mends_it(
    blobs: BlobStore, caplog: pytest.LogCaptureFixture, damage: bytes, way: str
) -> None:
    digest = blobs.put(b"whole", "t").digest
    path = blobs.path(digest)
    path.chmod(0o600)
    path.write_bytes(damage)
    if way == "put":
        blobs.put(b"whole", "t")
    else:
        with blobs.stage_folder() as stage:
            (stage / "x").write_bytes(b"whole")
            blobs.adopt(stage / "x", digest, 5, "t")
    assert blobs.read(digest) == b"whole" and path.stat().st_mode & 0o777 == 0o444
    (aside,) = (blobs.root / "quarantine").iterdir()
    assert aside.read_bytes() == damage and aside.name.startswith(digest[7:])
    assert digest in caplog.text and str(aside) in caplog.text
    assert ingest_names(blobs) == []


def test_a_damaged_blob_stays_where_it_is_until_the_sound_one_is_durable(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = blobs.put(b"whole", "t").digest
    blobs.path(digest).chmod(0o600)
    blobs.path(digest).write_bytes(b"whore")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(HostError):
        blobs.put(b"whole", "t")
    assert blobs.path(digest).read_bytes() == b"whore" and ingest_names(blobs) == []


def test_an_unknown_layout_version_is_refused(blobs: BlobStore) -> None:
    (blobs.root / "oci-layout").write_text('{"imageLayoutVersion":"9.0.0"}')
    with pytest.raises(StoreError, match=r"layout version `9\.0\.0`"):
        blobs.ensure()
    (blobs.root / "oci-layout").write_text("")
    with pytest.raises(StoreError, match="cannot be read"):
        blobs.ensure()


def test_a_sweep_takes_what_is_dead_and_leaves_what_lives(blobs: BlobStore) -> None:
    ingest = blobs.root / "ingest"
    (ingest / "dead").write_bytes(b"garbage")
    (ingest / "deadfolder" / "below").mkdir(parents=True)
    (ingest / "deadfolder" / "below" / "file").write_bytes(b"garbage")
    with blobs.ingest("t") as writer, blobs.stage_folder() as stage:
        writer.write(b"alive")
        (stage / "file").write_bytes(b"alive")
        removed = blobs.sweep()
        assert sorted(path.name for path in removed) == ["dead", "deadfolder"]
        assert (stage / "file").read_bytes() == b"alive"
        descriptor = writer.commit()
    assert blobs.read(descriptor.digest) == b"alive"
    assert ingest_names(blobs) == []


def test_sweeps_beside_writers_lose_nothing(blobs: BlobStore) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def sweep() -> None:
        try:
            while not stop.is_set():
                blobs.sweep()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        written = [blobs.put(f"blob {number}".encode(), "t") for number in range(100)]
        for _ in range(50):
            with blobs.stage_folder() as stage:
                (stage / "x").write_bytes(b"x")
    finally:
        stop.set()
        sweeper.join()
    assert not failures
    assert [blobs.read(item.digest) for item in written] == [f"blob {number}".encode() for number in range(100)]


def test_adopt_verifies_digest_size_and_kind(blobs: BlobStore, tmp_path: Path) -> None:
    with blobs.stage_folder() as stage:
        (stage / "good").write_bytes(b"good")
        with pytest.raises(StoreError, match="does not match its descriptor"):
            blobs.adopt(stage / "good", digest_of(b"bad"), 4, "t")
        with pytest.raises(StoreError, match="of 5 bytes"):
            blobs.adopt(stage / "good", digest_of(b"good"), 5, "t")
        secret = tmp_path / "secret"
        secret.write_bytes(b"good")
        (stage / "link").symlink_to(secret)
        with pytest.raises(HostError):
            blobs.adopt(stage / "link", digest_of(b"good"), 4, "t")
        assert secret.exists()
        assert blobs.adopt(stage / "good", digest_of(b"good"), 4, "t").size == 4
    assert blobs.read(digest_of(b"good")) == b"good"


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_fault_while_publishing_leaves_nothing(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DiskFullError if number == errno.ENOSPC else HostError):
        blobs.put(b"data", "t")
    monkeypatch.undo()
    assert len(calls) == 1, "a failed fsync is never retried"
    assert ingest_names(blobs) == [] and blobs.list_digests() == []
