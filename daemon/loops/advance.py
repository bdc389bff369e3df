"""Takes stored mail forward: read, decide, and write the outcome down.

Cases are claimed in batches. Reading and deciding run in killable workers;
between the two the store and the order sources are asked. What a batch comes
to is committed at once; a case that was moved by somebody else in the
meantime is left out and does not hold up its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from daemon import log as logging
from daemon.clock import RECONNECT_BACKOFF_SECONDS, Clock, backoff
from daemon.edges.workers import WorkerFailure
from daemon.errors import Permanent, Transient
from daemon.loops.loop import Loop, Pace
from daemon.loops.profiles import MailboxProfile
from daemon.loops.recheck import OrderRows
from daemon.loops.replies import Thinker, new_draft, reply_plan
from daemon.mime.bounce import bounce_of
from daemon.steps.gate import ramp_limit
from daemon.store import batches, cases, drafts, outbox, ramps
from daemon.store.batches import Asked, Filing, Known
from daemon.store.cases import Claimed, Settlement, Understood
from daemon.store.db import Database
from daemon.store.drafts import NewDraft
from daemon.store.outbox import AlreadyReplying, FirstReply, NotDeliverable
from daemon.store.transitions import StaleMove, move_case
from daemon.tasks import Circumstances, Gist, GistTask, ReplyPlan, Settled, SettleTask
from daemon.vocab import (
    CaseState,
    DeliveryKind,
    DraftState,
    GateVerdict,
    Kind,
    Mode,
    Notice,
    OrderId,
    Outgoing,
    Reading,
)

log = logging.get(__name__)

T = TypeVar("T")

ACTOR = "postsale"
LEASE = timedelta(minutes=5)
#: Batches under way at the same time, and how many each lane takes forward before the loop looks up.
LANES = 3
BATCHES_A_STEP = 8
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
        """Take some batches forward."""
        try:
            paces = await asyncio.gather(*(self._lane() for _ in range(LANES)))
        except Transient as error:
            self._failures += 1
            log.warning("advance.failed", problem=str(error))
            return Pace(0, backoff(RECONNECT_BACKOFF_SECONDS, self._failures))
        self._failures = 0
        done, due = sum(p.done for p in paces), [p.next_seconds for p in paces if p.next_seconds is not None]
        return Pace(done, min(due, default=None))

    async def _lane(self) -> Pace:
        """Batch after batch, a few of them; lanes beside it keep workers and database busy at the same time."""
        done = 0
        for _ in range(BATCHES_A_STEP):
            pace = await self._batch()
            done += pace.done
            if not pace.done:
                return Pace(done, pace.next_seconds)
            self.beat()
        return Pace(done)

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
        gists = await self._thinker().map([GistTask(c.raw, self._profiles[c.mailbox].identity) for c in claimed])
        read: list[tuple[Claimed, Gist]] = []
        for case, gist in zip(claimed, gists, strict=True):
            if isinstance(gist, WorkerFailure):
                await self._fail(case, gist)
            else:
                read.append((case, gist))
        wanted = [item for item in await self._understand(read) if not await self._ends_here(item)]
        if not wanted:
            return
        rows = await self._rows([o for item in wanted for o in item.gist.order_ids])
        too_many = await self._decide(wanted, rows)
        if too_many:
            await self._decide(too_many, rows, ask_reason="cap_ramp")

    async def _decide(self, items: Sequence[_Item], rows: OrderRows, *, ask_reason: str | None = None) -> list[_Item]:
        """Decide and settle; returns those that are one too many of what may leave without a person today.

        With ``ask_reason`` nothing leaves without a person, and none is returned.
        """
        tasks = [SettleTask(i.gist.packed, self._circumstances(i, rows, ask_reason), self._plan(i)) for i in items]
        decided: list[tuple[_Item, Settled]] = []
        for item, settled in zip(items, await self._thinker().map(tasks), strict=True):
            if isinstance(settled, WorkerFailure):
                await self._fail(item.case, settled)
            else:
                decided.append((item, settled))
        return await self._settle(decided, ask_reason)

    async def _understand(self, read: Sequence[tuple[Claimed, Gist]]) -> list[_Item]:
        """Write down what the messages are; those whose claim was lost are left out."""
        if not read:
            return []
        asked = [Asked(c.case_id, _understood(g), self._profiles[c.mailbox].response_hours) for c, g in read]
        worker, now = self._settings.worker, self.clock.now()
        known = await self._db.write(lambda c: batches.understand_many(c, asked, worker=worker, now=now))
        items: list[_Item] = []
        for (case, gist), found in zip(read, known, strict=True):
            if found is None:
                log.info("case.claim_lost", case_id=case.case_id)
            else:
                items.append(_Item(case, gist, found))
        return items

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

    async def _ends_here(self, item: _Item) -> bool:
        """Deal with what is no new message of a buyer's; False for what is to be decided."""
        case, context = item.case, item.known.context
        if context.duplicate_of is not None:
            await self._finish(item, CaseState.IGNORED, "duplicate", detail={"duplicate_of": context.duplicate_of})
        elif item.gist.kind is Kind.APPROVAL:
            try:
                await self._carry_out(case, item.gist.reading())
            except Transient as error:  # its sender cannot be proved for now; the lease's end tries again
                log.warning("approval.postponed", case_id=case.case_id, problem=str(error))
            self._on_queued()
            self._on_waiting()
        elif item.gist.notice in (Notice.BOUNCE, Notice.NOT_SENT):
            await self._refused_later(item)
        elif item.gist.notice is Notice.OWN_COPY:
            await self._answered_elsewhere(item)
        else:
            return False
        return True

    def _circumstances(self, item: _Item, rows: OrderRows, ask_reason: str | None) -> Circumstances:
        profile, how, now = self._profiles[item.case.mailbox], self._settings, self.clock.now()
        return Circumstances(
            now=now,
            rows=tuple(row for order in item.gist.order_ids for row in rows.get(order, ())),
            history=item.known.context.history,
            caps=profile.caps,
            stale_after=how.stale_after,
            shop_name=profile.shop_name,
            may_wait=now - item.case.received_at < how.defer,
            person_reason=_person_reason(item, profile),
            staff_label=item.known.staff_label,
            ask_reason=ask_reason,
        )

    def _plan(self, item: _Item) -> ReplyPlan:
        profile = self._profiles[item.case.mailbox]
        return reply_plan(self._settings.key, profile, case_id=item.case.case_id, revision=item.known.revision + 1)

    # ------------------------------------------------------------------ system mail about our own

    async def _refused_later(self, item: _Item) -> None:
        """A bounce, or the marketplace's word that it did not pass our mail on (RFC 3464)."""
        mail = item.gist.reading().mail
        report = bounce_of(mail)
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
            lost = delivery is None and item.gist.notice is Notice.NOT_SENT
            to, why = (CaseState.HUMAN, "not_sent_unmatched") if lost else (CaseState.IGNORED, "delivery_report")
            self._write(connection, item, to, why, detail={"delivery": delivery})

        await self._guarded(item, unit)
        self._on_waiting()

    async def _answered_elsewhere(self, item: _Item) -> None:
        """The marketplace's copy of a reply that a person typed in its console: what waits in that thread is answered."""

        def unit(connection: Connection) -> None:
            now = self.clock.now()
            orders = [o.value for o in item.gist.order_ids]
            waiting = {
                *cases.open_in_thread(connection, item.thread_id, before=item.case.case_id),
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

    async def _settle(self, items: Sequence[tuple[_Item, Settled]], ask_reason: str | None) -> list[_Item]:
        """Write the outcomes down: at once for those that are alone in their threads, for the others one by one.

        Returns those that would leave without a person, and are one too many today: nothing is written for them.
        """
        worker, now = self._settings.worker, self.clock.now()

        def unit(connection: Connection) -> tuple[set[int], list[tuple[_Item, Settlement]], list[_Item]]:
            alone = batches.alone_in_thread(connection, [item.thread_id for item, _ in items])
            filings: dict[int, tuple[_Item, Filing]] = {}
            too_many: list[_Item] = []
            for item, settled in items:
                if item.thread_id not in alone or item.known.revision:
                    continue
                to, reason = self._destination(settled, Surroundings(), ask_reason)
                if to is item.case.state:
                    continue
                if to is CaseState.QUEUED and not self._within_ramp(connection, item, settled.group):
                    too_many.append(item)
                    continue
                draft = self._draft(item, settled) if to in _DRAFT_STATES else None
                filings[item.case.case_id] = (
                    item,
                    Filing(
                        self._settlement(item, to, reason, settled=settled),
                        draft,
                        _DRAFT_STATES.get(to, DraftState.PENDING),
                        FirstReply(self._outgoing(item, draft), draft.template, item.thread_id)
                        if draft is not None and to is CaseState.QUEUED
                        else None,
                    ),
                )
            done = batches.settle_many(connection, [filing for _, filing in filings.values()], worker=worker, now=now)
            ended = [(filings[case_id][0], filings[case_id][1].settlement) for case_id in done]
            return set(filings), ended, too_many

        try:
            filed, ended, too_many = await self._db.write(unit)
        except (StaleMove, AlreadyReplying, NotDeliverable):  # one of them; which, shows when each is settled alone
            filed, ended, too_many = set(), [], []
        for item, settlement in ended:
            self._tell(item, settlement)
        for case_id in filed - {item.case.case_id for item, _ in ended}:
            log.info("case.claim_lost", case_id=case_id)
        dealt_with = filed | {item.case.case_id for item in too_many}
        alone = [(item, settled) for item, settled in items if item.case.case_id not in dealt_with]
        within = await asyncio.gather(*(self._settle_one(item, settled, ask_reason) for item, settled in alone))
        return [*too_many, *(item for (item, _), fine in zip(alone, within, strict=True) if not fine)]

    async def _settle_one(self, item: _Item, settled: Settled, ask_reason: str | None) -> bool:
        """As _settle, for one; False when it is one too many."""

        def unit(connection: Connection) -> Settlement:
            to, reason = self._destination(settled, self._surroundings(connection, item), ask_reason)
            if to is CaseState.QUEUED and not self._within_ramp(connection, item, settled.group):
                raise _TooMany
            if to in _REPLACES_EARLIER:
                self._overtake(connection, item)
            settlement = self._settlement(item, to, reason, settled=settled)
            cases.settle(connection, settlement, worker=self._settings.worker, now=self.clock.now())
            draft = self._draft(item, settled) if to in _DRAFT_STATES else None
            if draft is not None:
                drafts.create(connection, draft, state=_DRAFT_STATES[to], now=self.clock.now())
                if to is CaseState.QUEUED:
                    outgoing = self._outgoing(item, draft)
                    outbox.enqueue(connection, outgoing, now=self.clock.now(), template=draft.template, automatic=True)
            return settlement

        try:
            settlement = await self._guarded(item, unit)
        except _TooMany:
            return False
        if settlement is not None:
            self._tell(item, settlement)
        return True

    def _tell(self, item: _Item, settlement: Settlement) -> None:
        to = settlement.to
        log.info("case.settled", case_id=item.case.case_id, state=to.value, reason=settlement.reason)
        if to is CaseState.QUEUED:
            self._on_queued()
        elif to in (CaseState.AWAITING_APPROVAL, CaseState.HUMAN):
            self._on_waiting()

    def _surroundings(self, connection: Connection, item: _Item) -> Surroundings:
        return Surroundings(
            overtaken=item.gist.kind is Kind.BUYER
            and cases.newer_in_thread(connection, item.thread_id, after=item.case.case_id),
            with_person=any(state is CaseState.HUMAN for _, state in self._earlier(connection, item)),
        )

    def _destination(self, settled: Settled, around: Surroundings, ask_reason: str | None) -> tuple[CaseState, str]:
        if settled.mode is Mode.NONE:
            ignored = settled.verdict is GateVerdict.IGNORE
            return CaseState.IGNORED, settled.verdict_reason if ignored else settled.reasons[0]
        if around.overtaken and settled.mode is not Mode.HUMAN:  # what a person must see is not hidden by the next mail
            return CaseState.WITHDRAWN, "buyer_wrote_again"
        if settled.defer_reason is not None:
            return CaseState.DEFERRED, settled.defer_reason
        if not self._live(settled.group):
            return CaseState.SHADOWED, settled.reasons[0]
        if settled.mode is Mode.HUMAN or settled.reply is None:
            return CaseState.HUMAN, settled.reasons[-1]
        if around.with_person:
            return CaseState.HUMAN, "thread_with_person"
        if settled.mode is Mode.SEND:
            return CaseState.QUEUED, settled.reasons[0]
        return CaseState.AWAITING_APPROVAL, ask_reason or settled.reasons[0]

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
        return cases.open_in_thread(connection, item.thread_id, before=item.case.case_id)

    def _overtake(self, connection: Connection, item: _Item) -> None:
        """A newer mail of the buyer takes the place of what still waits in its thread, except what a person has."""
        if item.gist.kind is not Kind.BUYER:
            return
        for case_id, state in self._earlier(connection, item):
            if state is not CaseState.HUMAN:
                drafts.withdraw(connection, case_id, reason="buyer_wrote_again", actor=ACTOR, now=self.clock.now())

    def _draft(self, item: _Item, settled: Settled) -> NewDraft | None:
        """The frozen reply as the next revision of its case; None where there is none."""
        reply = settled.reply
        if reply is None:
            return None
        return new_draft(
            self._plan(item),
            reply.draft,
            reply.frozen,
            recipient=reply.recipient,
            author=ACTOR,
            policy=settled.policy,
            template=settled.template,
            findings=reply.findings,
            order_state=reply.order_state,
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
        self, connection: Connection, item: _Item, to: CaseState, reason: str, *, detail: Mapping[str, Any] | None = None
    ) -> None:
        settlement = self._settlement(item, to, reason, detail=detail)
        cases.settle(connection, settlement, worker=self._settings.worker, now=self.clock.now())
        log.info("case.settled", case_id=item.case.case_id, state=to.value, reason=reason[:60])

    def _settlement(
        self,
        item: _Item,
        to: CaseState,
        reason: str,
        *,
        settled: Settled | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Settlement:
        values: dict[str, Any] = {}
        if settled is not None:
            label, sublabel = _label(item)
            values = {
                "label": label,
                "sublabel": sublabel,
                "confidence": item.gist.confidence,
                "policy": settled.policy,
                "template": settled.template,
                "mode": settled.mode.value,
                "model_version": self._versions()[0],
                "playbook_version": self._versions()[1],
                "due_at": self.clock.now() + DEFER_STEP if to is CaseState.DEFERRED else None,
            }
        return Settlement(
            item.case.case_id,
            item.case.state,
            to,
            reason[:60],
            values=values,
            reading=item.gist.record,
            outcome=settled.record if settled is not None else None,
            detail=detail,
        )


class _TooMany(Exception):
    """One more reply than may leave without a person today; the unit of work is taken back."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One claimed case, read and understood."""

    case: Claimed
    gist: Gist
    known: Known

    @property
    def thread_id(self) -> int:
        return self.known.context.thread_id


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else goes on in a message's thread."""

    overtaken: bool = False  # the buyer wrote again
    with_person: bool = False  # an earlier message lies with a person


def _label(item: _Item) -> tuple[str, str | None]:
    """The label that the outcome rests on: a person's, else the model's."""
    if item.known.staff_label:
        label, _, sublabel = item.known.staff_label.partition("/")
        return label, sublabel or None
    return item.gist.label, item.gist.sublabel


def _person_reason(item: _Item, profile: MailboxProfile) -> str | None:
    """Why a person has to look at a message, whatever it says."""
    if item.case.truncated:
        return "too_large"
    if item.case.review:
        return "folder_under_review"
    if item.known.context.reused_message_id:
        return "message_id_reused"
    arrived = item.case.internal_date or item.case.received_at
    if item.case.received_at - arrived > profile.max_age:
        return "too_old"
    return None


def _understood(gist: Gist) -> Understood:
    return Understood(
        content_key=gist.content_key,
        message_id=gist.message_id,
        sender=gist.writer,
        kind=gist.kind,
        notice=gist.notice.value if gist.notice else None,
        marketplace=gist.marketplace,
        language=gist.language,
        order_id=gist.order_ids[0].value if gist.order_ids else None,
        thread_keys=gist.thread_keys,
        vouched=gist.vouched,
        answers=gist.answers,
    )
