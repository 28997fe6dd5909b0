"""The results of steps by their keys: rows of the table `steps`, whose layers are blobs of the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from firebuild.build.explain import Explanation, explain_miss, find_nearest
from firebuild.build.steps import ResultLayer
from firebuild.names import Digest

if TYPE_CHECKING:
    from firebuild.store.blobs import BlobStore
    from firebuild.store.database import Database

_RECORDS_COMPARED = 300


class StepRecord(msgspec.Struct, frozen=True):
    """A step that ran once. `created_at_ns`: when its layer was made; that time goes into the image's history."""

    key: str
    layer: ResultLayer
    created_at_ns: int


class StepCache:
    """Thread-safe. With `use_cache` False nothing that was there before counts; what this object has stored does."""

    def __init__(
        self, database: Database, blobs: BlobStore, *, use_cache: bool = True, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._use_cache = use_cache
        self._clock = clock
        self._fresh: dict[str, StepRecord] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._used: set[str] = set()
        self._records: dict[str, list[Explanation]] = {}

    @contextmanager
    def hold_key(self, key: str) -> Iterator[None]:
        """Only one thread at a time works on a key: equal steps of several stages run once."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            yield

    def find_step(self, key: str, *, fresh_only: bool = False) -> StepRecord | None:
        """The record of a key whose layer is in the store, or None. save_uses notes that it was used.

        `fresh_only`: as for an object that does not use the cache.
        """
        fresh = self._fresh.get(key)
        if fresh is not None or fresh_only or not self._use_cache:
            return fresh
        row = self._database.query_one(
            "SELECT layer_digest, diff_id, layer_size, media_type, created_at_ns FROM steps WHERE key = ?", (key,)
        )
        if row is None or row["layer_digest"] is None or not self._blobs.has(Digest(row["layer_digest"])):
            return None
        with self._guard:
            self._used.add(key)
        layer = ResultLayer(
            diff_id=Digest(row["diff_id"]),
            digest=Digest(row["layer_digest"]),
            size=row["layer_size"],
            media_type=row["media_type"],
        )
        return StepRecord(key, layer, row["created_at_ns"])

    def explain(self, key: str, explanation: Explanation, siblings: Collection[str] = ()) -> str | None:
        """Why the step of that key has to run: one clause, or None if its stage never ran before, or the cache is not used.

        `siblings`: the texts of all steps of its stage.
        """
        if not self._use_cache:
            return None
        if self._database.query_one("SELECT key FROM steps WHERE key = ?", (key,)) is not None:
            return "its layer is no longer in the store"
        candidates = self._load_records(explanation.position.rpartition("/")[0] + "/")
        if not candidates:
            return None
        nearest = find_nearest(candidates, explanation, siblings)
        if nearest is None:
            return "nothing like it is in the cache"
        return explain_miss(nearest, explanation)

    def _load_records(self, stage: str) -> list[Explanation]:
        """What was recorded of a stage before this build, the last used first."""
        with self._guard:
            known = self._records.get(stage)
            if known is not None:
                return known
            rows = self._database.query(
                "SELECT key, explain FROM steps WHERE substr(json_extract(explain, '$.position'), 1, ?) = ? "
                "ORDER BY used_at_ns DESC, created_at_ns DESC LIMIT ?",
                (len(stage), stage, _RECORDS_COMPARED),
            )
            found = self._records[stage] = []
            for row in rows:
                if row["key"] not in self._fresh:
                    with suppress(msgspec.MsgspecError):  # of another version: nothing can be said of it
                        found.append(msgspec.json.decode(row["explain"], type=Explanation))
            return found

    def save_step(self, key: str, explanation: Explanation, layer: ResultLayer) -> StepRecord:
        """Keep a step's result; its blob is in the store already. Raises DiskFullError, HostError."""
        now = self._clock()
        record = StepRecord(key, layer, now)
        self._database.execute(
            "INSERT OR REPLACE INTO steps "
            "(key, layer_digest, diff_id, layer_size, media_type, explain, created_at_ns, used_at_ns) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, layer.digest, layer.diff_id, layer.size, layer.media_type,
             msgspec.json.encode(explanation, order="deterministic").decode(), now, now),
        )  # fmt: skip
        self._fresh[key] = record
        return record

    def save_uses(self) -> None:
        """Note when the found steps were last used, all at once: a commit for each would cost a disk flush each."""
        with self._guard:
            used, self._used = self._used, set()
        if used:
            now = self._clock()
            with self._database.transaction() as database:
                for key in sorted(used):
                    database.execute("UPDATE steps SET used_at_ns = ? WHERE key = ?", (now, key))
