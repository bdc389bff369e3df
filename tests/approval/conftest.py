from __future__ import annotations

import pytest
from sqlalchemy import event

from daemon.clock import FixedClock
from daemon.store.db import Database
from tests.approval.office import Office


@pytest.fixture
def office(sqlite_database: Database, clock: FixedClock) -> Office:
    """An office on SQLite at a Monday morning. What it decides is tested, not what survives a power cut: nothing is synced."""
    event.listen(sqlite_database.engine, "connect", lambda raw, _record: raw.execute("PRAGMA synchronous = OFF"))
    return Office(sqlite_database, clock)
