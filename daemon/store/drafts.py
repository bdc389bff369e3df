"""Drafts: numbered revisions of the one reply that a case may get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from daemon.store import outbox
from daemon.store.dialect import padded
from daemon.store.direct import fetch
from daemon.store.tables import cases, drafts
from daemon.store.transitions import StaleMove, move_case
from daemon.vocab import CaseState, DraftState

#: Drafts that can still be decided.
OPEN = (DraftState.PENDING.value, DraftState.HELD.value)


@dataclass(frozen=True, slots=True)
class NewDraft:
    """One revision, with the frozen bytes that would leave if it is approved.

    ``revision`` is one more than the case's newest; the Message-ID inside the
    bytes was made for it.
    """

    case_id: int
    revision: int
    subject: str
    body: str
    language: str
    template: str | None
    policy: str | None
    author: str  # postsale or an approver's name
    recipient: str
    message_id: str
    mime: bytes
    sha256: str
    findings: Sequence[Mapping[str, Any]] = ()
    order_state: Mapping[str, Any] | None = None


def create(connection: Connection, draft: NewDraft, *, state: DraftState, now: datetime) -> None:
    """Store a revision; earlier ones that were still open are superseded.

    Raises StaleMove when the case has another newest revision than the
    caller saw.
    """
    counted = connection.execute(
        update(cases)
        .where(cases.c.id == draft.case_id, cases.c.revision == draft.revision - 1)
        .values(revision=draft.revision, updated_at=now)
    )
    if counted.rowcount != 1:
        raise StaleMove(f"case {draft.case_id} has another newest revision than {draft.revision - 1}")
    supersede(connection, draft.case_id, now=now)
    connection.execute(insert(drafts).values(**draft_row(draft, state, now)))


def draft_row(draft: NewDraft, state: DraftState, now: datetime) -> dict[str, Any]:
    """A revision as its row."""
    decided = state in {DraftState.APPROVED, DraftState.REJECTED}
    return {
        "case_id": draft.case_id,
        "revision": draft.revision,
        "state": state.value,
        "subject": draft.subject,
        "body": draft.body,
        "language": draft.language,
        "template": draft.template,
        "policy": draft.policy,
        "author": draft.author,
        "recipient": draft.recipient,
        "message_id": draft.message_id,
        "mime": draft.mime,
        "mime_sha256": draft.sha256,
        "findings": [dict(f) for f in draft.findings],
        "order_state": draft.order_state,
        "created_at": now,
        "decided_at": now if decided else None,
        "decided_by": draft.author if decided else None,
    }


def load(connection: Connection, case_id: int, revision: int | None = None) -> Row[Any] | None:
    """One revision, the newest unless told; None when the case has none."""
    query = select(drafts).where(drafts.c.case_id == case_id).order_by(drafts.c.revision.desc()).limit(1)
    if revision is not None:
        query = query.where(drafts.c.revision == revision)
    return connection.execute(query).one_or_none()


def order_states(
    connection: Connection, revisions: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Mapping[str, Any] | None]:
    """What these revisions (case, number) took for granted about their orders, None for one that rests on none."""
    if not revisions:
        return {}
    rows = fetch(connection, _ORDER_STATES, {"cases": padded([case_id for case_id, _ in revisions])})
    found = {(row.case_id, row.revision): row.order_state for row in rows}
    return {revision: found.get(revision) for revision in revisions}


_ORDER_STATES = select(drafts.c.case_id, drafts.c.revision, drafts.c.order_state).where(
    drafts.c.case_id.in_(bindparam("cases", expanding=True))
)


def decide(
    connection: Connection, case_id: int, revision: int, to: DraftState, *, actor: str, now: datetime, sha256: str | None = None
) -> None:
    """Close an open revision; with ``sha256`` only if its bytes are those that were shown.

    Raises StaleMove when it is no longer open.
    """
    query = update(drafts).where(drafts.c.case_id == case_id, drafts.c.revision == revision, drafts.c.state.in_(OPEN))
    if sha256 is not None:
        query = query.where(drafts.c.mime_sha256 == sha256)
    if connection.execute(query.values(state=to.value, decided_at=now, decided_by=actor)).rowcount != 1:
        raise StaleMove(f"revision {revision} of case {case_id} is no longer open")


def supersede(connection: Connection, case_id: int, *, now: datetime) -> None:
    """Close every open revision of a case without a verdict."""
    connection.execute(
        update(drafts)
        .where(drafts.c.case_id == case_id, drafts.c.state.in_(OPEN))
        .values(state=DraftState.SUPERSEDED.value, decided_at=now)
    )


def withdraw(connection: Connection, case_id: int, *, reason: str, actor: str, now: datetime) -> bool:
    """End a case that was overtaken: its drafts can no longer be approved, its reply no longer leaves.

    True when the case was withdrawn, False when it had ended already or its
    reply is on its way. Approvers who were asked are told by upkeep.
    """
    row = connection.execute(select(cases.c.state).where(cases.c.id == case_id)).one_or_none()
    if row is None:
        raise KeyError(case_id)
    state = CaseState(row.state)
    if state not in {CaseState.RECEIVED, CaseState.DEFERRED, CaseState.AWAITING_APPROVAL, CaseState.QUEUED, CaseState.HUMAN}:
        return False
    if state is CaseState.QUEUED and not outbox.cancel(connection, case_id, now=now):
        return False
    supersede(connection, case_id, now=now)
    move_case(
        connection,
        case_id,
        state,
        CaseState.WITHDRAWN,
        reason=reason,
        actor=actor,
        now=now,
        values={"due_at": None, "hold_until": None},
    )
    return True


def answered_by_hand(connection: Connection, case_id: int, *, actor: str, now: datetime) -> bool:
    """A person answered the buyer by other means: the case is closed, or withdrawn when a draft still waited."""
    state = connection.execute(select(cases.c.state).where(cases.c.id == case_id)).scalar_one_or_none()
    if state != CaseState.HUMAN.value:
        return withdraw(connection, case_id, reason="own_reply_seen", actor=actor, now=now)
    supersede(connection, case_id, now=now)
    move_case(
        connection,
        case_id,
        CaseState.HUMAN,
        CaseState.CLOSED,
        reason="own_reply_seen",
        actor=actor,
        now=now,
        values={"due_at": None},
    )
    return True


def hold(connection: Connection, case_id: int, revision: int) -> None:
    """Set a pending revision aside until its hold ends. Raises StaleMove when it is no longer open."""
    _turn(connection, case_id, revision, OPEN, {"state": DraftState.HELD.value})


def resume(connection: Connection, case_id: int, revision: int) -> None:
    """Let a held revision be decided again. Raises StaleMove when it is not held."""
    _turn(connection, case_id, revision, (DraftState.HELD.value,), {"state": DraftState.PENDING.value})


def take_back(connection: Connection, case_id: int, revision: int, *, actor: str, now: datetime) -> None:
    """Turn an approval whose reply was stopped in time into a refusal. Raises StaleMove when it was not approved."""
    values = {"state": DraftState.REJECTED.value, "decided_at": now, "decided_by": actor}
    _turn(connection, case_id, revision, (DraftState.APPROVED.value,), values)


def _turn(connection: Connection, case_id: int, revision: int, from_: Sequence[str], values: Mapping[str, Any]) -> None:
    turned = connection.execute(
        update(drafts)
        .where(drafts.c.case_id == case_id, drafts.c.revision == revision, drafts.c.state.in_(from_))
        .values(**values)
    )
    if turned.rowcount != 1:
        raise StaleMove(f"revision {revision} of case {case_id} is not {' or '.join(from_)}")
