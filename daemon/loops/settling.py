"""Writes down what a batch of messages came to, with its drafts and what leaves at once.

Most messages are alone in their threads and are settled together; the others
one by one, in their order, since a newer message of a buyer takes the place
of an older one that still waits.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from sqlalchemy import Connection

from daemon import log as logging
from daemon.clock import Clock
from daemon.loops.profiles import MailboxProfile
from daemon.loops.replies import new_draft, reply_plan
from daemon.store import batches, cases, drafts, outbox, ramps
from daemon.store.batches import Filing, Known
from daemon.store.cases import Claimed, Settlement
from daemon.store.db import Database
from daemon.store.drafts import NewDraft
from daemon.store.outbox import AlreadyReplying, FirstReply, NotDeliverable
from daemon.store.transitions import StaleMove
from daemon.tasks import Gist, ReplyPlan, Settled
from daemon.vocab import CaseState, DeliveryKind, DraftState, GateVerdict, Kind, Mode, Outgoing

log = logging.get(__name__)

T = TypeVar("T")

ACTOR = "postsale"
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
class SettleSettings:
    worker: str
    live: bool
    live_policies: tuple[str, ...]
    key: bytes  # of Message-IDs


@dataclass(frozen=True, slots=True)
class Item:
    """One claimed case, read and understood."""

    case: Claimed
    gist: Gist
    known: Known

    @property
    def thread_id(self) -> int:
        return self.known.context.thread_id


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What else goes on in a message's thread."""

    overtaken: bool = False  # the buyer wrote again
    with_person: bool = False  # an earlier message lies with a person


class _TooMany(Exception):
    """One more reply than may leave without a person today; the unit of work is taken back."""


