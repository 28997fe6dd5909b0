"""Saved machines on the host: each a folder with the VMM's two files, the machine's own disks and what they belong to.

<snapshots>/<name>/state            the VMM's
<snapshots>/<name>/memory           the guest's memory, or with a diff what has changed of its parent's
<snapshots>/<name>/merged           of a diff that was restored: the whole memory
<snapshots>/<name>/<drive>.ext4     the machine's own disks
<snapshots>/<name>/snapshot.json    Snapshot
<snapshots>/.stage-<random>/        being made or removed
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from firebuild.errors import ConflictError, NotFoundError, SnapshotError, StoreError
from firebuild.host.deadline import Deadline
from firebuild.host.files import map_os_error, publish, remove_tree, sync_folder, write_atomic
from firebuild.host.identity import ProcessIdentity, is_alive
from firebuild.host.locks import hold_lock
from firebuild.host.sparse import Method, clone_file, digest_content, lay_over
from firebuild.layout import Layout
from firebuild.machine.spec import MachineSpec
from firebuild.names import parse_object_name

_STAGE = ".stage-"
_LOCK_S = 300.0


class OwnDisk(msgspec.Struct, frozen=True):
    """A disk of the machine's own: `file`, its name in the snapshot's folder and in the machine's; `method`: how it was copied."""

    drive_id: str
    file: str
    method: Method


