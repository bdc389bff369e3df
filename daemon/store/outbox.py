"""The outbox: one row is one recipient and one frozen byte string.

A reply to a buyer leaves at most once, a notice to staff at least once. Three
commits carry that promise: the claim with its attempt row before the network
is touched, :func:`begin_transmit` before the first body byte, and the outcome.
Whatever is found between the second and the third is of unknown fate: never
sent again by itself, but proved by evidence or decided by a person.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, insert, literal_column, not_, or_, select, update
from sqlalchemy import case as sql_case

from daemon.clock import DELIVERY_BACKOFF_SECONDS, RECONNECT_BACKOFF_SECONDS, backoff
from daemon.errors import PostsaleError
from daemon.store import settings, threads
from daemon.store.dialect import insert_many_new, insert_one_new, padded, storable, unindexed
from daemon.store.direct import change, fetch, fetch_one
from daemon.store.tables import attempts, cases, outbox
from daemon.store.transitions import StaleMove, move_case, move_delivery
from daemon.vocab import CAP_DAY, CAP_HOUR, CAP_THREAD, CaseState, DeliveryKind, DeliveryState, Kind, Outgoing

ACTOR = "postsale"

#: Minutes after a delivery became uncertain at which evidence is looked for.
EVIDENCE_MINUTES: Sequence[float] = (0.1, 1, 2, 5, 10, 20, 30, 60, 120, 240)

#: Entries further ahead than this were written under a clock that has since been set back: their waits mean nothing.
CLOCK_TOLERANCE = timedelta(minutes=5)

#: Tries after which a mail whose connection is cut each time waits as long as one that the server puts off.
_QUICK_TRIES = 4

_ADDRESS = re.compile(r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+\Z")
_MESSAGE_ID = re.compile(r"^<[\x21-\x3b\x3d\x3f-\x7e]{1,250}>\Z")
#: States from which the server's own word settles an attempt; uncertain, when another run gave it up too early.
_OPEN_ATTEMPT = (DeliveryState.CLAIMED, DeliveryState.TRANSMITTING, DeliveryState.UNCERTAIN)
_UNKNOWN_FATE = (DeliveryState.UNCERTAIN, DeliveryState.NEEDS_HUMAN)


class NotDeliverable(PostsaleError):
    """The mail cannot be put into the outbox as it is: a bug in whoever built it, never a buyer's doing."""


class AlreadyReplying(PostsaleError):
    """The case already has a reply that left, may have left, or is about to."""


# --------------------------------------------------------------------------- putting in


def enqueue(
    connection: Connection, mail: Outgoing, *, now: datetime, template: str | None = None, automatic: bool = False
) -> int:
    """Put a frozen mail into the outbox, in the transaction that approves it; returns its delivery id.

    ``mail.not_before`` carries the undo window. ``automatic``: it leaves
    without a person's word. Enqueuing the same bytes under the same
    ``dedupe_key`` again changes nothing and returns the first row's id. The
    caller moves the case. Raises NotDeliverable for addresses, Message-IDs or
    digests that do not hold, AlreadyReplying for a second reply to one case.
    """
    _check(mail)
    present = connection.execute(
        select(outbox.c.id, outbox.c.mime_sha256).where(
            outbox.c.kind == mail.kind.value, outbox.c.dedupe_key == mail.dedupe_key
        )
    ).one_or_none()
    if present is not None:
        if present.mime_sha256 != mail.sha256:
            raise NotDeliverable("another mail stands under the same key")
        same: int = present.id
        return same
    delivery_id = insert_one_new(connection, outbox, _row(mail, now, template, automatic))
    if delivery_id is None:
        raise AlreadyReplying(f"case {mail.case_id} already has a reply under way")
    if mail.case_id is not None:
        _let_answers_join(connection, mail)
    return delivery_id


@dataclass(frozen=True, slots=True)
class FirstReply:
    """The first reply of a case, as the policies made it: it leaves without a person's word."""

    mail: Outgoing
    template: str | None
    thread_id: int


def enqueue_first(connection: Connection, replies: Sequence[FirstReply], *, now: datetime) -> None:
    """As enqueue for each of them. Raises as it does, and nothing of the transaction may be kept then."""
    for reply in replies:
        _check(reply.mail)
    rows = [_row(reply.mail, now, reply.template, True) for reply in replies]
    made = insert_many_new(connection, outbox, rows, outbox.c.case_id)
    missing = {reply.mail.case_id for reply in replies} - {row.case_id for row in made}
    if missing:
        raise AlreadyReplying(f"cases {sorted(map(str, missing))} already have a reply under way")
    for mailbox in {reply.mail.mailbox for reply in replies}:
        leading = [
            (r.thread_id, r.mail.recipient, threads.message_key(r.mail.message_id))
            for r in replies
            if r.mail.mailbox == mailbox
        ]
        threads.add_many(connection, mailbox, leading)


