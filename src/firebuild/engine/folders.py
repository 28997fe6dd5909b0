"""Folders of the host in machines: copied onto a disk of the machine when it is made, and back when it has ended.

A microVM cannot share a folder. The disk is written by mke2fs(8) from the user's own files, and read again by the guest of
a build machine: this host never reads what a guest wrote but as a checked stream.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from firebuild.build.sources.tarread import TarEntry, TarLimits, TarReader
from firebuild.engine.core import Engine
from firebuild.errors import ConflictError, ContextError, GuestError, MachineError, NotFoundError, UsageError
from firebuild.events.text import neutralise
from firebuild.host.beneath import open_beneath
from firebuild.host.files import require_free, write_atomic
from firebuild.host.landing import Attributes, Landing
from firebuild.layout import MachineLayout
from firebuild.machine.mounts import MountRequest
from firebuild.machine.services import hold_machine
from firebuild.machine.spec import MachineSpec, MountSpec
from firebuild.machine.state import ENDED, MachineRecord
from firebuild.store.disks import make_blank

Report = Callable[[str], None]

_ROOM_BYTES = 2 << 30
# As mke2fs is told: bytes of the disk for each inode.
_INODE_BYTES = 16384
_LIMITS = TarLimits(entries=10_000_000, bytes=16 << 40, depth=256)
_CHUNK = 256 << 10
_SHOWN = 10


class Print(msgspec.Struct, frozen=True, array_like=True):
    """By what a changed file is known. `kind`: file, directory, symlink, or other."""

    kind: str
    size: int = 0
    mtime_s: int = 0
    mode: int = 0
    target: str = ""


class Manifest(msgspec.Struct):
    """The folder as it was when it and its disk were last the same, by relative path. `synced_life`: the machine's life after
    which it was copied back, -1: none."""

    entries: dict[str, Print]
    synced_life: int = -1
    # What was put beside the host's, and need not be told again.
    beside: dict[str, Print] = {}


class Synced(msgspec.Struct):
    """What was copied back. `conflicts`: what had changed on both sides, `kept`: what was removed in the machine only."""

    folder: str
    written: int = 0
    conflicts: list[str] = []
    kept: int = 0


def check_folder(engine: Engine, request: MountRequest) -> Path:
    """The folder that is meant. Raises NotFoundError, UsageError."""
    path = Path(os.path.realpath(os.path.expanduser(request.source)))
    if not path.exists():
        raise NotFoundError(
            f"the folder `{request.source}` does not exist", hint="a volume's name has no `/`, `.` or `~` in front"
        )
    if not path.is_dir():
        raise UsageError(
            f"`{request.source}` is not a folder", hint="name the folder that it is in, or copy it with `firebuild cp`"
        )
    state = Path(os.path.realpath(engine.layout.state))
    if path == state or path in state.parents:
        raise UsageError(f"`{request.source}` holds firebuild's own state and cannot be copied into a machine")
    return path


def note_folders(requests: Sequence[MountRequest], *, sync_back: bool, report: Report) -> None:
    """Say once what a folder means here."""
    names = ", ".join(request.source for request in requests if request.is_folder)
    if names:
        later = (
            "it is copied back when the machine has ended"
            if sync_back
            else "--sync-back copies it back, `cp` at any time"
        )
        report(f"note: a microVM cannot share a folder: {names} is copied into the machine; {later}")


def fill_disks(engine: Engine, spec: MachineSpec, machine: MachineLayout) -> None:
    """Make the disks of a machine's folders. Raises HostError, DiskFullError."""
    paths = {drive.drive_id: Path(drive.path) for drive in spec.drives}
    for number, mount in _folder_mounts(spec):
        manifest = Manifest(dict(_look(mount.folder)))
        content = sum(entry.size + 4096 for entry in manifest.entries.values())
        require_free(engine.layout.state, content, f"copying `{mount.folder}`")
        size = max(2 * content + _ROOM_BYTES, 2 * _INODE_BYTES * len(manifest.entries))
        make_blank(
            paths[mount.drive_id], size, journal=True, label="folder", identity=secrets.token_hex(16),
            content=Path(mount.folder),
        )  # fmt: skip
        if spec.sync_back and not mount.read_only:
            write_atomic(machine.folder_manifest(number), msgspec.json.encode(manifest))


