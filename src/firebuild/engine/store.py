"""Use cases of the store as a whole: verifying it."""

from __future__ import annotations

from firebuild.engine.core import Engine
from firebuild.store.fsck import check_store


def check(engine: Engine, *, repair: bool) -> list[str]:
    """Verify blobs, images, disks and the database; a sentence for each problem."""
    report = check_store(engine.blobs, engine.disks, repair=repair)
    problems = [
        f"{problem.kind} {problem.object}: {problem.message}" + (f" ({problem.action})" if problem.action else "")
        for problem in report.problems
    ]
    return problems + [f"database: {line}" for line in engine.database.check()]
