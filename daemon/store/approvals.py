"""The one door through which a person decides about a case, by mail or on the command line.

Every decision is one transaction of guarded writes: the token is spent, the
revision that was shown is decided, the case moves, and the reply enters the
outbox, or none of it happens. The first valid decision wins; a later one
changes nothing and learns who decided when. Saying NO while the reply still
waits out its undo window stops it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from daemon.errors import PostsaleError
from daemon.store import drafts, feedback, outbox, settings
from daemon.store.requests import shown_digest, spend, token_state
from daemon.store.tables import cases, events
from daemon.store.tables import outbox as outbox_table
from daemon.store.transitions import StaleMove, move_case
from daemon.vocab import CaseState, Command, DeliveryKind, DeliveryState, DraftState, Outgoing, Verb


class Effect(StrEnum):
    """What a command did."""

    APPROVED = "approved"
    REJECTED = "rejected"
    UNDONE = "undone"  # the same person took an approval back in time
    VETOED = "vetoed"  # another person stopped an approved reply in time; it is asked for again
    EDITED = "edited"
    ASKED_AGAIN = "asked_again"  # the edited text needs a second look
    RELABELLED = "relabelled"
    HELD = "held"
    RELEASED = "released"
    TAKEN = "taken"
    CLOSED = "closed"
    RESENT = "resent"
    CONFIRMED = "confirmed"  # a reply of unknown fate arrived, says a person
    STOPPED = "stopped"
    REFUSED = "refused"  # nothing changed; ``reason`` says why


@dataclass(frozen=True, slots=True)
class Instruction:
    """One command about one case, with who gave it and how that is known.

    ``token_hash`` is None only on the command line, where the operating
    system vouches for the user. ``revised`` carries the new revision of EDIT;
    ``look_again`` keeps it waiting for another OK.
    """

    case_id: int
    revision: int | None  # the revision that was shown; None: the newest
    command: Command
    actor: str  # an approver's name, or cli:<user>
    used_by: str  # mail:<case id of the reply> or cli:<user>
    proof: str  # what proved the sender
    token_hash: str | None = None
    revised: drafts.NewDraft | None = None
    look_again: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of an instruction, and where the case stands now."""

    effect: Effect
    case_id: int
    revision: int
    state: CaseState | None
    reason: str = ""  # of a refusal
    by: str | None = None  # who decided, when somebody else did
    at: datetime | None = None
    not_before: datetime | None = None  # when the reply leaves at the earliest

    @property
    def changed(self) -> bool:
        """Whether anything is different from before."""
        return self.effect is not Effect.REFUSED


