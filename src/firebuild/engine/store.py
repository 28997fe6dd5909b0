"""Use cases of the store as a whole: verifying it, and freeing space."""

from __future__ import annotations

from firebuild.engine.core import Engine
from firebuild.engine.snapshots import check_snapshots
from firebuild.engine.space import open_collection, plan_garbage, spare_room
from firebuild.engine.views import sync_views
from firebuild.errors import DiskFullError
from firebuild.machine.claims import hold_volumes
from firebuild.store.collect import Garbage, collect
from firebuild.store.facts import FactStore
from firebuild.store.fsck import check_store, check_volumes
from firebuild.store.leases import LeaseStore
from firebuild.store.volumes import VolumeStore


def check(engine: Engine, *, repair: bool) -> list[str]:
    """Verify blobs, images, disks, volumes and the database; a sentence for each problem."""
    report = check_store(engine.blobs, engine.disks, repair=repair)
    with hold_volumes(engine.layout):
        check_volumes(VolumeStore(engine.layout.volumes), report, repair=repair)
    if repair:
        sync_views(engine)
    problems = [
        f"{problem.kind} {problem.object}: {problem.message}" + (f" ({problem.action})" if problem.action else "")
        for problem in report.problems
    ]
    problems += check_snapshots(engine)
    return problems + [f"database: {line}" for line in engine.database.check()]


def free_space(engine: Engine, *, drop_cache: bool, dry_run: bool) -> Garbage:
    """Remove what nothing needs; with `dry_run` only say what that is. Works on a full disk, and while others work:
    then what they may need stays. Raises BusyError, StoreError where an image is damaged.
    """
    with spare_room(engine):
        try:
            engine.repair()
            with hold_volumes(engine.layout):
                VolumeStore(engine.layout.volumes).sweep()
            repaired = True
        except DiskFullError:
            repaired = False  # what it has to write waits until there is room
        with open_collection(engine) as held:
            garbage = plan_garbage(engine, held, drop_cache=drop_cache)
            if not dry_run:
                collect(garbage, engine.blobs, engine.disks, engine.database)
                LeaseStore(engine.database).collect()
                FactStore(engine.database).forget_all_but({*engine.images.list_references().values(), *held.kept})
        if not repaired and not dry_run:
            engine.repair()
    return garbage
