"""How many replies a policy group has sent without a person since it went live, per mailbox: what its caps grow by.

A day counts once a reply was given out on it, so that a quiet week lets no
group grow. Days are those of UTC. A group that is taken off live is forgotten,
and starts anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, select, update

from daemon.store.dialect import insert_new
from daemon.store.direct import change, fetch_one
from daemon.store.tables import ramps


@dataclass(frozen=True, slots=True)
class Ramp:
    """One policy group in one mailbox. ``days`` are those before today on which replies were given out."""

    mailbox: str
    group: str
    live_since: datetime  # its first reply without a person
    days: int
    replies: int  # today


def take(
    connection: Connection, mailbox: str, group: str, limit: Callable[[int], int], *, wanted: int = 1, now: datetime
) -> int:
    """Count replies without a person against the day; returns how many of those wanted the day's share still has.

    ``limit`` says how many a day allows after that many days. To be called in
    the transaction that lets the replies go.
    """
    start = {"mailbox": mailbox, "policy_group": group, "live_since": now, "days": 0, "day": _day(now), "replies": 0}
    insert_new(connection, ramps, [start])
    ours = {"of": mailbox, "group": group}
    row = fetch_one(connection, _OURS, ours)
    days, replies = _today(row.days, row.day, row.replies, now)
    given = min(wanted, max(0, limit(days) - replies))
    if given:
        day = max(row.day, _day(now))  # a clock that is set back earns no new day
        change(connection, _COUNT, {**ours, "days": days, "day": day, "replies": replies + given})
    return given


_THIS = (ramps.c.mailbox == bindparam("of"), ramps.c.policy_group == bindparam("group"))
_OURS = select(ramps).where(*_THIS).with_for_update()
_COUNT = update(ramps).where(*_THIS)


def forget_others(connection: Connection, mailboxes: Collection[str], live: Callable[[str], bool]) -> list[str]:
    """Forget the groups of these mailboxes that are not live any longer; returns their names."""
    rows = connection.execute(select(ramps.c.mailbox, ramps.c.policy_group).where(ramps.c.mailbox.in_(mailboxes))).all()
    gone = [row for row in rows if not live(row.policy_group)]
    for row in gone:
        where = (ramps.c.mailbox == row.mailbox) & (ramps.c.policy_group == row.policy_group)
        connection.execute(delete(ramps).where(where))
    return sorted({row.policy_group for row in gone})


def load(connection: Connection, *, now: datetime) -> list[Ramp]:
    """Every group that has sent without a person, as it stands today."""
    rows = connection.execute(select(ramps).order_by(ramps.c.mailbox, ramps.c.policy_group))
    return [Ramp(r.mailbox, r.policy_group, r.live_since, *_today(r.days, r.day, r.replies, now)) for r in rows]


def _today(days: int, day: str, replies: int, now: datetime) -> tuple[int, int]:
    """(days before today, replies of today)"""
    return (days + (replies > 0), 0) if _day(now) > day else (days, replies)


def _day(now: datetime) -> str:
    return now.date().isoformat()
