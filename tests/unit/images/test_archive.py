"""Tarballs in, layers out: digests right, bombs and damage stopped, nothing left."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from firebuild.errors import ImageError
from firebuild.images.archive import LAYER_TYPE, import_layer, open_layer
from firebuild.images.compression import ExpansionLimits, load_zstd, uncompress
from firebuild.images.tarcheck import TarLimits
from firebuild.names import Digest
from firebuild.store.blobs import BlobStore, Descriptor

zstd = load_zstd()
GZIP_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def make_tar(size: int = 300_000) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(20):
            info = tarfile.TarInfo(f"file{number}")
            info.size = size // 20
            archive.addfile(info, io.BytesIO(os.urandom(info.size // 2).ljust(info.size, b"z")))
    return buffer.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip in members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "gzip padded": lambda data: gzip.compress(data) + bytes(100),
    "xz": lzma.compress,
    "xz in streams": lambda data: lzma.compress(data[:1000]) + bytes(8) + lzma.compress(data[1000:]),
    "zstd": zstd.compress,
    "zstd in frames": lambda data: zstd.compress(data[:1000]) + zstd.compress(data[1000:]),
    "zstd behind a skippable frame": lambda data: b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstd.compress(data),
    "bzip2": bz2.compress,
}


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "store")
    store.ensure()
    return store


def assert_nothing_left(blobs: BlobStore) -> None:
    assert blobs.list_digests() == [] and os.listdir(blobs.root / "ingest") == []


@pytest.mark.parametrize("name", COMPRESSORS)
def test_import_and_read_back(blobs: BlobStore, tmp_path: Path, name: str) -> None:
    data = make_tar()
    path = tmp_path / "rootfs.tar"
    path.write_bytes(COMPRESSORS[name](data))
    seen: list[int] = []
    layer = import_layer(path, blobs, progress=seen.append)
    assert layer.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (layer.size_bytes, layer.entries, seen[-1]) == (len(data), 20, len(data))
    descriptor: Descriptor = layer.descriptor
    assert descriptor.media_type == LAYER_TYPE and descriptor.size < len(data)
    assert zstd.decompress(blobs.path(descriptor.digest).read_bytes()) == data
    with open_layer(blobs.path(descriptor.digest), LAYER_TYPE, expected_diff_id=layer.diff_id) as stream:
        parts = [stream.read(1), stream.read(70_000), stream.read(0), stream.read()]
        assert [len(part) for part in parts[:3]] == [1, 70_000, 0]
        assert b"".join(parts) == data and stream.read(10) == b"" and stream.position == len(data)


def test_the_same_tarball_gives_the_same_layer_however_compressed(blobs: BlobStore, tmp_path: Path) -> None:
    data = make_tar()
    digests = set()
    for name, compress in COMPRESSORS.items():
        (tmp_path / name).write_bytes(compress(data))
        digests.add(import_layer(tmp_path / name, blobs).diff_id)
    assert len(digests) == 1


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name not in ("plain", "gzip padded")])
def test_truncation_is_found_and_leaves_nothing(blobs: BlobStore, tmp_path: Path, name: str) -> None:
    data = COMPRESSORS[name](make_tar())
    for length in (len(data) - 1, len(data) - 9, len(data) // 2, 40):
        path = tmp_path / "cut"
        path.write_bytes(data[:length])
        with pytest.raises(ImageError, match="cut"):
            import_layer(path, blobs)
    assert_nothing_left(blobs)


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd", "bzip2"])
def test_damage_is_found_and_leaves_nothing(blobs: BlobStore, tmp_path: Path, name: str) -> None:
    # zstd's checksum is optional; the zstd program writes it.
    checked = {"zstd": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})}
    data = bytearray((COMPRESSORS | checked)[name](make_tar()))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(ImageError, match=r"`.*bad`"):
        import_layer(tmp_path / "bad", blobs)
    assert_nothing_left(blobs)


def test_what_is_no_tar(blobs: BlobStore, tmp_path: Path) -> None:
    cases = {"text": b"hello\n" * 1000, "compressed": gzip.compress(b"hello\n" * 1000), "empty": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}`"):
            import_layer(tmp_path / name, blobs)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="not a regular file"):
        import_layer(tmp_path / "fifo", blobs)
    with pytest.raises(ImageError, match="not a regular file"):
        import_layer(tmp_path, blobs)
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        import_layer(tmp_path / "none", blobs)
    assert_nothing_left(blobs)


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd", "bzip2"])
def test_bombs_are_stopped_early(blobs: BlobStore, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(COMPRESSORS[name](bytes(64 << 20)))
    given = 0
    with pytest.raises(ImageError, match="expands to more than"), open(path, "rb") as file:
        for piece in uncompress(file, "x", ExpansionLimits(bytes=1 << 20)):
            given += len(piece)
    assert given <= 1 << 20
    with pytest.raises(ImageError, match="decompression bomb"), open(path, "rb") as file:
        for _ in uncompress(file, "x", ExpansionLimits(ratio=100, ratio_from_bytes=1 << 20)):
            pass
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("zeros")
        info.size = 8 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    path.write_bytes(COMPRESSORS[name](buffer.getvalue()))
    with pytest.raises(ImageError, match="larger than"):
        import_layer(path, blobs, limits=TarLimits(bytes=1 << 20))
    assert_nothing_left(blobs)


def test_a_zstd_window_that_would_eat_memory_is_refused(tmp_path: Path) -> None:
    options = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    path = tmp_path / "window"
    path.write_bytes(compressor.compress(b"x" * 100_000) + compressor.flush())
    with pytest.raises(ImageError, match="does not decompress"), open(path, "rb") as file:
        list(uncompress(file, "x"))


def test_a_layer_that_is_another_is_found_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(make_tar()))
    wrong = Digest("sha256:" + "0" * 64)
    with (
        open_layer(path, GZIP_TYPE, expected_diff_id=wrong) as stream,
        pytest.raises(ImageError, match=f"expected the diff id {wrong}"),
    ):
        while stream.read(1000):
            pass


@pytest.mark.parametrize("media_type", ["", "application/json", "application/vnd.oci.image.layer.v1.tar+lz4"])
def test_unknown_media_types_are_refused(tmp_path: Path, media_type: str) -> None:
    path = tmp_path / "layer"
    path.write_bytes(make_tar())
    with pytest.raises(ImageError, match="media type"), open_layer(path, media_type):
        pass
