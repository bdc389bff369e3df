"""Cases: one inbound message each, from the durable copy of its bytes to its end.

The order of writes is the promise. :func:`receive` stores raw bytes and cursor
in one transaction before anything is shown to the mail server. :func:`claim`
counts the attempt before the bytes are read, so that a message that kills its
reader is set aside after a few tries. :func:`understand` and :func:`settle`
repeat without harm, since every change is guarded by the state that the
caller saw and by the claim that it holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select, update

from daemon.store import folders, outbox, threads
from daemon.store.dialect import insert_many_new, locked, padded, serialise, storable, unindexed, upsert
from daemon.store.direct import change, change_all, fetch, fetch_one
from daemon.store.tables import cases, events, feedback, raw_mail, records
from daemon.store.tables import outbox as outbox_table
from daemon.store.transitions import StaleMove, move_case
from daemon.vocab import CAP_DAY, CAP_HOUR, CAP_THREAD, CaseState, DeliveryKind, DeliveryState, History, JsonText, Kind, RawMail

ACTOR = "postsale"

#: Where messages are understood one after the other on all hosts, so that two copies of one mail never miss each other.
_UNDERSTAND = 0x756E6465

#: States in which a case still waits for its answer.
OPEN_STATES = (
    CaseState.RECEIVED,
    CaseState.DEFERRED,
    CaseState.AWAITING_APPROVAL,
    CaseState.QUEUED,
    CaseState.SENDING,
    CaseState.UNCERTAIN,
    CaseState.HUMAN,
    CaseState.BROKEN,
)

#: Bytes of mail that one claim takes at most, unless a single message is larger.
CLAIM_BYTES = 8_000_000
_HEADER_LIMIT = 262_144
_MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(?:\r?\n[ \t]+)?(<[!-;=?-~]{1,250}>)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


# --------------------------------------------------------------------------- receiving


@dataclass(frozen=True, slots=True)
class Received:
    """What a batch came to: the ids of new cases, in the batch's order, and how many messages were known already."""

    case_ids: tuple[int, ...]
    known: int


def receive(connection: Connection, batch: Sequence[RawMail], *, now: datetime) -> Received:
    """Store messages and move the cursors of their folders past them, all in the caller's transaction.

    Storing a message again (same mailbox, folder, UIDVALIDITY and UID) changes
    nothing. Messages of an epoch that the folder is no longer in are refused
    with ValueError: their numbers mean something else by now.
    """
    made: list[int] = []
    for (mailbox, folder), mails in _by_folder(batch).items():
        [epoch] = {mail.uidvalidity for mail in mails}
        review_uid = folders.mail_came(connection, mailbox, folder, epoch, [mail.uid for mail in mails], now=now)
        rows = [_row(mail, review_uid, now) for mail in mails]
        stored = insert_many_new(connection, cases, rows, cases.c.id, cases.c.uid)
        ids = {row.uid: row.id for row in stored}
        new = [(ids.pop(mail.uid), mail.raw) for mail in mails if mail.uid in ids]
        if new:
            change_all(connection, _RAW_MAIL, [{"case_id": case_id, "body": raw} for case_id, raw in new])
            change_all(connection, _EVENT, [_arrival(case_id, now) for case_id, _ in new])
        made.extend(case_id for case_id, _ in new)
    return Received(tuple(made), len(batch) - len(made))


_RAW_MAIL = insert(raw_mail)
_EVENT = insert(events)


def _by_folder(batch: Sequence[RawMail]) -> dict[tuple[str, str], list[RawMail]]:
    grouped: dict[tuple[str, str], list[RawMail]] = {}
    for mail in batch:
        grouped.setdefault((mail.mailbox, mail.folder), []).append(mail)
    return grouped


def _row(mail: RawMail, review_uid: int, now: datetime) -> dict[str, Any]:
    found = _MESSAGE_ID.search(_header_block(mail.raw))
    return {
        "mailbox": mail.mailbox,
        "folder": mail.folder,
        "uidvalidity": mail.uidvalidity,
        "uid": mail.uid,
        "message_id": found.group(1).decode("ascii") if found else None,
        "raw_sha256": hashlib.sha256(mail.raw).hexdigest(),
        "size": mail.size or len(mail.raw),
        "truncated": mail.truncated,
        "review": mail.uid <= review_uid,
        "internal_date": mail.internal_date,
        "received_at": now,
        "state": CaseState.RECEIVED.value,
        "reason": "arrived",
        "updated_at": now,
    }


