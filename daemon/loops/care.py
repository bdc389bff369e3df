"""Upkeep of the service itself: forgetting in time, alarms, and the reports that come by mail.

Each alarm is told once when it comes, once a day while it lasts, and once
when it is over. What is told goes to ``alarms.addresses`` and the webhook;
the daily account of shadow mode goes to the approvers of each mailbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from daemon import log as logging
from daemon.config import Config, MailboxConfig, RunMode
from daemon.edges.credentials import TokenState
from daemon.loops import staff
from daemon.loops.staff import Desk
from daemon.loops.upkeep import Task
from daemon.steps.approval.notices import Reader, Rendered, seal, to_html
from daemon.store import accounts, alarms, forgetting, labelling, outbox, reports, settings
from daemon.store.alarms import Alarm
from daemon.vocab import DeliveryKind, Outgoing

log = logging.get(__name__)

#: Mean number of mails in the quiet time from which silence is an alarm: by chance alone it comes once in twenty times.
USUAL_MAILS = 3.0
#: Days over which the usual rate is taken.
USUAL_DAYS = 14
#: How long renewals of a token that still lives may fail before it is told: the first failure may be a hiccup.
RENEWAL_GRACE = timedelta(minutes=2)
#: Hour of the service's day at which reports are written.
REPORT_HOUR = 8
#: Drafts that the daily account of shadow mode shows in full.
SHOWN_DRAFTS = 30

Seen = list[tuple[str, str, str]]


class Care:
    """Tasks for the table of upkeep."""

    def __init__(
        self,
        desk: Desk,
        *,
        started_at: datetime,
        troubles: Callable[[], Mapping[str, str]],
        orders: Callable[[], str | None],
        stalled: Callable[[], Sequence[str]],
        tokens: Callable[[], Mapping[str, TokenState]],
        post: Callable[[str, Mapping[str, Any]], None],
        on_notice: Callable[[], None],
        expected: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """``troubles``: mailbox → why its account is left alone for a while; ``orders``: why order sources
        cannot be asked; ``tokens``: OAuth2 sign-ins, by what follows ``postsale login``;
        ``expected``: share of labels that the model in force should get right, 0 when nobody knows."""
        self._expected = expected
        self._desk = desk
        self._config: Config = desk.config
        self._db = desk.database
        self._started_at = started_at
        self._troubles = troubles
        self._orders = orders
        self._stalled = stalled
        self._tokens = tokens
        self._post = post
        self._on_notice = on_notice

    def tasks(self) -> tuple[Task, ...]:
        """Retention and days gone by each hour, alarms each minute, reports when their hour has come."""
        return (
            Task("retention", self.retention, every=timedelta(hours=1)),
            Task("labelling", self.close_days, every=timedelta(hours=1)),
            Task("alarms", self.watch, every=timedelta(minutes=1)),
            Task("reports", self.accounts, every=timedelta(minutes=5)),
        )

    async def close_days(self, now: datetime) -> int:
        """Count what the model did on days that have ended, so that nobody has to count it again."""
        while await self._db.write(lambda c: labelling.close_day(c, now=now)):
            pass
        return 0

    # ------------------------------------------------------------------ retention

    async def retention(self, now: datetime) -> int:
        """Forget what has been kept long enough, a batch at a time; returns how many cases were emptied or removed."""
        keep, total = self._config.retention, 0
        while True:
            gone = await self._db.write(
                lambda c: forgetting.purge_content(
                    c, now=now, days=keep.raw_days, days_by_marketplace=keep.raw_days_by_marketplace
                )
            )
            removed = await self._db.write(lambda c: forgetting.purge_cases(c, now=now, days=keep.case_days))
            total += gone.get("raw_mail", 0) + removed
            if not gone and not removed:
                break
        await self._db.write(lambda c: forgetting.purge_orders(c, now=now, days=keep.raw_days))
        await self._db.write(lambda c: forgetting.purge_feedback(c, now=now, days=keep.feedback_days))
        if total:
            log.info("retention.done", cases=total)
        return 0

    # ------------------------------------------------------------------ alarms

    async def watch(self, now: datetime) -> int:
        """Look at everything that can go wrong quietly, and tell what is new and what is over."""
        seen = await self.look(now)
        change, told = await self._db.write(lambda c: self._settle(c, seen, now))
        for alarm in change.raised:
            log.error("alarm.raised", name=alarm.name, subject=alarm.subject)
        for alarm in change.cleared:
            log.info("alarm.cleared", name=alarm.name, subject=alarm.subject)
        if told:
            self._on_notice()
        if change.raised or change.cleared:
            await self._tell_webhook(change, now)
        return 0

    async def look(self, now: datetime) -> Seen:
        """Every trouble of this moment, as (name, subject, detail)."""
        view = await self._db.read(lambda c: reports.overview(c, now=now))
        seen: Seen = [("loop_stalled", name, "the loop makes no progress") for name in self._stalled()]
        seen += await self._mailboxes(view, now)
        seen += [("breaker_open", name, why) for name, why in (await self._turned_away()).items()]
        lost = self._orders()
        seen += [("orders_down", "", lost)] if lost else []
        seen += [
            ("uncertain", str(case), "a reply may or may not have gone; decide: queue show") for case in view.needing_decision
        ]
        seen += [("poison", str(case), "a message could not be handled and was set aside: queue show") for case in view.broken]
        seen += self._deadlines(view, now)
        seen += self._sign_ins(now)
        seen += self._drift(await self._db.read(lambda c: labelling.labelling(c, now=now)))
        free = shutil.disk_usage(self._config.service.data_dir).free // 1_000_000
        if free < self._config.alarms.disk_free_mb:
            seen.append(("disk_low", "", f"{free} MB are free where the data lies"))
        return seen

    async def _turned_away(self) -> dict[str, str]:
        """Mailboxes whose account, for reading or for sending, is left alone for a while, and why."""
        why = {name: [trouble] for name, trouble in self._troubles().items()}
        for mailbox in self._config.mailboxes:
            refusal = await self._db.read(partial(accounts.refusal, mailbox=mailbox.name))
            if refusal is not None:
                why.setdefault(mailbox.name, []).insert(0, refusal.why)
        return {name: "; ".join(dict.fromkeys(reasons)) for name, reasons in why.items()}

    def _sign_ins(self, now: datetime) -> Seen:
        """OAuth2 sign-ins that have ended or are about to. A token that nobody has tried to renew yet is no trouble."""
        soon = now + timedelta(days=self._config.alarms.token_days)
        seen: Seen = []
        for name, token in self._tokens().items():
            mend = f"run: postsale login {name}"
            failing = token.failing_since is not None
            if token.access_ends is None:
                seen.append(("token_expired", name, f"nobody has signed in; {mend}"))
            elif token.withdrawn or (token.sign_in_ends is not None and token.sign_in_ends <= now):
                seen.append(("token_expired", name, f"the OAuth2 sign-in has ended; {mend}"))
            elif failing and token.access_ends <= now:
                seen.append(("token_expired", name, f"the token has ended and cannot be renewed: {token.problem}"))
            elif token.failing_since is not None and now - token.failing_since >= RENEWAL_GRACE:
                at = f"{token.access_ends:%Y-%m-%d %H:%M} UTC"
                seen.append(("token_expiring", name, f"the token ends at {at} and cannot be renewed: {token.problem}"))
            elif token.sign_in_ends is not None and token.sign_in_ends <= soon:
                at = f"{token.sign_in_ends:%Y-%m-%d %H:%M} UTC"
                seen.append(("token_expiring", name, f"the OAuth2 sign-in ends at {at}; {mend}"))
        return seen

    def _drift(self, work: labelling.Labelling) -> Seen:
        expected = self._expected()
        if not work.drifted(expected):
            return []
        share = work.corrected / work.decided
        told = (
            f"staff corrected {share:.0%} of {work.decided} labels, {1 - expected:.0%} were to be expected; run: postsale train"
        )
        return [("model_drift", str(work.model_version), told)]

    async def _mailboxes(self, view: reports.Overview, now: datetime) -> Seen:
        limit = timedelta(minutes=self._config.alarms.no_poll_minutes)
        quiet = timedelta(hours=self._config.alarms.no_mail_hours)
        known = {f.mailbox: f for f in view.folders}
        seen: Seen = []
        for mailbox in self._config.mailboxes:
            folder = known.get(mailbox.name)
            last = max(self._started_at, folder.last_success_at or self._started_at) if folder else self._started_at
            if now - last > limit:
                why = (folder.last_error if folder else None) or "the server was not reached"
                seen.append(
                    ("no_poll", mailbox.name, f"not read for {round((now - last).total_seconds() / 60)} minutes: {why}")
                )
            elif folder and folder.last_mail_at and now - folder.last_mail_at > quiet:
                usual = await self._usual(mailbox.name, folder.last_mail_at, quiet)
                if usual >= USUAL_MAILS:
                    hours = round((now - folder.last_mail_at).total_seconds() / 3600)
                    seen.append(("no_mail", mailbox.name, f"no mail for {hours} hours, where {usual:.0f} are usual"))
        return seen

    async def _usual(self, mailbox: str, last_mail_at: datetime, quiet: timedelta) -> float:
        """Mails that were usual in a time so long before the silence, which must not end its own alarm by lasting."""
        return await self._db.read(lambda c: reports.usual_rate(c, mailbox, until=last_mail_at, window=quiet, days=USUAL_DAYS))

    def _deadlines(self, view: reports.Overview, now: datetime) -> Seen:
        case = view.next_deadline
        if case is None or case.deadline_at is None or case.mailbox not in {m.name for m in self._config.mailboxes}:
            return []
        hours = self._config.mailbox(case.mailbox).approval.alarm_before_deadline_hours
        if self._config.service.mode is RunMode.SHADOW or case.deadline_at - now > timedelta(hours=hours):
            return []
        return [
            ("deadline", case.mailbox, f"case {case.case_id} ({case.state}) is due at {case.deadline_at:%Y-%m-%d %H:%M} UTC")
        ]

    def _settle(self, connection: Connection, seen: Seen, now: datetime) -> tuple[alarms.Change, bool]:
        """Put the alarms in force and write the mail about it; also returns whether there was one to write."""
        change = alarms.settle(connection, seen, now=now)
        on = alarms.active(connection)
        if change.raised:
            head, what = f"ALARM: {_names(change.raised)}", "raised"
            lines = _alarm_lines(change.raised, on, over=change.cleared)
        elif change.cleared:
            head, what = f"Over: {_names(change.cleared)}" if on else "All clear", "cleared"
            lines = _cleared_lines(change.cleared, on)
        elif on and self._summary_is_due(connection, now):
            head, what = f"Still on: {_names(on)}", "summary"
            lines = _alarm_lines(on, on)
        else:
            return change, False
        self._tell(connection, head, lines, what, now)
        if what != "cleared":
            settings.put(connection, "alarms.told_at", now.isoformat(), actor="postsale", now=now)
        return change, True

    def _summary_is_due(self, connection: Connection, now: datetime) -> bool:
        told = settings.get(connection, "alarms.told_at")
        return told is None or now - datetime.fromisoformat(told) >= timedelta(days=1)

    async def _tell_webhook(self, change: alarms.Change, now: datetime) -> None:
        url = self._config.alarms.webhook_url
        if not url:
            return
        content = {
            "at": now.isoformat(),
            "raised": [{"name": a.name, "subject": a.subject, "detail": a.detail} for a in change.raised],
            "cleared": [{"name": a.name, "subject": a.subject} for a in change.cleared],
        }
        try:
            await asyncio.to_thread(self._post, url, content)
        except Exception as error:  # noqa: BLE001 - the mail has been written; a deaf webhook is not the service's end
            log.warning("alarm.webhook_failed", error=type(error).__name__)

    # ------------------------------------------------------------------ reports

    async def accounts(self, now: datetime) -> int:
        """In the morning: what shadow mode would have sent; on Mondays: what buyers wrote about."""
        local = now.astimezone(ZoneInfo(self._config.service.timezone))
        if local.hour < REPORT_HOUR:
            return 0
        written = await self._db.write(lambda c: self._shadow(c, local, now))
        if local.isoweekday() == 1 and self._config.alarms.addresses:
            written += await self._db.write(lambda c: self._weekly(c, local, now))
        if written:
            self._on_notice()
        return 0

    def _shadow(self, connection: Connection, local: datetime, now: datetime) -> int:
        key = "reports.shadow_at"
        last = settings.get(connection, key)
        if last is not None and datetime.fromisoformat(last).astimezone(local.tzinfo).date() >= local.date():
            return 0
        since = datetime.fromisoformat(last) if last else now - timedelta(days=1)
        settings.put(connection, key, now.isoformat(), actor="postsale", now=now)
        written = 0
        for mailbox in self._config.mailboxes:
            account = reports.shadowed(connection, mailbox.name, since=since, until=now)
            if not account.cases:
                continue
            for approver in self._desk.first(mailbox.name):
                rendered = self._desk.staff.render(
                    "shadow", self._desk.reader(approver), now, s=account, shown=SHOWN_DRAFTS, mailbox=mailbox.name
                )
                name = f"shadow:{mailbox.name}:{approver.name}:{local.date()}"
                self._send(connection, mailbox, self._desk.reader(approver), rendered, name, now)
                written += 1
        return written

    def _weekly(self, connection: Connection, local: datetime, now: datetime) -> int:
        key = "reports.weekly_at"
        last = settings.get(connection, key)
        if last is not None and now - datetime.fromisoformat(last) < timedelta(days=6):
            return 0
        settings.put(connection, key, now.isoformat(), actor="postsale", now=now)
        summary = reports.business(connection, since=now - timedelta(days=7), until=now)
        self._tell(connection, "The week in after-sales", reports.business_lines(summary), f"week:{local.date()}", now)
        return 1

    # ------------------------------------------------------------------ mail

    def _tell(self, connection: Connection, subject: str, lines: Sequence[str], name: str, now: datetime) -> None:
        """Write to everybody in alarms.addresses, through the first mailbox."""
        if not self._config.mailboxes:
            return
        text = "\n".join(lines) + "\n"
        for address in self._config.alarms.addresses:
            reader = Reader(address, address, "en", ZoneInfo(self._config.service.timezone))
            rendered = Rendered(f"[Postsale] {subject}", text, to_html(text, "en"))
            self._send(connection, self._config.mailboxes[0], reader, rendered, f"{name}:{now.isoformat()}:{address}", now)

    def _send(
        self, connection: Connection, mailbox: MailboxConfig, reader: Reader, rendered: Rendered, name: str, now: datetime
    ) -> None:
        sender = staff.approval_address(mailbox)
        digest = hashlib.sha256(self._desk.key + name.encode()).hexdigest()[:32]
        sealed = seal(
            rendered,
            reader=reader,
            sender=sender,
            sender_name="Postsale",
            reply_to=sender,
            message_id=f"<care.{digest}@{staff.id_domain(mailbox)}>",
            references=(),
            in_reply_to=None,
            now=now,
        )
        outgoing = Outgoing(
            kind=DeliveryKind.STAFF_NOTICE,
            mailbox=mailbox.name,
            recipient=reader.address,
            envelope_from=sender,
            message_id=sealed.message_id,
            mime=sealed.mime,
            sha256=sealed.sha256,
            dedupe_key=f"care:{digest}",
        )
        outbox.enqueue(connection, outgoing, now=now)


def _names(found: Sequence[Alarm]) -> str:
    return ", ".join(dict.fromkeys(f"{a.name} {a.subject}".strip() for a in found[:3])) + (" …" if len(found) > 3 else "")


def _alarm_lines(told: Sequence[Alarm], on: Sequence[Alarm], *, over: Sequence[Alarm] = ()) -> list[str]:
    lines = ["## What is wrong", *(f"- {a.name} {a.subject}: {a.detail}" for a in told)]
    older = [a for a in on if a not in told]
    if older and len(on) > len(told):
        lines += ["", "## On already", *(f"- {a.name} {a.subject} since {a.raised_at:%Y-%m-%d %H:%M} UTC" for a in older)]
    if over:
        lines += ["", *_over(over)]
    return [*lines, "", "What to do about each alarm: docs/operating.md, section Alarms."]


def _cleared_lines(cleared: Sequence[Alarm], on: Sequence[Alarm]) -> list[str]:
    lines = _over(cleared)
    if on:
        lines += ["", "## Still on", *(f"- {a.name} {a.subject}: {a.detail}" for a in on)]
    return lines


def _over(cleared: Sequence[Alarm]) -> list[str]:
    return ["## Over", *(f"- {a.name} {a.subject}, it was on since {a.raised_at:%Y-%m-%d %H:%M} UTC" for a in cleared)]
