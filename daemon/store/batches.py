"""The writes of :mod:`daemon.store.cases` for many cases at once.

Most messages of a batch have nothing to do with one another, nor with
anything that is stored: new writers, new threads. Those are understood and
settled by a few statements for all of them. Every other message goes one by
one, in the order of arrival, through the functions of ``cases``. A test holds
the two against each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from daemon.store import cases as one_by_one
from daemon.store import feedback, outbox, threads
from daemon.store.cases import ACTOR, Context, Settlement, Understood
from daemon.store.dialect import insert_new, locked, padded, unindexed, upsert_many
from daemon.store.direct import change_all, fetch
from daemon.store.drafts import NewDraft, draft_row
from daemon.store.outbox import FirstReply
from daemon.store.tables import cases, drafts, events, records, thread_keys
from daemon.store.transitions import CASE_MOVES, IllegalMove, StaleMove
from daemon.vocab import CAP_DAY, DraftState, Kind

# --------------------------------------------------------------------------- understanding


@dataclass(frozen=True, slots=True)
class Known:
    """What the store knows around a claimed case."""

    context: Context
    staff_label: str | None  # a person's, which outranks the classifier's
    revision: int  # of the newest draft, 0 for none


@dataclass(frozen=True, slots=True)
class Asked:
    """One claimed case and what reading it said. ``response_hours`` is what the marketplace gives for an answer."""

    case_id: int
    what: Understood
    response_hours: float


def understand_many(connection: Connection, batch: Sequence[Asked], *, worker: str, now: datetime) -> list[Known | None]:
    """As ``cases.understand`` for each of them in this order; None for a case whose claim has been lost."""
    one_by_one.understand_alone(connection)
    batch = [replace(asked, what=one_by_one.fitting(asked.what)) for asked in batch]
    rows = _held(connection, [asked.case_id for asked in batch], worker)
    strangers = _strangers(connection, [asked for asked in batch if asked.case_id in rows], rows)
    known = _understand_strangers(connection, strangers, rows, now)
    for asked in batch:
        if asked.case_id in rows and asked.case_id not in known:
            known[asked.case_id] = _understand_one(connection, asked, rows[asked.case_id], worker, now)
    return [known.get(asked.case_id) for asked in batch]


def _held(connection: Connection, case_ids: Sequence[int], worker: str) -> dict[int, Any]:
    """The cases of these that the worker still holds, locked for this transaction."""
    asked = {"ids": padded(case_ids), "worker": worker}
    return {row.id: row for row in fetch(connection, locked(connection, _HELD), asked)}


_HELD = select(
    cases.c.id,
    cases.c.state,
    cases.c.mailbox,
    cases.c.internal_date,
    cases.c.received_at,
    cases.c.revision,
    cases.c.thread_id,
    cases.c.content_key,
).where(cases.c.id.in_(bindparam("ids", expanding=True)), cases.c.claimed_by == bindparam("worker"))


def _understand_one(connection: Connection, asked: Asked, row: Any, worker: str, now: datetime) -> Known:
    context = one_by_one.understand(
        connection, asked.case_id, asked.what, worker=worker, response_hours=asked.response_hours, now=now
    )
    return Known(context, feedback.staff_label(connection, asked.case_id), row.revision)


def _strangers(connection: Connection, batch: Sequence[Asked], rows: Mapping[int, Any]) -> list[Asked]:
    """Those that nothing ties to another message of the batch or to anything stored."""
    traits = {asked.case_id: set(_traits(asked.what, rows[asked.case_id].mailbox)) for asked in batch}
    seen = Counter(trait for found in traits.values() for trait in found)
    unread = [
        asked
        for asked in batch
        if rows[asked.case_id].thread_id is None
        and rows[asked.case_id].content_key is None
        and all(seen[trait] == 1 for trait in traits[asked.case_id])
    ]
    strangers: list[Asked] = []
    for mailbox, members in _by_mailbox(unread, rows):
        met = _met(connection, mailbox, [asked.what for asked in members])
        strangers += [a for a in members if not met.intersection(traits[a.case_id])]
    labelled = feedback.labelled(connection, [asked.case_id for asked in strangers])
    return [asked for asked in strangers if asked.case_id not in labelled]


def _traits(what: Understood, mailbox: str) -> Iterator[Hashable]:
    """Everything by which a message can be tied to another one."""
    yield "sender", mailbox, what.sender
    yield "content", mailbox, what.content_key
    for digest in _digests(what):
        yield "key", mailbox, digest
    for message_id in _named(what):
        yield "message", mailbox, message_id


def _digests(what: Understood) -> list[str]:
    return threads.digests(what.sender, one_by_one.thread_keys(what), vouched=what.vouched)


def _named(what: Understood) -> list[str]:
    return [*what.answers, *([what.message_id] if what.message_id else ())]


def _met(connection: Connection, mailbox: str, batch: Sequence[Understood]) -> set[Hashable]:
    """Traits of these messages that the store has met before."""
    digests = {digest for what in batch for digest in _digests(what)}
    contents = {what.content_key for what in batch}
    messages = {message_id for what in batch for message_id in _named(what)}
    same = fetch(connection, _SAME_CONTENT, {"of": mailbox, "keys": padded(contents)})
    reused = fetch(connection, _SAME_MESSAGE_ID, {"of": mailbox, "ids": padded(messages)})
    return {
        *(("key", mailbox, digest) for digest in threads.known(connection, mailbox, digests)),
        *(("content", mailbox, row.content_key) for row in same),
        *(("message", mailbox, row.message_id) for row in reused),
        *(("message", mailbox, message_id) for message_id in outbox.ours(connection, mailbox, messages)),
    }


_SAME_CONTENT = select(cases.c.content_key).where(
    cases.c.mailbox == bindparam("of"), cases.c.content_key.in_(bindparam("keys", expanding=True))
)
_SAME_MESSAGE_ID = select(cases.c.message_id).where(
    cases.c.mailbox == bindparam("of"),
    cases.c.message_id.in_(bindparam("ids", expanding=True)),
    unindexed(cases.c.content_key) != "",
)


def _understand_strangers(
    connection: Connection, batch: Sequence[Asked], rows: Mapping[int, Any], now: datetime
) -> dict[int, Known]:
    if not batch:
        return {}
    known: dict[int, Known] = {}
    for mailbox, members in _by_mailbox(batch, rows):
        made = threads.make(connection, mailbox, len(members), now=now)
        thread_of = dict(zip((asked.case_id for asked in members), made, strict=True))
        keys = ((thread_of[asked.case_id], digest) for asked in members for digest in dict.fromkeys(_digests(asked.what)))
        insert_new(connection, thread_keys, [{"mailbox": mailbox, "key": d, "thread_id": t} for t, d in keys])
        histories = one_by_one.histories(connection, mailbox, [asked.what.sender for asked in members], now=now)
        values = [_understood(asked, rows[asked.case_id], thread_of[asked.case_id]) for asked in members]
        change_all(connection, _UNDERSTOOD, values)
        for asked in members:
            history, row = histories[asked.what.sender], rows[asked.case_id]
            itself = row.received_at > now - CAP_DAY
            history = replace(
                history,
                mails_from_address_24h=history.mails_from_address_24h + itself,
                thread_order_ids=(asked.what.order_id,) if asked.what.order_id is not None else (),
            )
            known[asked.case_id] = Known(Context(thread_of[asked.case_id], None, False, history), None, row.revision)
    return known


_UNDERSTOOD = update(cases).where(cases.c.id == bindparam("case"))


def _understood(asked: Asked, row: Any, thread_id: int) -> dict[str, Any]:
    what = asked.what
    deadline: datetime | None = None  # as the case, which was never understood before, has it
    if what.kind is Kind.BUYER:
        deadline = min(row.internal_date or row.received_at, row.received_at) + timedelta(hours=asked.response_hours)
    return {"case": asked.case_id, "deadline_at": deadline, **one_by_one.understood_values(what, thread_id, None)}


def _by_mailbox(batch: Iterable[Asked], rows: Mapping[int, Any]) -> Iterable[tuple[str, list[Asked]]]:
    grouped: dict[str, list[Asked]] = defaultdict(list)
    for asked in batch:
        grouped[rows[asked.case_id].mailbox].append(asked)
    return grouped.items()


# --------------------------------------------------------------------------- settling


@dataclass(frozen=True, slots=True)
class Filing:
    """A settlement, with the first draft of its case where there is one."""

    settlement: Settlement
    draft: NewDraft | None = None
    draft_state: DraftState = DraftState.PENDING
    reply: FirstReply | None = None  # what is queued at once


def alone_in_thread(connection: Connection, thread_ids: Iterable[int]) -> set[int]:
    """Those of these threads that hold a single case."""
    return {row.thread_id for row in fetch(connection, _ALONE, {"threads": padded(set(thread_ids))})}


_ALONE = (
    select(cases.c.thread_id)
    .where(cases.c.thread_id.in_(bindparam("threads", expanding=True)))
    .group_by(cases.c.thread_id)
    .having(func.count() == 1)
)


def settle_many(connection: Connection, batch: Sequence[Filing], *, worker: str, now: datetime) -> list[int]:
    """As ``cases.settle``, ``drafts.create`` and ``outbox.enqueue`` for each of them; returns the cases that were settled.

    Left out, and not written, are cases whose claim has been lost. Only for
    settlements that change the state, say what was read and decided, and name
    the same columns in ``values``, and for drafts that are the first of their
    case; ValueError or IllegalMove otherwise. StaleMove, and what enqueue raises,
    leave the whole batch to be settled one by one.
    """
    for filing in batch:
        what = filing.settlement
        if what.to not in CASE_MOVES[what.from_]:
            raise IllegalMove(f"no case goes from {what.from_} to {what.to}")
        if what.reading is None or what.outcome is None or (filing.draft is not None and filing.draft.revision != 1):
            raise ValueError(f"case {what.case_id} cannot be settled in a batch")
    rows = _held(connection, [filing.settlement.case_id for filing in batch], worker)
    held = [f for f in batch if _as_seen(rows.get(f.settlement.case_id), f)]
    if not held:
        return []
    moves = [_moved(filing, rows[filing.settlement.case_id].revision, now) for filing in held]
    changed = change_all(connection, _MOVE, moves)
    if changed not in {len(held), -1}:
        raise StaleMove("a case of the batch was moved meanwhile")
    change_all(connection, _EVENT, [_event(filing.settlement, now) for filing in held])
    upsert_many(connection, records, "case_id", [_record(filing.settlement) for filing in held])
    fresh = [draft_row(filing.draft, filing.draft_state, now) for filing in held if filing.draft is not None]
    change_all(connection, _DRAFT, fresh)
    leaving = [filing.reply for filing in held if filing.reply is not None]
    if leaving:
        outbox.enqueue_first(connection, leaving, now=now)
    return [filing.settlement.case_id for filing in held]


_MOVE = update(cases).where(cases.c.id == bindparam("case"), cases.c.state == bindparam("from"))
_EVENT = insert(events)
_DRAFT = insert(drafts)


def _as_seen(row: Any | None, filing: Filing) -> bool:
    return row is not None and row.state == filing.settlement.from_.value and (filing.draft is None or row.revision == 0)


def _moved(filing: Filing, revision: int, now: datetime) -> dict[str, Any]:
    what = filing.settlement
    return {
        "case": what.case_id,
        "from": what.from_.value,
        "state": what.to.value,
        "reason": what.reason,
        "updated_at": now,
        "claimed_by": None,
        "lease_until": None,
        "attempts": 0,
        "revision": revision if filing.draft is None else filing.draft.revision,
        **what.values,
    }


def _event(what: Settlement, now: datetime) -> dict[str, Any]:
    return {
        "case_id": what.case_id,
        "at": now,
        "from_state": what.from_.value,
        "to_state": what.to.value,
        "reason": what.reason,
        "actor": ACTOR,
        "detail": what.detail,
    }


def _record(what: Settlement) -> dict[str, Any]:
    return {"case_id": what.case_id, "reading": what.reading, "outcome": what.outcome}