def _arrival(case_id: int, now: datetime) -> dict[str, Any]:
    """The first event of a case."""
    return {
        "case_id": case_id,
        "at": now,
        "from_state": None,
        "to_state": CaseState.RECEIVED.value,
        "reason": "arrived",
        "actor": ACTOR,
    }


def _header_block(raw: bytes) -> bytes:
    head = raw[:_HEADER_LIMIT]
    ends = [end for end in (head.find(b"\r\n\r\n"), head.find(b"\n\n")) if end >= 0]
    return head[: min(ends) + 2] if ends else head


# --------------------------------------------------------------------------- claiming


@dataclass(frozen=True, slots=True)
class Claimed:
    """A case that this worker, and nobody else until the lease ends, may read and decide."""

    case_id: int
    state: CaseState  # received or deferred
    mailbox: str
    folder: str
    uid: int
    raw: bytes
    size: int
    truncated: bool
    review: bool
    internal_date: datetime | None
    received_at: datetime
    attempts: int  # this one included
    more: bool = False  # others want to be read that could not be taken along


def claim(
    connection: Connection,
    *,
    worker: str,
    limit: int,
    lease: timedelta,
    max_attempts: int,
    now: datetime,
    max_bytes: int = CLAIM_BYTES,
) -> list[Claimed]:
    """Take up to ``limit`` cases that want to be read, oldest first; returns them with their bytes.

    Past ``max_bytes`` of mail no further case is taken. The attempt is counted here, before anybody reads the bytes. A case that
    was tried ``max_attempts`` times without an outcome becomes broken; one
    that was tried before comes alone, so that what kills its reader is not
    blamed on its neighbours. A lease
    that runs longer than anybody gives is from a clock that has since been
    set back, and counts as ended.
    """
    asked = {"now": now, "too_far": now + 2 * lease, "limit": limit}
    rows = fetch(connection, locked(connection, _WANTED), asked)
    hopeless = [row for row in rows if row.attempts >= max_attempts]
    for row in hopeless:
        move_case(connection, row.id, CaseState(row.state), CaseState.BROKEN, reason="too_many_attempts", actor=ACTOR, now=now)
    if hopeless:  # whatever they kept from being seen comes now
        return claim(
            connection, worker=worker, limit=limit, lease=lease, max_attempts=max_attempts, now=now, max_bytes=max_bytes
        )
    suspects = [row for row in rows if row.attempts > 0]
    total = list(accumulate(row.size for row in rows))
    taken = [
        row.id for row in suspects[:1] or [r for r, sum_ in zip(rows, total, strict=True) if sum_ <= max_bytes] or rows[:1]
    ]
    if not taken:
        return []
    change(connection, _CLAIM, {"ids": padded(taken), "worker": worker, "until": now + lease, "now": now})
    found = fetch(connection, _WITH_BODY, {"ids": padded(taken)})
    return [
        Claimed(
            case_id=row.id,
            state=CaseState(row.state),
            mailbox=row.mailbox,
            folder=row.folder,
            uid=row.uid,
            raw=row.body,
            size=row.size,
            truncated=row.truncated,
            review=row.review,
            internal_date=row.internal_date,
            received_at=row.received_at,
            attempts=row.attempts,
            more=len(taken) < len(rows),
        )
        for row in found
    ]


