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


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an account was turned away, and the time before which nobody should try again."""

    why: str
    until: datetime

    def holds(self, now: datetime, *, pause: timedelta) -> bool:
        """Whether the account is to be left alone; an end further off than ``pause`` is from a clock that was wrong."""
        return now < self.until <= now + 2 * pause


def refused(connection: Connection, mailbox: str, *, why: str, until: datetime, now: datetime) -> None:
    """Write down that the account of a mailbox was turned away; ``why`` holds no secret."""
    value = {"why": storable(why, 500), "until": until.isoformat()}
    settings.put(connection, _key(mailbox), value, actor="postsale", now=now)


def accepted(connection: Connection, mailbox: str) -> None:
    """Write down that a sign-in worked."""
    settings.remove(connection, _key(mailbox))


def refusal(connection: Connection, mailbox: str) -> Refusal | None:
    """The last refusal, until a sign-in works again."""
    value = settings.get(connection, _key(mailbox))
    return None if value is None else Refusal(value["why"], datetime.fromisoformat(value["until"]))


def _key(mailbox: str) -> str:
    return f"refused:{mailbox}"
