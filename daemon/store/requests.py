"""Approval requests: which approver was asked about which revision, by which notice, with which token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, exists, func, insert, or_, select, update

from daemon.store.tables import approvals, cases, drafts, events, outbox
from daemon.vocab import CaseState, DeliveryState, DraftState


@dataclass(frozen=True, slots=True)
class Request:
    """One question to one approver. ``purpose`` names the mail that carried it."""

    token_hash: str
    case_id: int
    revision: int
    approver: str
    approver_address: str
    notice_message_id: str
    purpose: str
    expires_at: datetime
    digest_id: int | None = None
    digest_line: int | None = None
    created_at: datetime | None = None
    revoked_at: datetime | None = None
    used_at: datetime | None = None


_COLUMNS = (
    approvals.c.token_hash,
    approvals.c.case_id,
    approvals.c.revision,
    approvals.c.approver,
    approvals.c.approver_address,
    approvals.c.notice_message_id,
    approvals.c.purpose,
    approvals.c.expires_at,
    approvals.c.digest_id,
    approvals.c.digest_line,
    approvals.c.created_at,
    approvals.c.revoked_at,
    approvals.c.used_at,
)


def open_requests(connection: Connection, requests: Sequence[Request], *, now: datetime) -> None:
    """Store requests, in the transaction that puts their notices into the outbox.

    Each is bound to the digest of the bytes that its revision would send.
    """
    for request in requests:
        shown = connection.execute(
            select(drafts.c.mime_sha256).where(drafts.c.case_id == request.case_id, drafts.c.revision == request.revision)
        ).scalar_one_or_none()
        connection.execute(
            insert(approvals).values(
                token_hash=request.token_hash,
                case_id=request.case_id,
                revision=request.revision,
                mime_sha256=shown or "",
                approver=request.approver,
                approver_address=request.approver_address,
                notice_message_id=request.notice_message_id,
                purpose=request.purpose,
                digest_id=request.digest_id,
                digest_line=request.digest_line,
                created_at=now,
                expires_at=request.expires_at,
            )
        )


def next_digest_id(connection: Connection) -> int:
    """An unused number for a digest mail."""
    newest: int | None = connection.execute(select(func.max(approvals.c.digest_id))).scalar_one()
    return (newest or 0) + 1


def find(connection: Connection, token_hashes: Collection[str], notice_ids: Sequence[str] = ()) -> list[Request]:
    """The requests that a reply belongs to: one, or all lines of a digest in their order.

    A token outranks a Message-ID; of several Message-IDs the first that is
    known decides. Empty when nothing is known.
    """
    if token_hashes:
        rows = _select(connection, approvals.c.token_hash.in_(list(token_hashes)))
        if rows:
            return _whole(connection, rows[0])
    for notice_id in notice_ids:
        rows = _select(connection, approvals.c.notice_message_id == notice_id)
        if rows:
            return _whole(connection, rows[0])
    return []


def _whole(connection: Connection, first: Request) -> list[Request]:
    if first.digest_id is None:
        return [first]
    return _select(connection, and_(approvals.c.digest_id == first.digest_id, approvals.c.approver == first.approver))


def _select(connection: Connection, where: ColumnElement[bool]) -> list[Request]:
    rows = connection.execute(select(*_COLUMNS).where(where).order_by(approvals.c.digest_line, approvals.c.created_at))
    return [Request(*row) for row in rows]


def of_case(connection: Connection, case_id: int, revision: int | None = None) -> list[Request]:
    """Every request of a case, or of one revision of it."""
    where = approvals.c.case_id == case_id
    return _select(connection, where if revision is None else and_(where, approvals.c.revision == revision))


def spend(
    connection: Connection,
    token_hash: str,
    *,
    case_id: int,
    revision: int,
    used_by: str,
    verdict: str,
    now: datetime,
    again: bool = False,
) -> str | None:
    """Use a token up, with the same approver's other tokens of that revision; the reason when it cannot be used.

    ``again`` lets the approver who used it already use it once more, which
    only NO inside the undo window may.
    """
    c = approvals.c
    usable = c.used_at.is_(None) if not again else or_(c.used_at.is_(None), c.verdict.in_(["approved", "edited"]))
    spent = connection.execute(
        update(approvals)
        .where(
            c.token_hash == token_hash,
            c.case_id == case_id,
            c.revision == revision,
            c.revoked_at.is_(None),
            c.expires_at > now,
            usable,
        )
        .values(used_at=now, used_by=used_by, verdict=verdict)
    )
    if spent.rowcount != 1:
        return token_state(connection, token_hash, now=now) or "not_waiting"
    who = connection.execute(select(c.approver).where(c.token_hash == token_hash)).scalar_one()
    connection.execute(
        update(approvals)
        .where(c.case_id == case_id, c.revision == revision, c.approver == who, c.used_at.is_(None))
        .values(used_at=now, used_by=used_by, verdict=verdict)
    )
    return None


def shown_digest(connection: Connection, token_hash: str) -> str:
    """The SHA-256 of the bytes that the token's holder was shown, "" when there were none."""
    found: str | None = connection.execute(
        select(approvals.c.mime_sha256).where(approvals.c.token_hash == token_hash)
    ).scalar_one_or_none()
    return found or ""


