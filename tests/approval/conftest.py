from __future__ import annotations

import pytest

from daemon.clock import FixedClock
from daemon.store.db import Database
from tests.approval.office import Office


@pytest.fixture
def office(sqlite_database: Database, clock: FixedClock) -> Office:
    """An office on SQLite at a Monday morning."""
    return Office(sqlite_database, clock)
