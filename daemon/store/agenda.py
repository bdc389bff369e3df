"""What the outbox asks of a mailbox's sender now, in one look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from daemon.store import drafts, outbox
from daemon.store.outbox import Delivery

#: A reply: its case and revision.
Reply = tuple[int, int]
#: What replies take for granted about their orders, None where they rest on none.
Assumed = Mapping[Reply, Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Agenda:
    """``newest`` and ``next_due`` are those of ``outbox.outlook``; without the second there is nothing else."""

    newest: datetime | None
    next_due: datetime | None
    uncertain: Sequence[Delivery] = ()
    waiting: Mapping[int, datetime] = field(default_factory=dict)
    due: Sequence[Delivery] = ()
    assumed: Assumed = field(default_factory=dict)  # by the replies that are due
    left_in_hour: int = 0  # replies that were let out in the last hour or are about to be


def agenda(connection: Connection, mailbox: str, *, now: datetime, limit: int) -> Agenda:
    """All that a mailbox's sender has to see to; of rows that are due at most ``limit``."""
    newest, next_due = outbox.outlook(connection, mailbox)
    if next_due is None:  # as it is most of the time, with many mailboxes
        return Agenda(newest, next_due)
    rows = outbox.due(connection, mailbox, now=now, limit=limit) if limit else []
    replies = [(row.case_id, row.revision) for row in rows if row.case_id is not None and row.revision is not None]
    return Agenda(
        newest,
        next_due,
        uncertain=outbox.uncertain_due(connection, mailbox, now=now),
        waiting=outbox.waiting(connection, mailbox, now=now),
        due=rows,
        assumed=drafts.order_states(connection, replies),
        left_in_hour=outbox.left_in_hour(connection, mailbox, now=now)[0] if replies else 0,
    )
