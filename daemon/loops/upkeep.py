"""What has to happen in its own time: asking, reminding, ending holds, expiring, tidying.

A table of named tasks, each a look at the store for what is due and a unit of
work for it. Due times live in the database; apscheduler, where it is used,
only wakes this loop. Later parts of the house add their tasks to the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection

from daemon import log as logging
from daemon.clock import Clock
from daemon.config import ApproverConfig, MailboxConfig
from daemon.errors import ConfigError, NeedsHuman, Permanent, Transient
from daemon.loops import staff
from daemon.loops.account import AFTER_THE_WATCHER, Account, SignInTrouble
from daemon.loops.loop import Loop, Pace
from daemon.loops.staff import Desk
from daemon.store import drafts, outbox, requests, tokens
from daemon.store.requests import Request, Waiting
from daemon.store.transitions import StaleMove, move_case
from daemon.vocab import CaseState, DraftState, Severity

log = logging.get(__name__)

ACTOR = "postsale"
#: How often the Sent folder is searched for replies that staff wrote themselves.
OWN_REPLIES_EVERY = timedelta(minutes=5)
#: Cases for a person that staff are told of one by one in an hour; a flood waits for the next, nearest deadline first.
PEOPLE_PER_HOUR = 60
#: Most drafts in one digest mail.
DIGEST_LINES = 40
#: Longest time that drafts are gathered for a digest while many wait.
DIGEST_WAIT = timedelta(minutes=15)
#: Age at which the bytes of an accepted staff notice, which hold a token, are forgotten.
FORGET_NOTICES_AFTER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of upkeep. ``run`` does what is due and returns how many things it did."""

    name: str
    run: Callable[[datetime], Awaitable[int]]
    every: timedelta = timedelta(0)  # least time between two runs; zero: at every step


class Upkeep(Loop):
    """Runs the table of tasks; one that the outside world fails is logged and tried again, the others go on."""

    name = "upkeep"
    idle_seconds = 30

    def __init__(self, *, tasks: Sequence[Task], clock: Clock, next_due: Callable[[], Awaitable[datetime | None]]) -> None:
        super().__init__(clock)
        self._tasks = tuple(tasks)
        self._next_due = next_due
        self._last: dict[str, datetime] = {}

    async def step(self) -> Pace:
        """Run every task whose time has come."""
        now = self.clock.now()
        done = 0
        for task in self._tasks:
            last = self._last.get(task.name)
            if last is not None and task.every and timedelta(0) <= now - last < task.every:
                continue
            self._last[task.name] = now
            try:
                done += await task.run(now)
            except (Transient, Permanent, NeedsHuman, ConfigError) as error:
                log.warning("upkeep.task_failed", task=task.name, problem=str(error))
            self.beat()
        due = await self._next_due()
        return Pace(done, None if due is None else max(0.0, (due - now).total_seconds()))


#: Which of these Message-IDs were answered from a mailbox's own Sent folder since a day, by a mail that is not ours.
Answered = Callable[[str, Sequence[str], date], Awaitable[Collection[str]]]


