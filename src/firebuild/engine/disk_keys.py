"""Which disk is derived from an image, and how large a build machine is wanted: what is known without one."""

from __future__ import annotations

import msgspec

from firebuild.engine.core import Engine
from firebuild.store.disks import Disk, DiskStore


class MachineWish(msgspec.Struct, frozen=True):
    """What a user wants of a build machine; None: as the settings say. `disk_bytes`: of its work disk."""

    memory_mib: int | None = None
    cpus: int | None = None
    disk_bytes: int | None = None
    network: str | None = None
    kernel: str | None = None


NO_WISH = MachineWish()


def root_disk_key(engine: Engine, chain_id: str) -> tuple[str, dict[str, str]]:
    """The key of the root disk of a stack of layers, and the parameters in it."""
    parameters = {"format": "ext4", "size_bytes": str(engine.settings.root_disk_bytes)}
    return DiskStore.disk_key(chain_id, parameters), parameters


def find_root_disk(engine: Engine, chain_id: str) -> Disk | None:
    """The root disk of a stack of layers, if it has been made."""
    return engine.disks.find_disk(root_disk_key(engine, chain_id)[0])