def needs_sync(engine: Engine, record: MachineRecord) -> bool:
    """Whether an ended machine has folders that were not copied back since it ended."""
    if not record.spec.sync_back or record.state not in ENDED:
        return False
    machine = engine.layout.machine(record.spec.id)
    return any(_load(machine, number).synced_life < record.progress.life for number, _ in _synced_mounts(record.spec))


def sync_back(engine: Engine, name: str) -> list[Synced]:
    """Copy the folders of an ended machine back, if it was to be done and is not done yet. What changed in the machine replaces
    what has not changed on the host; where both changed, the host's stays and the machine's comes beside it; nothing is
    removed. Raises MachineError, GuestError, ConflictError, HostError; then it can be tried again."""
    from firebuild.engine.disks import open_machine

    machine_id = engine.machines.records.get(name).spec.id
    with hold_machine(engine.machines, machine_id) as paths:
        record = engine.machines.records.get(machine_id)
        if not needs_sync(engine, record):
            return []
        mounts = list(_synced_mounts(record.spec))
        disks = {drive.drive_id: Path(drive.path) for drive in record.spec.drives}
        done: list[Synced] = []
        # Disks that may be written to: their journals have to be replayed where the machine was killed.
        caches = [disks[mount.drive_id] for _, mount in mounts]
        purpose = f"copying the folders of {record.spec.name} back"
        with (
            engine.use_store(adds=False),
            open_machine(engine, bases=[], results=[], caches=caches, purpose=purpose) as helper,
        ):
            for position, (number, mount) in enumerate(mounts):
                manifest = _load(paths, number)
                layer = f"f{position}"
                helper.guest.mount_layer(layer, helper.cache_drives[position])
                with helper.guest.open_export([layer]) as pieces:
                    done.append(_take_back(pieces, Path(mount.folder), manifest, record.spec.id))
                manifest.synced_life = record.progress.life
                write_atomic(paths.folder_manifest(number), msgspec.json.encode(manifest))
        return done


def describe_synced(result: Synced) -> list[str]:
    """What was done, in sentences."""
    lines = [f"copied back to {result.folder}: {result.written} changed"]
    for path in result.conflicts[:_SHOWN]:
        lines.append(f"note: {path} has changed on the host too: the machine's is beside it")
    if len(result.conflicts) > _SHOWN:
        lines.append(f"note: and {len(result.conflicts) - _SHOWN} more such files")
    if result.kept:
        lines.append(f"note: {result.kept} that were removed in the machine stay in {result.folder}")
    return lines


def _folder_mounts(spec: MachineSpec) -> Iterator[tuple[int, MountSpec]]:
    return ((number, mount) for number, mount in enumerate(spec.mounts) if mount.folder)


def _synced_mounts(spec: MachineSpec) -> Iterator[tuple[int, MountSpec]]:
    return ((number, mount) for number, mount in _folder_mounts(spec) if not mount.read_only)


def _load(machine: MachineLayout, number: int) -> Manifest:
    path = machine.folder_manifest(number)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise MachineError(f"the record of a folder, `{path}`, cannot be read: {error}") from error


def _look(folder: str) -> Iterator[tuple[str, Print]]:
    """What is in a folder of the user's, links not followed."""
    for parent, names, files in os.walk(folder):
        for name in (*names, *files):
            path = os.path.join(parent, name)
            found = _print_of(path)
            if found is not None:
                yield os.path.relpath(path, folder), found


def _print_of(path: str) -> Print | None:
    try:
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFLNK:
            return Print("symlink", target=os.readlink(path))
    except FileNotFoundError:
        return None
    if kind == stat.S_IFDIR:
        return Print("directory")
    if kind == stat.S_IFREG:
        return Print("file", status.st_size, int(status.st_mtime), status.st_mode & 0o777)
    return Print("other")