def _row(mail: Outgoing, now: datetime, template: str | None, automatic: bool) -> dict[str, Any]:
    return {
        "kind": mail.kind.value,
        "mailbox": mail.mailbox,
        "case_id": mail.case_id,
        "revision": mail.revision,
        "recipient": mail.recipient,
        "recipient_key": mail.recipient.lower(),
        "envelope_from": mail.envelope_from,
        "message_id": mail.message_id,
        "dedupe_key": mail.dedupe_key,
        "mime": mail.mime,
        "mime_sha256": mail.sha256,
        "state": DeliveryState.QUEUED.value,
        "not_before": mail.not_before or now,
        "template": template,
        "automatic": automatic,
        "created_at": now,
        "updated_at": now,
    }


def _check(mail: Outgoing) -> None:
    if not _ADDRESS.match(mail.recipient):
        raise NotDeliverable("the recipient is no plain mail address")
    if mail.envelope_from and not _ADDRESS.match(mail.envelope_from):
        raise NotDeliverable("the envelope sender is no plain mail address")
    if not _MESSAGE_ID.match(mail.message_id):
        raise NotDeliverable("the Message-ID is malformed")
    if hashlib.sha256(mail.mime).hexdigest() != mail.sha256:
        raise NotDeliverable("the bytes are not those of the digest")
    if mail.kind is DeliveryKind.BUYER_REPLY and (mail.case_id is None or mail.revision is None):
        raise NotDeliverable("a reply to a buyer belongs to a case and a revision")


def _let_answers_join(connection: Connection, mail: Outgoing) -> None:
    thread_id = connection.execute(select(cases.c.thread_id).where(cases.c.id == mail.case_id)).scalar_one_or_none()
    if thread_id is not None and mail.kind is DeliveryKind.BUYER_REPLY:
        keys = [threads.message_key(mail.message_id)]
        threads.add_keys(connection, mail.mailbox, thread_id, correspondent=mail.recipient, keys=keys)


def cancel(connection: Connection, case_id: int, *, now: datetime) -> bool:
    """Stop the queued reply of a case, as NO within the undo window does; the caller moves the case.

    False when there is none that can still be stopped: an attempt has begun.
    """
    row = connection.execute(
        select(outbox.c.id).where(
            outbox.c.case_id == case_id,
            outbox.c.kind == DeliveryKind.BUYER_REPLY.value,
            outbox.c.state == DeliveryState.QUEUED.value,
            # a row that has once been of unknown fate may have arrived: it cannot be taken back
            outbox.c.uncertain_at.is_(None),
        )
    ).one_or_none()
    if row is None:
        return False
    try:
        move_delivery(connection, row.id, DeliveryState.QUEUED, DeliveryState.CANCELLED, now=now)
    except StaleMove:
        return False
    return True


