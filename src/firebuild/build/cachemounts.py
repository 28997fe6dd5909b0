"""The cache mounts of one build: which disks its machine needs, which drive is whose, and whose turn it is."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from firebuild.build.steps import CacheMount, Plan, PlannedStep, RunAction
from firebuild.errors import BuildError, InternalError
from firebuild.store.caches import CacheWish

MAX_CACHES = 16


class CacheMounts:
    """Thread-safe once `set_drives` was called. Within the machine steps share a cache; a `locked` one has it alone."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._slots: dict[tuple[str, int], CacheWish] = {}
        self._drives: dict[tuple[str, int], str] = {}
        self._turns: dict[tuple[str, int], _Turns] = {}

    def plan_wishes(self, done: Collection[str]) -> list[CacheWish]:
        """The caches that the steps need, but for those (by id) that are done. Raises BuildError for too many."""
        for stage in self._plan.stages:
            for step in stage.steps:
                if step.id not in done:
                    for mount in list_caches(step):
                        wish = CacheWish(mount.key, mount.id, private=mount.sharing == "private")
                        self._slots.setdefault(_slot(step, mount), wish)
        if len(self._slots) > MAX_CACHES:
            raise BuildError(
                f"this build needs {len(self._slots)} cache mounts at once; a build machine takes {MAX_CACHES}",
                hint="let mounts share an `id`, or build the stages one by one with --target",
            )
        return list(self._slots.values())

    def serves(self, plan: Plan) -> bool:
        """Whether every cache of another plan's steps is attached. They are then known by the same drives."""
        steps = [step for stage in plan.stages for step in stage.steps]
        return all(_slot(step, mount) in self._drives for step in steps for mount in list_caches(step))

    def set_drives(self, drives: Sequence[str]) -> None:
        """The guest's names of the disks, in the order of the wishes."""
        self._drives = dict(zip(self._slots, drives, strict=True))
        self._turns = {slot: _Turns() for slot in self._slots}

    def get_drive(self, step: PlannedStep, mount: CacheMount) -> str:
        """The drive of a step's cache."""
        drive = self._drives.get(_slot(step, mount))
        if drive is None:
            raise InternalError(f"the cache `{mount.id}` was not attached")
        return drive

    @contextmanager
    def hold(self, step: PlannedStep) -> Iterator[None]:
        """Have the step's caches for the block."""
        wanted: dict[tuple[str, int], bool] = {}
        for mount in list_caches(step):
            slot = _slot(step, mount)
            wanted[slot] = wanted.get(slot, False) or mount.sharing == "locked"
        with ExitStack() as held:
            # Always in the same order, so that no two steps wait for each other.
            for slot in sorted(wanted):
                held.enter_context(self._turns[slot].take(alone=wanted[slot]))
            yield


def list_caches(step: PlannedStep) -> list[CacheMount]:
    """The cache mounts of a step."""
    if not isinstance(step.action, RunAction):
        return []
    return [mount for mount in step.action.mounts if isinstance(mount, CacheMount)]


def _slot(step: PlannedStep, mount: CacheMount) -> tuple[str, int]:
    """Steps of one slot share a disk: those of one key; with `private` only those of one stage, which never run at once."""
    return mount.key, int(step.id.partition("/")[0]) if mount.sharing == "private" else -1


class _Turns:
    """Any number at once, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._alone = False

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not (alone and self._users))
            self._users += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._alone = False
                self._changed.notify_all()