def token_state(connection: Connection, token_hash: str, *, now: datetime) -> str | None:
    """Why a token cannot be used: unknown_token, replaced, token_used, expired; None when it can."""
    row = connection.execute(
        select(approvals.c.used_at, approvals.c.revoked_at, approvals.c.expires_at).where(approvals.c.token_hash == token_hash)
    ).one_or_none()
    if row is None:
        return "unknown_token"
    if row.used_at is not None:
        return "token_used"
    if row.revoked_at is not None:
        return "replaced"
    return "expired" if row.expires_at <= now else None


def revoke(connection: Connection, case_id: int, *, now: datetime, before_revision: int | None = None) -> list[Request]:
    """Make a case's unused tokens worthless; returns them, for those who have to be told."""
    c = approvals.c
    where = and_(c.case_id == case_id, c.used_at.is_(None), c.revoked_at.is_(None))
    if before_revision is not None:
        where = and_(where, c.revision < before_revision)
    live = _select(connection, where)
    if live:
        connection.execute(update(approvals).where(where).values(revoked_at=now))
    return live


# --------------------------------------------------------------------------- what waits

#: Purposes of requests that ride on an answer and ask nothing by themselves.
ANSWER = "answer"
#: States in which somebody may still hold a usable token.
STILL_WAITING = (CaseState.AWAITING_APPROVAL.value, CaseState.HUMAN.value, CaseState.UNCERTAIN.value, CaseState.QUEUED.value)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A case that wants a person, as far as asking has to know it."""

    case_id: int
    mailbox: str
    state: CaseState
    reason: str
    revision: int
    deadline_at: datetime | None
    updated_at: datetime


_WAITING_COLUMNS = (
    cases.c.id,
    cases.c.mailbox,
    cases.c.state,
    cases.c.reason,
    cases.c.revision,
    cases.c.deadline_at,
    cases.c.updated_at,
)


def _waiting(connection: Connection, *where: ColumnElement[bool], limit: int) -> list[Waiting]:
    rows = connection.execute(
        select(*_WAITING_COLUMNS)
        .where(*where)
        .order_by(cases.c.deadline_at.is_(None), cases.c.deadline_at, cases.c.id)
        .limit(limit)
    )
    return [Waiting(r[0], r[1], CaseState(r[2]), r[3] or "", *r[4:]) for r in rows]


def undecided(connection: Connection, mailbox: str, *, limit: int = 500) -> list[Waiting]:
    """Every pending draft of a mailbox that is not on hold, the nearest deadline first."""
    return _waiting(
        connection,
        cases.c.mailbox == mailbox,
        cases.c.state == CaseState.AWAITING_APPROVAL.value,
        cases.c.hold_until.is_(None),
        _has_pending_draft(),
        limit=limit,
    )


def unasked(connection: Connection, mailbox: str, *, limit: int = 500) -> list[Waiting]:
    """Pending drafts about which nobody has been asked yet, the nearest deadline first."""
    return _waiting(
        connection,
        cases.c.mailbox == mailbox,
        cases.c.state == CaseState.AWAITING_APPROVAL.value,
        cases.c.hold_until.is_(None),
        _has_pending_draft(),
        ~exists().where(
            approvals.c.case_id == cases.c.id, approvals.c.revision == cases.c.revision, approvals.c.purpose != ANSWER
        ),
        limit=limit,
    )


def _has_pending_draft() -> ColumnElement[bool]:
    return exists().where(
        drafts.c.case_id == cases.c.id, drafts.c.revision == cases.c.revision, drafts.c.state == DraftState.PENDING.value
    )


def unasked_people(connection: Connection, *, limit: int = 200) -> list[Waiting]:
    """Cases that came to need a person after anybody was last asked about them as such."""
    return _waiting(
        connection,
        cases.c.state == CaseState.HUMAN.value,
        cases.c.owner.is_(None),
        ~exists().where(
            approvals.c.case_id == cases.c.id, approvals.c.purpose == "human", approvals.c.created_at >= cases.c.updated_at
        ),
        limit=limit,
    )


def asked_since(connection: Connection, purpose: str, since: datetime) -> int:
    """About how many cases somebody was asked for that purpose since a moment."""
    found: int = connection.execute(
        select(func.count(func.distinct(approvals.c.case_id))).where(
            approvals.c.purpose == purpose, approvals.c.created_at > since
        )
    ).scalar_one()
    return found


def unasked_uncertain(connection: Connection, *, limit: int = 200) -> list[Waiting]:
    """Cases whose reply is of unknown fate, with the search for evidence over and nobody asked yet."""
    return _waiting(
        connection,
        cases.c.state == CaseState.UNCERTAIN.value,
        exists().where(outbox.c.case_id == cases.c.id, outbox.c.state == DeliveryState.NEEDS_HUMAN.value),
        ~exists().where(
            approvals.c.case_id == cases.c.id, approvals.c.purpose == "uncertain", approvals.c.created_at >= cases.c.updated_at
        ),
        limit=limit,
    )


def due(connection: Connection, *, now: datetime, limit: int = 200) -> list[Waiting]:
    """Cases whose next reminder, alarm or expiry has come."""
    return _waiting(
        connection,
        or_(
            cases.c.state == CaseState.AWAITING_APPROVAL.value,
            and_(cases.c.state == CaseState.HUMAN.value, cases.c.owner.is_(None)),
        ),
        cases.c.hold_until.is_(None),
        cases.c.due_at <= now,
        limit=limit,
    )


def hold_over(connection: Connection, *, now: datetime, limit: int = 200) -> list[Waiting]:
    """Cases whose hold has ended."""
    return _waiting(connection, cases.c.state == CaseState.AWAITING_APPROVAL.value, cases.c.hold_until <= now, limit=limit)


def vetoed(connection: Connection, *, limit: int = 200) -> list[Waiting]:
    """Cases whose approved reply was stopped in time and which need a new revision to be decided once more."""
    return _waiting(
        connection,
        cases.c.state == CaseState.AWAITING_APPROVAL.value,
        cases.c.hold_until.is_(None),
        exists().where(
            drafts.c.case_id == cases.c.id, drafts.c.revision == cases.c.revision, drafts.c.state == DraftState.REJECTED.value
        ),
        limit=limit,
    )


def orphaned(connection: Connection, *, limit: int = 200) -> list[Waiting]:
    """Cases that no longer wait, or not for that revision, although somebody still holds an unused token for them."""
    live = select(approvals.c.case_id).where(approvals.c.used_at.is_(None), approvals.c.revoked_at.is_(None))
    return _waiting(
        connection,
        cases.c.id.in_(live),  # few, and found by their index; what follows would look at every case there ever was
        exists().where(
            approvals.c.case_id == cases.c.id,
            approvals.c.used_at.is_(None),
            approvals.c.revoked_at.is_(None),
            or_(cases.c.state.not_in(STILL_WAITING), approvals.c.revision < cases.c.revision),
        ),
        limit=limit,
    )


def next_due(connection: Connection) -> datetime | None:
    """When the next reminder, alarm, expiry or end of a hold comes."""
    waiting = cases.c.state.in_([CaseState.AWAITING_APPROVAL.value, CaseState.HUMAN.value])
    moments = connection.execute(select(func.min(cases.c.due_at), func.min(cases.c.hold_until)).where(waiting)).one()
    return min((m for m in moments if m is not None), default=None)


def set_due(connection: Connection, case_id: int, due_at: datetime | None) -> None:
    """When a waiting case is looked at again."""
    connection.execute(update(cases).where(cases.c.id == case_id).values(due_at=due_at))


def end_hold(connection: Connection, case_id: int, *, now: datetime) -> None:
    """The hold of a case is over."""
    connection.execute(
        update(cases).where(cases.c.id == case_id).values(hold_until=None, reason="hold_over", due_at=None, updated_at=now)
    )


def stands(connection: Connection, case_id: int, state: CaseState, revision: int) -> bool:
    """Whether a case is still in that state with that newest revision."""
    row = connection.execute(select(cases.c.state, cases.c.revision).where(cases.c.id == case_id)).one_or_none()
    return row is not None and row.state == state.value and row.revision == revision


def release_hold(connection: Connection, case_id: int, *, actor: str, now: datetime) -> bool:
    """End a hold before its time; False when the case is not on hold. Upkeep asks again at its next step."""
    ended = connection.execute(
        update(cases)
        .where(cases.c.id == case_id, cases.c.state == CaseState.AWAITING_APPROVAL.value, cases.c.hold_until.is_not(None))
        .values(hold_until=now, updated_at=now)
    )
    if ended.rowcount != 1:
        return False
    connection.execute(
        insert(events).values(
            case_id=case_id,
            at=now,
            from_state=CaseState.AWAITING_APPROVAL.value,
            to_state=CaseState.AWAITING_APPROVAL.value,
            reason="released",
            actor=actor,
        )
    )
    return True


@dataclass(frozen=True, slots=True)
class Answerable:
    """A case that a person may have answered by other means."""

    case_id: int
    message_id: str
    received_at: datetime


def answerable(connection: Connection, mailbox: str, *, limit: int = 200) -> list[Answerable]:
    """Cases that wait for a person and whose message can be found again by its Message-ID."""
    rows = connection.execute(
        select(cases.c.id, cases.c.message_id, cases.c.received_at)
        .where(
            cases.c.state.in_([CaseState.AWAITING_APPROVAL.value, CaseState.HUMAN.value]),
            # in a form that no index fits: SQLite would go by them through everything that ever came
            cases.c.mailbox.concat("") == mailbox,
            cases.c.message_id.concat("") != "",
        )
        .order_by(cases.c.owner.is_(None), cases.c.id.desc())
        .limit(limit)
    )
    return [Answerable(*row) for row in rows]
