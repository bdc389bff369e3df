"""Deliver: what was approved leaves, once.

One :class:`Deliver` serves one mailbox, on one host at a time. Before a reply
leaves everything is looked at again: the pause switch, the frozen bytes, caps
and rates, the thread, the order. Then come the three commits of
:mod:`daemon.store.outbox` around one SMTP conversation. What the server's
word never came for is searched in the Sent folder, and at last put before staff.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Protocol

from sqlalchemy import Connection

from daemon import log
from daemon.clock import RECONNECT_BACKOFF_SECONDS, Clock, backoff
from daemon.config import CapsConfig
from daemon.edges.errors import AccountTrouble
from daemon.edges.imap import Imap
from daemon.edges.smtp import Deferred, Lost, Phase, Refused, Smtp
from daemon.errors import ConfigError, NeedsHuman, Transient
from daemon.loops.account import AFTER_THE_WATCHER, Account, SignInTrouble
from daemon.loops.loop import Loop, Pace
from daemon.steps import frozen
from daemon.store import outbox
from daemon.store.agenda import Agenda, Assumed, Reply, agenda
from daemon.store.db import Database
from daemon.store.locks import Lock
from daemon.store.outbox import Delivery
from daemon.store.transitions import StaleMove
from daemon.vocab import CaseState, DeliveryKind

#: For how long nothing is sent once the wall clock is well behind the store's newest entry; then it counts as mended.
CLOCK_DISTRUST_SECONDS = 600.0
#: How long after acceptance a copy is looked for in Sent; servers that keep one need a moment.
COPY_AFTER = timedelta(seconds=30)
COPY_EVERY_SECONDS = 30.0
LOCK_RETRY_SECONDS = 5.0
#: Longest wait for a server's word when the service has to stop.
STOP_GRACE_SECONDS = 75.0
STOP_AGAIN_SECONDS = 0.5
BEING_READ_WAIT = timedelta(seconds=10)
#: Replies whose orders are looked at together, and for how long such a look holds.
LOOK_AHEAD = 15
LOOK_HOLDS_SECONDS = 2.0
#: Rows that one step takes up for each connection.
ROWS_PER_CONNECTION = 16

_logger = log.get(__name__)


class Recheck(Protocol):
    """Looks at the orders of replies again, of which this was assumed: why, for each reply that no longer holds."""

    def __call__(self, assumed: Assumed) -> Awaitable[Mapping[Reply, str]]: ...


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A reply that does not leave: where its case goes, and why."""

    to: CaseState
    reason: str
    detail: Sequence[str] = ()


@dataclass(slots=True)
class _Attempt:
    """One conversation under way."""

    row: Delivery
    task: asyncio.Task[None] | None = None
    granted: bool = False  # body bytes may have left: it must not be broken off
    over: asyncio.Event = field(default_factory=asyncio.Event)  # its outcome is known, and is being written down