# Made once, as the statements below: these run for every message, and putting one together costs more than running it.
_WANTED = (
    select(cases.c.id, cases.c.state, cases.c.attempts, cases.c.size)
    .where(
        or_(
            cases.c.state == CaseState.RECEIVED.value,
            and_(cases.c.state == CaseState.DEFERRED.value, cases.c.due_at <= bindparam("now")),
        ),
        or_(
            cases.c.lease_until.is_(None),
            cases.c.lease_until <= bindparam("now"),
            cases.c.lease_until > bindparam("too_far"),
        ),
    )
    .order_by(cases.c.id)
    .limit(bindparam("limit"))
)
_IDS = cases.c.id.in_(bindparam("ids", expanding=True))
_CLAIM = (
    update(cases)
    .where(_IDS)
    .values(
        claimed_by=bindparam("worker"),
        lease_until=bindparam("until"),
        attempts=cases.c.attempts + 1,
        updated_at=bindparam("now"),
    )
)
_WITH_BODY = (
    select(
        cases.c.id,
        cases.c.state,
        cases.c.mailbox,
        cases.c.folder,
        cases.c.uid,
        raw_mail.c.body,
        cases.c.size,
        cases.c.truncated,
        cases.c.review,
        cases.c.internal_date,
        cases.c.received_at,
        cases.c.attempts,
    )
    .join(raw_mail, raw_mail.c.case_id == cases.c.id)
    .where(_IDS)
    .order_by(cases.c.id)
)


def give_back(connection: Connection, case_ids: Sequence[int], *, worker: str) -> None:
    """End the lease of cases that were claimed but not begun; the attempt does not count."""
    connection.execute(
        update(cases)
        .where(cases.c.id.in_(case_ids), cases.c.claimed_by == worker)
        .values(claimed_by=None, lease_until=None, attempts=cases.c.attempts - 1)
    )


def forget_leases(connection: Connection, *, workers_like: str) -> int:
    """At start: end the leases of earlier runs, whose worker names begin with ``workers_like``; returns how many."""
    return connection.execute(
        update(cases)
        .where(
            cases.c.state.in_([CaseState.RECEIVED.value, CaseState.DEFERRED.value]),  # no other case is claimed
            cases.c.claimed_by.startswith(workers_like, autoescape=True),
        )
        .values(claimed_by=None, lease_until=None)
    ).rowcount


def next_due(connection: Connection) -> datetime | None:
    """When the next deferred case wants to be looked at."""
    due: datetime | None = fetch_one(connection, _NEXT_DUE, {})[0]
    return due


_NEXT_DUE = select(func.min(cases.c.due_at)).where(cases.c.state == CaseState.DEFERRED.value)


# --------------------------------------------------------------------------- understanding


@dataclass(frozen=True, slots=True)
class Understood:
    """What reading a message says that the store has to know before anything is decided."""

    content_key: str
    message_id: str | None
    sender: str  # the writer's address, "" when there is none to speak of
    kind: Kind
    notice: str | None = None
    marketplace: str | None = None
    language: str | None = None
    order_id: str | None = None
    thread_keys: tuple[str, ...] = ()  # strongest first
    vouched: bool = False  # the marketplace itself proved these keys
    answers: tuple[str, ...] = ()  # Message-IDs of In-Reply-To and References


@dataclass(frozen=True, slots=True)
class Context:
    """What the store knows around a message."""

    thread_id: int
    duplicate_of: int | None  # the case that holds the same message already
    reused_message_id: bool  # another message came under the same Message-ID
    history: History
    proved: tuple[int, ...] = ()  # deliveries of unknown fate that this message proves to have arrived


def understand(
    connection: Connection, case_id: int, what: Understood, *, worker: str, response_hours: float, now: datetime
) -> Context:
    """Write down what a claimed message is, find its thread and its double, and say what came before.

    Starts the marketplace clock: ``response_hours`` after the first unanswered
    message of the thread. Raises StaleMove when the claim has been lost.
    """
    understand_alone(connection)
    what = fitting(what)
    row = fetch_one(connection, _HELD, {"case": case_id, "worker": worker})
    if row is None:
        raise StaleMove(f"case {case_id} is no longer held by {worker}")
    mailbox = row.mailbox
    keys = thread_keys(what)
    thread_id = threads.join(connection, mailbox, correspondent=what.sender, keys=keys, vouched=what.vouched, now=now)
    duplicate_of = _twin(connection, case_id, mailbox, what.content_key)
    values = understood_values(what, thread_id, duplicate_of)
    if what.kind is Kind.BUYER and duplicate_of is None:
        arrived = min(row.internal_date or row.received_at, row.received_at)
        values["deadline_at"] = _deadline(connection, case_id, thread_id, arrived + timedelta(hours=response_hours))
    change(connection, _WRITE, {"case": case_id, **values})
    proved = outbox.prove(connection, mailbox, (*what.answers, *((what.message_id,) if what.message_id else ())), now=now)
    return Context(
        thread_id=thread_id,
        duplicate_of=duplicate_of,
        reused_message_id=duplicate_of is None and _message_id_is_taken(connection, case_id, mailbox, what),
        history=history(connection, mailbox, sender=what.sender, thread_id=thread_id, before=case_id, now=now),
        proved=tuple(proved),
    )


