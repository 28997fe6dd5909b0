"""The engine: the services of one installation, opened when first needed, closed together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from firebuild.config.current import current_settings
from firebuild.config.settings import Settings
from firebuild.errors import DiskFullError
from firebuild.host.deadline import Deadline
from firebuild.host.locks import hold_lock
from firebuild.layout import NAMES_FOLDER, Layout

if TYPE_CHECKING:
    from firebuild.build.sources.httpcache import HttpCache
    from firebuild.kernels.store import KernelStore
    from firebuild.machine.services import MachineServices
    from firebuild.machine.snapshots import SnapshotStore
    from firebuild.machine.state import MachineRecords
    from firebuild.network.conflist import NetworkSettings
    from firebuild.store.blobs import BlobStore
    from firebuild.store.caches import CacheStore
    from firebuild.store.database import Database
    from firebuild.store.disks import DiskStore
    from firebuild.store.images import Image, ImageStore
    from firebuild.store.leases import Lease
    from firebuild.store.provider import StorageProvider

    Found = TypeVar("Found", bound=Image | None)

_COLLECTION_S = 120.0


class Engine:
    """A context manager. Services are made on first use, so that `ls` opens the database and nothing else.

    `reads_only`: it writes no record, so that it may have the last room of a full disk to open the database.
    """

    def __init__(self, settings: Settings | None = None, *, reads_only: bool = False) -> None:
        self._reads_only = reads_only
        self.settings = settings or current_settings().settings
        state, run = Path(self.settings.state).absolute(), Path(self.settings.run).absolute()
        self.layout = Layout(state, run)
        self._uses: list[list[Lease]] = []
        self._gave_reserve = False
        if self.settings.storage_provider != "directory" or self.settings.storage_strings:
            self.layout = Layout(state, run, kernel_root=self.storage.kernel_folder)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        database = self.__dict__.pop("database", None)
        if database is not None:
            database.close()
        if self._gave_reserve:
            from firebuild.engine.space import keep_reserve

            self._gave_reserve = False
            keep_reserve(self)

    @cached_property
    def database(self) -> Database:
        """The database of facts. Raises StoreError, HostError."""
        from firebuild.store.database import Database

        self.layout.ensure()
        try:
            return Database.open(self.layout.database)
        except DiskFullError:
            # SQLite needs room even to read: what is kept for that is given up until this engine is closed.
            if not self._reads_only or not self.layout.reserve.exists():
                raise
            self.layout.reserve.unlink(missing_ok=True)
            self._gave_reserve = True
            return Database.open(self.layout.database)

    @cached_property
    def blobs(self) -> BlobStore:
        """The blobs of the image store."""
        from firebuild.store.blobs import BlobStore

        self.layout.ensure()
        blobs = BlobStore(self.layout.store)
        blobs.ensure()
        return blobs

    @cached_property
    def images(self) -> ImageStore:
        """The images."""
        from firebuild.store.images import ImageStore

        def show(names: Sequence[str]) -> None:
            from firebuild.engine.happenings import note_names
            from firebuild.engine.views import sync_views

            sync_views(self, names)
            note_names(self, names)

        return ImageStore(self.blobs, show)

    @cached_property
    def disks(self) -> DiskStore:
        """The derived disks."""
        from firebuild.store.disks import DiskStore

        self.layout.ensure()
        return DiskStore(self.layout.disks)

    @cached_property
    def caches(self) -> CacheStore:
        """The disks of cache mounts."""
        from firebuild.store.caches import CacheStore

        self.layout.ensure()
        return CacheStore(self.layout.caches, self.layout.locks, self.settings.cache_disk_bytes)

    @cached_property
    def storage(self) -> StorageProvider:
        """The storage provider, which has agreed to its properties. Raises ConfigError, ConflictError."""
        from firebuild.store.provider import Place, get_provider

        settings, layout = self.settings, self.layout
        place = Place(layout.state, layout.rootfs, layout.kernels)
        provider = get_provider(settings.storage_provider, place, settings.storage_strings, settings.storage_integers)
        provider.check()
        return provider

    @cached_property
    def snapshots(self) -> SnapshotStore:
        """The saved machines."""
        from firebuild.machine.snapshots import SnapshotStore

        return SnapshotStore(self.layout)

    @cached_property
    def http_cache(self) -> HttpCache:
        """The files that ADD fetched."""
        from firebuild.build.sources.httpcache import HttpCache

        return HttpCache(self.layout.http_cache)

    @contextmanager
    def use_store(self, *, adds: bool = True) -> Iterator[None]:
        """Whoever adds to the store, or (`adds` False) only starts from it, is inside this: its lease tells `gc` to leave
        alone what it may need, and dies with this process. Raises BusyError, DiskFullError.
        """
        from firebuild.store.leases import LeaseStore, process_owner

        with self._hold_still():
            leases = LeaseStore(self.database)
            held = leases.take([f"work:{'add' if adds else 'use'}:{time.time_ns()}"], process_owner())
        self._uses.append(held)
        try:
            yield
        finally:
            self._uses.remove(held)
            leases.release(held)

    def keep_image(self, find: Callable[[], Found]) -> Found:
        """The image that `find` finds, which stays until the enclosing `use_store` ends, whoever takes its names away."""
        from firebuild.store.leases import LeaseStore, process_owner

        with self._hold_still():
            image = find()
            if image is not None and self._uses:
                self._uses[-1] += LeaseStore(self.database).take([f"image:{image.manifest_digest}"], process_owner())
            return image

    @contextmanager
    def _hold_still(self) -> Iterator[None]:
        """For a moment nothing is collected."""
        self.layout.ensure()
        deadline = Deadline(_COLLECTION_S, "waiting for `firebuild gc`")
        with hold_lock(self.layout.store_lock, "the store", shared=True, deadline=deadline):
            yield

    def repair(self, *, quick: bool = False) -> list[str]:
        """Clean up what crashed commands left: machines, networks, half-made blobs and disks; a sentence for each.
        `quick`: views are looked at only if something has changed of which they are made, for what works often."""
        from firebuild.build.sources.scratch import sweep_scratch
        from firebuild.engine.views import mend_views, sync_views
        from firebuild.machine.reconcile import reconcile

        done = reconcile(self.machines)
        done += [f"fetched files {path.name}: removed" for path in sweep_scratch(self.layout.scratch)]
        done += [f"half-made file {path.name}: removed" for path in (*self.disks.sweep(), *self.blobs.sweep())]
        done += mend_views(self) if quick else sync_views(self)
        done += [f"removed cache {path.name}: its rest removed" for path in self.caches.sweep()]
        if self.snapshots.needs_sweep():
            with self.snapshots.hold():
                done += [f"half-made or left snapshot {name}: removed" for name in self.snapshots.sweep()]
        return done

    @cached_property
    def kernels(self) -> KernelStore:
        """The kernels."""
        from firebuild.kernels.store import KernelStore

        self.layout.ensure()
        return KernelStore(self.layout.kernels)

    @cached_property
    def networks(self) -> NetworkSettings:
        """Where CNI's plugins, networks and records are."""
        from firebuild.network.conflist import NetworkSettings

        return NetworkSettings(
            bin_dirs=tuple(Path(part) for part in self.settings.cni_bin_dir.split(":") if part),
            conf_dirs=tuple(Path(part) for part in self.settings.cni_conf_dir.split(":") if part),
            cache_dir=Path(self.settings.cni_cache_dir) if self.settings.cni_cache_dir else self.layout.cni,
            own_dir=self.layout.networks,
            names_dir=NAMES_FOLDER,
        )

    @cached_property
    def machine_records(self) -> MachineRecords:
        """The records of machines: all that showing them needs."""
        from firebuild.machine.state import MachineRecords

        return MachineRecords(self.database)

    @cached_property
    def machines(self) -> MachineServices:
        """What the life of machines needs."""
        from firebuild.engine.vmm import plan_vmm_settings
        from firebuild.machine.services import MachineServices

        return MachineServices(
            layout=self.layout,
            records=self.machine_records,
            networks=self.networks,
            vmm=plan_vmm_settings(self),
        )