class Settling:
    """Settles claimed cases. ``on_queued`` and ``on_waiting`` hear of what leaves and of what waits for people."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        profiles: Mapping[str, MailboxProfile],
        settings: SettleSettings,
        on_queued: Callable[[], None],
        on_waiting: Callable[[], None],
        versions: Callable[[], tuple[str, str]],
    ) -> None:
        self._db = database
        self._clock = clock
        self._profiles = profiles
        self._how = settings
        self._on_queued = on_queued
        self._on_waiting = on_waiting
        self._versions = versions

    def plan(self, item: Item) -> ReplyPlan:
        """How the next revision of a case's reply is frozen."""
        profile = self._profiles[item.case.mailbox]
        return reply_plan(self._how.key, profile, case_id=item.case.case_id, revision=item.known.revision + 1)

    async def settle(self, items: Sequence[tuple[Item, Settled]], ask_reason: str | None) -> list[Item]:
        """Write the outcomes down: at once for those that are alone in their threads, for the others one by one.

        Returns those that would leave without a person, and are one too many today: nothing is written for them.
        """
        worker, now = self._how.worker, self._clock.now()

        def unit(connection: Connection) -> tuple[set[int], list[tuple[Item, Settlement]], list[Item]]:
            alone = batches.alone_in_thread(connection, [item.thread_id for item, _ in items])
            ends: dict[int, tuple[Item, Settled, CaseState, str]] = {}
            leaving: dict[tuple[str, str | None], list[Item]] = defaultdict(list)
            for item, settled in items:
                if item.thread_id not in alone or item.known.revision:
                    continue
                to, reason = self._destination(settled, _Surroundings(), ask_reason)
                if to is not item.case.state:
                    ends[item.case.case_id] = item, settled, to, reason
                    if to is CaseState.QUEUED:
                        leaving[item.case.mailbox, settled.group].append(item)
            too_many: list[Item] = []
            for (mailbox, group), members in leaving.items():
                too_many += members[self._within_ramp(connection, mailbox, group, len(members)) :]
            for item in too_many:
                del ends[item.case.case_id]
            filings = {case_id: (end[0], self._filing(*end)) for case_id, end in ends.items()}
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

    def _filing(self, item: Item, settled: Settled, to: CaseState, reason: str) -> Filing:
        draft = self._draft(item, settled) if to in _DRAFT_STATES else None
        reply = None
        if draft is not None and to is CaseState.QUEUED:
            reply = FirstReply(self._outgoing(item, draft), draft.template, item.thread_id)
        settlement = self._settlement(item, to, reason, settled=settled)
        return Filing(settlement, draft, _DRAFT_STATES.get(to, DraftState.PENDING), reply)

    async def _settle_one(self, item: Item, settled: Settled, ask_reason: str | None) -> bool:
        """As settle, for one; False when it is one too many."""

        def unit(connection: Connection) -> Settlement:
            to, reason = self._destination(settled, self._surroundings(connection, item), ask_reason)
            if to is CaseState.QUEUED and not self._within_ramp(connection, item.case.mailbox, settled.group, 1):
                raise _TooMany
            if to in _REPLACES_EARLIER:
                self._overtake(connection, item)
            settlement = self._settlement(item, to, reason, settled=settled)
            cases.settle(connection, settlement, worker=self._how.worker, now=self._clock.now())
            draft = self._draft(item, settled) if to in _DRAFT_STATES else None
            if draft is not None:
                drafts.create(connection, draft, state=_DRAFT_STATES[to], now=self._clock.now())
                if to is CaseState.QUEUED:
                    outgoing = self._outgoing(item, draft)
                    outbox.enqueue(connection, outgoing, now=self._clock.now(), template=draft.template, automatic=True)
            return settlement

        try:
            settlement = await self.guarded(item, unit)
        except _TooMany:
            return False
        if settlement is not None:
            self._tell(item, settlement)
        return True

    def _tell(self, item: Item, settlement: Settlement) -> None:
        to = settlement.to
        log.info("case.settled", case_id=item.case.case_id, state=to.value, reason=settlement.reason)
        if to is CaseState.QUEUED:
            self._on_queued()
        elif to in (CaseState.AWAITING_APPROVAL, CaseState.HUMAN):
            self._on_waiting()

    def _surroundings(self, connection: Connection, item: Item) -> _Surroundings:
        return _Surroundings(
            overtaken=item.gist.kind is Kind.BUYER
            and cases.newer_in_thread(connection, item.thread_id, after=item.case.case_id),
            with_person=any(state is CaseState.HUMAN for _, state in self._earlier(connection, item)),
        )

    def _destination(self, settled: Settled, around: _Surroundings, ask_reason: str | None) -> tuple[CaseState, str]:
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
        how = self._how
        return how.live and (group is None or any(fnmatchcase(group, pattern) for pattern in how.live_policies))

    def _within_ramp(self, connection: Connection, mailbox: str, group: str | None, wanted: int) -> int:
        """How many of these replies of a group may leave without a person today; they count as given."""
        if group is None:
            return wanted
        caps = self._profiles[mailbox].caps
        return ramps.take(connection, mailbox, group, caps.ramp_limit, wanted=wanted, now=self._clock.now())

    async def start_ramps(self) -> None:
        """Have every policy group that is not live any longer start anew when it is again. To be called once, at the start."""
        gone = await self._db.write(lambda c: ramps.forget_others(c, self._profiles, self._live))
        if gone:
            log.info("ramps.ended", groups=gone)

    def _earlier(self, connection: Connection, item: Item) -> list[tuple[int, CaseState]]:
        return cases.open_in_thread(connection, item.thread_id, before=item.case.case_id)

    def _overtake(self, connection: Connection, item: Item) -> None:
        """A newer mail of the buyer takes the place of what still waits in its thread, except what a person has."""
        if item.gist.kind is not Kind.BUYER:
            return
        for case_id, state in self._earlier(connection, item):
            if state is not CaseState.HUMAN:
                drafts.withdraw(connection, case_id, reason="buyer_wrote_again", actor=ACTOR, now=self._clock.now())

    def _draft(self, item: Item, settled: Settled) -> NewDraft | None:
        """The frozen reply as the next revision of its case; None where there is none."""
        reply = settled.reply
        if reply is None:
            return None
        return new_draft(
            self.plan(item),
            reply.draft,
            reply.frozen,
            recipient=reply.recipient,
            author=ACTOR,
            policy=settled.policy,
            template=settled.template,
            findings=reply.findings,
            order_state=reply.order_state,
        )

    def _outgoing(self, item: Item, reply: NewDraft) -> Outgoing:
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
            not_before=self._clock.now() + profile.undo,
        )

    async def finish(self, item: Item, to: CaseState, reason: str, *, detail: Mapping[str, Any] | None = None) -> None:
        await self.guarded(item, lambda c: self.write(c, item, to, reason, detail=detail))

    async def guarded(self, item: Item, unit: Callable[[Connection], T]) -> T | None:
        """Run a settling unit; None when the case was moved by somebody else in the meantime."""
        try:
            return await self._db.write(unit)
        except StaleMove:
            log.info("case.claim_lost", case_id=item.case.case_id)
            return None

    def write(
        self, connection: Connection, item: Item, to: CaseState, reason: str, *, detail: Mapping[str, Any] | None = None
    ) -> None:
        settlement = self._settlement(item, to, reason, detail=detail)
        cases.settle(connection, settlement, worker=self._how.worker, now=self._clock.now())
        log.info("case.settled", case_id=item.case.case_id, state=to.value, reason=reason[:60])

    def _settlement(
        self,
        item: Item,
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
                "due_at": self._clock.now() + DEFER_STEP if to is CaseState.DEFERRED else None,
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


def _label(item: Item) -> tuple[str, str | None]:
    """The label that the outcome rests on: a person's, else the model's."""
    if item.known.staff_label:
        label, _, sublabel = item.known.staff_label.partition("/")
        return label, sublabel or None
    return item.gist.label, item.gist.sublabel