_HELD = select(cases.c.mailbox, cases.c.internal_date, cases.c.received_at).where(
    cases.c.id == bindparam("case"), cases.c.claimed_by == bindparam("worker")
)
_WRITE = update(cases).where(cases.c.id == bindparam("case"))


def understand_alone(connection: Connection) -> None:
    """Let nobody else understand a message until this transaction ends."""
    serialise(connection, _UNDERSTAND)


def thread_keys(what: Understood) -> tuple[str, ...]:
    """The keys by which a message joins a thread, and leads later ones to it; strongest first."""
    own_key = () if what.message_id is None else (threads.message_key(what.message_id),)
    return (*(threads.message_key(m) for m in what.answers), *what.thread_keys, *own_key)


def understood_values(what: Understood, thread_id: int, duplicate_of: int | None) -> dict[str, Any]:
    """What a case says about its message, as columns."""
    return {
        "content_key": what.content_key,
        "message_id": what.message_id,
        "sender": what.sender,
        "kind": what.kind.value,
        "notice": what.notice,
        "marketplace": what.marketplace,
        "language": what.language,
        "order_id": what.order_id,
        "thread_id": thread_id,
        "duplicate_of": duplicate_of,
    }


def fitting(what: Understood) -> Understood:
    """The same, no longer than the columns are: hostile mail has no limits of its own."""
    return replace(
        what,
        message_id=storable(what.message_id)
        if what.message_id and len(what.message_id) <= _column_length("message_id")
        else None,
        sender=storable(what.sender.lower(), _column_length("sender")),
        order_id=storable(what.order_id, _column_length("order_id")) if what.order_id else None,
        language=storable(what.language, _column_length("language")) if what.language else None,
    )


def _column_length(name: str) -> int:
    length: int = cases.c[name].type.length  # type: ignore[attr-defined] # each of them is a String
    return length


def _twin(connection: Connection, case_id: int, mailbox: str, content_key: str) -> int | None:
    asked = {"mailbox": mailbox, "key": content_key, "case": case_id}
    twin: int | None = fetch_one(connection, _TWIN, asked)[0]
    return twin


_TWIN = select(func.min(cases.c.id)).where(
    cases.c.mailbox == bindparam("mailbox"),
    cases.c.content_key == bindparam("key"),
    cases.c.id != bindparam("case"),
    cases.c.duplicate_of.is_(None),
)


def _message_id_is_taken(connection: Connection, case_id: int, mailbox: str, what: Understood) -> bool:
    if what.message_id is None:
        return False
    asked = {"mailbox": mailbox, "message": what.message_id, "key": what.content_key, "case": case_id}
    return fetch_one(connection, _SAME_MESSAGE_ID, asked) is not None


_SAME_MESSAGE_ID = (
    select(cases.c.id)
    .where(
        cases.c.mailbox == bindparam("mailbox"),
        cases.c.message_id == bindparam("message"),
        cases.c.id != bindparam("case"),
        unindexed(cases.c.content_key) != "",
        unindexed(cases.c.content_key) != bindparam("key"),
    )
    .limit(1)
)


def _deadline(connection: Connection, case_id: int, thread_id: int, own: datetime) -> datetime:
    earliest: datetime | None = fetch_one(connection, _EARLIEST, {"thread": thread_id, "case": case_id})[0]
    return min(own, earliest) if earliest is not None else own


_EARLIEST = select(func.min(cases.c.deadline_at)).where(
    cases.c.thread_id == bindparam("thread"),
    cases.c.id != bindparam("case"),
    cases.c.state.in_([s.value for s in OPEN_STATES]),
)


