"""The database: migrations in order, newer refused, errors in words."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from firebuild.errors import BusyError, ConflictError, HostError, InternalError, StoreError
from firebuild.store import database as module
from firebuild.store.database import MIGRATIONS, Database

INSERT = "INSERT INTO machines (id, name, kind, state, spec, created_at_ns, updated_at_ns) VALUES (?, ?, 'run', 'created', '{}', 1, 1)"


def test_open_migrates_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "firebuild.db"
    with Database.open(path) as database:
        assert database.version == len(MIGRATIONS)
        assert database.query_one("PRAGMA journal_mode")[0] == "wal"  # type: ignore[index]
        assert database.query_one("PRAGMA foreign_keys")[0] == 1  # type: ignore[index]
        tables = {row["name"] for row in database.query("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {"machines", "steps", "leases", "events"} <= tables
        assert database.check() == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rows_by_name_and_survival(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db") as database:
        assert database.execute(INSERT, ("a", "one")) == 1
    with Database.open(tmp_path / "db") as database:
        row = database.query_one("SELECT * FROM machines WHERE id = :id", {"id": "a"})
        assert row is not None and (row["name"], row["record"]) == ("one", "{}")
        assert database.query_one("SELECT * FROM machines WHERE id = 'b'") is None


def test_a_taken_name_is_a_conflict(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db") as database:
        database.execute(INSERT, ("a", "one"))
        with pytest.raises(ConflictError, match=r"machines\.name"):
            database.execute(INSERT, ("b", "one"))


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db") as database:
        with pytest.raises(ConflictError), database.transaction():
            database.execute(INSERT, ("a", "one"))
            database.execute(INSERT, ("b", "one"))
        assert database.query("SELECT * FROM machines") == []
        with pytest.raises(KeyError), database.transaction():
            database.execute(INSERT, ("a", "one"))
            raise KeyError("x")
        assert database.query("SELECT * FROM machines") == []
        with database.transaction():
            database.execute(INSERT, ("a", "one"))
        assert len(database.query("SELECT * FROM machines")) == 1
        with pytest.raises(InternalError, match="inside another"), database.transaction(), database.transaction():
            pass


def test_a_newer_schema_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "db"
    Database.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="schema version 99"):
        Database.open(path)
    assert path.read_bytes() == before


def test_migrations_run_in_order_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    with Database.open(path) as database:
        database.execute(INSERT, ("a", "one"))
    more = (
        ("CREATE TABLE extra (x INTEGER)",),
        ("INSERT INTO extra VALUES (1)", "ALTER TABLE extra ADD COLUMN y TEXT"),
    )
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS + more)
    for _ in range(2):
        with Database.open(path) as database:
            assert database.version == len(MIGRATIONS) + 2
            assert [tuple(row) for row in database.query("SELECT * FROM extra")] == [(1, None)]
            assert len(database.query("SELECT * FROM machines")) == 1


def test_a_failing_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    Database.open(path).close()
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE extra (x INTEGER)", "NONSENSE")))
    with pytest.raises(InternalError):
        Database.open(path)
    monkeypatch.undo()
    with Database.open(path) as database:
        assert database.version == len(MIGRATIONS)
        assert database.query("SELECT * FROM sqlite_master WHERE name = 'extra'") == []


@pytest.mark.parametrize("content", [b"this is no database, but it is long enough to be taken for one" * 20])
def test_a_damaged_file_is_a_store_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "db").write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        Database.open(tmp_path / "db")


def test_a_missing_folder_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="opening the database"):
        Database.open(tmp_path / "none" / "db")


def test_a_long_writer_makes_others_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 10)
    with Database.open(tmp_path / "db") as one, Database.open(tmp_path / "db") as two, one.transaction():
        with pytest.raises(BusyError), two.transaction():
            pass
        assert two.query("SELECT * FROM machines") == [], "readers go on"


def test_many_threads_on_one_database(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db") as database:

        def work(number: int) -> None:
            for index in range(20):
                with database.transaction():
                    database.execute(INSERT, (f"{number}-{index}", f"{number}-{index}"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert database.query_one("SELECT count(*) FROM machines")[0] == 160  # type: ignore[index]


def test_threads_that_open_a_new_database_at_once(tmp_path: Path) -> None:
    versions: list[int] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        with Database.open(tmp_path / "db") as database:
            versions.append(database.version)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions == [len(MIGRATIONS)] * 8
