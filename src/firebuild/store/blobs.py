"""Blobs by digest, in an OCI image layout: written whole and durable, or not at all.

<store>/oci-layout              {"imageLayoutVersion": "1.0.0"}
<store>/index.json              names: see firebuild.store.images
<store>/index.lock              flock: held while index.json is rewritten
<store>/blobs/sha256/<hex>      complete, verified, 0444
<store>/ingest/<random>         not complete yet; its writer holds a flock on it, so what is unlocked there is garbage
<store>/quarantine/<hex>.<random>   damaged blobs that fsck set aside, or who brought the sound one

OCI image-spec, image-layout.md and descriptor.md.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

from firebuild.errors import StoreError, damaged_blob
from firebuild.host import log
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, sweep_beside, sync_folder, write_atomic
from firebuild.host.locks import hold_lock
from firebuild.names import Digest
from firebuild.store.staging import open_stage, sweep_unlocked

READ_LIMIT = 4 << 20
LAYOUT_VERSION = "1.0.0"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_EMPTY_INDEX = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'  # OCI image-index.md
)


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image runs on (OCI image-index.md, `platform`)."""

    architecture: str
    os: str
    os_version: str | None = msgspec.field(name="os.version", default=None)
    variant: str | None = None


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A blob's media type, digest and size in bytes (OCI descriptor.md). Decoding checks the digest's form."""

    media_type: str
    digest: Annotated[Digest, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0)]
    annotations: dict[str, str] = {}
    platform: Platform | None = None


class BlobWriter:
    """A blob being written. Its digest is computed as the bytes pass."""

    def __init__(self, store: BlobStore, file: io.FileIO, path: Path, media_type: str) -> None:
        import hashlib

        self._store = store
        self._file = file
        self._path = path
        self._media_type = media_type
        self._hash = hashlib.sha256()
        self.size = 0
        self.committed = False

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes. Raises DiskFullError, HostError."""
        view = memoryview(data).cast("B")
        try:
            while view:  # the file is unbuffered: a write may be partial
                view = view[self._file.write(view) :]
        except OSError as error:
            raise map_os_error(error, "writing a blob to the store") from error
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    @property
    def digest(self) -> Digest:
        """The digest of what has been written so far."""
        return Digest("sha256:" + self._hash.hexdigest())

    def commit(self, expected: Digest | None = None) -> Descriptor:
        """Verify, make durable and visible. Raises StoreError if the digest is not `expected`, DiskFullError, HostError."""
        digest = self.digest
        if expected is not None and digest != expected:
            raise StoreError(f"a blob's content does not match its digest: expected {expected}, got {digest}")
        try:
            self._store._publish(self._file.fileno(), self._path, digest, self.size)
        except OSError as error:
            raise map_os_error(error, f"storing the blob {digest}") from error
        self.committed = True
        return Descriptor(media_type=self._media_type, digest=digest, size=self.size)