class _Back:
    """One folder that is being copied back."""

    def __init__(self, folder: Path, manifest: Manifest, machine_id: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.machine_id = machine_id
        self.result = Synced(str(folder), conflicts=[])
        self.seen: set[str] = set()
        # Where the host has something else than the folder of the machine: nothing of it is copied.
        self.closed: set[str] = set()
        # What was written under another name, for hard links to it.
        self.moved: dict[str, str] = {}
        status = folder.stat()
        self._owner = (status.st_uid, status.st_gid)

    def take(self, landing: Landing, entry: TarEntry, reader: TarReader) -> None:
        path = entry.path
        known = self.manifest.entries.get(path)
        if not path or (path.partition("/")[0] == "lost+found" and known is None):
            return
        self.seen.add(path)
        if any(part in self.closed for part in _parents(path)):
            return
        here = _print_of(str(self.folder / path))
        if entry.kind == "directory":
            if here is not None and here.kind != "directory":
                self.closed.add(path)
                self.result.conflicts.append(path)
            elif here is None and known is None:
                landing.make_folder(path, self._attributes(entry, path))
                self.manifest.entries[path] = Print("directory")
            return
        if entry.kind not in ("file", "symlink", "hardlink"):
            return
        told = self._print(entry)
        if told in (known, self.manifest.beside.get(path)):
            return
        if here == told:
            # Copied by a run of this that was cut short, or changed alike.
            self.manifest.entries[path] = told
            return
        if here != known:
            self.result.conflicts.append(path)
            self.moved[path] = f"{path}.{self.machine_id}"
        target = self.moved.get(path, path)
        if entry.kind == "symlink":
            landing.make_link(target, entry.target, self._attributes(entry, target))
        else:
            chunks = self._linked(entry) if entry.kind == "hardlink" else reader.read_content()
            landing.write_file(target, self._attributes(entry, target), chunks)
        self.result.written += 1
        (self.manifest.entries if target == path else self.manifest.beside)[path] = told

    def finish(self) -> None:
        """What the machine has no more stays."""
        self.result.kept = len([path for path in self.manifest.entries if path not in self.seen])

    def _print(self, entry: TarEntry) -> Print:
        if entry.kind == "symlink":
            return Print("symlink", target=entry.target)
        size = entry.size
        if entry.kind == "hardlink":
            # A further name of a file that came before, which is on the host by now, or was the same.
            other = self.manifest.entries.get(entry.target)
            size = other.size if other is not None else -1
        return Print("file", size, entry.mtime_s, entry.mode & 0o777)

    def _linked(self, entry: TarEntry) -> Iterator[bytes]:
        root = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            source = self.moved.get(entry.target, entry.target)
            with os.fdopen(open_beneath(root, os.fsencode(source), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ConflictError(f"`{source}` is not a file any more")
                while piece := file.read(_CHUNK):
                    yield piece
        finally:
            os.close(root)

    def _attributes(self, entry: TarEntry, path: str) -> Attributes:
        """A file keeps its owner; a new one gets the folder's."""
        try:
            status = os.lstat(self.folder / path)
            owner = (status.st_uid, status.st_gid)
        except FileNotFoundError:
            owner = self._owner
        return Attributes(mode=entry.mode, mtime_s=entry.mtime_s, owner=owner)


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _take_back(pieces: Iterator[bytes], folder: Path, manifest: Manifest, machine_id: str) -> Synced:
    from firebuild.engine.copying import Pieces

    if not folder.is_dir():
        raise NotFoundError(f"the folder `{folder}` does not exist any more", hint="make it, and try again")
    back = _Back(folder, manifest, machine_id)
    source = Pieces(pieces)
    reader = TarReader(source.read, f"what the machine sent for `{folder}`", _LIMITS)
    with ExitStack() as stack:
        landing = stack.enter_context(Landing(folder))
        try:
            for entry in reader:
                back.take(landing, entry, reader)
            source.drain()
        except ContextError as error:
            raise GuestError(neutralise(error.message), guest_code="bad-archive") from error
    back.finish()
    return back.result
