"""Takes stored mail forward: read, decide, and write the outcome down.

Cases are claimed in batches. Reading and deciding run in killable workers;
between the two the store and the order sources are asked. Every case is
settled in a unit of work of its own, so that one that was moved by somebody
else in the meantime does not hold up its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from daemon import log as logging
from daemon import record
from daemon.clock import RECONNECT_BACKOFF_SECONDS, Clock, backoff
from daemon.edges.workers import WorkerFailure
from daemon.errors import NeedsHuman, Permanent, Transient
from daemon.loops.loop import Loop, Pace
from daemon.loops.profiles import MailboxProfile
from daemon.loops.recheck import OrderRows, order_state
from daemon.loops.replies import Author, Thinker, frozen_reply
from daemon.mime.bounce import bounce_of
from daemon.mind import DecideTask, ReadTask
from daemon.pipeline import Circumstances
from daemon.steps.gate import ramp_limit
from daemon.store import cases, drafts, feedback, outbox, ramps
from daemon.store.cases import Claimed, Context, Settlement, Understood
from daemon.store.db import Database
from daemon.store.drafts import NewDraft
from daemon.store.transitions import StaleMove, move_case
from daemon.vocab import (
    CaseState,
    DeliveryKind,
    DraftState,
    GateVerdict,
    Kind,
    Mode,
    Notice,
    OrderId,
    Outcome,
    Outgoing,
    Reading,
)

log = logging.get(__name__)

T = TypeVar("T")

ACTOR = "postsale"
LEASE = timedelta(minutes=5)
#: How soon a deferred case is looked at again.
DEFER_STEP = timedelta(minutes=1)

_DRAFT_STATES = {
    CaseState.QUEUED: DraftState.APPROVED,
    CaseState.AWAITING_APPROVAL: DraftState.PENDING,
    CaseState.SHADOWED: DraftState.SHADOW,
}
#: Outcomes that take the place of what still waits in the thread.
_REPLACES_EARLIER = (CaseState.QUEUED, CaseState.AWAITING_APPROVAL, CaseState.HUMAN, CaseState.DEFERRED)


@dataclass(frozen=True, slots=True)
class AdvanceSettings:
    worker: str
    batch: int
    max_attempts: int
    stale_after: timedelta
    defer: timedelta
    live: bool
    live_policies: tuple[str, ...]
    key: bytes  # of Message-IDs


class Advance(Loop):
    """received, deferred → the state that the steps decide."""

    name = "advance"
    bound_seconds = 300

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        thinker: Callable[[], Thinker],
        profiles: Mapping[str, MailboxProfile],
        settings: AdvanceSettings,
        lookup: Callable[[Sequence[OrderId]], Awaitable[OrderRows]],
        carry_out: Callable[[Claimed, Reading], Awaitable[None]],
        on_queued: Callable[[], None],
        on_waiting: Callable[[], None],
        versions: Callable[[], tuple[str, str]],
    ) -> None:
        super().__init__(clock)
        self._db = database
        self._thinker = thinker
        self._profiles = profiles
        self._settings = settings
        self._lookup = lookup
        self._carry_out = carry_out
        self._on_queued = on_queued
        self._on_waiting = on_waiting
        self._versions = versions
        self._failures = 0
        self.orders_trouble: str | None = None  # why order sources cannot be asked, for alarms

    async def step(self) -> Pace:
        """Take one batch forward."""
        try:
            # Two batches in flight: while one is being written, the workers think about the other.
            paces = await asyncio.gather(self._batch(), self._batch())
        except Transient as error:
            self._failures += 1
            log.warning("advance.failed", problem=str(error))
            return Pace(0, backoff(RECONNECT_BACKOFF_SECONDS, self._failures))
        self._failures = 0
        done, due = sum(p.done for p in paces), [p.next_seconds for p in paces if p.next_seconds is not None]
        return Pace(done, min(due, default=None))

    async def _batch(self) -> Pace:
        now, how = self.clock.now(), self._settings
        claimed = await self._db.write(
            lambda c: cases.claim(c, worker=how.worker, limit=how.batch, lease=LEASE, max_attempts=how.max_attempts, now=now)
        )
        if not claimed:
            due = await self._db.read(cases.next_due)
            return Pace(0, None if due is None else max(0.0, (due - now).total_seconds()))
        await self._advance(claimed)
        return Pace(len(claimed))

    # ------------------------------------------------------------------ the batch

    async def _advance(self, claimed: Sequence[Claimed]) -> None:
        readings = await self._thinker().map([ReadTask(c.raw, self._profiles[c.mailbox].identity) for c in claimed])
        read = await asyncio.gather(*(self._understand(c, r) for c, r in zip(claimed, readings, strict=True)))
        wanted = [item for item in read if item is not None]
        if not wanted:
            return
        rows = await self._rows([o for item in wanted for o in item.reading.envelope.order_ids])
        outcomes = await self._thinker().map([DecideTask(item.reading, self._circumstances(item, rows)) for item in wanted])
        await asyncio.gather(*(self._settle(item, out) for item, out in zip(wanted, outcomes, strict=True)))

    async def _rows(self, ids: Sequence[OrderId]) -> OrderRows:
        """Order rows; none while a source cannot be asked: unknown waits or goes to a person, and all other mail goes on."""
        try:
            rows = await self._lookup(ids)
        except (Transient, Permanent) as error:
            self.orders_trouble = str(error)
            log.warning("orders.unreachable", problem=str(error))
            return {}
        if ids:
            self.orders_trouble = None
        return rows

    async def _understand(self, case: Claimed, reading: Reading | WorkerFailure) -> _Item | None:
        """Write down what a message is; None when its way ends here."""
        if isinstance(reading, WorkerFailure):
            await self._fail(case, reading)
            return None

        def unit(connection: Connection) -> tuple[Context, str | None, int]:
            context = cases.understand(
                connection,
                case.case_id,
                _understood(reading),
                worker=self._settings.worker,
                response_hours=self._profiles[case.mailbox].response_hours,
                now=self.clock.now(),
            )
            return context, feedback.staff_label(connection, case.case_id), cases.revision(connection, case.case_id)

        try:
            context, staff_label, revision = await self._db.write(unit)
        except StaleMove:
            log.info("case.claim_lost", case_id=case.case_id)
            return None
        item = _Item(case, reading, context, staff_label, revision)
        if context.duplicate_of is not None:
            await self._finish(item, CaseState.IGNORED, "duplicate", detail={"duplicate_of": context.duplicate_of})
        elif reading.envelope.kind is Kind.APPROVAL:
            try:
                await self._carry_out(case, reading)
            except Transient as error:  # its sender cannot be proved for now; the lease's end tries again
                log.warning("approval.postponed", case_id=case.case_id, problem=str(error))
            self._on_queued()
            self._on_waiting()
        elif reading.envelope.notice in (Notice.BOUNCE, Notice.NOT_SENT):
            await self._refused_later(item)
        elif reading.envelope.notice is Notice.OWN_COPY:
            await self._answered_elsewhere(item)
        else:
            return item
        return None

    def _circumstances(self, item: _Item, rows: OrderRows) -> Circumstances:
        profile, how, now = self._profiles[item.case.mailbox], self._settings, self.clock.now()
        named = item.reading.envelope.order_ids
        return Circumstances(
            now=now,
            rows=tuple(row for order in named for row in rows.get(order, ())),
            history=item.context.history,
            caps=profile.caps,
            stale_after=how.stale_after,
            shop_name=profile.shop_name,
            may_wait=now - item.case.received_at < how.defer,
            person_reason=_person_reason(item, profile),
            staff_label=item.staff_label,
        )

    # ------------------------------------------------------------------ system mail about our own

    async def _refused_later(self, item: _Item) -> None:
        """A bounce, or the marketplace's word that it did not pass our mail on (RFC 3464)."""
        mail, report = item.reading.mail, bounce_of(item.reading.mail)
        named = report.message_ids if report else (*mail.in_reply_to, *reversed(mail.references))
        recipients = report.recipients if report else ()
        reason = f"{report.status} {report.diagnostic}".strip() if report else mail.subject
        if report is not None and not report.permanent:
            await self._finish(item, CaseState.IGNORED, "delivery_delayed")
            return

        def unit(connection: Connection) -> None:
            now, delivery = self.clock.now(), None
            for message_id, recipient in (*((m, None) for m in named), *((None, r) for r in recipients)):
                delivery = outbox.bounced(
                    connection, item.case.mailbox, message_id=message_id, recipient=recipient, reason=reason, now=now
                )
                if delivery is not None:
                    break
            lost = delivery is None and item.reading.envelope.notice is Notice.NOT_SENT
            to, why = (CaseState.HUMAN, "not_sent_unmatched") if lost else (CaseState.IGNORED, "delivery_report")
            self._write(connection, item, to, why, detail={"delivery": delivery})

        await self._guarded(item, unit)
        self._on_waiting()

    async def _answered_elsewhere(self, item: _Item) -> None:
        """The marketplace's copy of a reply that a person typed in its console: what waits in that thread is answered."""

        def unit(connection: Connection) -> None:
            now = self.clock.now()
            orders = [o.value for o in item.reading.envelope.order_ids]
            waiting = {
                *cases.open_in_thread(connection, item.context.thread_id, before=item.case.case_id),
                *cases.open_for_orders(connection, item.case.mailbox, orders, before=item.case.case_id),
            }
            for case_id, state in sorted(waiting):
                if state is CaseState.HUMAN:
                    move_case(connection, case_id, state, CaseState.CLOSED, reason="answered_elsewhere", actor=ACTOR, now=now)
                else:
                    drafts.withdraw(connection, case_id, reason="answered_elsewhere", actor=ACTOR, now=now)
            self._write(connection, item, CaseState.IGNORED, "own_copy")

        await self._guarded(item, unit)
        self._on_waiting()

    # ------------------------------------------------------------------ settling

    async def _settle(self, item: _Item, outcome: Outcome | WorkerFailure) -> None:
        if isinstance(outcome, WorkerFailure):
            await self._fail(item.case, outcome)
            return
        reply = None
        if outcome.draft is not None and item.reading.envelope.reply_to is not None:
            try:
                reply = self._reply(item, outcome)
            except NeedsHuman as lack:
                reasons = (*outcome.decision.reasons, lack.reason)
                outcome = replace(outcome, draft=None, decision=replace(outcome.decision, reasons=reasons))

        final, frozen = outcome, reply

        def unit(connection: Connection) -> CaseState:
            outcome, reply = final, frozen
            to, reason = self._destination(connection, item, outcome)
            if to is CaseState.QUEUED and not self._within_ramp(connection, item, outcome.decision.group):
                outcome, to, reason = _asked_instead(outcome, "cap_ramp"), CaseState.AWAITING_APPROVAL, "cap_ramp"
                reply = self._reply(item, outcome)
            if to in _REPLACES_EARLIER:
                self._overtake(connection, item)
            values: dict[str, Any] = {
                "label": outcome_label(item, outcome)[0],
                "sublabel": outcome_label(item, outcome)[1],
                "confidence": item.reading.prediction.confidence,
                "policy": outcome.decision.policy,
                "template": outcome.decision.template,
                "mode": outcome.decision.mode.value,
                "model_version": self._versions()[0],
                "playbook_version": self._versions()[1],
                "due_at": self.clock.now() + DEFER_STEP if to is CaseState.DEFERRED else None,
            }
            self._write(connection, item, to, reason, values=values, outcome=outcome)
            if reply is not None and to in _DRAFT_STATES:
                drafts.create(connection, reply, state=_DRAFT_STATES[to], now=self.clock.now())
                if to is CaseState.QUEUED:
                    outgoing = self._outgoing(item, reply)
                    outbox.enqueue(connection, outgoing, now=self.clock.now(), template=reply.template, automatic=True)
            return to

        to = await self._guarded(item, unit)
        if to is CaseState.QUEUED:
            self._on_queued()
        elif to in (CaseState.AWAITING_APPROVAL, CaseState.HUMAN):
            self._on_waiting()

    def _destination(self, connection: Connection, item: _Item, outcome: Outcome) -> tuple[CaseState, str]:
        decision = outcome.decision
        if decision.mode is Mode.NONE:
            ignored = outcome.verdict.verdict is GateVerdict.IGNORE
            return CaseState.IGNORED, outcome.verdict.reason if ignored else decision.reasons[0]
        overtaken = item.reading.envelope.kind is Kind.BUYER and cases.newer_in_thread(
            connection, item.context.thread_id, after=item.case.case_id
        )
        if overtaken and decision.mode is not Mode.HUMAN:  # what a person must see is not hidden by the next mail
            return CaseState.WITHDRAWN, "buyer_wrote_again"
        if outcome.defer_reason is not None:
            return CaseState.DEFERRED, outcome.defer_reason
        if not self._live(decision.group):
            return CaseState.SHADOWED, decision.reasons[0]
        if decision.mode is Mode.HUMAN or outcome.draft is None or item.reading.envelope.reply_to is None:
            return CaseState.HUMAN, decision.reasons[-1]
        if any(state is CaseState.HUMAN for _, state in self._earlier(connection, item)):
            return CaseState.HUMAN, "thread_with_person"
        if decision.mode is Mode.SEND:
            return CaseState.QUEUED, decision.reasons[0]
        return CaseState.AWAITING_APPROVAL, decision.reasons[0]

    def _live(self, group: str | None) -> bool:
        how = self._settings
        return how.live and (group is None or any(fnmatchcase(group, pattern) for pattern in how.live_policies))

    def _within_ramp(self, connection: Connection, item: _Item, group: str | None) -> bool:
        """Whether one more reply of the group may leave without a person today; it counts if so."""
        caps, mailbox = self._profiles[item.case.mailbox].caps, item.case.mailbox
        return group is None or ramps.take(connection, mailbox, group, partial(ramp_limit, caps), now=self.clock.now())

    async def start_ramps(self) -> None:
        """Have every policy group that is not live any longer start anew when it is again. To be called once, at the start."""
        gone = await self._db.write(lambda c: ramps.forget_others(c, self._profiles, self._live))
        if gone:
            log.info("ramps.ended", groups=gone)

    def _earlier(self, connection: Connection, item: _Item) -> list[tuple[int, CaseState]]:
        return cases.open_in_thread(connection, item.context.thread_id, before=item.case.case_id)

    def _overtake(self, connection: Connection, item: _Item) -> None:
        """A newer mail of the buyer takes the place of what still waits in its thread, except what a person has."""
        if item.reading.envelope.kind is not Kind.BUYER:
            return
        for case_id, state in self._earlier(connection, item):
            if state is not CaseState.HUMAN:
                drafts.withdraw(connection, case_id, reason="buyer_wrote_again", actor=ACTOR, now=self.clock.now())

    def _reply(self, item: _Item, outcome: Outcome) -> NewDraft:
        """The frozen reply of an outcome's draft, as the next revision of its case."""
        if outcome.draft is None:
            raise ValueError("the outcome has no draft")
        decision = outcome.decision
        return frozen_reply(
            self._settings.key,
            self._profiles[item.case.mailbox],
            case_id=item.case.case_id,
            revision=item.revision + 1,
            reading=item.reading,
            draft=outcome.draft,
            findings=outcome.findings,
            order_state=order_state(outcome.facts),
            author=Author(ACTOR, decision.policy, decision.template, automatic=decision.mode is Mode.SEND),
            now=self.clock.now(),
        )

    def _outgoing(self, item: _Item, reply: NewDraft) -> Outgoing:
        profile = self._profiles[item.case.mailbox]
        return Outgoing(
            kind=DeliveryKind.BUYER_REPLY,
            mailbox=profile.name,
            recipient=reply.recipient,
            envelope_from=profile.sender.addr,
            message_id=reply.message_id,
            mime=reply.mime,
            sha256=reply.sha256,
            dedupe_key=f"reply:{reply.case_id}:{reply.revision}",
            case_id=reply.case_id,
            revision=reply.revision,
            not_before=self.clock.now() + profile.undo,
        )

    async def _fail(self, case: Claimed, failure: WorkerFailure) -> None:
        """Set a message aside that could not be read or judged within its limits."""
        log.error("case.broken", case_id=case.case_id, kind=failure.kind)
        settlement = Settlement(
            case.case_id, case.state, CaseState.BROKEN, f"worker_{failure.kind}", traceback=failure.traceback or str(failure)
        )
        try:
            await self._db.write(lambda c: cases.settle(c, settlement, worker=self._settings.worker, now=self.clock.now()))
        except StaleMove:
            log.info("case.claim_lost", case_id=case.case_id)

    async def _finish(self, item: _Item, to: CaseState, reason: str, *, detail: Mapping[str, Any] | None = None) -> None:
        await self._guarded(item, lambda c: self._write(c, item, to, reason, detail=detail))

    async def _guarded(self, item: _Item, unit: Callable[[Connection], T]) -> T | None:
        """Run a settling unit; None when the case was moved by somebody else in the meantime."""
        try:
            return await self._db.write(unit)
        except StaleMove:
            log.info("case.claim_lost", case_id=item.case.case_id)
            return None

    def _write(
        self,
        connection: Connection,
        item: _Item,
        to: CaseState,
        reason: str,
        *,
        values: Mapping[str, Any] | None = None,
        outcome: Outcome | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        settlement = Settlement(
            item.case.case_id,
            item.case.state,
            to,
            reason[:60],
            values=values or {},
            reading=record.reading_record(item.reading),
            outcome=record.outcome_record(outcome) if outcome else None,
            detail=detail,
        )
        cases.settle(connection, settlement, worker=self._settings.worker, now=self.clock.now())
        log.info("case.settled", case_id=item.case.case_id, state=to.value, reason=reason[:60])


@dataclass(frozen=True, slots=True)
class _Item:
    """One claimed case, read and understood."""

    case: Claimed
    reading: Reading
    context: Context
    staff_label: str | None
    revision: int


def _asked_instead(outcome: Outcome, reason: str) -> Outcome:
    decision = outcome.decision
    return replace(outcome, decision=replace(decision, mode=Mode.ASK, reasons=(*decision.reasons, reason)))


def outcome_label(item: _Item, outcome: Outcome) -> tuple[str, str | None]:
    """The label that the outcome rests on: a person's, else the model's."""
    if item.staff_label:
        label, _, sublabel = item.staff_label.partition("/")
        return label, sublabel or None
    return item.reading.prediction.label, item.reading.prediction.sublabel


def _person_reason(item: _Item, profile: MailboxProfile) -> str | None:
    """Why a person has to look at a message, whatever it says."""
    if item.case.truncated:
        return "too_large"
    if item.case.review:
        return "folder_under_review"
    if item.context.reused_message_id:
        return "message_id_reused"
    arrived = item.case.internal_date or item.case.received_at
    if item.case.received_at - arrived > profile.max_age:
        return "too_old"
    return None


def _understood(reading: Reading) -> Understood:
    mail, envelope = reading.mail, reading.envelope
    writer = envelope.reply_to or mail.from_addr
    vouched = reading.authentication.aligned and (envelope.relay or envelope.kind is Kind.SYSTEM)
    return Understood(
        content_key=mail.content_key,
        message_id=mail.message_id,
        sender=writer.addr if writer else "",
        kind=envelope.kind,
        notice=envelope.notice.value if envelope.notice else None,
        marketplace=envelope.marketplace,
        language=reading.language,
        order_id=envelope.order_ids[0].value if envelope.order_ids else None,
        thread_keys=envelope.thread_keys,
        vouched=vouched and envelope.marketplace is not None,
        # Who is not plainly who they say joins no thread by naming a message of it.
        answers=() if envelope.suspicions else tuple(dict.fromkeys((*mail.in_reply_to, *reversed(mail.references))))[:20],
    )
