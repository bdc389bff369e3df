"""What is removed, when and how: retention of ended cases, erasure of a person, and the export of one case.

A case's bare row outlives its content: it holds the coordinates of the
message on the server, without which a rescan would take the message for a new
one. SQLite overwrites what is deleted (secure_delete).
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Table, delete, exists, func, or_, select, update

from daemon.errors import PostsaleError
from daemon.store import outbox as deliveries
from daemon.store.dialect import unindexed
from daemon.store.tables import (
    approvals,
    attempts,
    cases,
    drafts,
    events,
    feedback,
    orders,
    outbox,
    raw_mail,
    records,
)
from daemon.store.transitions import CASE_MOVES, move_case
from daemon.vocab import CaseState, DeliveryState, DraftState

#: States in which nothing waits any more.
ENDED = (
    CaseState.SENT,
    CaseState.SHADOWED,
    CaseState.IGNORED,
    CaseState.DECLINED,
    CaseState.WITHDRAWN,
    CaseState.APPLIED,
    CaseState.CLOSED,
)
#: Cases handled in one transaction, so that a purge never holds the writer for long.
BATCH = 500
#: Columns of a case that say something about the person or what was wanted.
_PERSONAL = ("message_id", "sender", "order_id")


def purge_content(
    connection: Connection, *, now: datetime, days: int, days_by_marketplace: Mapping[str, int]
) -> dict[str, int]:
    """Empty up to BATCH ended cases whose content has been kept long enough; counts by what went.

    Raw mail, what was read and decided, drafts, outgoing bytes and the
    sender go; label, times and outcome stay for the figures.
    """
    overdue = cases.c.updated_at < now - timedelta(days=days)
    for marketplace, own_days in days_by_marketplace.items():
        late = cases.c.updated_at < now - timedelta(days=own_days)
        overdue = or_(
            overdue & (func.coalesce(cases.c.marketplace, "") != marketplace), late & (cases.c.marketplace == marketplace)
        )
    shortest = min(days, *days_by_marketplace.values()) if days_by_marketplace else days
    ids = list(
        connection.execute(
            select(raw_mail.c.case_id)
            .join(cases, raw_mail.c.case_id == cases.c.id)
            .where(raw_mail.c.case_id <= _newest_before(connection, now - timedelta(days=shortest)), _HAS_ENDED, overdue)
            .order_by(raw_mail.c.case_id)
            .limit(BATCH)
        ).scalars()
    )
    return _empty(connection, ids) if ids else {}


def _newest_before(connection: Connection, moment: datetime) -> int:
    """The newest case that arrived before a moment, 0 when none did: what ended before it is no newer.

    Retention goes from the oldest rows up to here, and finds little but what it has to do.
    """
    newest: int | None = connection.execute(
        select(cases.c.id).where(cases.c.received_at < moment).order_by(cases.c.received_at.desc(), cases.c.id.desc()).limit(1)
    ).scalar_one_or_none()
    return newest or 0


_HAS_ENDED = unindexed(cases.c.state).in_([s.value for s in ENDED])


def purge_orders(connection: Connection, *, now: datetime, days: int) -> int:
    """Remove order facts older than that; how many went."""
    return connection.execute(delete(orders).where(orders.c.as_of < now - timedelta(days=days))).rowcount


def purge_feedback(connection: Connection, *, now: datetime, days: int) -> int:
    """Remove labelled texts older than that; how many went."""
    return connection.execute(delete(feedback).where(feedback.c.at < now - timedelta(days=days))).rowcount


def purge_cases(connection: Connection, *, now: datetime, days: int) -> int:
    """Remove up to BATCH bare rows of cases that ended that long ago; how many went."""
    before = now - timedelta(days=days)
    copies = cases.alias("copies")
    ids = list(
        connection.execute(
            select(cases.c.id)
            .where(
                cases.c.id <= _newest_before(connection, before),
                _HAS_ENDED,
                cases.c.updated_at < before,
                ~exists().where(copies.c.duplicate_of == cases.c.id),
            )
            .order_by(cases.c.id)
            .limit(BATCH)
        ).scalars()
    )
    if ids:
        sent = select(outbox.c.id).where(outbox.c.case_id.in_(ids))
        connection.execute(delete(attempts).where(attempts.c.delivery_id.in_(sent)))
        for table in (outbox, approvals, drafts, events, records, raw_mail, feedback):
            connection.execute(delete(table).where(table.c.case_id.in_(ids)))
        connection.execute(delete(cases).where(cases.c.id.in_(ids)))
    return len(ids)


def erase(connection: Connection, address: str, *, actor: str, now: datetime) -> dict[str, Any]:
    """Remove everything stored about the person behind an address; the report of what went.

    Open cases are closed first. A reply that is just leaving, or whose fate is
    unknown, is not touched: its case stands under ``not_yet`` and another run
    gets it. ``models`` are those that learned from texts that are gone now.
    """
    wanted = address.strip().lower()
    sent_to = select(outbox.c.case_id).where(outbox.c.recipient_key == wanted, outbox.c.case_id.is_not(None))
    found = connection.execute(
        select(cases.c.id, cases.c.state).where(or_(func.lower(cases.c.sender) == wanted, cases.c.id.in_(sent_to)))
    ).all()
    ids: list[int] = []
    not_yet: list[int] = []
    for case_id, state in found:
        done = _close(connection, case_id, CaseState(state), actor=actor, now=now)
        (ids if done else not_yet).append(case_id)
    models = sorted(
        set(
            connection.execute(
                select(feedback.c.trained_in).where(feedback.c.case_id.in_(ids), feedback.c.trained_in.is_not(None))
            ).scalars()
        )
    )
    gone = _empty(connection, ids)
    gone["training_texts"] = connection.execute(delete(feedback).where(feedback.c.case_id.in_(ids))).rowcount
    buyer = func.lower(orders.c.facts["buyer_addr"].as_string())
    gone["orders"] = connection.execute(delete(orders).where(buyer == wanted)).rowcount
    return {"cases": sorted(ids), "not_yet": sorted(not_yet), "gone": gone, "models": models}


def export(connection: Connection, case_id: int) -> dict[str, Any]:
    """Every row about a case as plain values; mail as text where it is text, else base64."""
    row = connection.execute(select(cases).where(cases.c.id == case_id)).mappings().one_or_none()
    if row is None:
        raise PostsaleError(f"there is no case {case_id}")
    content: dict[str, Any] = {"case": _plain(dict(row))}
    tables: tuple[Table, ...] = (raw_mail, records, events, drafts, approvals, outbox, feedback)
    for table in tables:
        rows = connection.execute(select(table).where(table.c.case_id == case_id)).mappings()
        content[table.name] = [_plain(dict(r)) for r in rows]
    for request in content["approvals"]:
        del request["token_hash"]  # it is a key, not a fact about the person
    if row["order_id"]:
        rows = connection.execute(select(orders).where(orders.c.order_id == row["order_id"])).mappings()
        content["orders"] = [_plain(dict(r)) for r in rows]
    return content


def _close(connection: Connection, case_id: int, state: CaseState, *, actor: str, now: datetime) -> bool:
    """Bring a case to an end, whatever it waits for; False while its reply is leaving or of unknown fate."""
    if state in ENDED:
        return True
    if state in {CaseState.SENDING, CaseState.UNCERTAIN}:
        return False
    if state is CaseState.QUEUED and not deliveries.cancel(connection, case_id, now=now):
        return False
    end = CaseState.CLOSED if CaseState.CLOSED in CASE_MOVES[state] else CaseState.WITHDRAWN
    move_case(connection, case_id, state, end, reason="erased", actor=actor, now=now)
    connection.execute(
        update(approvals).where(approvals.c.case_id == case_id, approvals.c.used_at.is_(None)).values(revoked_at=now)
    )
    connection.execute(
        update(drafts)
        .where(drafts.c.case_id == case_id, drafts.c.state.in_([DraftState.PENDING.value, DraftState.HELD.value]))
        .values(state=DraftState.REJECTED.value, decided_at=now, decided_by=actor)
    )
    return True


def _empty(connection: Connection, ids: Collection[int]) -> dict[str, int]:
    """Remove the content of cases, not their bare rows."""
    busy = [DeliveryState.CLAIMED.value, DeliveryState.TRANSMITTING.value, DeliveryState.UNCERTAIN.value]
    gone = {
        "raw_mail": connection.execute(delete(raw_mail).where(raw_mail.c.case_id.in_(ids))).rowcount,
        "records": connection.execute(delete(records).where(records.c.case_id.in_(ids))).rowcount,
        "drafts": connection.execute(
            update(drafts)
            .where(drafts.c.case_id.in_(ids))
            .values(subject="", body="", recipient="", mime=b"", findings=None, order_state=None)
        ).rowcount,
        "outgoing": connection.execute(
            update(outbox)
            .where(outbox.c.case_id.in_(ids), outbox.c.state.not_in(busy))
            .values(mime=None, recipient="", recipient_key="", smtp_reply=None)
        ).rowcount,
    }
    sent = select(outbox.c.id).where(outbox.c.case_id.in_(ids))
    connection.execute(update(attempts).where(attempts.c.delivery_id.in_(sent)).values(reply=None))
    connection.execute(update(events).where(events.c.case_id.in_(ids)).values(detail=None))
    connection.execute(update(cases).where(cases.c.id.in_(ids)).values(dict.fromkeys(_PERSONAL)))
    return gone


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain_value(value) for key, value in row.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode("ascii")}
    return value
