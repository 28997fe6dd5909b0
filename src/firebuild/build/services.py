"""What the build is given from above: the store, images by reference, disks, and build machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from firebuild.build.materials import Material, Materials
from firebuild.build.secrets import Lent
from firebuild.dockerfile.scope import Platform
from firebuild.events.progress import NullSink, ProgressSink

if TYPE_CHECKING:
    from firebuild.build.debug.model import Debugging
    from firebuild.build.sources.remote import RemoteSources
    from firebuild.build.sources.spec import ImageContext, Source
    from firebuild.build.tree import ContextTree
    from firebuild.guest.build import BuildGuest
    from firebuild.names import Digest, Reference
    from firebuild.store.blobs import BlobStore
    from firebuild.store.caches import CacheStore
    from firebuild.store.database import Database
    from firebuild.store.disks import Disk, DiskStore
    from firebuild.store.images import Image, ImageStore


class OpenMachine(Protocol):
    """What the build sees of an open build machine. Drives are in the order in which their disks were given."""

    @property
    def guest(self) -> BuildGuest:
        """The guest's end."""

    @property
    def base_drives(self) -> list[str]:
        """The guest's names of the base disks."""

    @property
    def result_drives(self) -> list[str]:
        """The guest's names of the result disks."""

    @property
    def cache_drives(self) -> list[str]:
        """The guest's names of the disks of caches."""


class OpenBuildMachine(Protocol):
    """Opens a build machine: `bases` are read-only ext4 disks, `results` blank ones, `caches` those of cache mounts. Its
    work disk is set up already.

    Leaving the block well powers the guest off in order: the result disks are complete then. Leaving it by an
    exception kills it. Nothing of it is left either way.
    """

    def __call__(
        self, *, bases: Sequence[Path], results: Sequence[Path], purpose: str, caches: Sequence[Path] = ()
    ) -> AbstractContextManager[OpenMachine]:
        """`purpose`: for people, in the machine's record."""


class BuildServices(msgspec.Struct, frozen=True, eq=False):
    """`resolve_base`: the image of a reference, pulled where that is wanted; raises NotFoundError. `disk_key`: chain id to
    key and parameters of the root disk. `ensure_disk`: an image's root disk, made if need be. `check_disk`: refuses a
    file system that a guest left unclean. `clock`: Unix time in nanoseconds. `caches`: the disks of cache
    mounts; None: RUNs with cache mounts are refused. `scratch`: the folder for
    what a build fetches; None: the system's.
    """

    blobs: BlobStore
    images: ImageStore
    disks: DiskStore
    database: Database
    open_build_machine: OpenBuildMachine
    resolve_base: Callable[[Reference], Image]
    ensure_disk: Callable[[Image], Disk]
    disk_key: Callable[[str], tuple[str, dict[str, str]]]
    disk_size_bytes: int
    check_disk: Callable[[Path], None]
    clock: Callable[[], int] = time.time_ns
    caches: CacheStore | None = None
    scratch: Path | None = None


class BuildRequest(msgspec.Struct, frozen=True, eq=False):
    """One build. `dockerfile`: its bytes; `name`: as messages show it; `context`: a folder, an open tree (its ignore
    file applied), or None for none; `contexts`: named ones, which `open_tree` opens when they are needed; `remote`: what
    ADD fetches with, made if it is None; `tags`: the
    result's names; `labels`: added to the image; `network`: default or none, for every RUN; `ignore_name`: the
    Dockerfile's path relative to the context, for `<name>.dockerignore`; `identity`: names this Dockerfile across
    builds, to explain misses (`name` where empty); `make_disk`: whether the root disk is wanted too;
    `lent`: secrets and SSH agents for the mounts of RUNs; `no_cache_filter`: stages, by name or index, whose steps all
    run; `pre_commands`, `post_commands`: run by the shell before and after the target's own steps; `ca_bundle`: PEM text
    that RUNs trust, in no image and no key; `debug`: who looks into the build, and when; `reread`: the same request with
    the Dockerfile and the context as they are now, None where they cannot be read again; `materials`: what its inputs and
    `remote` took in.
    """

    dockerfile: bytes
    name: str = "Dockerfile"
    context: Path | ContextTree | None = None
    contexts: Mapping[str, Source | ImageContext] = msgspec.field(default_factory=dict)
    open_tree: Callable[[Source], ContextTree] | None = None
    remote: RemoteSources | None = None
    build_args: Mapping[str, str] = msgspec.field(default_factory=dict)
    target: str | None = None
    tags: Sequence[Reference] = ()
    no_cache: bool = False
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    network: str = "default"
    progress: ProgressSink = msgspec.field(default_factory=NullSink)
    platform: Platform = msgspec.field(default_factory=lambda: Platform("linux", "amd64"))
    ignore_name: str = ""
    identity: str = ""
    make_disk: bool = True
    lent: Lent = msgspec.field(default_factory=Lent)
    no_cache_filter: Sequence[str] = ()
    pre_commands: Sequence[str] = ()
    post_commands: Sequence[str] = ()
    ca_bundle: str | None = None
    debug: Debugging | None = None
    reread: Callable[[], BuildRequest] | None = None
    materials: Materials = msgspec.field(default_factory=Materials)


class StepOutcome(msgspec.Struct, frozen=True, eq=False):
    """What became of one step. `text`: the instruction as written; `digest`: of its layer; `duration_ns`: 0 if cached."""

    text: str
    digest: Digest
    cached: bool
    duration_ns: int


class BuildResult(msgspec.Struct, frozen=True, eq=False):
    """`steps`: layers of the needed stages; `cached`: how many of them were there already; `booted`: whether a build machine
    was needed; `disk`: None without layers or if none was wanted; `bases`: names and digests of the images it used;
    `outcomes`: the steps in the order in which they ended; `materials`: what came from repositories and URLs."""

    image: Image
    disk: Disk | None
    steps: int
    cached: int
    booted: bool
    bases: Sequence[tuple[str, Digest]] = ()
    outcomes: Sequence[StepOutcome] = ()
    materials: Sequence[Material] = ()
