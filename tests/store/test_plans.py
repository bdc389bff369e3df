"""What is asked for every message costs the same on day one and after a million: each question goes by an index.

PostgreSQL chooses by statistics, so the plans are looked at on SQLite.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event

from daemon.store import cases
from daemon.store.db import Database
from daemon.store.migrate import upgrade

NOW = datetime(2026, 11, 2, 10, tzinfo=UTC)


def _plans(connection: Connection, asked: list[tuple[str, Any]]) -> list[str]:
    return [
        str(step[3])
        for statement, values in asked
        for step in connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
    ]


def test_the_history_of_a_message_is_found_by_indexes(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/plans.db")
    upgrade(database)
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, values))

    def unit(connection: Connection) -> list[str]:
        event.listen(connection, "before_cursor_execute", note)
        cases.history(connection, "shop", sender="a@example.test", thread_id=7, before=9, now=NOW)
        event.remove(connection, "before_cursor_execute", note)
        return _plans(connection, asked)

    plans = database.write_now(unit)
    database.close()
    assert len(asked) == 5
    assert not [step for step in plans if step.startswith("SCAN")]
    for step in plans:
        if step.startswith("SEARCH outbox"):  # by time or by case, never everything that a mailbox ever sent
            assert "created_at>?" in step or "case_id=?" in step, step