def history(
    connection: Connection, mailbox: str, *, sender: str, thread_id: int | None, now: datetime, before: int | None = None
) -> History:
    """Earlier traffic with a writer and in a thread; ``before`` is the case that is being looked at."""
    sender = sender.lower()
    asked = {
        "mailbox": mailbox,
        "sender": sender,
        "thread": thread_id,
        "before": _PAST_ALL if before is None else before,
        "hour": now - CAP_HOUR,
        "day": now - CAP_DAY,
        "three_days": now - CAP_THREAD,
    }
    to_sender = fetch_one(connection, _TO_SENDER, asked) if sender else None
    in_thread = fetch(connection, _IN_THREAD, asked)
    thread = fetch(connection, _THREAD, asked)
    last_hour = fetch(connection, _LAST_HOUR, asked)
    return History(
        replies_to_address_24h=to_sender.replies if to_sender else 0,
        auto_replies_to_address_24h=to_sender.automatic if to_sender else 0,
        replies_in_thread_72h=sum(row.lately for row in in_thread),
        replies_last_hour=sum(row.uses for row in last_hour),
        mails_from_address_24h=fetch_one(connection, _FROM_SENDER, asked)[0],
        earlier_in_thread=sum(row.earlier for row in thread),
        templates_used_in_thread=tuple(row.template for row in in_thread if row.template is not None and row.replies),
        thread_order_ids=tuple(row.order_id for row in thread if row.order_id is not None),
        template_uses_last_hour={row.template: row.uses for row in last_hour if row.template is not None},
    )


def histories(connection: Connection, mailbox: str, senders: Sequence[str], *, now: datetime) -> dict[str, History]:
    """Earlier traffic with writers who have no thread yet, by their addresses in lower case; the counts of :func:`history`."""
    asked = {
        "mailbox": mailbox,
        "senders": padded(set(senders)),
        "hour": now - CAP_HOUR,
        "day": now - CAP_DAY,
    }
    to_senders = {row.recipient_key: row for row in fetch(connection, _TO_SENDERS, asked)}
    from_senders = {row.sender: row.mails for row in fetch(connection, _FROM_SENDERS, asked)}
    last_hour = fetch(connection, _LAST_HOUR, asked)
    uses = {row.template: row.uses for row in last_hour if row.template is not None}
    return {
        sender: History(
            replies_to_address_24h=to_senders[sender].replies if sender and sender in to_senders else 0,
            auto_replies_to_address_24h=to_senders[sender].automatic if sender and sender in to_senders else 0,
            replies_last_hour=sum(row.uses for row in last_hour),
            mails_from_address_24h=from_senders.get(sender, 0),
            template_uses_last_hour=uses,
        )
        for sender in senders
    }


#: Greater than any id.
_PAST_ALL = 2**62
_box = outbox_table.c
_OURS = (
    _box.mailbox == bindparam("mailbox"),
    _box.kind == DeliveryKind.BUYER_REPLY.value,
    _box.state.not_in([DeliveryState.CANCELLED.value, DeliveryState.FAILED.value]),
)


# Made once: these run for every message, and putting a statement together costs more than running it.
_TO_SENDER = select(func.count().label("replies"), outbox.how_many(_box.automatic.is_(True)).label("automatic")).where(
    *_OURS, _box.recipient_key == bindparam("sender"), _box.created_at > bindparam("day")
)
_TO_SENDERS = (
    select(_box.recipient_key, func.count().label("replies"), outbox.how_many(_box.automatic.is_(True)).label("automatic"))
    .where(*_OURS, _box.recipient_key.in_(bindparam("senders", expanding=True)), _box.created_at > bindparam("day"))
    .group_by(_box.recipient_key)
)
# Kind and state are counted, not asked for: SQLite would go by them through everything that was ever sent.
_IN_THREAD = (
    select(
        _box.template,
        outbox.how_many(and_(*_OURS)).label("replies"),
        outbox.how_many(and_(*_OURS, _box.created_at > bindparam("three_days"))).label("lately"),
    )
    .select_from(cases.join(outbox_table, _box.case_id == cases.c.id))
    .where(cases.c.thread_id == bindparam("thread"))
    .group_by(_box.template)
)
_LAST_HOUR = (
    select(_box.template, func.count().label("uses")).where(*_OURS, _box.created_at > bindparam("hour")).group_by(_box.template)
)
_THREAD = (
    select(
        cases.c.order_id,
        outbox.how_many(and_(cases.c.duplicate_of.is_(None), cases.c.id < bindparam("before"))).label("earlier"),
    )
    .where(cases.c.thread_id == bindparam("thread"))
    .group_by(cases.c.order_id)
)
_FROM_SENDER = (
    select(func.count())
    .select_from(cases)
    .where(
        cases.c.mailbox == bindparam("mailbox"), cases.c.sender == bindparam("sender"), cases.c.received_at > bindparam("day")
    )
)
_FROM_SENDERS = (
    select(cases.c.sender, func.count().label("mails"))
    .where(
        cases.c.mailbox == bindparam("mailbox"),
        cases.c.sender.in_(bindparam("senders", expanding=True)),
        cases.c.received_at > bindparam("day"),
    )
    .group_by(cases.c.sender)
)


