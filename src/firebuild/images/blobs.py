"""What this package needs of a blob store: `firebuild.store.blobs.BlobStore` fits; the engine joins the two."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from firebuild.names import Digest

D_co = TypeVar("D_co", covariant=True)


class BlobWriter(Protocol[D_co]):
    """A blob being written; without `commit` nothing of it remains."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes."""

    def commit(self, expected: Digest | None = None) -> D_co:
        """Verify, make durable and visible; returns the blob's descriptor."""


class BlobSink(Protocol[D_co]):
    """Somewhere to put blobs. `D_co` is the store's own descriptor type."""

    def path(self, digest: Digest) -> Path:
        """Where a blob is or would be."""

    def has(self, digest: Digest) -> bool:
        """Whether the blob is complete."""

    def ingest(self, media_type: str) -> AbstractContextManager[BlobWriter[D_co]]:
        """A writer for a new blob."""

    def put(self, data: bytes, media_type: str) -> D_co:
        """Store a small blob."""

    def stage_folder(self) -> AbstractContextManager[Path]:
        """A private folder on the blobs' file system, removed at the end."""

    def adopt(self, path: Path, expected: Digest, size: int, media_type: str) -> D_co:
        """Verify a file in a stage folder and move it in."""
