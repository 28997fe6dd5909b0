"""How an image came to be: kept beside it in the database, as its blobs cannot say it; lost facts are no harm to the image."""

from __future__ import annotations

import time

import msgspec

from firebuild.names import Digest
from firebuild.store.database import Database
from firebuild.store.view import BuildConfig, StepFact


class Facts(msgspec.Struct, frozen=True):
    """`kind`: rootfs or baseos; `build`: how it was asked for, without secrets; `steps`: what was done, in order.

    `parent`, `parent_name`: the manifest and the name of the image that it was built upon, empty for none.
    """

    kind: str = "rootfs"
    build: BuildConfig = msgspec.field(default_factory=BuildConfig)
    steps: list[StepFact] = []
    parent: str = ""
    parent_name: str = ""


class FactStore:
    """The facts of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, manifest_digest: Digest, facts: Facts) -> bool:
        """Keep an image's facts, in place of earlier ones; whether they are others. Raises DiskFullError, HostError."""
        text = msgspec.json.encode(facts, order="deterministic").decode()
        row = self._database.query_one("SELECT facts FROM facts WHERE manifest_digest = ?", (manifest_digest,))
        if row is not None and row["facts"] == text:
            return False
        self._database.execute(
            "INSERT OR REPLACE INTO facts (manifest_digest, facts, created_at_ns) VALUES (?, ?, ?)",
            (manifest_digest, text, time.time_ns()),
        )
        return True

    def count_changes(self) -> int:
        """A number that each `save` which changes something makes greater; it falls when the latest facts are forgotten."""
        # SQLite finds the new row's number before it removes the row that it replaces.
        row = self._database.query_one("SELECT max(rowid) AS highest FROM facts")
        return 0 if row is None or row["highest"] is None else int(row["highest"])

    def find(self, manifest_digest: str) -> tuple[Facts, str]:
        """An image's facts and a digest of them; empty ones where there are none or another version wrote them."""
        import hashlib

        row = self._database.query_one("SELECT facts FROM facts WHERE manifest_digest = ?", (manifest_digest,))
        if row is None:
            return Facts(), ""
        text = str(row["facts"])
        try:
            facts = msgspec.json.decode(text, type=Facts)
        except msgspec.MsgspecError:
            return Facts(), ""
        return facts, hashlib.sha256(text.encode()).hexdigest()[:16]

    def forget_all_but(self, manifest_digests: set[Digest]) -> None:
        """Remove the facts of images that are gone."""
        rows = self._database.query("SELECT manifest_digest FROM facts")
        gone = [row["manifest_digest"] for row in rows if row["manifest_digest"] not in manifest_digests]
        with self._database.transaction() as database:
            for digest in gone:
                database.execute("DELETE FROM facts WHERE manifest_digest = ?", (digest,))