class BlobStore:
    """The blobs below one layout root. Creating the object touches nothing."""

    def __init__(self, layout_root: Path) -> None:
        self.root = layout_root
        self.index = layout_root / "index.json"
        self._blobs = layout_root / "blobs" / "sha256"
        self._ingest = layout_root / "ingest"
        self._quarantine = layout_root / "quarantine"

    def ensure(self) -> None:
        """Make the layout if it is missing, refuse one of another version, sweep what dead writers left.

        Raises StoreError for an unknown version, HostError.
        """
        try:
            for folder in (self.root, self._blobs, self._ingest, self._quarantine):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise map_os_error(error, f"making the store `{self.root}`") from error
        marker = self.root / "oci-layout"
        if not marker.exists() or not self.index.exists():
            with self.lock_index():
                if not self.index.exists():
                    write_atomic(self.index, _EMPTY_INDEX)
                if not marker.exists():
                    write_atomic(marker, b'{"imageLayoutVersion":"%s"}' % LAYOUT_VERSION.encode())
        self._check_version(marker)
        self.sweep()

    @staticmethod
    def _check_version(marker: Path) -> None:
        try:
            found = msgspec.json.decode(marker.read_bytes(), type=dict[str, str]).get("imageLayoutVersion")
        except (OSError, ValueError) as error:
            raise StoreError(f"the store's marker `{marker}` cannot be read: {error}") from error
        if found != LAYOUT_VERSION:
            raise StoreError(
                f"the store `{marker.parent}` has layout version `{found}`; this firebuild knows {LAYOUT_VERSION}",
                hint="use the firebuild that wrote it, or another state folder",
            )

    @contextmanager
    def lock_index(self) -> Iterator[None]:
        """Hold the lock under which index.json is rewritten; waits for a minute. Raises BusyError."""
        with hold_lock(
            self.root / "index.lock", f"the store `{self.root}`", deadline=Deadline(60, "waiting for the store's index")
        ):
            yield

    def path(self, digest: Digest) -> Path:
        """Where a blob is or would be. Raises StoreError for what is not a sha256 digest: it never becomes a path."""
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"`{digest[:100]}` is not a sha256 digest")
        return self._blobs / digest[7:]

    def has(self, digest: Digest) -> bool:
        """Whether the blob is complete in the store."""
        return self.path(digest).is_file()

    def size(self, digest: Digest) -> int:
        """The blob's size in bytes. Raises StoreError if it is missing."""
        try:
            return self.path(digest).stat().st_size
        except OSError as error:
            raise _missing(digest, error) from error

    def open(self, digest: Digest) -> io.BufferedReader:
        """The blob's bytes, unverified; the caller closes the file. Raises StoreError if it is missing."""
        try:
            return open(self.path(digest), "rb")
        except OSError as error:
            raise _missing(digest, error) from error

    def read(self, digest: Digest, limit: int = READ_LIMIT) -> bytes:
        """The whole of a small blob, verified. Raises StoreError if it is missing, longer than `limit`, or damaged."""
        import hashlib

        with self.open(digest) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise StoreError(f"the blob {digest} is larger than {limit} bytes, too large for what it should be")
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        if found != digest:
            raise damaged_blob(digest, found)
        return data

    def compute_digest(self, digest: Digest) -> Digest:
        """The digest that the stored bytes really have, whatever their length. Raises StoreError if it is missing."""
        import hashlib

        with self.open(digest) as file:
            return Digest("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())

    def list_digests(self) -> list[Digest]:
        """Every blob's digest, sorted. Strange files in the folder are not among them."""
        try:
            names = os.listdir(self._blobs)
        except FileNotFoundError:
            return []
        return sorted(Digest(f"sha256:{name}") for name in names if _DIGEST.fullmatch(f"sha256:{name}"))

    @contextmanager
    def ingest(self, media_type: str) -> Iterator[BlobWriter]:
        """A writer for a new blob; without its `commit` nothing remains. Raises DiskFullError, HostError."""
        path, descriptor = self._claim()
        with io.FileIO(descriptor, "wb") as raw:
            writer = BlobWriter(self, raw, path, media_type)
            try:
                yield writer
            finally:
                if not writer.committed:
                    _discard(path)

    def _claim(self) -> tuple[Path, int]:
        """A new file in `ingest/` with our flock on it."""
        while True:
            path = self._ingest / secrets.token_hex(12)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                raise map_os_error(error, f"making a file below `{self._ingest}`") from error
            if os.fstat(descriptor).st_nlink == 1:
                return path, descriptor
            # A sweep held the lock between our creation and our lock, and has removed the file.
            os.close(descriptor)

    def put(self, data: bytes, media_type: str) -> Descriptor:
        """Store a small blob. Raises DiskFullError, HostError."""
        with self.ingest(media_type) as writer:
            writer.write(data)
            return writer.commit()

    @contextmanager
    def stage_folder(self) -> Iterator[Path]:
        """A private folder below `ingest/` for programs that write a layout of their own; removed at the end.

        It is on the blobs' file system, so `adopt` can move files from it, and a sweep removes it if its owner was killed.
        """
        with open_stage(self._ingest) as path:
            yield path

    def adopt(self, path: Path, expected: Digest, size: int, media_type: str) -> Descriptor:
        """Verify a file on the store's file system and move it in as a blob. Raises StoreError if digest or size differ.

        `path` must be a regular file, not a link.
        """
        import hashlib

        self.path(expected)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                found_size = os.fstat(file.fileno()).st_size
                found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
                if found != expected or found_size != size:
                    raise StoreError(
                        f"a blob's content does not match its descriptor: expected {expected} of {size} bytes, "
                        f"got {found} of {found_size} bytes"
                    )
                self._publish(file.fileno(), path, expected, size)
        except OSError as error:
            raise map_os_error(error, f"storing the blob {expected}") from error
        return Descriptor(media_type=media_type, digest=expected, size=size)

    def _publish(self, descriptor: int, path: Path, digest: Digest, size: int) -> None:
        target = self.path(digest)
        with suppress(FileNotFoundError):
            if self._is_whole(digest, size):
                os.utime(target)  # fresh again: a collector with a grace period must not take it now
                _discard(path)
                return
            # A link, not a move: the name leads to the damaged bytes until it leads to the sound ones.
            aside = self._quarantine / f"{digest[7:]}.{secrets.token_hex(4)}"
            os.link(target, aside)
            log.warning(__name__, "the blob %s was damaged: it is set aside as `%s` and replaced", digest, aside)
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
        os.rename(path, target)
        sync_folder(self._blobs)

    def _is_whole(self, digest: Digest, size: int) -> bool:
        """Whether the stored bytes are those of the digest. Who brings a blob anew has the sound bytes at hand, and nobody
        else may have looked at these since they came. Raises FileNotFoundError."""
        import hashlib

        with open(self.path(digest), "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            try:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest[7:]
            except OSError as error:
                log.warning(__name__, "the blob %s cannot be read: %s", digest, error.strerror)
                return False

    def remove(self, digest: Digest) -> None:
        """Remove a blob; absent is fine. Only garbage collection calls this. Raises HostError."""
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise map_os_error(error, f"removing the blob {digest}") from error

    def quarantine(self, digest: Digest) -> Path:
        """Set a damaged blob aside, so that it can be fetched again; returns where it went. Raises HostError."""
        target = self._quarantine / f"{digest[7:]}.{secrets.token_hex(4)}"
        try:
            os.rename(self.path(digest), target)
            sync_folder(self._blobs)
        except OSError as error:
            raise map_os_error(error, f"setting the blob {digest} aside") from error
        return target

    def sweep(self) -> list[Path]:
        """Remove from `ingest/` what no living process holds; returns what was removed. Half-written indexes go too."""
        sweep_beside(self.index)
        return sweep_unlocked(self._ingest)


def _discard(path: Path) -> None:
    """Remove a file in `ingest/`; where the file system refuses even that, the next sweep tries again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning(__name__, "the leftover `%s` cannot be removed yet: %s", path, error)


def _missing(digest: Digest, error: OSError) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(
            f"the blob {digest} is missing from the store", hint="pull or build the image that needs it again"
        )
    return StoreError(f"the blob {digest} cannot be read: {error.strerror}")