# --------------------------------------------------------------------------- taking out


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row of the outbox as the deliver loop needs it."""

    id: int
    kind: DeliveryKind
    mailbox: str
    case_id: int | None
    revision: int | None
    recipient: str
    envelope_from: str
    message_id: str
    mime: bytes
    sha256: str
    state: DeliveryState
    not_before: datetime
    attempts: int
    template: str | None
    automatic: bool
    created_at: datetime
    uncertain_at: datetime | None
    updated_at: datetime
    claimed_by: str | None


def get(connection: Connection, delivery_id: int) -> Delivery:
    """One row of the outbox; KeyError when there is none."""
    found = fetch_one(connection, _ONE, {"delivery": delivery_id})
    if found is None:
        raise KeyError(delivery_id)
    return _delivery(found)


def due(connection: Connection, mailbox: str, *, now: datetime, limit: int = 50) -> list[Delivery]:
    """Queued rows of a mailbox that may leave now, longest due first; staff notices before replies.

    While sending is paused only staff notices are due.
    """
    kinds = [DeliveryKind.STAFF_NOTICE.value]
    if settings.paused(connection, mailbox) is None:
        kinds.append(DeliveryKind.BUYER_REPLY.value)
    asked = {"of": mailbox, "kinds": kinds, "most": limit, **_at(now)}
    return [_delivery(row) for row in fetch(connection, _DUE, asked)]


#: ``not_before`` has come, or the entry was written under a clock that has since been set back.
_IS_DUE = or_(outbox.c.not_before <= bindparam("now"), outbox.c.updated_at > bindparam("too_far"))


def _at(now: datetime) -> dict[str, datetime]:
    """The parameters of _IS_DUE."""
    return {"now": now, "too_far": now + CLOCK_TOLERANCE}


def outlook(connection: Connection, mailbox: str) -> tuple[datetime | None, datetime | None]:
    """The latest moment that the outbox knows of, and when the next row of a mailbox wants attention.

    A clock well before the first has been set back. What wants attention is a
    queued row to leave, an uncertain one to be looked for.
    """
    found = fetch_one(connection, _OUTLOOK, {"mailbox": mailbox})
    return found.newest, found.due


_OUTLOOK = select(
    select(func.max(outbox.c.updated_at)).scalar_subquery().label("newest"),
    select(func.min(outbox.c.not_before))
    .where(
        outbox.c.mailbox == bindparam("mailbox"),
        outbox.c.state.in_([DeliveryState.QUEUED.value, DeliveryState.UNCERTAIN.value]),
    )
    .scalar_subquery()
    .label("due"),
)


def waiting(connection: Connection, mailbox: str, *, now: datetime) -> dict[int, datetime]:
    """Rows that were never tried and must not leave before a moment in the future, as an undo window has it."""
    return {row.id: row.not_before for row in fetch(connection, _WAITING, {"of": mailbox, **_at(now)})}


_WAITING = select(outbox.c.id, outbox.c.not_before).where(
    outbox.c.mailbox == bindparam("of"),
    outbox.c.state == DeliveryState.QUEUED.value,
    outbox.c.attempts == 0,
    not_(_IS_DUE),
)


def claim(connection: Connection, row: Delivery, *, boot_id: str, now: datetime) -> Delivery:
    """Commit A: take a row, with an attempt row, before the network is touched.

    Raises StaleMove when it is not due, is no longer as it was read, or sending was paused in the meantime.
    """
    if row.not_before > now and row.updated_at <= now + CLOCK_TOLERANCE:
        raise StaleMove(f"delivery {row.id} is not due")
    if row.kind is DeliveryKind.BUYER_REPLY and settings.paused(connection, row.mailbox) is not None:
        raise StaleMove("sending is paused")
    claimed = replace(row, state=DeliveryState.CLAIMED, attempts=row.attempts + 1, claimed_by=boot_id, updated_at=now)
    move_delivery(
        connection,
        row.id,
        DeliveryState.QUEUED,
        DeliveryState.CLAIMED,
        now=now,
        seen={"updated_at": row.updated_at},
        values={"claimed_by": boot_id, "attempts": claimed.attempts},
    )
    if row.case_id is not None and row.kind is DeliveryKind.BUYER_REPLY:
        move_case(connection, row.case_id, CaseState.QUEUED, CaseState.SENDING, reason="attempt", actor=ACTOR, now=now)
    begun = {"delivery_id": row.id, "number": claimed.attempts, "boot_id": boot_id, "started_at": now, "phase": "connect"}
    change(connection, _BEGIN_ATTEMPT, begun)
    return claimed


def begin_transmit(connection: Connection, delivery_id: int, *, boot_id: str, now: datetime) -> None:
    """Commit B: the server granted DATA; from here on body bytes may leave.

    Raises StaleMove when this run no longer holds the row: then nothing may be written.
    """
    move_delivery(
        connection,
        delivery_id,
        DeliveryState.CLAIMED,
        DeliveryState.TRANSMITTING,
        now=now,
        seen={"claimed_by": boot_id},
        values={"transmitted_at": now},
    )
    _phase(connection, delivery_id, boot_id, "body")


# --------------------------------------------------------------------------- outcomes


def accepted(connection: Connection, row: Delivery, *, boot_id: str, code: int, reply: str, now: datetime) -> None:
    """Commit C: the server took the mail on itself."""
    values = {"smtp_code": code, "smtp_reply": storable(reply, 500)}
    try:
        move_delivery(
            connection,
            row.id,
            DeliveryState.TRANSMITTING,
            DeliveryState.SENT,
            now=now,
            seen={"claimed_by": boot_id},
            values=values,
        )
    except StaleMove:
        found = _held(connection, row.id, boot_id)
        if found.state in _UNKNOWN_FATE:  # another run gave it up as lost while the answer was on its way
            _prove(connection, found, "late_reply", now)
    else:
        _follow(connection, row, CaseState.SENDING, CaseState.SENT, "accepted", now)
    _end_attempt(connection, row.id, boot_id, "accepted", code, reply, now)


def deferred(
    connection: Connection, delivery_id: int, *, boot_id: str, phase: str, code: int | None, reply: str, now: datetime
) -> None:
    """The server or the way to it failed for now and certainly took nothing: queued again after a while.

    When the back-off table is used up the delivery fails.
    """
    row = _held(connection, delivery_id, boot_id)
    if row.state not in _OPEN_ATTEMPT:
        pass  # settled by evidence while the answer was on its way
    elif row.attempts >= len(DELIVERY_BACKOFF_SECONDS):
        _fail(connection, row, "given_up", code, reply, now)
    else:
        # a cut connection says nothing about the server's wish; a 4xx does
        table = RECONNECT_BACKOFF_SECONDS if code is None and row.attempts <= _QUICK_TRIES else DELIVERY_BACKOFF_SECONDS
        wait = backoff(table, max(1, row.attempts))
        _requeue(connection, row, now + timedelta(seconds=wait), now, code, reply)
    _end_attempt(connection, delivery_id, boot_id, phase, code, reply, now)


def postponed(
    connection: Connection, delivery_id: int, *, boot_id: str, until: datetime, phase: str, reply: str, now: datetime
) -> None:
    """The account as a whole is in trouble (sign-in, TLS): queued again, and the attempt does not count."""
    row = _held(connection, delivery_id, boot_id)
    _requeue(connection, row, until, now, None, reply)
    connection.execute(update(outbox).where(outbox.c.id == delivery_id).values(attempts=outbox.c.attempts - 1))
    _end_attempt(connection, delivery_id, boot_id, phase, None, reply, now)


def refused(
    connection: Connection, delivery_id: int, *, boot_id: str, phase: str, code: int, reply: str, now: datetime
) -> None:
    """The server refused the mail for good: a person has to see to the case."""
    row = _held(connection, delivery_id, boot_id)
    if row.state in _OPEN_ATTEMPT:
        _fail(connection, row, "refused", code, reply, now)
    _end_attempt(connection, delivery_id, boot_id, phase, code, reply, now)


def lost(connection: Connection, delivery_id: int, *, boot_id: str, reply: str, now: datetime) -> None:
    """Commit D: the server's word on the whole message never came."""
    row = _held(connection, delivery_id, boot_id)
    _end_attempt(connection, delivery_id, boot_id, "body", None, reply, now)
    if row.state is DeliveryState.TRANSMITTING:
        _lose(connection, row, now)


