"""Disks derived from images: ext4 files, kept by a key, published whole with their metadata or not at all.

<disks>/<key>/disk.ext4         0444
<disks>/<key>/disk.json         Disk without its path
<disks>/.stage-<random>/        being written; the owner holds a flock on the folder
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from firebuild.errors import DiskFullError, NotFoundError, ProcessError, StoreError, UsageError
from firebuild.host.files import (
    copy_sparse,
    make_sparse,
    map_os_error,
    remove_tree,
    sync_file,
    sync_folder,
    write_atomic,
)
from firebuild.names import Digest
from firebuild.store.staging import open_stage, sweep_unlocked

_KEY = re.compile(r"[0-9a-f]{64}")
_STAGE = ".stage-"
_BLOCK = 4096
_SIZE_MIN = 1 << 20
_VERSION = 1
# All features are named, so that neither the host's mke2fs.conf nor its e2fsprogs version changes the result.
_FEATURES = (
    "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,64bit,"
    "metadata_csum,resize_inode"
)


class Disk(msgspec.Struct, frozen=True):
    """A published disk. `size_bytes`: its apparent size; `digest`: of the file, where somebody computed it."""

    key: str
    path: Path
    size_bytes: int
    chain_id: str
    digest: Digest | None
    parameters: dict[str, str]


class _Record(msgspec.Struct, omit_defaults=True):
    """disk.json."""

    key: str
    size_bytes: int
    chain_id: str
    parameters: dict[str, str] = {}
    digest: Digest | None = None
    version: int = _VERSION


class DiskMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """What a disk was made from: the chain id of its layers and the parameters that went into its key."""

    chain_id: str
    parameters: dict[str, str] = {}
    digest: Digest | None = None


class StagedDisk:
    """A blank disk that somebody is about to fill; `publish` makes it visible."""

    def __init__(self, store: DiskStore, folder: Path, size_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self.path = folder / "disk.ext4"
        self.size_bytes = size_bytes

    def publish(self, key: str, metadata: Mapping[str, Any] | DiskMetadata) -> Disk:
        """Make the disk durable and visible under `key`; where somebody was faster, theirs is returned.

        `metadata`: a DiskMetadata or a mapping of its fields. Raises StoreError, DiskFullError, HostError.
        """
        return self._store._publish(self, key, metadata)


class DiskStore:
    """The derived disks below one folder. Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def disk_key(chain_id: str, parameters: Mapping[str, object]) -> str:
        """The key of a disk: sha256 over its fields, each with its length, so that no two inputs read alike."""
        import hashlib

        fields = ["firebuild-disk-1", chain_id]
        for name in sorted(parameters):
            fields += [name, str(parameters[name])]
        total = hashlib.sha256()
        for field in fields:
            data = field.encode()
            total.update(len(data).to_bytes(8, "big"))
            total.update(data)
        return total.hexdigest()

    def find_disk(self, key: str) -> Disk | None:
        """The disk of that key, or None. Raises StoreError if its metadata does not parse or its size is wrong."""
        folder = self._folder(key)
        try:
            record = msgspec.json.decode((folder / "disk.json").read_bytes(), type=_Record)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise _damaged(folder, f"its metadata cannot be read: {error}") from error
        if record.version != _VERSION:
            raise _damaged(folder, f"its metadata has version {record.version}; this firebuild knows {_VERSION}")
        path = folder / "disk.ext4"
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _damaged(folder, f"its file cannot be read: {error.strerror}") from error
        if record.key != key or size != record.size_bytes:
            raise _damaged(
                folder,
                f"it has {size} bytes and the key {record.key[:12]}, not {record.size_bytes} bytes and {key[:12]}",
            )
        return Disk(key, path, size, record.chain_id, record.digest, record.parameters)

    def get_disk(self, key: str) -> Disk:
        """As find_disk; raises NotFoundError."""
        disk = self.find_disk(key)
        if disk is None:
            raise NotFoundError(f"there is no disk with the key {key[:12]}")
        return disk

    def verify(self, disk: Disk) -> None:
        """Recompute the digest of a disk that has one. Raises StoreError if it differs."""
        import hashlib

        if disk.digest is None:
            return
        with open(disk.path, "rb") as file:
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if found != disk.digest:
            raise _damaged(disk.path.parent, f"expected {disk.digest}, got {found}")

    def list_keys(self) -> list[str]:
        """The keys of all published disks, sorted."""
        try:
            return sorted(name for name in os.listdir(self.root) if _KEY.fullmatch(name))
        except FileNotFoundError:
            return []

    @contextmanager
    def stage(
        self, size_bytes: int, *, label: str = "root", source: Disk | None = None, blank: bool = True
    ) -> Iterator[StagedDisk]:
        """A blank ext4 disk, without a journal, or a copy of the disk `source`, in a private folder; neither `blank` nor a
        source: one hole from end to end.

        Without `publish` nothing remains. Raises MissingProgramError without mke2fs, StoreError if `source` is of another
        size, DiskFullError, HostError.
        """
        # The unprivileged VMM passes through to its own file; it cannot list.
        with open_stage(self.root, prefix=_STAGE, mode=0o711) as folder:
            staged = StagedDisk(self, folder, size_bytes)
            if source is None and not blank:
                make_sparse(staged.path, size_bytes)
            elif source is None:
                make_blank(staged.path, size_bytes, journal=False, label=label)
            elif source.size_bytes != size_bytes:
                raise StoreError(f"the disk {source.key[:12]} has {source.size_bytes} bytes, not {size_bytes}")
            else:
                copy_sparse(source.path, staged.path)
            yield staged

    def _publish(self, staged: StagedDisk, key: str, metadata: Mapping[str, Any] | DiskMetadata) -> Disk:
        folder = self._folder(key)
        try:
            facts = metadata if isinstance(metadata, DiskMetadata) else msgspec.convert(dict(metadata), DiskMetadata)
        except msgspec.ValidationError as error:
            raise StoreError(f"the metadata of the disk {key[:12]} is wrong: {error}") from error
        try:
            size = staged.path.lstat().st_size
            if size != staged.size_bytes:
                raise StoreError(f"the disk {key[:12]} has {size} bytes, not the {staged.size_bytes} it was made with")
            record = _Record(key, size, facts.chain_id, facts.parameters, facts.digest)
            write_atomic(staged._folder / "disk.json", msgspec.json.encode(record, order="deterministic"), mode=0o444)
            staged.path.chmod(0o444)
            os.chown(staged.path, os.getuid(), os.getgid(), follow_symlinks=False)
            sync_file(staged.path)
            sync_folder(staged._folder)
            try:
                os.rename(staged._folder, folder)
            except OSError:
                faster = self.find_disk(key)
                if faster is None:
                    raise
                return faster
            sync_folder(self.root)
        except OSError as error:
            raise map_os_error(error, f"publishing the disk {key[:12]}") from error
        return Disk(key, folder / "disk.ext4", size, facts.chain_id, facts.digest, facts.parameters)

    def remove(self, key: str) -> None:
        """Remove a disk; absent is fine. It vanishes first as a whole, then its bytes go. Raises HostError."""
        folder = self._folder(key)
        doomed = self.root / f"{_STAGE}{secrets.token_hex(8)}"
        try:
            os.rename(folder, doomed)
        except FileNotFoundError:
            return
        except OSError as error:
            raise map_os_error(error, f"removing the disk {key[:12]}") from error
        remove_tree(doomed)

    def sweep(self) -> list[Path]:
        """Remove what dead processes left half made; returns what was removed."""
        return sweep_unlocked(self.root, prefix=_STAGE)

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise StoreError(f"`{key[:100]}` is not a disk's key")
        return self.root / key


