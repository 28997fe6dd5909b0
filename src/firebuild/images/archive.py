"""Taking in a root file system as a tarball, and reading layers back as plain tar streams. Nothing is ever unpacked."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec

from firebuild.errors import ImageError, damaged_blob
from firebuild.images.blobs import BlobSink
from firebuild.images.compression import ExpansionLimits, load_zstd, uncompress
from firebuild.images.tarcheck import TarChecker, TarLimits
from firebuild.names import Digest

D = TypeVar("D")

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
ZSTD_LEVEL = 3
_LAYER_TYPES = frozenset(
    f"application/vnd.oci.image.layer.{kind}v1.tar{suffix}"
    for kind in ("", "nondistributable.")
    for suffix in ("", "+gzip", "+zstd")
) | {
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
}


class ImportedLayer(msgspec.Struct, Generic[D]):
    """A layer that is in the store now. `diff_id`: digest of the plain tar; `size_bytes`, `entries`: of the plain tar."""

    descriptor: D
    diff_id: Digest
    size_bytes: int
    entries: int


class LayerWriter(Generic[D]):
    """A plain layer tar on its way into the store: checked, digested and compressed as it passes."""

    def __init__(self, blob: Any, subject: str, limits: TarLimits | None) -> None:
        import hashlib

        zstd = load_zstd()
        self._blob = blob
        self._checker = TarChecker(subject, limits)
        self._hash = hashlib.sha256()
        self._compressor = zstd.ZstdCompressor(
            options={
                zstd.CompressionParameter.compression_level: ZSTD_LEVEL,
                zstd.CompressionParameter.checksum_flag: 1,
            }
        )

    def write(self, data: bytes) -> int:
        """Take the next bytes of the tar. Raises ImageError, DiskFullError."""
        self._checker.feed(data)
        self._hash.update(data)
        compressed = self._compressor.compress(data)
        if compressed:
            self._blob.write(compressed)
        return len(data)

    def commit(self, expected_diff_id: Digest | None = None) -> ImportedLayer[D]:
        """The tar is at its end: store it. Raises ImageError if it is cut short or its digest is another."""
        self._checker.finish()
        diff_id = Digest("sha256:" + self._hash.hexdigest())
        if expected_diff_id is not None and diff_id != expected_diff_id:
            raise ImageError(
                f"a layer's content does not match its diff id: expected {expected_diff_id}, got {diff_id}"
            )
        self._blob.write(self._compressor.flush())
        return ImportedLayer(self._blob.commit(), diff_id, self._checker.size, self._checker.entries)


@contextmanager
def open_layer_writer(blobs: BlobSink[D], subject: str, *, limits: TarLimits | None = None) -> Iterator[LayerWriter[D]]:
    """A writer that makes a zstd layer of a plain tar; without its `commit` nothing remains. `subject` names it in errors."""
    with blobs.ingest(LAYER_TYPE) as blob:
        yield LayerWriter(blob, subject, limits)


def import_layer(
    path: Path,
    blobs: BlobSink[D],
    *,
    limits: TarLimits | None = None,
    expansion: ExpansionLimits | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportedLayer[D]:
    """Take a tarball (plain, gzip, xz, zstd or bzip2, known by its magic) into the store as one zstd layer.

    `progress` is called with the number of plain bytes so far. Raises ImageError naming the file, and the offset where
    its framing is broken; DiskFullError; nothing remains then.
    """
    subject = f"`{path}`"
    with _open_regular(path, subject) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ImageError(f"{subject} is empty")
        done = 0
        with open_layer_writer(blobs, subject, limits=limits) as writer:
            for piece in uncompress(file, subject, expansion):
                writer.write(piece)
                done += len(piece)
                if progress:
                    progress(done)
            return writer.commit()


def _open_regular(path: Path, subject: str) -> BinaryIO:
    try:
        # Without O_NONBLOCK a FIFO in the file's place would hang us.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ImageError(f"{subject} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageError(f"{subject} is not a regular file")
    return os.fdopen(descriptor, "rb")


class LayerStream:
    """A layer as a plain tar. `read` like a file's; at the end the diff id is compared if one is expected."""

    def __init__(self, pieces: Iterator[bytes], subject: str, expected: Digest | None, path: Path) -> None:
        import hashlib

        self._pieces = pieces
        self._path = path
        self._subject = subject
        self._expected = expected
        self._hash = hashlib.sha256()
        self._rest = memoryview(b"")
        self._ended = False
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, all that is left if negative; empty at the end. Raises ImageError."""
        parts = []
        wanted = size
        while wanted != 0:
            if not self._rest and not self._next():
                break
            part = self._rest if wanted < 0 else self._rest[:wanted]
            self._rest = self._rest[len(part) :]
            parts.append(part)
            if wanted > 0:
                wanted -= len(part)
        data = b"".join(parts)
        self.position += len(data)
        return data

    def _next(self) -> bool:
        try:
            piece = next(self._pieces, b"")
        except ImageError:
            check_blob(self._path)
            raise
        if piece:
            self._hash.update(piece)
            self._rest = memoryview(piece)
            return True
        if not self._ended:
            self._ended = True
            found = "sha256:" + self._hash.hexdigest()
            if self._expected is not None and found != self._expected:
                check_blob(self._path)
                raise ImageError(
                    f"{self._subject} is not what its image says: expected the diff id {self._expected}, got {found}"
                )
        return False

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(1 << 18):
            yield data


def check_blob(path: Path) -> None:
    """Raises StoreError, which says how to mend it, if a blob is not what its file's name, the digest, says."""
    import hashlib

    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if len(path.name) == len(found) and path.name != found:
        raise damaged_blob(f"sha256:{path.name}", f"sha256:{found}")


@contextmanager
def open_layer(
    path: Path,
    media_type: str,
    *,
    expected_diff_id: Digest | None = None,
    limits: ExpansionLimits | None = None,
) -> Iterator[LayerStream]:
    """A layer blob as a stream of its plain tar, bounded in size and ratio.

    The compression is known by the blob's magic, since registries hold layers whose media type does not fit; an unknown media
    type is refused. With `expected_diff_id` the last `read` raises if the content is another. Raises ImageError;
    StoreError where it is the store that has damaged the blob.
    """
    subject = f"the layer {path.name[:19]}"
    if media_type not in _LAYER_TYPES:
        raise ImageError(f"{subject} has the media type `{media_type[:100]}`, which is not one of a file system layer")
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ImageError(f"{subject} cannot be read: {error.strerror}") from error
    with file:
        yield LayerStream(uncompress(file, subject, limits), subject, expected_diff_id, path)