def _lose(connection: Connection, row: Delivery, now: datetime) -> None:
    if row.kind is DeliveryKind.STAFF_NOTICE:  # staff may hear a thing twice
        wait = backoff(DELIVERY_BACKOFF_SECONDS, max(1, row.attempts))
        _requeue(connection, row, now + timedelta(seconds=wait), now, None, "lost after the message")
        return
    first_look = now + timedelta(minutes=EVIDENCE_MINUTES[0])
    values = {"uncertain_at": now, "not_before": first_look}
    move_delivery(connection, row.id, DeliveryState.TRANSMITTING, DeliveryState.UNCERTAIN, now=now, values=values)
    _follow(connection, row, CaseState.SENDING, CaseState.UNCERTAIN, "no_word_from_server", now)


def withdraw(connection: Connection, delivery_id: int, *, to: CaseState, reason: str, now: datetime) -> None:
    """Take a queued reply back since the ground under it changed; its case goes where ``to`` says.

    ``to`` is received (decide anew), withdrawn (a newer message or an answer
    by other means took over) or human. A reply that may have arrived in an
    earlier attempt is put before staff instead.
    """
    row = get(connection, delivery_id)
    if row.uncertain_at is not None:  # an earlier attempt may have arrived: deciding anew could answer twice
        move_delivery(connection, delivery_id, DeliveryState.QUEUED, DeliveryState.NEEDS_HUMAN, now=now)
        _follow(connection, row, CaseState.QUEUED, CaseState.UNCERTAIN, reason, now)
        return
    move_delivery(connection, delivery_id, DeliveryState.QUEUED, DeliveryState.CANCELLED, now=now)
    _follow(connection, row, CaseState.QUEUED, to, reason, now)


def discard(connection: Connection, delivery_id: int, *, reason: str, now: datetime) -> None:
    """Drop a queued notice to staff that cannot leave."""
    values = {"smtp_reply": storable(reason, 500)}
    move_delivery(connection, delivery_id, DeliveryState.QUEUED, DeliveryState.CANCELLED, now=now, values=values)


def hold_back(connection: Connection, delivery_id: int, *, until: datetime, now: datetime) -> None:
    """Let a queued row wait: a rate is used up."""
    connection.execute(
        update(outbox)
        .where(outbox.c.id == delivery_id, outbox.c.state == DeliveryState.QUEUED.value)
        .values(not_before=until, updated_at=now)
    )


# --------------------------------------------------------------------------- unknown fate


def recover(connection: Connection, mailbox: str, *, under_way: Collection[int], now: datetime) -> tuple[int, int]:
    """Holding the mailbox's lock: settle what nobody sends any more; returns (queued again, uncertain).

    ``under_way`` are the deliveries that this run is sending; at start there
    are none. What was claimed had sent no body byte and is queued again. What
    was transmitting is of unknown fate.
    """
    left = _load(
        connection,
        unindexed(outbox.c.mailbox) == mailbox,
        outbox.c.state.in_([DeliveryState.CLAIMED.value, DeliveryState.TRANSMITTING.value]),
        outbox.c.id.not_in(list(under_way)),
        order=(outbox.c.id,),
    )
    transmitting = 0
    for row in left:
        connection.execute(
            update(attempts)
            .where(attempts.c.delivery_id == row.id, attempts.c.ended_at.is_(None))
            .values(ended_at=now, reply="the service stopped")
        )
        if row.state is DeliveryState.CLAIMED:
            _requeue(connection, row, now, now, None, "the service stopped")
        else:
            transmitting += 1
            _lose(connection, row, now)
    return len(left) - transmitting, transmitting


