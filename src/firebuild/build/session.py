"""The one build machine of a build: opened when the first step needs it, by the main thread, with everything it may need.

Stage threads ask for it and wait; the main thread opens it, so that Ctrl-C reaches a boot at once. The session is a
context manager: left by an exception it kills the machine, which ends whatever the threads wait for in the guest.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from firebuild.build.cachemounts import CacheMounts
from firebuild.build.digest import sha256_hex
from firebuild.errors import BuildError, GuestError, InternalError
from firebuild.events.progress import Canceled, Reporter
from firebuild.events.text import neutralise
from firebuild.names import Digest
from firebuild.store.images import compute_chain_id

if TYPE_CHECKING:
    from firebuild.build.services import BuildServices, OpenMachine
    from firebuild.build.steps import Plan, ResultLayer
    from firebuild.guest.build import BuildGuest
    from firebuild.store.caches import CacheWish
    from firebuild.store.disks import Disk, StagedDisk

# The work disk and the result disk are among a machine's drives, and those of caches. The root image comes first.
MAX_DRIVES = 26
MAX_BASE_DISKS = 20
# Of a tar without entries: two blocks of zeros.
EMPTY_DIFF_ID = Digest("sha256:" + sha256_hex(bytes(1024)))


class BuildSession:
    """See the module. `open` and `finish` belong to the main thread; all else may be called from any. `all_caches`: the
    caches of steps that are done are wanted too, for they may have to run again."""

    def __init__(
        self, services: BuildServices, plan: Plan, reporter: Reporter, *, make_disk: bool, all_caches: bool = False
    ) -> None:
        self._services = services
        self._plan = plan
        self._reporter = reporter
        self._make_disk = make_disk
        self._all_caches = all_caches
        self._resources = ExitStack()
        self._running = ExitStack()
        self._machine: OpenMachine | None = None
        self._staged: StagedDisk | None = None
        self._opened = threading.Event()
        self._asked = False
        self._guard = threading.Lock()
        self._canceled = False
        self._wake: Callable[[], None] = lambda: None
        self._names = itertools.count(1)
        self._layers: dict[str, _GuestLayer] = {}
        self._files: dict[str, _GuestLayer] = {}
        self._disk_layers: dict[str, str] = {}
        self._done: set[str] = set()
        self.caches = CacheMounts(plan)

    def __enter__(self) -> BuildSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        try:
            self._running.__exit__(kind, error, trace)
        finally:
            self._resources.__exit__(kind, error, trace)

    # -- for the main thread ---------------------------------------------------------------------------------------

    def on_request(self, wake: Callable[[], None]) -> None:
        """`wake` is called, from another thread, when somebody needs the machine: `open` must follow."""
        self._wake = wake

    @property
    def booted(self) -> bool:
        """Whether a machine was opened."""
        return self._machine is not None

    def open(self) -> None:
        """Open the machine. Raises FirebuildError; nothing of it is left then."""
        with self._guard:
            wishes = self.caches.plan_wishes(frozenset() if self._all_caches else frozenset(self._done))
        bases = self._ensure_base_disks(min(MAX_BASE_DISKS, MAX_DRIVES - 2 - len(wishes)))
        # Before the machine, and so left after it.
        caches = self._attach_caches(wishes)
        with self._reporter.step("[internal] boot the build machine"):
            results = []
            if self._make_disk:
                results = [self._stage_result(bases).path]
            machine = self._running.enter_context(
                self._services.open_build_machine(
                    bases=[disk.path for disk in bases.values()],
                    results=results,
                    caches=caches,
                    purpose="building an image",
                )
            )
            self.caches.set_drives(machine.cache_drives)
            for number, (disk, drive) in enumerate(zip(bases.values(), machine.base_drives, strict=True)):
                machine.guest.mount_layer(f"b{number}", drive)
                self._disk_layers[disk.chain_id] = f"b{number}"
        self._machine = machine
        self._opened.set()

    def _attach_caches(self, wishes: Sequence[CacheWish]) -> list[Path]:
        if not wishes:
            return []
        if self._services.caches is None:
            raise InternalError("this build has cache mounts, and was given no place for them")
        with self._reporter.step("[internal] open the caches") as report:
            attached = self._services.caches.attach(
                wishes,
                waiting=lambda name: report.note(f"waiting for the cache `{neutralise(name)}`: another build has it"),
                renewed=lambda name: self._reporter.warn(f"the cache `{neutralise(name)}` was damaged: it begins anew"),
            )
            return self._running.enter_context(attached)

    def serves(self, plan: Plan) -> bool:
        """Whether this machine, which is open, has the disks that another plan needs. What else that one stands on is sent."""
        same_root = not self._make_disk or _root_chain(plan) == _root_chain(self._plan)
        return same_root and self.caches.serves(plan)

    def cancel(self) -> None:
        """Let nobody wait for the machine any longer."""
        self._canceled = True
        self._opened.set()

    def finish(self, layers: Sequence[ResultLayer], chain_id: str) -> Disk | None:
        """Write the result disk if it is wanted and not there, power the machine off, and publish the disk."""
        machine = self._machine
        if machine is None:
            raise InternalError("a build machine was to be finished that never was opened")
        key, parameters = self._services.disk_key(chain_id)
        wanted = self._staged is not None and bool(layers)
        disk = self._services.disks.find_disk(key) if wanted else None
        write = wanted and disk is None
        with self._reporter.step("exporting the disk") if write else ExitStack():
            if write:
                # The result disk began as a copy of the root image's: only what lies above that is written.
                above = [name for name in self.ensure_stack(layers) if name not in self._disk_layers.values()]
                _merge_disk(machine, above)
            self._running.close()
            if write and self._staged is not None:
                self._services.check_disk(self._staged.path)
                disk = self._staged.publish(key, {"chain_id": chain_id, "parameters": parameters})
        return disk

    def _ensure_base_disks(self, limit: int) -> dict[str, Disk]:
        """The disks of the base images by chain id, made where there are none yet: builds to come start from them too."""
        disks: dict[str, Disk] = {}
        for image in self._plan.images:
            if not image.layers or image.chain_id in disks or len(disks) >= limit:
                continue
            disk = self._services.disks.find_disk(self._services.disk_key(image.chain_id)[0])
            if disk is None:
                with self._reporter.step(
                    f"[internal] make the disk of {image.reference or image.manifest_digest[:19]}"
                ):
                    disk = self._services.ensure_disk(image)
            disks[image.chain_id] = disk
        return disks

    def _stage_result(self, bases: Mapping[str, Disk]) -> StagedDisk:
        root = self._plan.root_image
        disk = bases.get(root.chain_id) if root is not None and root.layers else None
        stage = self._services.disks.stage(self._services.disk_size_bytes, source=disk)
        self._staged = self._resources.enter_context(stage)
        return self._staged

    # -- for the stages' threads -----------------------------------------------------------------------------------

    @property
    def guest(self) -> BuildGuest:
        """The guest; waits until the machine is open. Raises Canceled."""
        with self._guard:
            ask = not self._asked
            self._asked = True
        if ask:
            self._wake()
        self._opened.wait()
        if self._canceled or self._machine is None:
            raise Canceled
        return self._machine.guest

    def note_done(self, step_id: str) -> None:
        """That step needs no machine: its result is there."""
        with self._guard:
            self._done.add(step_id)

    def new_layer(self) -> str:
        """A name for a new layer in the guest."""
        return f"l{next(self._names)}"

    def ensure_stack(self, layers: Sequence[ResultLayer]) -> list[str]:
        """The guest's layers for these layers (lowest first), topmost first; those that are missing are sent.

        A base image with a disk is one layer. Empty layers are none.
        """
        guest = self.guest
        diff_ids = [layer.diff_id for layer in layers]
        stack: list[str] = []
        start = 0
        for count in range(len(layers), 0, -1):
            name = self._disk_layers.get(compute_chain_id(diff_ids[:count]))
            if name is not None:
                stack, start = [name], count
                break
        for count in range(start, len(layers)):
            if layers[count].diff_id != EMPTY_DIFF_ID:
                below = list(stack)
                stack.insert(
                    0, self._ensure_layer(guest, compute_chain_id(diff_ids[: count + 1]), layers[count], below)
                )
        return stack

    def adopt_layer(self, below: Sequence[ResultLayer], layer: ResultLayer, name: str) -> None:
        """A layer that a step has just made in the guest as `name` on `below`, and that is in the store."""
        chain_id = compute_chain_id([*(each.diff_id for each in below), layer.diff_id])
        entry = self._entry(chain_id)
        with entry.lock:
            entry.name = entry.name or name

    def ensure_files(self, key: str, send: Callable[[str], None]) -> str:
        """The guest's layer of files that are known by `key`; `send` makes it, under the name that it is given, once."""
        with self._guard:
            entry = self._files.setdefault(key, _GuestLayer())
        with entry.lock:
            if entry.name is None:
                name = self.new_layer()
                send(name)
                entry.name = name
            return entry.name

    def _entry(self, chain_id: str) -> _GuestLayer:
        with self._guard:
            return self._layers.setdefault(chain_id, _GuestLayer())

    def _ensure_layer(self, guest: BuildGuest, chain_id: str, layer: ResultLayer, below: list[str]) -> str:
        from firebuild.images.archive import open_layer

        entry = self._entry(chain_id)
        with entry.lock:
            if entry.name is None:
                name = self.new_layer()
                path = self._services.blobs.path(layer.digest)
                with (
                    self._reporter.step(f"[internal] unpack the layer {layer.diff_id[7:19]}"),
                    open_layer(path, layer.media_type, expected_diff_id=layer.diff_id) as stream,
                ):
                    guest.apply_layer(name, below, stream)
                entry.name = name
            return entry.name


def _root_chain(plan: Plan) -> str | None:
    return None if plan.root_image is None else plan.root_image.chain_id


def _merge_disk(machine: OpenMachine, above: Sequence[str]) -> None:
    try:
        machine.guest.merge_disk(above, machine.result_drives[0])
    except GuestError as error:
        if error.guest_code != "no-space":
            raise
        raise BuildError(
            f"the result does not fit its root disk: {error.message}",
            hint="set a larger FIREBUILD_ROOT_DISK, 16g for example",
        ) from error


class _GuestLayer:
    """A layer of one chain id in the guest: its name once it is there. The lock is held while it is being sent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.name: str | None = None
