"""The facts of one profile in one SQLite database: WAL, foreign keys, numbered migrations applied in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firebuild.errors import BusyError, ConflictError, DiskFullError, HostError, InternalError, StoreError
from firebuild.host.deadline import Deadline
from firebuild.host.files import free_bytes, map_os_error
from firebuild.host.locks import hold_lock

if TYPE_CHECKING:
    import sqlite3

# SQLite lets those who wait try again by chance and not in turn: of two hundred writers one may wait long.
BUSY_TIMEOUT_MS = 120_000
_FULL_BYTES = 64 << 10

# Migration N brings `PRAGMA user_version` from N-1 to N. A released migration is never changed.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE machines (
            id TEXT PRIMARY KEY,
            name TEXT UNIQUE NOT NULL,
            kind TEXT NOT NULL,
            state TEXT NOT NULL,
            spec TEXT NOT NULL,
            record TEXT NOT NULL DEFAULT '{}',
            created_at_ns INTEGER NOT NULL,
            updated_at_ns INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE steps (
            key TEXT PRIMARY KEY,
            layer_digest TEXT,
            diff_id TEXT,
            layer_size INTEGER,
            media_type TEXT,
            explain TEXT NOT NULL,
            created_at_ns INTEGER NOT NULL,
            used_at_ns INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE leases (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            object TEXT NOT NULL,
            expires_at_ns INTEGER NOT NULL
        ) STRICT""",
        "CREATE INDEX leases_by_object ON leases (object)",
        """CREATE TABLE events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at_ns INTEGER NOT NULL,
            type TEXT NOT NULL,
            object TEXT NOT NULL,
            data TEXT NOT NULL DEFAULT '{}'
        ) STRICT""",
    ),
    (
        """CREATE TABLE facts (
            manifest_digest TEXT PRIMARY KEY,
            facts TEXT NOT NULL,
            created_at_ns INTEGER NOT NULL
        ) STRICT""",
    ),
    ("ALTER TABLE machines ADD COLUMN health TEXT",),
)

Parameters = Sequence[Any] | Mapping[str, Any]


class Database:
    """An open database. Usable from several threads, one statement or transaction at a time; a context manager."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self._in_transaction = False
        self.path = path

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open or make the database and bring it to this version's schema.

        Raises StoreError for a newer schema or a damaged file, BusyError, DiskFullError, HostError.
        """
        import sqlite3

        try:
            # SQLite would make the file readable by all.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise map_os_error(error, f"opening the database `{path}`") from error
        connection = None
        try:
            with _mapped(path):
                connection = sqlite3.connect(
                    path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
                )
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA foreign_keys = ON")
                # What firebuild has acknowledged survives a power cut: WAL alone promises that with FULL only.
                connection.execute("PRAGMA synchronous = FULL")
                database = cls(connection, path)
                database._migrate()
            return database
        except BaseException:
            if connection is not None:
                connection.close()
            raise

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; twice is fine."""
        with self._lock:
            self._connection.close()

    @property
    def version(self) -> int:
        """The schema's version: the number of migrations that it has had."""
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self) -> None:
        found = self.version
        if found == len(MIGRATIONS):
            return
        self._refuse_newer(found)
        if found == 0:
            # SQLite does not wait for the lock that this takes: of several who make a database at once, one does it.
            deadline = Deadline(BUSY_TIMEOUT_MS / 1000, f"waiting for the database `{self.path}`")
            lock = self.path.with_name(f"{self.path.name}.new")
            with hold_lock(lock, f"the database `{self.path}`", deadline=deadline):
                self._connection.execute("PRAGMA journal_mode = WAL")
        with self.transaction():
            # Another process may have been faster: ask again under the lock.
            found = self.version
            self._refuse_newer(found)
            for number, statements in enumerate(MIGRATIONS[found:], start=found + 1):
                for statement in statements:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {number}")

    def _refuse_newer(self, found: int) -> None:
        if found > len(MIGRATIONS):
            raise StoreError(
                f"the database `{self.path}` has schema version {found}; this firebuild knows {len(MIGRATIONS)}",
                hint="use the firebuild that wrote it, or another state folder",
            )

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """All statements of the block, or none (BEGIN IMMEDIATE). Not to be nested.

        Raises as `execute`; any exception of the block rolls it back.
        """
        with self._lock:
            if self._in_transaction:
                raise InternalError("a database transaction was begun inside another one")
            with _mapped(self.path):
                self._connection.execute("BEGIN IMMEDIATE")
            self._in_transaction = True
            try:
                with _mapped(self.path):
                    yield self
                    self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction = False

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run a statement; returns the number of rows that it changed.

        Raises ConflictError where a uniqueness rule refuses, BusyError, DiskFullError, StoreError for a damaged file.
        """
        with self._lock, _mapped(self.path):
            return self._connection.execute(sql, parameters).rowcount

    def query(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """All rows of a query; columns by name or number. Raises as `execute`."""
        with self._lock, _mapped(self.path):
            return self._connection.execute(sql, parameters).fetchall()

    def query_one(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        """The first row of a query, or None. Raises as `execute`."""
        rows = self.query(sql, parameters)
        return rows[0] if rows else None

    def check(self) -> list[str]:
        """SQLite's own integrity check: what it finds wrong, nothing if all is well."""
        rows = self.query("PRAGMA integrity_check")
        return [str(row[0]) for row in rows if row[0] != "ok"]


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into firebuild's."""
    import sqlite3

    try:
        yield
    except sqlite3.IntegrityError as error:
        raise ConflictError(f"the database refuses a duplicate: {error}") from error
    except sqlite3.OperationalError as error:
        text = str(error)
        if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise BusyError(f"the database `{path}` is held by another process", hint="try again") from error
        # On a full disk SQLite calls it an I/O error when it cannot make the files beside the database.
        failed = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL or (failed and free_bytes(path.parent) < _FULL_BYTES):
            raise DiskFullError(
                f"no space left on the device while writing `{path}`", hint="free space with `firebuild gc`"
            ) from error
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            raise InternalError(f"a database statement is wrong: {text}") from error
        raise HostError(f"the database `{path}` failed: {text}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"the database `{path}` is damaged: {error}", hint="move it away; images and disks are not kept in it"
        ) from error