class Approvals:
    """The upkeep of approvals: every waiting case is asked about, reminded of, and ends in time."""

    def __init__(self, desk: Desk, *, on_notice: Callable[[], None], answered: Answered | None = None) -> None:
        self._answered = answered
        self._desk = desk
        self._db = desk.database
        self._on_notice = on_notice

    def tasks(self) -> tuple[Task, ...]:
        """The tasks in the order in which they run."""
        return (
            Task("own_replies", self.own_replies, every=OWN_REPLIES_EVERY),
            Task("orphans", self.orphans),
            Task("holds", self.holds),
            Task("vetoes", self.vetoes),
            Task("ask", self.ask),
            Task("people", self.people),
            Task("uncertain", self.uncertain),
            Task("ladder", self.ladder),
            Task("forget", self.forget, every=timedelta(minutes=5)),
        )

    async def next_due(self) -> datetime | None:
        return await self._db.read(requests.next_due)

    # ------------------------------------------------------------------ tasks

    async def ask(self, now: datetime) -> int:
        """Ask about drafts that nobody was asked about: one mail each, or one digest when many wait."""
        asked = 0
        for mailbox in self._desk.config.mailboxes:
            if not mailbox.approval.approvers:
                continue
            fresh = await self._db.read(partial(requests.unasked, mailbox=mailbox.name))
            if not fresh:
                continue
            waiting = await self._db.read(partial(requests.undecided, mailbox=mailbox.name))
            if len(waiting) <= mailbox.approval.digest_above:
                asked += await self._each(fresh, lambda c, k: self._ask_one(c, k, now))
            elif self._digest_is_due(mailbox, fresh, now):
                asked += await self._ask_in_digest(mailbox, waiting, fresh, now)
        return self._told(asked)

    async def people(self, now: datetime) -> int:
        """Tell approvers of a case that needs a person."""
        found = await self._db.read(lambda c: requests.unasked_people(c))
        told = await self._db.read(lambda c: requests.asked_since(c, "human", now - timedelta(hours=1)))
        room = max(0, PEOPLE_PER_HOUR - told)
        if len(found) > room:
            log.warning("approval.flood", waiting=len(found))
        found = found[:room]
        return self._told(await self._each(found, lambda c, k: self._ask_kind(c, k, "human", "human", now)))

    async def uncertain(self, now: datetime) -> int:
        """Ask what to do about a reply of unknown fate once the search for evidence is over."""
        found = await self._db.read(requests.unasked_uncertain)
        return self._told(await self._each(found, lambda c, k: self._ask_kind(c, k, "uncertain", "uncertain", now)))

    async def ladder(self, now: datetime) -> int:
        """Remind, ask the next approvers, raise the alarm, expire: whatever has come due."""
        found = await self._db.read(lambda c: requests.due(c, now=now))
        return self._told(await self._each(found, lambda c, k: self._climb(c, k, now)))

    async def holds(self, now: datetime) -> int:
        """Ask again about cases whose hold has ended."""
        found = await self._db.read(lambda c: requests.hold_over(c, now=now))
        return self._told(await self._each(found, lambda c, k: self._end_hold(c, k, now)))

    async def vetoes(self, now: datetime) -> int:
        """Make a new revision of a reply that was stopped after its approval, so that it can be decided once more."""
        found = await self._db.read(requests.vetoed)
        for case in found:
            await self._again(case, now)
        return len(found)

    async def orphans(self, now: datetime) -> int:
        """Make tokens worthless that no longer fit their case, and tell their holders where that matters."""
        found = await self._db.read(requests.orphaned)
        return self._told(await self._each(found, lambda c, k: self._revoke(c, k, now)))

    async def own_replies(self, now: datetime) -> int:
        """Close or withdraw what a person has answered with their own mail program, as the Sent folder shows."""
        if self._answered is None:
            return 0
        done = 0
        for mailbox in self._desk.config.mailboxes:
            found = await self._db.read(partial(requests.answerable, mailbox=mailbox.name))
            if not found:
                continue
            pause = timedelta(minutes=self._desk.config.delivery.breaker_minutes)
            account = Account(self._db, mailbox.name, pause=pause)
            if await account.closed(now, longer=AFTER_THE_WATCHER):
                continue
            since = min(case.received_at for case in found).date()
            try:
                seen = await self._answered(mailbox.name, [case.message_id for case in found], since)
            except SignInTrouble as error:
                log.warning("sent_folder.unreachable", mailbox=mailbox.name, problem=str(error))
                await account.refused(error, now)
                continue
            for case in found:
                if case.message_id in seen:
                    await self._db.write(partial(drafts.answered_by_hand, case_id=case.case_id, actor=ACTOR, now=now))
                    done += 1
        return done

    async def forget(self, now: datetime) -> int:
        """Drop the bytes of staff notices that have arrived; they hold tokens."""
        await self._db.write(lambda c: outbox.forget_notices(c, before=now - FORGET_NOTICES_AFTER))
        return 0

    def _told(self, done: int) -> int:
        if done:
            self._on_notice()
        return done

    # ------------------------------------------------------------------ asking

    async def _each(self, found: Sequence[Waiting], work: Callable[[Connection, Waiting], int]) -> int:
        """Do a unit of work for each case; one that fails is logged and does not hold up its neighbours."""
        done = 0
        for case in found:

            def unit(connection: Connection, case: Waiting = case) -> int:
                return work(connection, case)

            try:
                done += await self._db.write(unit)
            except StaleMove:
                continue  # somebody else moved it in the meantime
            except (Transient, Permanent):
                raise
            except Exception:
                log.error("upkeep.case_failed", case_id=case.case_id, exc_info=True)
        return done

    async def _ask_in_digest(
        self, mailbox: MailboxConfig, waiting: Sequence[Waiting], fresh: Sequence[Waiting], now: datetime
    ) -> int:
        try:
            return await self._db.write(lambda c: self._digest(c, mailbox, waiting, now))
        except (Transient, Permanent):
            raise
        except Exception:
            log.error("upkeep.digest_failed", mailbox=mailbox.name, exc_info=True)
            return await self._each(fresh, lambda c, k: self._ask_one(c, k, now))

    def _digest_is_due(self, mailbox: MailboxConfig, fresh: Sequence[Waiting], now: datetime) -> bool:
        """Whether to write the digest now: enough has gathered, or something cannot wait for more."""
        soon = now + timedelta(hours=mailbox.approval.alarm_before_deadline_hours)
        return (
            len(fresh) >= mailbox.approval.digest_above
            or any(now - case.updated_at >= DIGEST_WAIT for case in fresh)
            or any(case.deadline_at is not None and case.deadline_at <= soon for case in fresh)
        )

    def _ask_one(self, connection: Connection, case: Waiting, now: datetime) -> int:
        if not _still(connection, case):
            return 0
        purpose = "request"
        values: dict[str, Any] = {}
        draft = drafts.load(connection, case.case_id, case.revision)
        if case.reason == "asked_again" and draft is not None:
            serious = any(f.get("severity") != Severity.FIX.value for f in draft.findings or ())
            purpose, values = "look_again", {"why": ("guard_found",) if serious else ("looks_like_instruction",)}
        elif case.reason == "vetoed":
            purpose, values = "vetoed", {"by": draft.author if draft is not None else ACTOR}
        asked = staff.ask(
            self._desk,
            connection,
            case.case_id,
            self._desk.first(case.mailbox),
            kind="request",
            purpose=purpose,
            now=now,
            **values,
        )
        self._set_due(connection, case, now)
        return asked

    def _ask_kind(self, connection: Connection, case: Waiting, kind: str, purpose: str, now: datetime) -> int:
        if not _still(connection, case):
            return 0
        asked = staff.ask(
            self._desk, connection, case.case_id, self._desk.first(case.mailbox), kind=kind, purpose=purpose, now=now
        )
        self._set_due(connection, case, now)
        return asked

    def _digest(self, connection: Connection, mailbox: MailboxConfig, waiting: Sequence[Waiting], now: datetime) -> int:
        """One mail to each approver with every draft that waits, numbered."""
        listed = [case for case in waiting[:DIGEST_LINES] if _still(connection, case)]
        if not listed:
            return 0
        for approver in self._desk.first(mailbox.name):
            views = [staff.view_for(self._desk, connection, case.case_id, approver) for case in listed]
            to = staff.ticket(self._desk, mailbox)
            number = requests.next_digest_id(connection)
            for line, view in enumerate(views, 1):
                staff.open_request(
                    self._desk,
                    connection,
                    view,
                    approver,
                    to,
                    purpose="digest",
                    now=now,
                    digest_id=number,
                    digest_line=line,
                )
            held = requests.find(connection, {tokens.token_hash(self._desk.key, to.token, 1)})
            low = staff.low_lines(self._desk, connection, held)
            rendered = self._desk.staff.render(
                "digest", self._desk.reader(approver), now, items=views, mailbox=mailbox.name, low=low, purpose="digest"
            )
            staff.post(
                self._desk, connection, mailbox, approver, rendered, to=to, dedupe_key=f"digest:{to.message_id}", now=now
            )
        for case in listed:
            self._set_due(connection, case, now)
        return len(listed)

    # ------------------------------------------------------------------ the ladder

    def _climb(self, connection: Connection, case: Waiting, now: datetime) -> int:
        """One look at a case that is due: do every rung whose time has come, then set the time of the next one."""
        if not _still(connection, case):
            return 0
        desk, approval = self._desk, self._desk.mailbox(case.mailbox).approval
        asked = requests.of_case(connection, case.case_id, case.revision)
        if not asked:
            self._set_due(connection, case, now)
            return 0
        kind = "human" if case.state is CaseState.HUMAN else "request"
        rungs = self._rungs(case, asked)
        done = 0
        for approver, moment in rungs.reminders:
            if moment <= now:
                done += staff.ask(desk, connection, case.case_id, [approver], kind=kind, purpose="reminder", now=now)
        if rungs.next_at is not None and rungs.next_at <= now:
            done += staff.ask(
                desk, connection, case.case_id, desk.named(approval.next_approvers), kind=kind, purpose="next", now=now
            )
        if rungs.alarm_at is not None and rungs.alarm_at <= now:
            done += staff.ask(desk, connection, case.case_id, desk.all(case.mailbox), kind=kind, purpose="alarm", now=now)
            log.warning("approval.alarm", case_id=case.case_id)
        if not done and rungs.expires_at <= now:
            done += self._expire(connection, case, now)
        else:
            self._set_due(connection, case, now)
        return done

    def _rungs(self, case: Waiting, asked: Sequence[Request]) -> _Rungs:
        desk, approval = self._desk, self._desk.mailbox(case.mailbox).approval
        real = [r for r in asked if r.purpose != requests.ANSWER] or list(asked)
        first_at = min(r.created_at for r in real if r.created_at is not None)
        reminded = {r.approver for r in real if r.purpose in {"reminder", "alarm"}}
        reminders: list[tuple[ApproverConfig, datetime]] = []
        for name in dict.fromkeys(r.approver for r in real):
            approver = desk.approver(name)
            since = min(r.created_at for r in real if r.approver == name and r.created_at is not None)
            if approver is not None and name not in reminded:
                reminders.append((approver, desk.calendar(approver).after(since, approval.remind_after_hours)))
        leading = desk.first(case.mailbox)
        next_at = None
        if approval.next_approvers and not any(r.purpose in {"next", "alarm"} for r in real):
            calendars = [desk.calendar(a) for a in leading]
            next_at = min((c.after(first_at, approval.next_approver_after_hours) for c in calendars), default=first_at)
        alarm_at = None
        if case.deadline_at is not None and not any(r.purpose == "alarm" for r in real):
            alarm_at = case.deadline_at - timedelta(hours=approval.alarm_before_deadline_hours)
            if alarm_at <= first_at:  # asked late already: halfway between the question and the deadline
                alarm_at = first_at + max(timedelta(0), (case.deadline_at - first_at) / 2)
        return _Rungs(tuple(reminders), next_at, alarm_at, max(r.expires_at for r in real))

    def _set_due(self, connection: Connection, case: Waiting, now: datetime) -> None:
        asked = requests.of_case(connection, case.case_id, case.revision)
        if not asked:
            requests.set_due(connection, case.case_id, None)
            return
        rungs = self._rungs(case, asked)
        moments = [m for _, m in rungs.reminders]
        moments += [m for m in (rungs.next_at, rungs.alarm_at) if m is not None]
        ahead = [m for m in moments if m > now]
        requests.set_due(connection, case.case_id, min(ahead, default=max(rungs.expires_at, now + timedelta(minutes=1))))

    def _expire(self, connection: Connection, case: Waiting, now: datetime) -> int:
        """Nobody decided while a request was good: nothing is sent, a person gets the case."""
        if case.state is CaseState.HUMAN:
            return staff.ask(
                self._desk,
                connection,
                case.case_id,
                self._desk.all(case.mailbox),
                kind="human",
                purpose="reminder",
                now=now,
            )
        drafts.decide(connection, case.case_id, case.revision, DraftState.EXPIRED, actor=ACTOR, now=now)
        move_case(
            connection,
            case.case_id,
            CaseState.AWAITING_APPROVAL,
            CaseState.HUMAN,
            reason="approval_expired",
            actor=ACTOR,
            now=now,
            values={"due_at": None},
        )
        log.warning("approval.expired", case_id=case.case_id)
        return 1

    # ------------------------------------------------------------------ holds, vetoes, orphans

    def _end_hold(self, connection: Connection, case: Waiting, now: datetime) -> int:
        drafts.resume(connection, case.case_id, case.revision)
        requests.revoke(connection, case.case_id, now=now)
        requests.end_hold(connection, case.case_id, now=now)
        staff.ask(
            self._desk,
            connection,
            case.case_id,
            self._desk.first(case.mailbox),
            kind="request",
            purpose="held_over",
            now=now,
        )
        self._set_due(connection, case, now)
        return 1

    async def _again(self, case: Waiting, now: datetime) -> None:
        draft = await self._db.read(lambda c: drafts.load(c, case.case_id, case.revision))
        if draft is None:
            return
        try:
            revision = await self._desk.revise(case.case_id, draft.body, author=draft.decided_by or ACTOR)
        except NeedsHuman as error:
            reason = error.reason[:60]
            await self._db.write(lambda c: _to_person(c, case, reason, now))
            return

        def unit(connection: Connection) -> None:
            if _still(connection, case):
                drafts.create(connection, revision.draft, state=DraftState.PENDING, now=now)

        await self._db.write(unit)

    def _revoke(self, connection: Connection, case: Waiting, now: datetime) -> int:
        if case.state.value in requests.STILL_WAITING:
            requests.revoke(connection, case.case_id, now=now, before_revision=case.revision)
            return 1
        live = requests.revoke(connection, case.case_id, now=now)
        if case.state is CaseState.WITHDRAWN:
            names = dict.fromkeys(r.approver for r in live if r.purpose != requests.ANSWER)
            holders = [a for a in map(self._desk.approver, names) if a is not None]
            staff.tell(self._desk, connection, case.case_id, holders, news="withdrawn", by=None, now=now)
        return 1


@dataclass(frozen=True, slots=True)
class _Rungs:
    """When each rung of the ladder comes; None for one that has been climbed or does not exist."""

    reminders: tuple[tuple[ApproverConfig, datetime], ...]
    next_at: datetime | None
    alarm_at: datetime | None
    expires_at: datetime


def _still(connection: Connection, case: Waiting) -> bool:
    """Whether the case stands where it stood when it was found."""
    return requests.stands(connection, case.case_id, case.state, case.revision)


def _to_person(connection: Connection, case: Waiting, reason: str, now: datetime) -> None:
    if _still(connection, case):
        drafts.supersede(connection, case.case_id, now=now)
        move_case(connection, case.case_id, CaseState.AWAITING_APPROVAL, CaseState.HUMAN, reason=reason, actor=ACTOR, now=now)
