"""A consistent copy of the database while the service runs, and the way back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from daemon.errors import PostsaleError
from daemon.store.db import Database


def copy_database(database: Database, to: Path) -> None:
    """Write a consistent copy of an SQLite database to a new file.

    Raises PostsaleError for PostgreSQL, whose own tools do this.
    """
    if not database.is_sqlite:
        raise PostsaleError("the database is PostgreSQL: back it up with pg_dump --format=custom")
    with closing(sqlite3.connect(f"file:{database.url.database}?mode=ro", uri=True, timeout=30)) as source:
        source.execute("VACUUM INTO ?", (str(to),))
    to.chmod(0o600)
    check_database(to)


def check_database(path: Path) -> None:
    """Raise PostsaleError unless the file is a whole SQLite database."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as copy:
            verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise PostsaleError(f"{path} is no whole database: {error}") from error
    if verdict != "ok":
        raise PostsaleError(f"{path} is damaged: {verdict}")