def uncertain_due(connection: Connection, mailbox: str, *, now: datetime) -> list[Delivery]:
    """Replies of unknown fate for which evidence wants to be looked for now."""
    return [_delivery(row) for row in fetch(connection, _UNCERTAIN_DUE, {"of": mailbox, **_at(now)})]


def no_evidence(connection: Connection, delivery_id: int, *, search_minutes: float, now: datetime) -> bool:
    """Nothing was found this time: look again later, or after ``search_minutes`` ask staff (True)."""
    row = get(connection, delivery_id)
    if row.state is not DeliveryState.UNCERTAIN or row.uncertain_at is None:
        return False
    passed = (now - row.uncertain_at) / timedelta(minutes=1)
    if passed >= search_minutes:
        move_delivery(connection, delivery_id, DeliveryState.UNCERTAIN, DeliveryState.NEEDS_HUMAN, now=now)
        return True
    later = next((m for m in EVIDENCE_MINUTES if m > passed), search_minutes)
    at = row.uncertain_at + timedelta(minutes=min(later, search_minutes))
    connection.execute(update(outbox).where(outbox.c.id == delivery_id).values(not_before=at))
    return False


def needing_decision(connection: Connection) -> list[Delivery]:
    """Replies of unknown fate that staff must decide on: RESEND or DONE."""
    return _load(connection, outbox.c.state == DeliveryState.NEEDS_HUMAN.value, order=(outbox.c.uncertain_at,))


def prove(connection: Connection, mailbox: str, message_ids: Collection[str], *, now: datetime) -> list[int]:
    """A message came that names one of ours: what was of unknown fate has arrived. Returns the deliveries proved.

    Our Message-IDs cannot be guessed, so whoever names one has seen the mail,
    whether it is the buyer's answer or a copy to ourselves.
    """
    named = [m for m in message_ids if _MESSAGE_ID.match(m)]
    if not named:
        return []
    waiting = (*_UNKNOWN_FATE, DeliveryState.QUEUED)
    # asked for by their names alone: for more than a few, SQLite would go by the mailbox through everything it ever sent
    rows = _load(connection, outbox.c.message_id.in_(named), outbox.c.transmitted_at.is_not(None))
    rows = [row for row in rows if row.mailbox == mailbox and row.state in waiting]
    for row in rows:
        _prove(connection, row, "named_by_inbound", now)
    return [row.id for row in rows]


def ours(connection: Connection, mailbox: str, message_ids: Collection[str]) -> set[str]:
    """Those of these Message-IDs that are of mail of ours."""
    return {row.message_id for row in fetch(connection, _NAMED, {"ids": padded(message_ids)}) if row.mailbox == mailbox}


#: Without the mailbox, by which SQLite would go through everything it ever sent.
_NAMED = select(outbox.c.message_id, outbox.c.mailbox).where(outbox.c.message_id.in_(bindparam("ids", expanding=True)))


def found_in_sent(connection: Connection, delivery_id: int, *, now: datetime) -> bool:
    """The Sent folder holds the mail; False when its fate had been settled already."""
    row = get(connection, delivery_id)
    if row.state not in _UNKNOWN_FATE:
        return False
    _prove(connection, row, "sent_folder", now)
    connection.execute(update(outbox).where(outbox.c.id == delivery_id).values(copied_at=now))
    return True


def resend(connection: Connection, delivery_id: int, *, actor: str, now: datetime) -> None:
    """A person decides that a reply of unknown fate goes again: same bytes, same Message-ID.

    Raises StaleMove when it is no longer of unknown fate.
    """
    row = get(connection, delivery_id)
    if row.state not in _UNKNOWN_FATE:
        raise StaleMove(f"delivery {delivery_id} is {row.state}")
    values = {"not_before": now, "attempts": 0, "claimed_by": None}
    move_delivery(connection, delivery_id, row.state, DeliveryState.QUEUED, now=now, values=values)
    _follow(connection, row, CaseState.UNCERTAIN, CaseState.QUEUED, "resend", now, actor=actor)


def done(connection: Connection, delivery_id: int, *, actor: str, now: datetime) -> None:
    """A person knows that a reply of unknown fate arrived. Raises StaleMove when it is no longer of unknown fate."""
    row = get(connection, delivery_id)
    if row.state not in _UNKNOWN_FATE:
        raise StaleMove(f"delivery {delivery_id} is {row.state}")
    _prove(connection, row, "person", now, actor=actor)


def _prove(connection: Connection, row: Delivery, evidence: str, now: datetime, *, actor: str = ACTOR) -> None:
    move_delivery(connection, row.id, row.state, DeliveryState.SENT, now=now, values={"evidence": evidence})
    before = CaseState.QUEUED if row.state is DeliveryState.QUEUED else CaseState.UNCERTAIN
    _follow(connection, row, before, CaseState.SENT, evidence, now, actor=actor)


# --------------------------------------------------------------------------- bounces


