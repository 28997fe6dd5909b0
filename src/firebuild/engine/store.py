"""Use cases of the store as a whole: verifying it, and freeing space."""

from __future__ import annotations

from pathlib import Path

from firebuild.engine.core import Engine
from firebuild.engine.views import sync_views
from firebuild.host.locks import hold_lock
from firebuild.store.collect import Garbage, collect, plan_collection
from firebuild.store.facts import FactStore
from firebuild.store.fsck import check_store


def check(engine: Engine, *, repair: bool) -> list[str]:
    """Verify blobs, images, disks and the database; a sentence for each problem."""
    report = check_store(engine.blobs, engine.disks, repair=repair)
    if repair:
        sync_views(engine)
    problems = [
        f"{problem.kind} {problem.object}: {problem.message}" + (f" ({problem.action})" if problem.action else "")
        for problem in report.problems
    ]
    return problems + [f"database: {line}" for line in engine.database.check()]


def free_space(engine: Engine, *, drop_cache: bool, dry_run: bool) -> Garbage:
    """Remove what nothing needs; with `dry_run` only say what that is. Raises BusyError while a build or a start runs."""
    engine.repair()
    with hold_lock(engine.layout.store_lock, "the store"):
        records = engine.machines.records.list_all(kind=None)
        used = {Path(drive.path) for record in records for drive in record.spec.drives}
        garbage = plan_collection(engine.blobs, engine.disks, engine.database, used_disks=used, drop_cache=drop_cache)
        if not dry_run:
            collect(garbage, engine.blobs, engine.disks, engine.database)
            FactStore(engine.database).forget_all_but(set(engine.images.list_references().values()))
    return garbage