class SharedDisk(msgspec.Struct, frozen=True):
    """A disk that the machine only reads, where it lies: a clone needs the very same. Times in nanoseconds."""

    drive_id: str
    path: str
    size_bytes: int
    modified_ns: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A saved machine.

    `kind`: full or diff. `parent`, `parent_id`: the snapshot whose memory a diff is laid over. `spec`: the machine's.
    `memory_changed_ns`: when the memory file was last changed (ctime), which nobody can set back; `memory_digest`: of what it holds.
    `owner`: the command that it ends with (of a fork), or None.
    """

    id: str
    name: str
    kind: str
    created_at_ns: int
    spec: MachineSpec
    vmm_version: str
    host_mode: str
    cpu_model: str
    own_disks: list[OwnDisk]
    shared_disks: list[SharedDisk]
    memory_bytes: int
    memory_changed_ns: int
    memory_digest: str
    parent: str = ""
    parent_id: str = ""
    labels: dict[str, str] = {}
    owner: ProcessIdentity | None = None
    version: int = 1


class SnapshotStore:
    """The snapshots of one installation. Creating the object touches nothing. Whoever makes or removes one holds the lock, whoever
    reads one shares it."""

    def __init__(self, layout: Layout) -> None:
        self._root = layout.snapshots
        self._lock = layout.snapshot_lock

    @contextmanager
    def hold(self, *, shared: bool = False) -> Iterator[None]:
        """While no snapshot is made or removed. Raises BusyError after a while."""
        deadline = Deadline(_LOCK_S, "waiting for another snapshot")
        with hold_lock(self._lock, "the snapshots", shared=shared, deadline=deadline):
            yield

    def folder(self, name: str) -> Path:
        """Where a snapshot is. Raises UsageError for what is no name."""
        return self._root / parse_object_name("snapshot", name)

    def check_free(self, name: str) -> None:
        """Raises ConflictError, UsageError."""
        if self.folder(name).exists():
            raise ConflictError(
                f"the snapshot `{name}` exists already",
                hint=f"choose another name, or remove it: firebuild snapshot rm {name}",
            )

    @contextmanager
    def open_stage(self) -> Iterator[Path]:
        """A folder to make a snapshot in; what is not published is removed. Raises HostError."""
        self.sweep()
        stage = self._root / f"{_STAGE}{secrets.token_hex(8)}"
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            stage.mkdir(mode=0o700)
        except OSError as error:
            raise map_os_error(error, f"making `{stage}`") from error
        try:
            yield stage
        finally:
            remove_tree(stage)

    def publish(self, stage: Path, snapshot: Snapshot) -> None:
        """The snapshot is there, whole, once this has returned; not at all before. Raises HostError."""
        try:
            write_atomic(stage / "snapshot.json", msgspec.json.encode(snapshot))
            for file in stage.iterdir():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            sync_folder(stage)
            os.rename(stage, self.folder(snapshot.name))
            sync_folder(self._root)
        except OSError as error:
            raise map_os_error(error, f"making the snapshot `{snapshot.name}`") from error

    def find(self, name: str) -> Snapshot | None:
        """A snapshot, or None. Raises StoreError for one whose record is damaged."""
        folder = self.folder(name)
        try:
            return msgspec.json.decode((folder / "snapshot.json").read_bytes(), type=Snapshot)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(
                f"the record of the snapshot `{name}` is damaged: {error}",
                hint=f"remove it: firebuild snapshot rm {name}",
            ) from error

    def get(self, name: str) -> Snapshot:
        """A snapshot. Raises NotFoundError."""
        found = self.find(name)
        if found is None:
            raise NotFoundError(f"there is no snapshot `{name}`", hint="list them with `firebuild snapshot ls`")
        return found

    def list_names(self) -> list[str]:
        """The names of all snapshots, damaged ones too."""
        try:
            return sorted(name for name in os.listdir(self._root) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def list_all(self) -> list[Snapshot]:
        """All snapshots whose records can be read, by name."""
        found = []
        for name in self.list_names():
            try:
                snapshot = self.find(name)
            except StoreError:
                continue  # `fsck` tells of it
            if snapshot is not None:
                found.append(snapshot)
        return found

    def list_children(self, snapshot: Snapshot) -> list[Snapshot]:
        """The diffs that need it."""
        return [other for other in self.list_all() if other.parent_id == snapshot.id]

    def remove(self, name: str) -> None:
        """Remove a snapshot: it vanishes as a whole, then its bytes go. Raises NotFoundError, HostError."""
        doomed = self._root / f"{_STAGE}{secrets.token_hex(8)}"
        try:
            os.rename(self.folder(name), doomed)
        except FileNotFoundError:
            raise NotFoundError(
                f"there is no snapshot `{name}`", hint="list them with `firebuild snapshot ls`"
            ) from None
        except OSError as error:
            raise map_os_error(error, f"removing the snapshot `{name}`") from error
        remove_tree(doomed)

    def used_bytes(self, snapshot: Snapshot) -> int:
        """What its files take on this host."""
        return sum(file.stat().st_blocks * 512 for file in self.folder(snapshot.name).iterdir())

    def sweep(self) -> list[str]:
        """Remove what interrupted work left, and snapshots whose command has died; their names."""
        swept = []
        if self._root.is_dir():
            for name in os.listdir(self._root):
                if name.startswith(_STAGE):
                    remove_tree(self._root / name)
                    swept.append(name)
        for snapshot in self.list_all():
            if snapshot.owner is not None and not is_alive(snapshot.owner):
                self.remove(snapshot.name)
                swept.append(snapshot.name)
        return swept

    def needs_sweep(self) -> bool:
        """Whether there is anything that `sweep` might remove: most often there is not even the folder."""
        return self._root.is_dir() and (
            any(name.startswith(_STAGE) for name in os.listdir(self._root))
            or any(each.owner is not None and not is_alive(each.owner) for each in self.list_all())
        )

    # The memory.

    def check_memory(self, snapshot: Snapshot) -> None:
        """Raises SnapshotError where the memory file is not the one that was written: by its size and the time of its last
        change, and only where that is another one by what it holds."""
        path = self.folder(snapshot.name) / "memory"
        try:
            status = path.stat()
        except OSError as error:
            raise SnapshotError(
                f"the memory file of the snapshot `{snapshot.name}` cannot be read: {error.strerror}",
                hint=f"make it anew; remove it: firebuild snapshot rm {snapshot.name}",
            ) from error
        if status.st_size != snapshot.memory_bytes:
            raise _damaged(snapshot, f"it has {status.st_size} bytes instead of {snapshot.memory_bytes}")
        if status.st_ctime_ns != snapshot.memory_changed_ns:
            self.verify_memory(snapshot)

    def verify_memory(self, snapshot: Snapshot) -> None:
        """Read the whole memory file. Raises SnapshotError where it holds something else than was written."""
        if digest_content(self.folder(snapshot.name) / "memory") != snapshot.memory_digest:
            raise _damaged(snapshot, "it does not hold what was written")

    def find_whole_memory(self, snapshot: Snapshot) -> Path | None:
        """The file that a clone maps; None where a diff must be merged first."""
        if snapshot.kind == "full":
            return self.folder(snapshot.name) / "memory"
        merged = self.folder(snapshot.name) / "merged"
        return merged if merged.exists() else None

    def merge_memory(self, snapshot: Snapshot) -> None:
        """Lay a diff over its parent's memory, and keep the result beside it. Raises SnapshotError, DiskFullError, HostError."""
        parent = self.find(snapshot.parent)
        if parent is None or parent.id != snapshot.parent_id:
            raise SnapshotError(f"the parent `{snapshot.parent}` of the diff `{snapshot.name}` is gone")
        self.check_memory(parent)
        base = self.find_whole_memory(parent)
        if base is None:
            self.merge_memory(parent)
            base = self.folder(parent.name) / "merged"
        merged = self.folder(snapshot.name) / "merged"
        aside = merged.with_name(".merged")
        aside.unlink(missing_ok=True)
        try:
            clone_file(base, aside)
            lay_over(self.folder(snapshot.name) / "memory", aside)
            status = base.stat()
            os.chown(aside, status.st_uid, status.st_gid)
            publish(aside, merged)
        except OSError as error:
            raise map_os_error(error, f"merging the memory of `{snapshot.name}`") from error
        finally:
            aside.unlink(missing_ok=True)


def _damaged(snapshot: Snapshot, what: str) -> SnapshotError:
    return SnapshotError(
        f"the memory file of the snapshot `{snapshot.name}` is damaged: {what}",
        hint=f"it cannot be restored; remove it: firebuild snapshot rm {snapshot.name}",
    )
