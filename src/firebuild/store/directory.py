"""The built-in storage provider: a folder of rootfs files by name, and a folder of kernels.

<rootfs-storage-root>/<org|_>/<name>/<version>/{rootfs,metadata.json}     see firebuild.store.view
<rootfs-storage-root>/.firebuild      the state folder whose names are shown here: no two share a root
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar

from firebuild.errors import ConfigError, ConflictError
from firebuild.host.files import map_os_error, write_atomic
from firebuild.names import Reference
from firebuild.store.provider import Place, stamp_of
from firebuild.store.view import RootfsMetadata, ensure_view, list_views, remove_view

ROOTFS_ROOT = "rootfs-storage-root"
KERNEL_ROOT = "kernel-storage-root"
_OWNER = ".firebuild"


class DirectoryProvider:
    """Folders on this host. Roots that are not given are folders of the profile's state folder."""

    string_properties: ClassVar[Collection[str]] = frozenset((ROOTFS_ROOT, KERNEL_ROOT))
    integer_properties: ClassVar[Collection[str]] = frozenset()

    def __init__(self, place: Place, strings: Mapping[str, str], integers: Mapping[str, int]) -> None:
        self._state = place.state
        self._given = dict(strings)
        self.rootfs_folder = Path(strings[ROOTFS_ROOT]).absolute() if ROOTFS_ROOT in strings else place.rootfs
        self._kernel_folder = Path(strings[KERNEL_ROOT]).absolute() if KERNEL_ROOT in strings else place.kernels

    @property
    def kernel_folder(self) -> Path:
        """Where the kernels are."""
        return self._kernel_folder

    def check(self) -> None:
        """Raises ConfigError for a root that is not a folder, ConflictError for one that another state folder shows its names in."""
        for prop, text in self._given.items():
            if not Path(text).is_dir():
                raise ConfigError(f"the {prop} `{text}` is not a folder", hint=f"make it: mkdir -p {text}")
            owner = self._find_owner(Path(text))
            if owner not in ("", str(self._state)) and Path(owner).is_dir():
                raise ConflictError(
                    f"the {prop} `{text}` belongs to the state folder `{owner}`",
                    hint="give each profile folders of its own",
                )

    def publish(self, reference: Reference, metadata: RootfsMetadata, disk: Path | None) -> None:
        """Write the view of one name. Raises ConfigError, ConflictError, DiskFullError, HostError."""
        self._claim()
        ensure_view(self.rootfs_folder, reference, disk, metadata)

    def withdraw(self, reference: Reference) -> None:
        """Remove the view of one name. Raises HostError."""
        remove_view(self.rootfs_folder, reference)

    def list_published(self) -> Mapping[str, str]:
        """Every name that is shown, with what tells its state."""
        return {
            reference.full: stamp_of(metadata, disk) for reference, metadata, disk in list_views(self.rootfs_folder)
        }

    def _claim(self) -> None:
        self.check()
        for text in self._given.values():
            root = Path(text)
            if self._find_owner(root) != str(self._state):
                write_atomic(root / _OWNER, f"{self._state}\n".encode(), mode=0o644)

    @staticmethod
    def _find_owner(root: Path) -> str:
        try:
            return os.fsdecode((root / _OWNER).read_bytes()).strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise map_os_error(error, f"reading `{root / _OWNER}`") from error