def open_in_thread(connection: Connection, thread_id: int, *, before: int) -> list[tuple[int, CaseState]]:
    """Earlier buyer messages of a thread that still wait for an answer, oldest first: a newer one may overtake them."""
    rows = fetch(connection, _OPEN_IN_THREAD, {"thread": thread_id, "before": before})
    return [(row.id, CaseState(row.state)) for row in rows]


_OPEN_IN_THREAD = (
    select(cases.c.id, cases.c.state)
    .where(
        cases.c.thread_id == bindparam("thread"),
        cases.c.id < bindparam("before"),
        cases.c.kind == Kind.BUYER.value,
        cases.c.state.in_([s.value for s in OPEN_STATES]),
    )
    .order_by(cases.c.id)
)


def open_for_orders(
    connection: Connection, mailbox: str, order_ids: Sequence[str], *, before: int
) -> list[tuple[int, CaseState]]:
    """Earlier buyer messages about these orders that still wait for an answer, oldest first."""
    if not order_ids:
        return []
    rows = connection.execute(
        select(cases.c.id, cases.c.state)
        .where(
            cases.c.mailbox == mailbox,
            cases.c.order_id.in_(order_ids),
            cases.c.id < before,
            cases.c.kind == Kind.BUYER.value,
            cases.c.state.in_([s.value for s in OPEN_STATES]),
        )
        .order_by(cases.c.id)
    )
    return [(row.id, CaseState(row.state)) for row in rows]


def newer_in_thread(connection: Connection, thread_id: int, *, after: int) -> bool:
    """Whether the buyer wrote again in a thread after the message of this case."""
    return fetch_one(connection, _NEWER_IN_THREAD, {"thread": thread_id, "after": after}) is not None


_NEWER_IN_THREAD = (
    select(cases.c.id)
    .where(
        cases.c.thread_id == bindparam("thread"),
        cases.c.id > bindparam("after"),
        cases.c.kind == Kind.BUYER.value,
        cases.c.duplicate_of.is_(None),
        cases.c.state != CaseState.IGNORED.value,
    )
    .limit(1)
)


def revision(connection: Connection, case_id: int) -> int:
    """Number of the case's newest draft, 0 when it has none."""
    newest: int = connection.execute(select(cases.c.revision).where(cases.c.id == case_id)).scalar_one()
    return newest


# --------------------------------------------------------------------------- settling


@dataclass(frozen=True, slots=True)
class Settlement:
    """How reading and deciding ended for one claimed case."""

    case_id: int
    from_: CaseState
    to: CaseState
    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)  # further columns of the case
    reading: Mapping[str, Any] | JsonText | None = None
    outcome: Mapping[str, Any] | JsonText | None = None
    traceback: str | None = None
    detail: Mapping[str, Any] | None = None  # of the event row