def make_blank(
    path: Path, size_bytes: int, *, journal: bool = False, label: str, identity: str = "", content: Path | None = None
) -> None:
    """Make a new sparse file with an ext4, empty or with what is in the folder `content`; of an empty one the same arguments
    give the same bytes.

    `size_bytes`: at least 1 MiB, rounded down to blocks of 4096. `label`: at most 16 bytes; it also seeds the UUID, with
    `identity` where two may be in one machine.
    Raises UsageError, MissingProgramError without mke2fs(8), DiskFullError, ProcessError; a partial file is removed.
    """
    import hashlib
    import uuid

    from firebuild.host.process import run

    if size_bytes < _SIZE_MIN:
        raise UsageError(f"a disk of {size_bytes} bytes is too small: at least {_SIZE_MIN} bytes are needed")
    if not 1 <= len(label.encode()) <= 16:
        raise UsageError(f"`{label}` is not a disk label: it has 1 to 16 bytes")
    seed = hashlib.sha256(f"firebuild {label}{identity}".encode()).digest()
    file_system, hash_seed = uuid.UUID(bytes=seed[:16], version=4), uuid.UUID(bytes=seed[16:], version=4)
    features = _FEATURES + (",has_journal" if journal else "")
    owner = content.stat() if content else None
    root_owner = f"{owner.st_uid}:{owner.st_gid}" if owner else "0:0"
    # The file is a hole from end to end: nothing has to be zeroed, now or by the guest's kernel later.
    extended = f"hash_seed={hash_seed},root_owner={root_owner},nodiscard,lazy_itable_init=0,assume_storage_prezeroed=1"
    make_sparse(path, size_bytes)
    try:
        run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-I", "256", "-i", "16384", "-m", "0",
             "-O", features, "-E", extended, "-U", str(file_system), "-L", label, *(["-d", os.fspath(content)] if content else []),
             os.fspath(path), str(size_bytes // _BLOCK)],
            environment={"E2FSPROGS_FAKE_TIME": "1", "MKE2FS_CONFIG": "/dev/null"},
        )  # fmt: skip
    except ProcessError as error:
        path.unlink(missing_ok=True)
        if "No space left" in (error.details or ""):
            raise DiskFullError(
                f"no space left on the device while making `{path}`", hint="free space with `firebuild gc`"
            ) from error
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _damaged(folder: Path, why: str) -> StoreError:
    return StoreError(
        f"the disk `{folder}` is damaged: {why}",
        hint="`firebuild fsck --repair` removes it; it is then made again from its image",
    )