class _Refused(PostsaleError):
    """The instruction does not fit the case as it stands; the savepoint takes everything back."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Work:
    connection: Connection
    what: Instruction
    case: Row[Any]
    revision: int
    undo: timedelta
    envelope_from: str
    now: datetime


def apply(connection: Connection, what: Instruction, *, undo_seconds: float, envelope_from: str, now: datetime) -> Applied:
    """Carry out one instruction, or change nothing and say why."""
    case = connection.execute(select(cases).where(cases.c.id == what.case_id)).one_or_none()
    if case is None:
        return Applied(Effect.REFUSED, what.case_id, what.revision or 0, None, "no_such_case")
    revision = case.revision if what.revision is None else what.revision
    work = _Work(connection, what, case, revision, timedelta(seconds=undo_seconds), envelope_from, now)
    try:
        with connection.begin_nested():
            return _DOERS[what.command.verb](work)
    except _Refused as refusal:
        return _refusal(work, refusal.reason)
    except (StaleMove, outbox.AlreadyReplying):
        return _refusal(work, "")


def stop(connection: Connection, *, actor: str, now: datetime) -> bool:
    """Halt all sending to buyers; False when it was halted already."""
    return settings.pause(connection, actor=actor, now=now)


# --------------------------------------------------------------------------- the doers


def _approve(work: _Work) -> Applied:
    _expect(work, CaseState.AWAITING_APPROVAL)
    _newest(work)
    _not_held(work)
    _spend(work, Effect.APPROVED)
    draft = drafts.load(work.connection, work.case.id, work.revision)
    if draft is None:
        raise _Refused("no_draft")
    shown = draft.mime_sha256
    if work.what.token_hash is not None:
        shown = shown_digest(work.connection, work.what.token_hash)
    drafts.decide(
        work.connection, work.case.id, work.revision, DraftState.APPROVED, actor=work.what.actor, now=work.now, sha256=shown
    )
    not_before = _send(work, draft.recipient, draft.message_id, draft.mime, draft.mime_sha256, draft.template)
    _move(work, CaseState.QUEUED, Effect.APPROVED)
    _confirm_label(work)
    return _done(work, Effect.APPROVED, CaseState.QUEUED, not_before=not_before)


def _reject(work: _Work) -> Applied:
    state = CaseState(work.case.state)
    if state is CaseState.QUEUED:
        return _reject_in_time(work)
    _expect(work, CaseState.AWAITING_APPROVAL)
    _newest(work)
    _spend(work, Effect.REJECTED)
    drafts.decide(work.connection, work.case.id, work.revision, DraftState.REJECTED, actor=work.what.actor, now=work.now)
    _move(
        work,
        CaseState.DECLINED,
        Effect.REJECTED,
        detail={"why": work.what.command.argument} if work.what.command.argument else None,
    )
    return _done(work, Effect.REJECTED, CaseState.DECLINED)


def _reject_in_time(work: _Work) -> Applied:
    """NO inside the undo window. Whoever approved takes it back; anybody else makes it be asked for again."""
    draft = drafts.load(work.connection, work.case.id, work.case.revision)
    if draft is None or draft.state != DraftState.APPROVED.value:
        raise _Refused("not_waiting")
    own = draft.decided_by == work.what.actor
    effect = Effect.UNDONE if own else Effect.VETOED
    _spend(work, effect, again=True)
    if not outbox.cancel(work.connection, work.case.id, now=work.now):
        raise _Refused("already_sent")
    to = CaseState.DECLINED if own else CaseState.AWAITING_APPROVAL
    drafts.take_back(work.connection, work.case.id, draft.revision, actor=work.what.actor, now=work.now)
    _move(work, to, effect, values={"due_at": work.now}, detail={"approved_by": draft.decided_by})
    return _done(work, effect, to, by=draft.decided_by, at=draft.decided_at)


def _edit(work: _Work) -> Applied:
    revised = work.what.revised
    if revised is None:
        raise _Refused("no_text")
    state = CaseState(work.case.state)
    if state not in {CaseState.AWAITING_APPROVAL, CaseState.HUMAN}:
        raise StaleMove(work.case.state)
    _newest(work)
    _not_held(work)
    effect = Effect.ASKED_AGAIN if work.what.look_again else Effect.EDITED
    _spend(work, effect)
    drafts.create(
        work.connection, revised, state=DraftState.PENDING if work.what.look_again else DraftState.APPROVED, now=work.now
    )
    if work.what.look_again:
        if state is CaseState.HUMAN:
            _move(work, CaseState.AWAITING_APPROVAL, effect)
        else:
            _note(work, effect)
        return _done(work, effect, CaseState.AWAITING_APPROVAL, revision=revised.revision)
    not_before = _send(work, revised.recipient, revised.message_id, revised.mime, revised.sha256, None, revised.revision)
    _move(work, CaseState.QUEUED, effect)
    _confirm_label(work)
    return _done(work, effect, CaseState.QUEUED, revision=revised.revision, not_before=not_before)


def _label(work: _Work) -> Applied:
    state = CaseState(work.case.state)
    if state not in {CaseState.AWAITING_APPROVAL, CaseState.HUMAN}:
        raise StaleMove(work.case.state)
    _newest(work)
    _spend(work, Effect.RELABELLED)
    drafts.supersede(work.connection, work.case.id, now=work.now)
    feedback.learn(work.connection, work.case.id, work.what.command.argument, by=work.what.actor, now=work.now)
    _move(
        work,
        CaseState.RECEIVED,
        Effect.RELABELLED,
        values={"attempts": 0, "owner": None},
        detail={"label": work.what.command.argument},
    )
    return _done(work, Effect.RELABELLED, CaseState.RECEIVED)


def _hold(work: _Work) -> Applied:
    _expect(work, CaseState.AWAITING_APPROVAL)
    _newest(work)
    _spend(work, Effect.HELD)
    until = work.now + timedelta(seconds=int(work.what.command.argument))
    drafts.hold(work.connection, work.case.id, work.revision)
    _note(work, Effect.HELD, values={"hold_until": until, "due_at": None}, detail={"until": until.isoformat()})
    return _done(work, Effect.HELD, CaseState.AWAITING_APPROVAL, at=until)


def _take(work: _Work) -> Applied:
    state = CaseState(work.case.state)
    if state is CaseState.HUMAN:
        if work.case.owner == work.what.actor:
            raise _Refused("already_yours")
        if work.case.owner:
            raise _Refused("someone_elses")
        _spend(work, Effect.TAKEN)
        _note(work, Effect.TAKEN, values={"owner": work.what.actor, "due_at": None}, guard=cases.c.owner.is_(None))
        return _done(work, Effect.TAKEN, CaseState.HUMAN)
    _expect(work, CaseState.AWAITING_APPROVAL)
    _spend(work, Effect.TAKEN)
    drafts.supersede(work.connection, work.case.id, now=work.now)
    _move(work, CaseState.HUMAN, Effect.TAKEN, values={"owner": work.what.actor})
    return _done(work, Effect.TAKEN, CaseState.HUMAN)


def _close(work: _Work) -> Applied:
    """DONE for a case that a person answers by other means: whoever took it, or anybody while nobody has."""
    if CaseState(work.case.state) is CaseState.UNCERTAIN:
        return _uncertain(work)
    _expect(work, CaseState.HUMAN)
    if work.case.owner not in {None, work.what.actor} and work.what.token_hash is not None:
        raise _Refused("someone_elses")
    _spend(work, Effect.CLOSED)
    drafts.supersede(work.connection, work.case.id, now=work.now)
    _move(work, CaseState.CLOSED, Effect.CLOSED)
    return _done(work, Effect.CLOSED, CaseState.CLOSED)


def _uncertain(work: _Work) -> Applied:
    """RESEND or DONE for a reply that may or may not have gone."""
    _expect(work, CaseState.UNCERTAIN)
    row = work.connection.execute(
        select(outbox_table.c.id).where(
            outbox_table.c.case_id == work.case.id,
            outbox_table.c.kind == DeliveryKind.BUYER_REPLY.value,
            outbox_table.c.state.in_([DeliveryState.UNCERTAIN.value, DeliveryState.NEEDS_HUMAN.value]),
        )
    ).one_or_none()
    if row is None:
        raise _Refused("not_waiting")
    resend = work.what.command.verb is Verb.RESEND
    effect = Effect.RESENT if resend else Effect.CONFIRMED
    _spend(work, effect)
    settle: Callable[..., None] = outbox.resend if resend else outbox.done
    settle(work.connection, row.id, actor=work.what.actor, now=work.now)
    return _done(work, effect, CaseState.QUEUED if resend else CaseState.SENT)


def _stop(work: _Work) -> Applied:
    if not stop(work.connection, actor=work.what.actor, now=work.now):
        raise _Refused("already_stopped")
    return _done(work, Effect.STOPPED, CaseState(work.case.state))


def _help(_work: _Work) -> Applied:
    raise _Refused("help")


_DOERS: Mapping[Verb, Callable[[_Work], Applied]] = {
    Verb.APPROVE: _approve,
    Verb.REJECT: _reject,
    Verb.EDIT: _edit,
    Verb.LABEL: _label,
    Verb.HOLD: _hold,
    Verb.TAKE: _take,
    Verb.STOP: _stop,
    Verb.HELP: _help,
    Verb.RESEND: _uncertain,
    Verb.DONE: _close,
}


# --------------------------------------------------------------------------- parts of a decision


def _expect(work: _Work, state: CaseState) -> None:
    if work.case.state != state.value:
        raise StaleMove(work.case.state)


def _newest(work: _Work) -> None:
    if work.revision != work.case.revision:
        raise _Refused("replaced")


def _not_held(work: _Work) -> None:
    """A hold binds everybody but the one who set it; by mail nobody else sends past it."""
    until = work.case.hold_until
    if until is None or until <= work.now or work.what.token_hash is None:
        return
    holder = work.connection.execute(
        select(events.c.actor)
        .where(events.c.case_id == work.case.id, events.c.reason == Effect.HELD.value)
        .order_by(events.c.id.desc())
        .limit(1)
    ).scalar_one_or_none()
    if holder != work.what.actor:
        raise _Refused("on_hold")


def _spend(work: _Work, effect: Effect, *, again: bool = False) -> None:
    if work.what.token_hash is not None:
        refused = spend(
            work.connection,
            work.what.token_hash,
            case_id=work.case.id,
            revision=work.revision,
            used_by=work.what.used_by,
            verdict=effect.value,
            now=work.now,
            again=again,
        )
        if refused:
            raise _Refused(refused)


def _send(
    work: _Work, recipient: str, message_id: str, mime: bytes, sha256: str, template: str | None, revision: int | None = None
) -> datetime:
    not_before = work.now + work.undo
    delivery_id = outbox.enqueue(
        work.connection,
        Outgoing(
            kind=DeliveryKind.BUYER_REPLY,
            mailbox=work.case.mailbox,
            recipient=recipient,
            envelope_from=work.envelope_from,
            message_id=message_id,
            mime=mime,
            sha256=sha256,
            dedupe_key=f"reply:{work.case.id}:{revision or work.revision}",
            case_id=work.case.id,
            revision=revision or work.revision,
            not_before=not_before,
        ),
        now=work.now,
        template=template,
    )
    state = work.connection.execute(select(outbox_table.c.state).where(outbox_table.c.id == delivery_id)).scalar_one()
    if state != DeliveryState.QUEUED.value:  # this very revision was stopped before; it takes a new one
        raise _Refused("replaced")
    return not_before


def _confirm_label(work: _Work) -> None:
    """An approved reply confirms the label it was written for, unless a person had given another one before."""
    if feedback.staff_label(work.connection, work.case.id) is None:
        label = feedback.full_label(work.case.label, work.case.sublabel)
        feedback.learn(work.connection, work.case.id, label, by=work.what.actor, now=work.now)


def _move(
    work: _Work,
    to: CaseState,
    effect: Effect,
    *,
    values: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    move_case(
        work.connection,
        work.case.id,
        CaseState(work.case.state),
        to,
        reason=effect.value,
        actor=work.what.actor,
        now=work.now,
        values={"due_at": None, "hold_until": None, **(values or {})},
        detail=_evidence(work, detail),
    )


def _note(
    work: _Work,
    effect: Effect,
    *,
    values: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
    guard: Any = None,
) -> None:
    """A decision that leaves the case in its state: a guarded write and an event row all the same."""
    query = update(cases).where(cases.c.id == work.case.id, cases.c.state == work.case.state)
    if guard is not None:
        query = query.where(guard)
    if work.connection.execute(query.values(reason=effect.value, updated_at=work.now, **(values or {}))).rowcount != 1:
        raise StaleMove(work.case.state)
    work.connection.execute(
        insert(events).values(
            case_id=work.case.id,
            at=work.now,
            from_state=work.case.state,
            to_state=work.case.state,
            reason=effect.value,
            actor=work.what.actor,
            detail=_evidence(work, detail),
        )
    )


def _evidence(work: _Work, detail: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the record of a decision keeps: how it came, what proved it, which revision was meant."""
    return {"how": work.what.used_by, "proof": work.what.proof, "revision": work.revision, **(detail or {})}