def bounced(
    connection: Connection, mailbox: str, *, message_id: str | None, recipient: str | None, reason: str, now: datetime
) -> int | None:
    """A bounce, or a marketplace's notice that it passed a mail not on: reopen the case for a person.

    Found by our Message-ID, else by the recipient where exactly one reply of
    the last three days fits. Returns the delivery's id, None when it is none of ours or
    had been settled as failed before.
    """
    row = _bounced_row(connection, mailbox, message_id, recipient, now)
    if row is None:
        return None
    values = {"evidence": "bounce", "smtp_reply": storable(reason, 500)}
    move_delivery(connection, row.id, row.state, DeliveryState.BOUNCED, now=now, values=values)
    if row.case_id is not None and row.kind is DeliveryKind.BUYER_REPLY:
        state = connection.execute(select(cases.c.state).where(cases.c.id == row.case_id)).scalar_one()
        if CaseState(state) in _REOPENED_BY_BOUNCE:
            move_case(
                connection,
                row.case_id,
                CaseState(state),
                CaseState.HUMAN,
                reason="bounced",
                actor=ACTOR,
                now=now,
                values={"due_at": now},
                detail={"reason": storable(reason, 500), "delivery": row.id},
            )
    return row.id


_REOPENED_BY_BOUNCE = (CaseState.SENT, CaseState.UNCERTAIN, CaseState.SENDING, CaseState.QUEUED)


def _bounced_row(
    connection: Connection, mailbox: str, message_id: str | None, recipient: str | None, now: datetime
) -> Delivery | None:
    bounceable = [
        state.value
        for state in (
            DeliveryState.SENT,
            DeliveryState.UNCERTAIN,
            DeliveryState.NEEDS_HUMAN,
            DeliveryState.TRANSMITTING,
            DeliveryState.QUEUED,
        )
    ]
    ours = (outbox.c.mailbox == mailbox, outbox.c.state.in_(bounceable), outbox.c.transmitted_at.is_not(None))
    if message_id is not None and _MESSAGE_ID.match(message_id):
        found = _load(connection, *ours, outbox.c.message_id == message_id)
        if found:
            return found[0]
    if recipient:
        found = _load(
            connection,
            *ours,
            outbox.c.kind == DeliveryKind.BUYER_REPLY.value,
            outbox.c.recipient_key == recipient.lower(),
            outbox.c.transmitted_at > now - timedelta(days=3),
        )
        if len(found) == 1:
            return found[0]
    return None


# --------------------------------------------------------------------------- the ground under a reply


def left_in_hour(
    connection: Connection, mailbox: str, *, now: datetime, besides: int | None = None
) -> tuple[int, datetime | None]:
    """How many replies of the mailbox, ``besides`` this delivery, left in the last hour, and when the first of them did."""
    asked = {"mailbox": mailbox, "delivery": besides or 0, "hour": now - CAP_HOUR}
    found = fetch_one(connection, _LEFT_IN_HOUR, asked)
    return found.left + found.claimed, found.oldest


@dataclass(frozen=True, slots=True)
class Traffic:
    """What really left lately, for caps at the last moment."""

    recipient_day: int
    automatic_recipient_day: int
    thread_72h: int
    template_hour: int


def traffic(connection: Connection, row: Delivery, *, now: datetime) -> Traffic:
    """Replies to buyers whose bytes were let out, as far as they count against this one."""
    asked = {
        "mailbox": row.mailbox,
        "delivery": row.id,
        "recipient": row.recipient.lower(),
        "case": row.case_id,
        "template": row.template,
        "hour": now - CAP_HOUR,
        "day": now - CAP_DAY,
        "three_days": now - CAP_THREAD,
    }

    to_them = fetch_one(connection, _TO_THEM, asked)
    in_thread: int = fetch_one(connection, _SENT_IN_THREAD, asked)[0]
    by_template: int = fetch_one(connection, _BY_TEMPLATE, asked)[0] if row.template else 0
    return Traffic(to_them.replies, to_them.automatic, in_thread, by_template)


_c = outbox.c
_OTHER_REPLY = and_(_c.kind == DeliveryKind.BUYER_REPLY.value, _c.id != bindparam("delivery"))
_ABOUT_TO_LEAVE = (_c.state == DeliveryState.CLAIMED.value, _c.mailbox == bindparam("mailbox"), _OTHER_REPLY)


def _since(moment: str) -> ColumnElement[bool]:
    """Another reply that was let out since then, or is about to be."""
    let_out = or_(_c.transmitted_at > bindparam(moment), _c.state == DeliveryState.CLAIMED.value)
    return and_(_OTHER_REPLY, let_out)


def how_many(condition: ColumnElement[bool]) -> ColumnElement[int]:
    """How many rows of a group meet a condition."""
    return func.coalesce(func.sum(sql_case((condition, 1), else_=0)), 0)


