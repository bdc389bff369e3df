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
from datetime import datetime, timedelta

from sqlalchemy import Connection

from daemon import log as logging
from daemon.clock import RECONNECT_BACKOFF_SECONDS, Clock, backoff
from daemon.edges.workers import WorkerFailure
from daemon.errors import Permanent, Transient
from daemon.loops.loop import Loop, Pace
from daemon.loops.profiles import MailboxProfile
from daemon.loops.recheck import OrderRows
from daemon.loops.replies import Thinker
from daemon.loops.settling import ACTOR, Item, Settling
from daemon.mime.bounce import bounce_of
from daemon.store import backup, batches, cases, drafts, outbox
from daemon.store.batches import Asked
from daemon.store.cases import Claimed, Settlement, Understood
from daemon.store.db import Database
from daemon.store.transitions import StaleMove, move_case
from daemon.tasks import Circumstances, Gist, GistTask, Settled, SettleTask
from daemon.vocab import CaseState, Kind, Notice, OrderId, Reading

log = logging.get(__name__)

LEASE = timedelta(minutes=5)
#: Batches under way at the same time, and how many each lane takes forward before the loop looks up.
LANES = 3
BATCHES_A_STEP = 8


@dataclass(frozen=True, slots=True)
class AdvanceSettings:
    worker: str
    batch: int
    max_attempts: int
    stale_after: timedelta
    defer: timedelta


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
        settling: Settling,
        lookup: Callable[[Sequence[OrderId]], Awaitable[OrderRows]],
        carry_out: Callable[[Claimed, Reading], Awaitable[None]],
        on_queued: Callable[[], None],
        on_waiting: Callable[[], None],
    ) -> None:
        super().__init__(clock)
        self._db = database
        self._thinker = thinker
        self._profiles = profiles
        self._settings = settings
        self._settling = settling
        self._lookup = lookup
        self._carry_out = carry_out
        self._on_queued = on_queued
        self._on_waiting = on_waiting
        self._restored_at: datetime | None = None  # when the store was put back from a backup
        self._failures = 0
        self.orders_trouble: str | None = None  # why order sources cannot be asked, for alarms

    async def start(self) -> None:
        """Take note of what happened while the service was down. To be called once, before the first step."""
        self._restored_at = await self._db.read(backup.restored_at)
        await self._settling.start_ramps()

    async def step(self) -> Pace:
        """Take some batches forward."""
        try:
            claimed = await self._claim()
            pace = await (self._last_few(claimed) if len(claimed) < self._settings.batch else self._backlog(claimed))
        except Transient as error:
            self._failures += 1
            log.warning("advance.failed", problem=str(error))
            return Pace(0, backoff(RECONNECT_BACKOFF_SECONDS, self._failures))
        self._failures = 0
        return pace

    async def _last_few(self, claimed: Sequence[Claimed]) -> Pace:
        """Less than a batch, so that nothing is left until more arrives or what waits is due."""
        if claimed:
            await self._advance(claimed)
            if claimed[0].more:
                return Pace(len(claimed))
        due = await self._db.read(cases.next_due)
        return Pace(len(claimed), None if due is None else max(0.0, (due - self.clock.now()).total_seconds()), all=True)

    async def _backlog(self, claimed: Sequence[Claimed]) -> Pace:
        return Pace(sum(await asyncio.gather(self._lane(claimed), *(self._lane(()) for _ in range(LANES - 1)))))

    async def _lane(self, claimed: Sequence[Claimed]) -> int:
        """Batch after batch, a few of them; lanes beside it keep workers and database busy at the same time."""
        done = 0
        for _ in range(BATCHES_A_STEP):
            claimed = claimed or await self._claim()
            if not claimed:
                break
            await self._advance(claimed)
            done += len(claimed)
            claimed = ()
            self.beat()
        return done

    async def _claim(self) -> list[Claimed]:
        how, now = self._settings, self.clock.now()
        return await self._db.write(
            lambda c: cases.claim(c, worker=how.worker, limit=how.batch, lease=LEASE, max_attempts=how.max_attempts, now=now)
        )

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

    async def _decide(self, items: Sequence[Item], rows: OrderRows, *, ask_reason: str | None = None) -> list[Item]:
        """Decide and settle; returns those that are one too many of what may leave without a person today.

        With ``ask_reason`` nothing leaves without a person, and none is returned.
        """
        tasks = [SettleTask(i.gist.packed, self._circumstances(i, rows, ask_reason), self._settling.plan(i)) for i in items]
        decided: list[tuple[Item, Settled]] = []
        for item, settled in zip(items, await self._thinker().map(tasks), strict=True):
            if isinstance(settled, WorkerFailure):
                await self._fail(item.case, settled)
            else:
                decided.append((item, settled))
        return await self._settling.settle(decided, ask_reason)

    async def _understand(self, read: Sequence[tuple[Claimed, Gist]]) -> list[Item]:
        """Write down what the messages are; those whose claim was lost are left out."""
        if not read:
            return []
        asked = [Asked(c.case_id, _understood(g), self._profiles[c.mailbox].response_hours) for c, g in read]
        worker, now = self._settings.worker, self.clock.now()
        known = await self._db.write(lambda c: batches.understand_many(c, asked, worker=worker, now=now))
        items: list[Item] = []
        for (case, gist), found in zip(read, known, strict=True):
            if found is None:
                log.info("case.claim_lost", case_id=case.case_id)
            else:
                items.append(Item(case, gist, found))
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

    async def _ends_here(self, item: Item) -> bool:
        """Deal with what is no new message of a buyer's; False for what is to be decided."""
        case, context = item.case, item.known.context
        if context.duplicate_of is not None:
            await self._settling.finish(item, CaseState.IGNORED, "duplicate", detail={"duplicate_of": context.duplicate_of})
        elif item.gist.kind is Kind.APPROVAL:
            try:
                await self._carry_out(case, item.gist.reading())
            except Transient as error:  # its sender cannot be proved for now; the lease's end tries again
                log.warning("approval.postponed", case_id=case.case_id, problem=str(error))
            self._on_queued()
            self._on_waiting()
            self.wake()  # the word may have been to have a case read again
        elif item.gist.notice in (Notice.BOUNCE, Notice.NOT_SENT):
            await self._refused_later(item)
        elif item.gist.notice is Notice.OWN_COPY:
            await self._answered_elsewhere(item)
        else:
            return False
        return True

    def _circumstances(self, item: Item, rows: OrderRows, ask_reason: str | None) -> Circumstances:
        profile, how, now = self._profiles[item.case.mailbox], self._settings, self.clock.now()
        return Circumstances(
            now=now,
            rows=tuple(row for order in item.gist.order_ids for row in rows.get(order, ())),
            history=item.known.context.history,
            caps=profile.caps,
            stale_after=how.stale_after,
            shop_name=profile.shop_name,
            may_wait=now - item.case.received_at < how.defer,
            person_reason=_person_reason(item, profile, self._restored_at),
            staff_label=item.known.staff_label,
            ask_reason=ask_reason,
        )

    # ------------------------------------------------------------------ system mail about our own

    async def _refused_later(self, item: Item) -> None:
        """A bounce, or the marketplace's word that it did not pass our mail on (RFC 3464)."""
        mail = item.gist.reading().mail
        report = bounce_of(mail)
        named = report.message_ids if report else (*mail.in_reply_to, *reversed(mail.references))
        recipients = report.recipients if report else ()
        reason = f"{report.status} {report.diagnostic}".strip() if report else mail.subject
        if report is not None and not report.permanent:
            await self._settling.finish(item, CaseState.IGNORED, "delivery_delayed")
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
            self._settling.write(connection, item, to, why, detail={"delivery": delivery})

        await self._settling.guarded(item, unit)
        self._on_waiting()

    async def _answered_elsewhere(self, item: Item) -> None:
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
            self._settling.write(connection, item, CaseState.IGNORED, "own_copy")

        await self._settling.guarded(item, unit)
        self._on_waiting()

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


def _person_reason(item: Item, profile: MailboxProfile, restored_at: datetime | None) -> str | None:
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
    if restored_at is not None and arrived <= restored_at:
        return "restored"
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
