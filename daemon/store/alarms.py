"""Alarms that are on, since when, and how often they were seen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from daemon.store.tables import alarms


@dataclass(frozen=True, slots=True)
class Alarm:
    """One trouble: ``name`` is its kind, ``subject`` the mailbox or case it is about ("" for the service)."""

    name: str
    subject: str
    detail: str
    raised_at: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """What one look changed: alarms that are new, and those that are over."""

    raised: tuple[Alarm, ...]
    cleared: tuple[Alarm, ...]


def active(connection: Connection) -> list[Alarm]:
    """Alarms that are on, oldest first."""
    rows = connection.execute(
        select(alarms.c.name, alarms.c.subject, alarms.c.detail, alarms.c.raised_at)
        .where(alarms.c.cleared_at.is_(None))
        .order_by(alarms.c.raised_at, alarms.c.name, alarms.c.subject)
    )
    return [Alarm(row.name, row.subject, row.detail or "", row.raised_at) for row in rows]


def settle(connection: Connection, seen: Collection[tuple[str, str, str]], *, now: datetime) -> Change:
    """Make the alarms that are on those of this look: (name, subject, detail) each."""
    on = {(a.name, a.subject): a for a in active(connection)}
    raised: list[Alarm] = []
    for name, subject, detail in seen:
        where = (alarms.c.name == name) & (alarms.c.subject == subject)
        if (name, subject) in on:
            connection.execute(update(alarms).where(where).values(count=alarms.c.count + 1, detail=detail))
            continue
        values = {"raised_at": now, "cleared_at": None, "count": 1, "detail": detail}
        if connection.execute(update(alarms).where(where).values(**values)).rowcount == 0:
            connection.execute(insert(alarms).values(name=name, subject=subject, **values))
        raised.append(Alarm(name, subject, detail, now))
    still = {(name, subject) for name, subject, _ in seen}
    cleared = [alarm for key, alarm in on.items() if key not in still]
    for alarm in cleared:
        where = (alarms.c.name == alarm.name) & (alarms.c.subject == alarm.subject)
        connection.execute(update(alarms).where(where).values(cleared_at=now))
    return Change(tuple(raised), tuple(cleared))
