"""Archives of images that mean harm by their size: each limit ends `load` early, by its name, and nothing is left."""

from __future__ import annotations

import binascii
import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from firebuild.errors import ImageError
from firebuild.images import archives, compression
from firebuild.images.archive import import_layer
from firebuild.images.archives import load_archive
from firebuild.images.compression import ExpansionLimits, load_zstd, uncompress
from firebuild.images.tarcheck import TarLimits
from firebuild.store.blobs import BlobStore

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "xz": lzma.compress, "zstd": load_zstd().compress, "bzip2": bz2.compress,
}  # fmt: skip


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "store")
    store.ensure()
    return store


def assert_nothing_left(blobs: BlobStore) -> None:
    assert os.listdir(blobs.root / "ingest") == [] and blobs.list_digests() == []


def tar_of_empty_files(count: int) -> bytes:
    """One header, again and again: what compresses best."""
    return tarfile.TarInfo("x").tobuf() * count + bytes(2 * tarfile.BLOCKSIZE)


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (ExpansionLimits(bytes=1 << 20), "expands to more than 1048576 bytes"),
        (ExpansionLimits(ratio=50, ratio_from_bytes=1 << 20), "expands more than 50 times"),
    ],
    ids=["bytes", "ratio"],
)
def test_a_compressed_archive_that_explodes(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, limits: ExpansionLimits, words: str
) -> None:
    monkeypatch.setattr(compression, "ExpansionLimits", lambda: limits)
    path = tmp_path / "bomb.tar"
    path.write_bytes(COMPRESSORS[kind](tar_of_empty_files(10_000)))
    for take in (load_archive, import_layer):
        with pytest.raises(ImageError, match=words) as caught:
            take(path, blobs)
        assert "bomb.tar" in caught.value.message
        assert_nothing_left(blobs)


def test_an_archive_of_very_many_entries(blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MEMBERS_MAX", 500)
    path = tmp_path / "many.tar"
    path.write_bytes(tar_of_empty_files(600))
    with pytest.raises(ImageError, match=r"many.tar` has more than 500 entries"):
        load_archive(path, blobs)
    with pytest.raises(ImageError, match=r"many.tar` .* it has more than 500 entries"):
        import_layer(path, blobs, limits=TarLimits(entries=500))
    assert_nothing_left(blobs)


def test_an_xz_stream_whose_dictionary_would_eat_memory(tmp_path: Path) -> None:
    """The block's header asks for a dictionary of 1 GiB (xz file format, 3.1 and 5.3.1)."""
    data = bytearray(lzma.compress(b"x" * 1000))
    header = data[12:24]
    assert header[:4] == b"\x02\x00\x21\x01"
    header[4] = 36
    header[8:12] = binascii.crc32(header[:8]).to_bytes(4, "little")
    data[12:24] = header
    with pytest.raises(ImageError, match=r"does not decompress: .*[Mm]emory"):
        list(uncompress(io.BytesIO(data), "x"))
