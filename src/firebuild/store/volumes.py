"""Named volumes: ext4 files that outlive the machines that have them. Made empty here, and never mounted or read by this host.

<volumes>/<name>/disk.ext4      what guests wrote
<volumes>/<name>/volume.json    Volume
<volumes>/.stage-<random>/      being made or removed
"""

from __future__ import annotations

import os
import secrets
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from firebuild.errors import ConflictError, NotFoundError, StoreError
from firebuild.host.files import map_os_error, remove_tree, sync_folder, write_atomic
from firebuild.names import parse_object_name
from firebuild.store.disks import make_blank

DEFAULT_BYTES = 8 << 30
MIN_BYTES = 8 << 20
_STAGE = ".stage-"
# linux/fs/ext4/ext4.h, struct ext4_super_block: s_magic at 0x38, s_state at 0x3a, in which 2 says that errors were detected.
_SUPERBLOCK, _SUPERBLOCK_HEAD = 1024, 64
_MAGIC_AT, _MAGIC, _STATE_ERRORS = 0x38, 0xEF53, 2


class Volume(msgspec.Struct, frozen=True):
    """A volume. `size_bytes`: of the file system (sparse); `used_bytes`: what it takes on this host."""

    name: str
    size_bytes: int
    created_at_ns: int
    labels: dict[str, str] = {}
    used_bytes: int = 0
    version: int = 1


class VolumeStore:
    """The volumes below one folder. Creating the object touches nothing. Whoever makes or removes one holds the volumes'
    lock."""

    def __init__(self, root: Path, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.root = root
        self._clock = clock

    def disk(self, name: str) -> Path:
        """Where a volume's disk is. Raises UsageError for what is no name."""
        return self.root / parse_object_name("volume", name) / "disk.ext4"

    def create(self, name: str, size_bytes: int, labels: Mapping[str, str]) -> Volume:
        """Make an empty volume; it is there whole or not at all. Raises ConflictError, UsageError, DiskFullError, HostError."""
        folder = self.disk(name).parent
        if self.find(name) is not None:
            raise ConflictError(f"the volume `{name}` exists already")
        self.sweep()
        stage = self.root / f"{_STAGE}{secrets.token_hex(8)}"
        volume = Volume(name, size_bytes, self._clock(), dict(labels))
        try:
            # The unprivileged VMM passes through to its disk; it cannot list.
            self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
            stage.mkdir(mode=0o711)
            make_blank(stage / "disk.ext4", size_bytes, journal=True, label="volume", identity=secrets.token_hex(16))
            write_atomic(stage / "volume.json", msgspec.json.encode(volume))
            os.rename(stage, folder)
            sync_folder(self.root)
        except OSError as error:
            remove_tree(stage)
            raise map_os_error(error, f"making the volume `{name}`") from error
        except BaseException:
            remove_tree(stage)
            raise
        return volume

    def find(self, name: str) -> Volume | None:
        """A volume, or None. Raises StoreError for one whose record is damaged."""
        disk = self.disk(name)
        try:
            volume = msgspec.json.decode((disk.parent / "volume.json").read_bytes(), type=Volume)
            used = disk.stat().st_blocks * 512
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(
                f"the volume `{name}` is damaged: {error}", hint=f"look at `{disk.parent}`; its data is `disk.ext4`"
            ) from error
        return msgspec.structs.replace(volume, used_bytes=used)

    def get(self, name: str) -> Volume:
        """A volume. Raises NotFoundError."""
        volume = self.find(name)
        if volume is None:
            raise NotFoundError(f"there is no volume `{name}`", hint="list them with `firebuild volume ls`")
        return volume

    def list_names(self) -> list[str]:
        """The names of all volumes, damaged ones included, sorted."""
        try:
            return sorted(name for name in os.listdir(self.root) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def list_all(self) -> list[Volume]:
        """All volumes by name."""
        return [volume for name in self.list_names() if (volume := self.find(name)) is not None]

    def find_faults(self, name: str) -> list[str]:
        """What is wrong with a volume, a sentence each. Of what guests wrote only the superblock's own words are looked at."""
        folder = self.root / name
        try:
            volume = msgspec.json.decode((folder / "volume.json").read_bytes(), type=Volume)
        except (OSError, msgspec.MsgspecError) as error:
            return [f"its record cannot be read: {error}"]
        faults = [] if volume.name == name else [f"its record is that of `{volume.name}`"]
        try:
            with open(folder / "disk.ext4", "rb") as disk:
                size = os.fstat(disk.fileno()).st_size
                disk.seek(_SUPERBLOCK)
                head = disk.read(_SUPERBLOCK_HEAD)
        except OSError as error:
            return [*faults, f"its disk cannot be read: {error.strerror}"]
        if size != volume.size_bytes:
            faults.append(f"its disk has {size} bytes, its record says {volume.size_bytes}")
        magic, state = struct.unpack_from("<HH", head.ljust(_SUPERBLOCK_HEAD, b"\0"), _MAGIC_AT)
        if magic != _MAGIC:
            faults.append("its disk holds no ext4 file system")
        elif state & _STATE_ERRORS:
            faults.append(
                "the guest that had it has found errors in its file system: copy out what is in it, or run e2fsck"
            )
        return faults

    def resize(self, name: str, size_bytes: int) -> Volume:
        """Note the size that the volume's disk has now."""
        volume = msgspec.structs.replace(self.get(name), size_bytes=size_bytes)
        record = msgspec.json.encode(msgspec.structs.replace(volume, used_bytes=0))
        write_atomic(self.disk(name).parent / "volume.json", record)
        return volume

    def remove(self, name: str) -> None:
        """Remove a volume: it vanishes as a whole, then its bytes go. Raises NotFoundError, HostError."""
        doomed = self.root / f"{_STAGE}{secrets.token_hex(8)}"
        try:
            os.rename(self.disk(name).parent, doomed)
        except FileNotFoundError:
            raise NotFoundError(f"there is no volume `{name}`", hint="list them with `firebuild volume ls`") from None
        except OSError as error:
            raise map_os_error(error, f"removing the volume `{name}`") from error
        remove_tree(doomed)

    def sweep(self) -> int:
        """Remove what interrupted work left; how many there were."""
        left = [name for name in os.listdir(self.root) if name.startswith(_STAGE)] if self.root.is_dir() else []
        for name in left:
            remove_tree(self.root / name)
        return len(left)