# Made once: these run for every reply, and putting a statement together costs more than running it. Conditions are
# counted, not asked for, where SQLite would go by them through everything that was ever sent.
_LEFT_IN_HOUR = select(
    func.count().label("left"),
    func.min(_c.transmitted_at).label("oldest"),
    select(func.count()).select_from(outbox).where(*_ABOUT_TO_LEAVE).scalar_subquery().label("claimed"),
).where(_c.mailbox == bindparam("mailbox"), _c.transmitted_at > bindparam("hour"), _OTHER_REPLY)
_TO_THEM = select(
    how_many(_since("day")).label("replies"), how_many(and_(_since("day"), _c.automatic.is_(True))).label("automatic")
).where(_c.mailbox == bindparam("mailbox"), _c.recipient_key == bindparam("recipient"))
_OF_THREAD = cases.join(outbox, _c.case_id == cases.c.id)
_THREAD = select(cases.c.thread_id).where(cases.c.id == bindparam("case")).scalar_subquery()
_SENT_IN_THREAD = select(how_many(_since("three_days"))).select_from(_OF_THREAD).where(cases.c.thread_id == _THREAD)
_BY_TEMPLATE = select(
    how_many(_c.template == bindparam("template"))
    + select(func.count()).select_from(outbox).where(*_ABOUT_TO_LEAVE, _c.template == bindparam("template")).scalar_subquery()
).where(_c.mailbox == bindparam("mailbox"), _c.transmitted_at > bindparam("hour"), _OTHER_REPLY)


def overtaken(connection: Connection, row: Delivery) -> str | None:
    """Whether the thread moved on since the reply was approved: the reason, or None.

    ``answered`` when a reply of ours to a later message left; ``wrote_again``
    when the buyer wrote a message that wants an answer; ``being_read`` when
    it is not known yet whether the newer message wants one.
    """
    found = fetch_one(connection, _OVERTAKEN, {"case": row.case_id, "approved": row.created_at})
    if found.newer:
        return "being_read" if found.newer == found.unread else "wrote_again"
    return "answered" if found.answered else None


_later = cases.alias("later")
_OVERTAKEN = select(
    func.count().label("newer"),
    how_many(cases.c.state == CaseState.RECEIVED.value).label("unread"),
    select(how_many(and_(_c.kind == DeliveryKind.BUYER_REPLY.value, _c.transmitted_at > bindparam("approved"))))
    .select_from(_later.join(outbox, _c.case_id == _later.c.id))
    .where(_later.c.thread_id == _THREAD, _later.c.id > bindparam("case"))
    .scalar_subquery()
    .label("answered"),
).where(
    cases.c.thread_id == _THREAD,
    cases.c.id > bindparam("case"),
    cases.c.kind == Kind.BUYER.value,
    cases.c.received_at > bindparam("approved"),
    cases.c.duplicate_of.is_(None),
    cases.c.state.not_in([CaseState.IGNORED.value, CaseState.APPLIED.value]),
)


# --------------------------------------------------------------------------- copies for the Sent folder


def without_copy(connection: Connection, mailbox: str, *, before: datetime, limit: int = 20) -> list[Delivery]:
    """Replies that were accepted before that moment and of which no copy was seen in the Sent folder yet."""
    asked = {"of": mailbox, "before": before, "most": limit}
    return [_delivery(row) for row in fetch(connection, _WITHOUT_COPY, asked)]


def copied(connection: Connection, delivery_id: int, *, now: datetime) -> None:
    """A copy is in the Sent folder."""
    connection.execute(update(outbox).where(outbox.c.id == delivery_id).values(copied_at=now))


def forget_notices(connection: Connection, *, before: datetime) -> int:
    """Drop the bytes of staff notices that were accepted before that moment: they hold tokens. Returns how many."""
    return connection.execute(
        update(outbox)
        .where(
            outbox.c.kind == DeliveryKind.STAFF_NOTICE.value,
            _IS_SENT,
            outbox.c.mime.is_not(None),
            outbox.c.copied_at.is_(None),  # as it is of every notice; an index rests on it
            outbox.c.updated_at < before,
        )
        .values(mime=None)
    ).rowcount


# --------------------------------------------------------------------------- helpers