class Deliver(Loop):
    """The sender of one mailbox.

    ``recheck`` looks at the order again; ``leaks`` says whether bytes hold a
    live approval token; ``asked`` is called when staff have to decide about a
    reply of unknown fate.
    """

    name = "deliver"

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        mailbox: str,
        smtp: Smtp,
        sent: Imap | None,
        caps: CapsConfig,
        boot_id: str,
        evidence_minutes: float,
        breaker: timedelta,
        append_to_sent: bool,
        max_connections: int,
        final_reply_seconds: float,
        recheck: Recheck,
        leaks: Callable[[bytes], Awaitable[bool]],
        asked: Callable[[], None],
    ) -> None:
        super().__init__(clock)
        self.name = f"deliver:{mailbox}"
        self.bound_seconds = final_reply_seconds + 300
        self.mailbox = mailbox
        self._database = database
        self._smtp = smtp
        self._sent = sent
        self._caps = caps
        self._boot_id = boot_id
        self._evidence_minutes = evidence_minutes
        self._breaker = breaker
        self._account = Account(database, mailbox, pause=breaker)  # of the Sent folder
        self.trouble: str | None = None  # why the account is left alone for a while, for alarms
        self._append_to_sent = append_to_sent and sent is not None
        self._max_connections = max_connections
        self._recheck = recheck
        self._leaks = leaks
        self._asked = asked
        self._lock = Lock(database, f"send.{mailbox}")
        self._recovered = False
        self._under_way: dict[int, _Attempt] = {}
        self._failures = 0
        self._try_at = 0.0  # monotonic; the account is left alone until then
        self._copies_at = 0.0
        self._not_before: dict[int, float] = {}  # undo windows by the clock that no one can set
        self._set_back_since: float | None = None
        self._stopping = False
        self._looking = asyncio.Lock()
        self._looked: dict[Reply, tuple[float, str | None]] = {}  # when an order was looked at, and what was wrong
        self._assumed: Assumed = {}
        self._room = 0  # replies that the hour still lets out for sure; nobody else sends from this mailbox

    # ------------------------------------------------------------------ life

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until ``stop`` is set; a mail whose bytes are leaving is seen through, any other is put back."""
        ending = asyncio.create_task(self._end(stop))
        try:
            await super().run(stop)
        finally:
            ending.cancel()
            await self.close()

    async def close(self) -> None:
        """Say goodbye to the servers and let another host send."""
        await self._smtp.close()
        if self._sent is not None:
            await self._sent.close()
        await asyncio.to_thread(self._lock.release)

    async def _end(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping = True
        if self._sent is not None:
            self._sent.abort()
        loop = asyncio.get_running_loop()
        ends = loop.time() + STOP_GRACE_SECONDS
        while loop.time() < ends:
            for attempt in list(self._under_way.values()):
                if attempt.task is not None and not attempt.granted and not attempt.over.is_set():
                    attempt.task.cancel()
            # again, since wait_for of Python 3.11 forgets a cancellation that comes as its wait ends
            await asyncio.sleep(STOP_AGAIN_SECONDS)
        for attempt in list(self._under_way.values()):
            if attempt.task is not None:
                attempt.task.cancel()

    # ------------------------------------------------------------------ one round

    async def step(self) -> Pace:
        """Settle what is of unknown fate, then send what is due."""
        try:
            if not self._lock.kept and not await asyncio.to_thread(self._lock.acquire):
                self._recovered = False
                return Pace(0, LOCK_RETRY_SECONDS)
            if not self._recovered:
                await self._recover()
            now = self.clock.now()
            limit = self._max_connections * ROWS_PER_CONNECTION if self._may_send() else 0
            wanted = await self._database.read(lambda c: agenda(c, self.mailbox, now=now, limit=limit))
            if self._clock_was_set_back(now, wanted.newest):
                return Pace(0, 30)
            if wanted.next_due is None:
                return Pace(await self._copy_to_sent(now))
            done = await self._look_for_evidence(wanted.uncertain, now)
            done += await self._copy_to_sent(now)
            done += await self._send_due(wanted, now)
            return Pace(done, None if done else await self._until_next())
        except Transient as error:
            self._recovered = False  # a commit whose answer was lost may have claimed a row that nobody sends
            _logger.warning("delivery.postponed", mailbox=self.mailbox, problem=str(error))
            return Pace(0, 5)

    def _clock_was_set_back(self, now: datetime, newest: datetime | None) -> bool:
        """Whether the wall clock is behind what the store has seen, and has not been so for long enough to be right."""
        if newest is None or now >= newest - outbox.CLOCK_TOLERANCE:
            self._set_back_since = None
            return False
        if self._set_back_since is None:
            self._set_back_since = self.clock.monotonic()
            _logger.error("clock.set_back", mailbox=self.mailbox, behind_seconds=round((newest - now).total_seconds()))
        return self.clock.monotonic() - self._set_back_since < CLOCK_DISTRUST_SECONDS

    async def _recover(self) -> None:
        queued, uncertain = await self._write(
            partial(outbox.recover, mailbox=self.mailbox, under_way=set(self._under_way), now=self.clock.now())
        )
        if queued or uncertain:
            _logger.warning("delivery.recovered", mailbox=self.mailbox, queued=queued, uncertain=uncertain)
        self._recovered = True

    async def _until_next(self) -> float | None:
        _, at = await self._database.read(lambda c: outbox.outlook(c, self.mailbox))
        pauses = [max(0.0, self._try_at - self.clock.monotonic())]
        if at is not None:
            # what is due and did not go waits for something else: a pause, the breaker, a clock
            pauses.append(max((at - self.clock.now()).total_seconds(), 0.0) or 1.0)
        return max(pauses) if at is not None else None

    # ------------------------------------------------------------------ sending

    def _may_send(self) -> bool:
        return not self._stopping and self.clock.monotonic() >= self._try_at

    async def _send_due(self, wanted: Agenda, now: datetime) -> int:
        if not self._may_send():
            return 0
        self._remember_windows(wanted.waiting, now)
        rows, self._assumed = deque(wanted.due), wanted.assumed
        self._room = self._caps.per_hour - wanted.left_in_hour
        done = 0

        async def serve() -> None:
            """One connection's worth of work: what is next, as long as there is any.

            The outcome of one is written down in the commit that claims the next, which does not start before that.
            """
            nonlocal done
            before: asyncio.Future[None] | None = None
            try:
                while rows and self._may_send():
                    attempt = await self._begin(rows.popleft(), rows)
                    if before is not None:
                        await asyncio.shield(before)
                    before = None
                    if attempt is not None:
                        done += 1
                        before = await self._carry_out(attempt)
                    self.beat()
            finally:
                if before is not None:
                    await asyncio.shield(before)

        # each sees its own mails through, whatever becomes of another's
        ended = await asyncio.gather(*(serve() for _ in range(self._max_connections)), return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error
        return done

    def _remember_windows(self, waiting: Mapping[int, datetime], now: datetime) -> None:
        """A wall clock that jumps forward must not end an undo window early."""
        for delivery_id, not_before in waiting.items():
            self._not_before.setdefault(delivery_id, self.clock.monotonic() + (not_before - now).total_seconds())

    async def _begin(self, row: Delivery, next_rows: Sequence[Delivery]) -> _Attempt | None:
        """Look at everything again and claim the row; None when it has to wait, was taken back, or is no longer to be had."""
        if self.clock.monotonic() < self._not_before.get(row.id, 0.0):
            return None
        self._not_before.pop(row.id, None)
        wrong = frozen.problems(row.mime, recipient=row.recipient, message_id=row.message_id, sha256=row.sha256)
        if wrong:
            return await self._take(row, _Verdict(CaseState.HUMAN, "frozen_mail_differs", wrong))
        if row.kind is not DeliveryKind.BUYER_REPLY or row.case_id is None or row.revision is None:
            return await self._take(row)
        if await self._leaks(row.mime):
            return await self._take(row, _Verdict(CaseState.HUMAN, "token_in_reply"))
        changed = await self._changed((row.case_id, row.revision), next_rows)
        return await self._take(row, last=_Verdict(CaseState.RECEIVED, changed) if changed is not None else None)

    async def _changed(self, reply: Reply, next_rows: Sequence[Delivery]) -> str | None:
        """Why the order no longer bears the reply. The next few are looked at with it, for their turn comes at once."""
        async with self._looking:
            fresh = self.clock.monotonic() - LOOK_HOLDS_SECONDS
            self._looked = {r: look for r, look in self._looked.items() if look[0] >= fresh}
            if reply not in self._looked:
                near = [(n.case_id, n.revision) for n in islice(next_rows, LOOK_AHEAD)]
                some = [reply, *((case, revision) for case, revision in near if case is not None and revision is not None)]
                try:
                    found = await self._recheck({r: self._assumed[r] for r in some})
                except Transient:  # an order that cannot be asked about holds up nobody else's reply
                    some = [reply]
                    found = await self._recheck({reply: self._assumed[reply]})
                now = self.clock.monotonic()
                self._looked |= {r: (now, found.get(r)) for r in some}
            return self._looked.pop(reply)[1]

    async def _take(self, row: Delivery, first: _Verdict | None = None, *, last: _Verdict | None = None) -> _Attempt | None:
        """Commit A, or what keeps the row from leaving: ``first`` or, when the store knows of nothing else, ``last``."""
        try:
            taken = await self._write(partial(self._claim, row=row, first=first, last=last, now=self.clock.now()))
        except StaleMove as stale:
            _logger.info("delivery.stale", mailbox=self.mailbox, delivery=row.id, problem=str(stale))
            return None
        if isinstance(taken, Delivery):
            return _Attempt(taken)
        if isinstance(taken, _Verdict):
            level = _logger.error if taken.to is CaseState.HUMAN else _logger.info
            level(
                "reply.withdrawn",
                mailbox=self.mailbox,
                case_id=row.case_id,
                delivery=row.id,
                reason=taken.reason,
                detail=list(taken.detail),
            )
        return None

    def _claim(
        self, connection: Connection, *, row: Delivery, first: _Verdict | None, last: _Verdict | None, now: datetime
    ) -> Delivery | _Verdict | None:
        """One unit of work from the last look to the claim: what others claim or write meanwhile counts."""
        verdict = first
        if verdict is None and row.kind is DeliveryKind.BUYER_REPLY and row.case_id is not None:
            found = self._ground(connection, row, now)
            if isinstance(found, datetime):
                outbox.hold_back(connection, row.id, until=found, now=now)
                return None
            verdict = found or last
        if verdict is None:
            claimed = outbox.claim(connection, row, boot_id=self._boot_id, now=now)
            self._room -= row.kind is DeliveryKind.BUYER_REPLY
            return claimed
        if row.kind is DeliveryKind.STAFF_NOTICE:
            # a notice that is not as it was built is a bug, and nobody is waiting for its answer
            outbox.discard(connection, row.id, reason=verdict.reason, now=now)
        else:
            outbox.withdraw(connection, row.id, to=verdict.to, reason=verdict.reason[:60], now=now)
        return verdict

    def _ground(self, connection: Connection, row: Delivery, now: datetime) -> datetime | _Verdict | None:
        """What the store knows against a reply: it has to wait until a moment, or to be taken back."""
        caps = self._caps
        if self._room <= 0:
            lately, oldest = outbox.left_in_hour(connection, row.mailbox, besides=row.id, now=now)
            if lately >= caps.per_hour:
                return max((oldest or now) + timedelta(hours=1), now + timedelta(minutes=1))
        if row.automatic:  # what a person wants to go may go
            traffic = outbox.traffic(connection, row, now=now)
            if traffic.automatic_recipient_day >= caps.auto_per_address_day or traffic.recipient_day >= caps.per_address_day:
                return _Verdict(CaseState.HUMAN, "cap_address")
            if traffic.thread_72h >= caps.per_thread_72h:
                return _Verdict(CaseState.HUMAN, "cap_thread")
            if traffic.template_hour >= caps.per_template_hour:
                return now + timedelta(minutes=10)
        overtaken = outbox.overtaken(connection, row)
        if overtaken == "being_read":
            return now + BEING_READ_WAIT
        return None if overtaken is None else _Verdict(CaseState.WITHDRAWN, overtaken)

    async def _carry_out(self, attempt: _Attempt) -> asyncio.Future[None]:
        """Have the conversation; returns the task that then writes its outcome down."""
        attempt.task = asyncio.create_task(self._attempt(attempt), name=f"send:{attempt.row.id}")
        attempt.task.add_done_callback(lambda _: attempt.over.set())  # also when it is cancelled before it began
        self._under_way[attempt.row.id] = attempt
        await attempt.over.wait()  # a caller that is cancelled leaves the conversation to end by itself
        return attempt.task

    async def _attempt(self, attempt: _Attempt) -> None:
        """One SMTP conversation, and its outcome written down whatever it takes."""
        row = attempt.row
        settle: Callable[[Connection], None]
        try:
            if self._stopping:  # since it was claimed
                raise asyncio.CancelledError
            settle = await self._converse(attempt)
        except asyncio.CancelledError:  # the service stops and no byte has left
            settle = self._as_postponed(row, self.clock.now(), "the service stopped")
        attempt.over.set()
        try:
            await self._settle(settle)
        finally:
            self._under_way.pop(row.id, None)

    async def _converse(self, attempt: _Attempt) -> Callable[[Connection], None]:
        row = attempt.row
        how: dict[str, Any] = {"delivery_id": row.id, "boot_id": self._boot_id}
        try:
            accepted = await self._smtp.send(
                row.envelope_from, row.recipient, row.mime, on_granted=partial(self._granted, attempt)
            )
        except Deferred as put_off:
            if put_off.phase is Phase.CONNECT:
                return self._account_fails(row, put_off)
            _logger.warning("delivery.deferred", delivery=row.id, phase=put_off.phase, code=put_off.code, reply=put_off.reply)
            how |= {"phase": put_off.phase.value, "code": put_off.code, "reply": put_off.reply}
            return partial(outbox.deferred, **how, now=self.clock.now())
        except Refused as refused:
            self._failures = 0
            _logger.warning("delivery.refused", delivery=row.id, phase=refused.phase, code=refused.code, reply=refused.reply)
            how |= {"phase": refused.phase.value, "code": refused.code, "reply": refused.reply}
            return partial(outbox.refused, **how, now=self.clock.now())
        except Lost as lost:
            _logger.warning("delivery.uncertain", delivery=row.id, case_id=row.case_id, problem=str(lost))
            return partial(outbox.lost, **how, reply=str(lost), now=self.clock.now())
        except (AccountTrouble, NeedsHuman, ConfigError) as trouble:
            return self._account_fails(row, trouble)
        except (Transient, StaleMove) as failed:  # from commit B: no byte has left
            return self._as_postponed(row, self.clock.now() + timedelta(seconds=5), str(failed))
        self._failures = 0
        self.trouble = None
        _logger.info("reply.sent", delivery=row.id, case_id=row.case_id, kind=row.kind, code=accepted.code)
        at = self.clock.now()
        return partial(outbox.accepted, row=row, boot_id=self._boot_id, code=accepted.code, reply=accepted.reply, now=at)

    async def _granted(self, attempt: _Attempt) -> None:
        """Commit B, before the first body byte."""
        if self._stopping:
            raise Transient("the service is stopping")
        attempt.granted = True
        await self._write(
            partial(outbox.begin_transmit, delivery_id=attempt.row.id, boot_id=self._boot_id, now=self.clock.now())
        )

    def _account_fails(self, row: Delivery, trouble: Exception) -> Callable[[Connection], None]:
        """Leave the account alone for a while; no mail of it is at fault."""
        self._failures += 1
        wait = timedelta(seconds=backoff(RECONNECT_BACKOFF_SECONDS, self._failures))
        if isinstance(trouble, AccountTrouble | NeedsHuman | ConfigError):
            wait = self._breaker
            self.trouble = str(trouble)
        self._try_at = self.clock.monotonic() + wait.total_seconds()
        _logger.warning(
            "account.unreachable", mailbox=self.mailbox, problem=str(trouble), retry_seconds=round(wait.total_seconds())
        )
        return self._as_postponed(row, self.clock.now() + wait, str(trouble))

    def _as_postponed(self, row: Delivery, until: datetime, why: str) -> Callable[[Connection], None]:
        return partial(
            outbox.postponed,
            delivery_id=row.id,
            boot_id=self._boot_id,
            until=until,
            phase=Phase.CONNECT.value,
            reply=why,
            now=self.clock.now(),
        )

    async def _settle(self, settle: Callable[[Connection], None]) -> None:
        """Commit C or D. What is known of a mail's fate must not be lost to a database that is away for a while."""
        failures = 0
        while True:
            try:
                await self._guarded(settle)
            except Transient as error:
                failures += 1
                _logger.error("delivery.unsettled", mailbox=self.mailbox, problem=str(error))
                if self._stopping and failures > len(RECONNECT_BACKOFF_SECONDS):
                    return  # found transmitting at the next start, and doubted then
                await asyncio.sleep(backoff(RECONNECT_BACKOFF_SECONDS, failures))
            else:
                return

    # ------------------------------------------------------------------ unknown fate, and copies

    async def _look_for_evidence(self, rows: Sequence[Delivery], now: datetime) -> int:
        for row in rows:
            if self._stopping:
                break
            if await self._is_in_sent(row, row.uncertain_at or row.created_at):
                await self._guarded(partial(outbox.found_in_sent, delivery_id=row.id, now=self.clock.now()))
                _logger.info("delivery.proved", delivery=row.id, case_id=row.case_id)
                continue
            search = partial(outbox.no_evidence, delivery_id=row.id, search_minutes=self._evidence_minutes, now=now)
            if await self._write(search):
                _logger.warning("delivery.undecided", delivery=row.id, case_id=row.case_id)
                self._asked()
        return len(rows)

    async def _is_in_sent(self, row: Delivery, since: datetime) -> bool:
        if self._sent is None or not await self._may_look():
            return False
        signed_in = self._sent.connected
        try:
            found = await self._sent.find_in_sent(row.message_id, since=since.date())
        except (Transient, NeedsHuman, ConfigError) as error:
            await self._cannot_look(error)
            return False
        if not signed_in:
            await self._account.accepted()
        return found

    async def _may_look(self) -> bool:
        """Whether the Sent folder can be asked without a sign-in that is known to be refused."""
        if self._sent is None:
            return False
        return self._sent.connected or not await self._account.closed(self.clock.now(), longer=AFTER_THE_WATCHER)

    async def _cannot_look(self, error: Exception) -> None:
        _logger.warning("sent_folder.unreachable", mailbox=self.mailbox, problem=str(error))
        if isinstance(error, SignInTrouble):
            await self._account.refused(error, self.clock.now())

    async def _copy_to_sent(self, now: datetime) -> int:
        if not self._append_to_sent or self._stopping or self.clock.monotonic() < self._copies_at:
            return 0
        self._copies_at = self.clock.monotonic() + COPY_EVERY_SECONDS
        rows = await self._database.read(lambda c: outbox.without_copy(c, self.mailbox, before=now - COPY_AFTER))
        if not rows or self._sent is None or not await self._may_look():
            return 0
        signed_in = self._sent.connected
        try:
            for row in rows:
                if not await self._sent.find_in_sent(row.message_id, since=row.created_at.date()):
                    await self._sent.append_to_sent(row.mime)
                await self._write(partial(outbox.copied, delivery_id=row.id, now=self.clock.now()))
        except (Transient, NeedsHuman, ConfigError) as error:
            await self._cannot_look(error)
            return 0
        if not signed_in:
            await self._account.accepted()
        return 0

    # ------------------------------------------------------------------ the store

    async def _write(self, work: Callable[[Connection], Any]) -> Any:
        return await self._database.write(work)

    async def _guarded(self, work: Callable[[Connection], Any]) -> None:
        """Write unless somebody else settled the row meanwhile."""
        try:
            await self._database.write(work)
        except StaleMove as stale:
            _logger.info("delivery.stale", mailbox=self.mailbox, problem=str(stale))
