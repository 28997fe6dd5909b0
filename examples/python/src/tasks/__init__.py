"""A list of tasks over HTTP, kept in SQLite."""
