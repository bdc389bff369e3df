"""Time: one place to read the clock, and the literal back-off tables.

Steps never read a clock; they get ``now`` as a value. Wall time is always an
aware UTC datetime. Leases, deadlines of I/O and back-off inside one process
use :meth:`Clock.monotonic`, so that a jump of the wall clock neither fires
nor delays them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the rest of the program asks of time."""

    def now(self) -> datetime:
        """Aware UTC wall-clock time."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, comparable within one process."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class FixedClock:
    """A clock that stands still until it is moved; for ``--now`` and for tests."""

    def __init__(self, at: datetime) -> None:
        if at.tzinfo is None:
            raise ValueError("a clock needs an aware datetime")
        self._at = at.astimezone(UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._at

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, by: timedelta) -> None:
        """Move wall and monotonic time forward together."""
        self._at += by
        self._monotonic += by.total_seconds()

    def jump(self, by: timedelta) -> None:
        """Move wall time alone, as an operator or NTP would."""
        self._at += by


#: Seconds to wait before the next delivery attempt, by number of attempts made.
DELIVERY_BACKOFF_SECONDS: Sequence[int] = (60, 120, 300, 900, 3600, 3600, 7200, 14400, 28800, 86400)

#: Seconds to wait before connecting again, by number of failures in a row.
RECONNECT_BACKOFF_SECONDS: Sequence[int] = (1, 2, 5, 10, 15, 30)


def backoff(table: Sequence[int], failures: int, *, jitter: random.Random | None = None) -> float:
    """Seconds to wait after ``failures`` failures in a row (at least 1).

    The last entry repeats. With ``jitter`` the wait is drawn from 80 to 120 %
    of the entry, so that many mailboxes do not return in step.
    """
    if failures < 1:
        raise ValueError("back-off starts with the first failure")
    seconds = float(table[min(failures, len(table)) - 1])
    return seconds * jitter.uniform(0.8, 1.2) if jitter else seconds