def settle(connection: Connection, what: Settlement, *, worker: str, now: datetime) -> None:
    """Write an outcome down and let the case go; its attempts start from zero when it is read again.

    The caller adds drafts, requests or the outbox row in the same transaction.
    Raises StaleMove when the claim has been lost: nothing is written, and
    whoever holds the case now decides.
    """
    if fetch_one(connection, _HELD, {"case": what.case_id, "worker": worker}) is None:
        raise StaleMove(f"case {what.case_id} is no longer held by {worker}")
    values = dict(what.values)
    if what.to is not CaseState.BROKEN:
        values["attempts"] = 0
    if what.to is what.from_:
        connection.execute(
            update(cases)
            .where(cases.c.id == what.case_id, cases.c.state == what.from_.value)
            .values(reason=what.reason, claimed_by=None, lease_until=None, updated_at=now, **values)
        )
    else:
        move_case(
            connection,
            what.case_id,
            what.from_,
            what.to,
            reason=what.reason,
            actor=ACTOR,
            now=now,
            values=values,
            detail=what.detail,
        )
    kept = {
        "reading": what.reading,
        "outcome": what.outcome,
        "traceback": None if what.traceback is None else storable(what.traceback),
    }
    given = {key: value for key, value in kept.items() if value is not None}
    if given:
        upsert(connection, records, {"case_id": what.case_id}, given)


def release(connection: Connection, case_id: int, *, actor: str, now: datetime) -> CaseState:
    """Have a case read and decided again, with all its tries before it; returns the state that it was in.

    A reply that still waits in the outbox is stopped. Raises KeyError for an
    unknown case, IllegalMove from a state that cannot go back (applied, sent,
    in delivery), and StaleMove when its reply has begun to leave.
    """
    state = connection.execute(select(cases.c.state).where(cases.c.id == case_id)).scalar_one_or_none()
    if state is None:
        raise KeyError(case_id)
    if state == CaseState.QUEUED.value and not outbox.cancel(connection, case_id, now=now):
        raise StaleMove(f"the reply of case {case_id} is on its way")
    move_case(
        connection,
        case_id,
        CaseState(state),
        CaseState.RECEIVED,
        reason="released",
        actor=actor,
        now=now,
        values={"attempts": 0, "due_at": None},
    )
    return CaseState(state)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A draft that waits, with the label it rests on and the bytes it answers."""

    case_id: int
    mailbox: str
    label: str | None
    sublabel: str | None
    raw: bytes


def labelled_by_other(connection: Connection, model_version: str, *, after: int, limit: int) -> list[Labelled]:
    """Waiting drafts whose label another model gave and no person confirmed, by case id from ``after`` on."""
    by_person = select(feedback.c.case_id).where(feedback.c.case_id.is_not(None))
    rows = connection.execute(
        select(cases.c.id, cases.c.mailbox, cases.c.label, cases.c.sublabel, raw_mail.c.body)
        .join(raw_mail, raw_mail.c.case_id == cases.c.id)
        .where(
            cases.c.state == CaseState.AWAITING_APPROVAL.value,
            cases.c.model_version != model_version,
            cases.c.id > after,
            cases.c.id.not_in(by_person),
        )
        .order_by(cases.c.id)
        .limit(limit)
    )
    return [Labelled(*row) for row in rows]


def confirm_model(connection: Connection, case_id: int, model_version: str) -> None:
    """Write down that this model gives a waiting case the label that it has."""
    connection.execute(
        update(cases)
        .where(cases.c.id == case_id, cases.c.state == CaseState.AWAITING_APPROVAL.value)
        .values(model_version=model_version)
    )


def reconsider(connection: Connection, case_id: int, *, reason: str, now: datetime) -> None:
    """Have a waiting draft read and decided anew. Raises StaleMove when it no longer waits for its approval."""
    move_case(
        connection,
        case_id,
        CaseState.AWAITING_APPROVAL,
        CaseState.RECEIVED,
        reason=reason,
        actor=ACTOR,
        now=now,
        values={"attempts": 0, "due_at": None},
    )


def mailbox(connection: Connection, case_id: int) -> str:
    """The mailbox that a case came to."""
    name: str = connection.execute(select(cases.c.mailbox).where(cases.c.id == case_id)).scalar_one()
    return name


def load_raw(connection: Connection, case_id: int) -> bytes | None:
    """The message as it came, None when retention has removed it."""
    body: bytes | None = connection.execute(select(raw_mail.c.body).where(raw_mail.c.case_id == case_id)).scalar_one_or_none()
    return body


def counts(connection: Connection) -> dict[CaseState, int]:
    """How many cases stand in each state."""
    rows = connection.execute(select(cases.c.state, func.count()).group_by(cases.c.state))
    return {CaseState(state): number for state, number in rows}