def _done(
    work: _Work,
    effect: Effect,
    state: CaseState,
    *,
    revision: int | None = None,
    by: str | None = None,
    at: datetime | None = None,
    not_before: datetime | None = None,
) -> Applied:
    return Applied(effect, work.case.id, revision or work.revision, state, by=by, at=at, not_before=not_before)


# --------------------------------------------------------------------------- refusals


_STATE_REASONS: Mapping[CaseState, str] = {
    CaseState.RECEIVED: "being_decided",
    CaseState.DEFERRED: "being_decided",
    CaseState.QUEUED: "already_decided",
    CaseState.SENDING: "already_sent",
    CaseState.SENT: "already_sent",
    CaseState.UNCERTAIN: "uncertain",
    CaseState.DECLINED: "already_declined",
    CaseState.WITHDRAWN: "overtaken",
    CaseState.CLOSED: "already_closed",
    CaseState.HUMAN: "needs_person",
}


def _refusal(work: _Work, reason: str) -> Applied:
    """Say where the case stands and who brought it there, from a fresh look at it."""
    case = work.connection.execute(select(cases).where(cases.c.id == work.case.id)).one()
    state = CaseState(case.state)
    last = work.connection.execute(
        select(events.c.actor, events.c.at)
        .where(events.c.case_id == case.id, events.c.to_state == case.state)
        .order_by(events.c.id.desc())
        .limit(1)
    ).one_or_none()
    draft = drafts.load(work.connection, case.id)
    decided = draft is not None and draft.decided_by is not None and state not in {CaseState.AWAITING_APPROVAL, CaseState.HUMAN}
    not_before = work.connection.execute(
        select(outbox_table.c.not_before).where(
            outbox_table.c.case_id == case.id,
            outbox_table.c.kind == DeliveryKind.BUYER_REPLY.value,
            outbox_table.c.state == DeliveryState.QUEUED.value,
        )
    ).scalar_one_or_none()
    if not reason:
        token = token_state(work.connection, work.what.token_hash, now=work.now) if work.what.token_hash else None
        reason = _STATE_REASONS.get(state) or token or "not_waiting"
    if reason in {"token_used", "replaced"} and state in _STATE_REASONS:
        reason = _STATE_REASONS[state]
    return Applied(
        Effect.REFUSED,
        case.id,
        case.revision,
        state,
        reason,
        by=draft.decided_by if decided and draft is not None else (case.owner or (last.actor if last else None)),
        at=draft.decided_at if decided and draft is not None else (last.at if last else None),
        not_before=not_before,
    )
