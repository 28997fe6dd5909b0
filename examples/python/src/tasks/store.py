"""The tasks in their database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS task (id INTEGER PRIMARY KEY, title TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0)"
)


class Store:
    """Tasks in an SQLite file. A connection is opened for each request: the server's threads share none."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with closing(self._connect()) as database, database:
            database.execute(SCHEMA)

    def add(self, title: str) -> dict[str, object]:
        with closing(self._connect()) as database, database:
            row = database.execute("INSERT INTO task (title) VALUES (?) RETURNING id, title, done", (title,)).fetchone()
            return _as_task(row)

    def finish(self, number: int) -> bool:
        with closing(self._connect()) as database, database:
            return database.execute("UPDATE task SET done = 1 WHERE id = ?", (number,)).rowcount == 1

    def list(self) -> list[dict[str, object]]:
        with closing(self._connect()) as database:
            return [_as_task(row) for row in database.execute("SELECT id, title, done FROM task ORDER BY id")]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file)


def _as_task(row: tuple[int, str, int]) -> dict[str, object]:
    return {"id": row[0], "title": row[1], "done": bool(row[2])}