#: Said as it stands in the index ix_outbox_kept, or SQLite does not see that it may use it.
_IS_SENT = outbox.c.state == literal_column(f"'{DeliveryState.SENT.value}'")
_COLUMNS = (
    outbox.c.id,
    outbox.c.kind,
    outbox.c.mailbox,
    outbox.c.case_id,
    outbox.c.revision,
    outbox.c.recipient,
    outbox.c.envelope_from,
    outbox.c.message_id,
    outbox.c.mime,
    outbox.c.mime_sha256,
    outbox.c.state,
    outbox.c.not_before,
    outbox.c.attempts,
    outbox.c.template,
    outbox.c.automatic,
    outbox.c.created_at,
    outbox.c.uncertain_at,
    outbox.c.updated_at,
    outbox.c.claimed_by,
)
_NAMES = tuple(field.name for field in fields(Delivery))
_ONE = select(*_COLUMNS).where(outbox.c.id == bindparam("delivery"))
_BEGIN_ATTEMPT = insert(attempts)
_ORDER = (outbox.c.kind.desc(), outbox.c.not_before, outbox.c.id)
# the ids first: what waits is put in order without its bytes
_DUE = (
    select(*_COLUMNS)
    .where(
        outbox.c.id.in_(
            select(outbox.c.id)
            .where(
                outbox.c.mailbox == bindparam("of"),
                outbox.c.state == DeliveryState.QUEUED.value,
                _IS_DUE,
                outbox.c.kind.in_(bindparam("kinds", expanding=True)),
            )
            .order_by(*_ORDER)
            .limit(bindparam("most"))
        )
    )
    .order_by(*_ORDER)
)
_UNCERTAIN_DUE = (
    select(*_COLUMNS)
    .where(outbox.c.mailbox == bindparam("of"), outbox.c.state == DeliveryState.UNCERTAIN.value, _IS_DUE)
    .order_by(outbox.c.not_before)
)
_WITHOUT_COPY = (
    select(*_COLUMNS)
    .where(
        outbox.c.mailbox == bindparam("of"),
        outbox.c.kind == DeliveryKind.BUYER_REPLY.value,
        _IS_SENT,
        outbox.c.copied_at.is_(None),
        outbox.c.mime.is_not(None),
        outbox.c.updated_at < bindparam("before"),
    )
    .order_by(outbox.c.id)
    .limit(bindparam("most"))
)
_OPEN = (
    attempts.c.delivery_id == bindparam("delivery"),
    attempts.c.boot_id == bindparam("boot"),
    attempts.c.ended_at.is_(None),
)
_SET_PHASE = update(attempts).where(*_OPEN).values(phase=bindparam("to"))
_END_ATTEMPT = (
    update(attempts)
    .where(*_OPEN)
    .values(phase=bindparam("to"), ended_at=bindparam("at"), code=bindparam("said"), reply=bindparam("words"))
)


def _load(connection: Connection, *where: ColumnElement[bool], order: Sequence[ColumnElement[Any]] = ()) -> list[Delivery]:
    rows = connection.execute(select(*_COLUMNS).where(*where).order_by(*order))
    return [_delivery(row) for row in rows]


def _delivery(row: Sequence[Any]) -> Delivery:
    values = dict(zip(_NAMES, row, strict=True))
    values |= {"kind": DeliveryKind(values["kind"]), "state": DeliveryState(values["state"]), "mime": values["mime"] or b""}
    return Delivery(**values)


def _held(connection: Connection, delivery_id: int, boot_id: str) -> Delivery:
    found = fetch_one(connection, _ONE, {"delivery": delivery_id})
    if found is None or found.claimed_by != boot_id:
        raise StaleMove(f"delivery {delivery_id} is no longer of {boot_id}")
    return _delivery(found)


def _requeue(connection: Connection, row: Delivery, not_before: datetime, now: datetime, code: int | None, reply: str) -> None:
    values = {"not_before": not_before, "claimed_by": None, "smtp_code": code, "smtp_reply": storable(reply, 500)}
    move_delivery(connection, row.id, row.state, DeliveryState.QUEUED, now=now, values=values)
    before = CaseState.UNCERTAIN if row.state is DeliveryState.UNCERTAIN else CaseState.SENDING
    _follow(connection, row, before, CaseState.QUEUED, "attempt_failed", now)


def _fail(connection: Connection, row: Delivery, reason: str, code: int | None, reply: str, now: datetime) -> None:
    values = {"smtp_code": code, "smtp_reply": storable(reply, 500)}
    move_delivery(connection, row.id, row.state, DeliveryState.FAILED, now=now, values=values)
    before = CaseState.UNCERTAIN if row.state is DeliveryState.UNCERTAIN else CaseState.SENDING
    _follow(connection, row, before, CaseState.HUMAN, reason, now)


def _follow(
    connection: Connection, row: Delivery, from_: CaseState, to: CaseState, reason: str, now: datetime, *, actor: str = ACTOR
) -> None:
    """Let the case follow its reply, unless somebody has moved it elsewhere meanwhile."""
    if row.case_id is None or row.kind is not DeliveryKind.BUYER_REPLY:
        return
    with suppress(StaleMove):
        move_case(connection, row.case_id, from_, to, reason=reason, actor=actor, now=now, detail={"delivery": row.id})


def _phase(connection: Connection, delivery_id: int, boot_id: str, phase: str) -> None:
    change(connection, _SET_PHASE, {"delivery": delivery_id, "boot": boot_id, "to": phase})


def _end_attempt(
    connection: Connection, delivery_id: int, boot_id: str, phase: str, code: int | None, reply: str, now: datetime
) -> None:
    how = {"to": phase, "at": now, "said": code, "words": storable(reply, 500)}
    change(connection, _END_ATTEMPT, {"delivery": delivery_id, "boot": boot_id, **how})
