"""Accounts that their IMAP server turns away: why, and until when they are left alone.

It stands in the store because several loops, and several hosts, sign in to
one account: each try with a refused password brings a lock-out nearer,
whoever makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from daemon.store import settings
from daemon.store.dialect import storable

#: Refusals in a row from which on the pause is doubled.
PATIENT_TIMES = 3


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an account was turned away, the time before which nobody should try again, and how often it was in a row."""

    why: str
    until: datetime
    times: int

    def holds(self, now: datetime, *, pause: timedelta) -> bool:
        """Whether the account is to be left alone; an end further off than ``pause`` is from a clock that was wrong."""
        return now < self.until <= now + 2 * pause


def refused(connection: Connection, mailbox: str, *, why: str, pause: timedelta, now: datetime) -> Refusal:
    """Write down that the account of a mailbox was turned away; ``why`` holds no secret.

    From the third time in a row on the pause is twice as long: two loops may
    have been the first to try, at the same moment.
    """
    before = refusal(connection, mailbox)
    times = before.times + 1 if before is not None else 1
    until = now + pause * (2 if times >= PATIENT_TIMES else 1)
    value = {"why": storable(why, 500), "until": until.isoformat(), "times": times}
    settings.put(connection, _key(mailbox), value, actor="postsale", now=now)
    return Refusal(why, until, times)


def accepted(connection: Connection, mailbox: str) -> None:
    """Write down that a sign-in worked."""
    settings.remove(connection, _key(mailbox))


def refusal(connection: Connection, mailbox: str) -> Refusal | None:
    """The last refusal, until a sign-in works again."""
    value = settings.get(connection, _key(mailbox))
    return None if value is None else Refusal(value["why"], datetime.fromisoformat(value["until"]), value["times"])


def _key(mailbox: str) -> str:
    return f"refused:{mailbox}"
