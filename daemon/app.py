"""The composition root: builds every part from the configuration, supervises the loops, and stops in order.

Plain values are passed down; nothing below reads the configuration file, the
environment or a global. A loop that dies takes the service with it, loudly,
and systemd starts it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import secrets
import signal
import uuid
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from daemon import log as logging
from daemon import resources
from daemon.clock import Clock, SystemClock
from daemon.config import Config, MailboxConfig, RunMode
from daemon.edges.credentials import database_password, sign_in, token_states
from daemon.edges.imap import Imap
from daemon.edges.orders.opening import open_orders
from daemon.edges.smtp import Smtp
from daemon.edges.systemd import Notifier, watchdog_seconds
from daemon.edges.webhook import post_json
from daemon.edges.workers import WorkerFailure
from daemon.errors import ConfigError, NeedsHuman, PostsaleError, Transient
from daemon.judge import Judge, live_stamp
from daemon.loops.advance import Advance, AdvanceSettings
from daemon.loops.care import Care
from daemon.loops.deliver import Deliver
from daemon.loops.ingest import Ingest
from daemon.loops.loop import Loop
from daemon.loops.profiles import profile, profiles
from daemon.loops.recheck import OrderRows, Recheck
from daemon.loops.rescore import rescore
from daemon.loops.settling import SettleSettings, Settling
from daemon.loops.staff import Desk, Revision
from daemon.loops.upkeep import Approvals, Task, Upkeep
from daemon.steps.approval import StaffRenderer
from daemon.store import requests, tokens
from daemon.store.cases import Claimed
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.store.orders import OrderShelf
from daemon.tasks import ReadTask
from daemon.vocab import OrderId, Reading

log = logging.get(__name__)


#: Messages that are taken forward together.
BATCH = 50
#: How often report folders are looked at.
REPORTS_EVERY = timedelta(seconds=10)


class AlreadyRunning(PostsaleError):
    """Another Postsale works on the same data folder."""


def _loading_report(file: str, rows: int) -> None:
    log.info("orders.loading", file=file, rows=rows)


def _report_loaded(report: Mapping[str, Any]) -> None:
    """What became of an order report; its problem names lines, not what stands in them."""
    told = {"file": Path(report["path"]).name, "kind": report["kind"], "rows": report["rows"], "refused": report["refused"]}
    if report["as_of"] is None:
        log.error("orders.report_refused", **told, problem=report["problem"])
    elif report["refused"]:
        log.warning("orders.rows_refused", **told, problem=report["problem"])
    else:
        log.info("orders.loaded", **told)


def staff_templates(config: Config) -> dict[str, str]:
    """The staff's templates and words, by ``<language>/<file>``."""
    folder = (config.playbook.templates or resources.templates()) / "staff"
    if not folder.is_dir():
        folder = resources.templates() / "staff"
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in sorted(folder.rglob("*")) if path.is_file()
    }


def service_key(data_dir: Path) -> bytes:
    """The secret that makes Message-IDs and tokens unguessable; made once, kept beside the database."""
    file = data_dir / "service.key"
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
        if len(key) < 32:
            raise ConfigError(
                str(file), "", "is no service key", "restore it from a backup; without it old requests are void"
            ) from None
        return key
    with os.fdopen(handle, "w", encoding="ascii") as out:
        out.write(secrets.token_hex(32) + "\n")
        out.flush()
        os.fsync(out.fileno())
    return service_key(data_dir)


class App:
    """One running service."""

    def __init__(
        self, config: Config, *, judge: Judge | None = None, clock: Clock | None = None, notifier: Notifier | None = None
    ) -> None:
        """``judge``, when it was made before; the app closes it."""
        self.config = config
        self._judge = judge
        self.clock = clock or SystemClock()
        self.notifier = notifier or Notifier()
        self.stop = asyncio.Event()
        self.boot_id = uuid.uuid4().hex
        self._stack = contextlib.AsyncExitStack()
        self._reloading: asyncio.Future[None] | None = None
        self.loops: list[Loop] = []

    async def __aenter__(self) -> App:
        """Lock, migrate, load the mind and build the loops; nothing is sent or read yet."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _open(self) -> None:
        config, folder = self.config, self.config.service.data_dir
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The workers' nursery is forked from this process, so it comes before any thread, file or lock.
        self.judge = self._judge or Judge(config)
        self._stack.callback(self.judge.close)
        self._lock_instance(folder)
        self.database = Database(config.database_url, password=database_password(config))
        self._stack.callback(self.database.close)
        await asyncio.to_thread(upgrade, self.database)
        await asyncio.to_thread(self.judge.load)
        self._build(service_key(folder))
        await self.advance.start()

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def _lock_instance(self, folder: Path) -> None:
        handle = os.open(folder / "postsale.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise AlreadyRunning(f"{folder}: another Postsale is running on this folder") from error
        self._stack.callback(os.close, handle)

    # ------------------------------------------------------------------ building

    def _build(self, key: bytes) -> None:
        config, clock, database = self.config, self.clock, self.database
        self._key = key
        self._live_stamp = live_stamp(config.classifier.model_dir)
        self.orders = open_orders(config.orders, OrderShelf(database), progress=_loading_report, on_report=_report_loaded)
        self._stack.push_async_callback(self.orders.close)
        known, stale_after = profiles(config), timedelta(hours=config.orders.stale_after_hours)
        recheck = Recheck(clock=clock, lookup=self._lookup, stale_after=stale_after)
        desk = Desk(
            database=database,
            config=config,
            key=key,
            staff=StaffRenderer(staff_templates(config)),
            revise=self._revise,
            labels=lambda: set(self.judge.facts.labels),
            action_text=lambda code, language: self.judge.facts.action_text(code, language),
        )
        self._sent = {m.name: Imap(m.imap, sign_in(config, m)) for m in config.mailboxes}
        approvals = Approvals(desk, on_notice=self.wake_senders, answered=self._answered)
        self.care = Care(
            desk,
            started_at=clock.now(),
            troubles=self._troubles,
            orders=lambda: self.advance.orders_trouble,
            stalled=self._stalled,
            tokens=lambda: token_states(config),
            post=post_json,
            on_notice=self.wake_senders,
            expected=lambda: self.judge.facts.expected,
        )
        tasks = (Task("orders", self._refresh_orders, every=REPORTS_EVERY), *approvals.tasks(), *self.care.tasks())
        self.upkeep = Upkeep(tasks=tasks, clock=clock, next_due=approvals.next_due)
        self.settling = Settling(
            database=database,
            clock=clock,
            profiles=known,
            settings=SettleSettings(
                worker=self.boot_id,
                live=config.service.mode is RunMode.LIVE,
                live_policies=config.service.live_policies,
                key=key,
            ),
            on_queued=self.wake_senders,
            on_waiting=self.upkeep.wake,
            versions=lambda: self.judge.versions,
        )
        self.advance = Advance(
            database=database,
            clock=clock,
            thinker=lambda: self.judge.workers,
            profiles=known,
            settings=AdvanceSettings(
                worker=self.boot_id,
                batch=BATCH,
                max_attempts=config.reading.attempts,
                stale_after=stale_after,
                defer=timedelta(minutes=config.orders.defer_minutes),
            ),
            settling=self.settling,
            lookup=self._lookup,
            carry_out=partial(self._carry_out, desk),
            on_queued=self.wake_senders,
            on_waiting=self.upkeep.wake,
        )
        self.ingests = [self._ingest(mailbox) for mailbox in config.mailboxes]
        self.senders = [self._deliver(mailbox, recheck) for mailbox in config.mailboxes]
        self.loops = [*self.ingests, self.advance, *self.senders, self.upkeep]
        if config.http.listen:
            # here, since few set-ups are watched in this way
            from daemon.edges.http import WatchServer
            from daemon.loops.metrics import Metrics

            metrics = Metrics(database, clock, lambda: self.loops)
            self.watch_server = WatchServer(config.http.listen, metrics=metrics.text, health=self._health)
            self._stack.callback(self.watch_server.close)

    def _ingest(self, mailbox: MailboxConfig) -> Ingest:
        return Ingest(
            self.database,
            self.clock,
            mailbox=mailbox.name,
            server=mailbox.imap,
            imap=Imap(mailbox.imap, sign_in(self.config, mailbox)),
            max_message_bytes=self.config.reading.max_message_bytes,
            sign_in_pause=timedelta(minutes=self.config.delivery.breaker_minutes),
            arrived=self.advance.wake,
        )

    def _deliver(self, mailbox: MailboxConfig, recheck: Recheck) -> Deliver:
        delivery = self.config.delivery
        login = sign_in(self.config, mailbox, smtp=True)
        return Deliver(
            self.database,
            self.clock,
            mailbox=mailbox.name,
            smtp=Smtp(mailbox.smtp, login, final_reply_seconds=delivery.final_reply_timeout_seconds),
            sent=self._sent[mailbox.name],
            caps=mailbox.caps,
            boot_id=self.boot_id,
            evidence_minutes=delivery.evidence_minutes,
            breaker=timedelta(minutes=delivery.breaker_minutes),
            append_to_sent=mailbox.smtp.append_to_sent,
            max_connections=mailbox.smtp.max_connections,
            final_reply_seconds=delivery.final_reply_timeout_seconds,
            recheck=recheck,
            leaks=self._leaks,
            asked=self.upkeep.wake,
        )

    async def _lookup(self, order_ids: Sequence[OrderId]) -> OrderRows:
        return await self.orders.lookup(order_ids, self.clock.now())

    async def _refresh_orders(self, _now: datetime) -> int:
        """Read new order reports; what waits for one is looked at again."""
        loaded = await self.orders.refresh()
        if loaded:
            self.advance.wake()
        return 0

    async def _answered(self, mailbox: str, message_ids: Sequence[str], since: date) -> set[str]:
        """Which messages staff have answered with their own mail program."""
        return await self._sent[mailbox].answered_in_sent(message_ids, since=since)

    async def _carry_out(self, desk: Desk, case: Claimed, reading: Reading) -> None:
        # here, as in _revise: what reads and writes mail is not needed before an approver answers
        from daemon.edges.dkim import signatures
        from daemon.loops.commands import carry_out
        from daemon.steps.guard import overridable

        await carry_out(desk, case, reading, worker=self.boot_id, clock=self.clock, dkim=signatures, overridable=overridable)

    async def _revise(self, case_id: int, text: str, *, author: str) -> Revision:
        from daemon.loops.revise import Revise

        return await Revise(self.database, self.config, self._key, self.clock, self._reread)(case_id, text, author=author)

    async def _reread(self, mailbox: str, raw: bytes) -> Reading:
        [reading] = await self.judge.workers.map([ReadTask(raw, profile(self.config, self.config.mailbox(mailbox)).identity)])
        if isinstance(reading, WorkerFailure):
            raise NeedsHuman("not_readable", str(reading))
        assert isinstance(reading, Reading)
        return reading

    async def _leaks(self, mime: bytes) -> bool:
        """Whether bytes that are about to leave hold a live approval token (an approver's forwarded request, say)."""
        hashes = {tokens.token_hash(self._key, word) for word in tokens.words_like_tokens(mime)}
        return bool(hashes) and bool(await self.database.read(lambda c: requests.find(c, hashes)))

    def wake_senders(self) -> None:
        """There may be mail to send."""
        for sender in self.senders:
            sender.wake()

    # ------------------------------------------------------------------ running

    async def run(self) -> None:
        """Work until ``stop`` is set, or until a loop dies; then the exception group is raised."""
        scheduler = AsyncIOScheduler(timezone="UTC")
        for loop in (self.advance, *self.senders, self.upkeep):  # ingest has the poll of its own connection
            scheduler.add_job(loop.wake, "interval", seconds=loop.idle_seconds, misfire_grace_time=None, coalesce=True)
        scheduler.add_job(self._watch_model, "interval", seconds=5, misfire_grace_time=None, coalesce=True)
        scheduler.start()
        gc.freeze()  # what is there now stays; to look through it again would stop everything for a tenth of a second
        self.notifier.ready()
        log.info("service.ready", mailboxes=len(self.config.mailboxes), mode=self.config.service.mode.value)
        try:
            async with asyncio.TaskGroup() as group:
                for loop in self.loops:
                    group.create_task(self._supervised(loop), name=loop.name)
                group.create_task(self._feed_watchdog(), name="watchdog")
        finally:
            scheduler.shutdown(wait=False)
            self.notifier.stopping()

    async def _supervised(self, loop: Loop) -> None:
        try:
            await loop.run(self.stop)
        except Exception:
            log.critical("loop.died", loop=loop.name, exc_info=True)
            raise

    async def _feed_watchdog(self) -> None:
        seconds = watchdog_seconds() or 10
        while not self.stop.is_set():
            stalled = self._stalled()
            if stalled:
                log.error("loop.stalled", loops=stalled)
                self.notifier.status(f"stalled: {', '.join(stalled)}")
            else:
                self.notifier.alive()
                self.notifier.status(self._summary())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), seconds)

    def _stalled(self) -> list[str]:
        return [loop.name for loop in self.loops if not loop.healthy]

    def _troubles(self) -> dict[str, str]:
        """Mailboxes whose account for sending is left alone for a while, and why."""
        return {sender.mailbox: sender.trouble for sender in self.senders if sender.trouble}

    def _summary(self) -> str:
        """The line that ``systemctl status`` shows while all is well."""
        told = f"{self.config.service.mode.value} mode, watching {', '.join(m.name for m in self.config.mailboxes)}"
        return told + "".join(f"; {name}: {why}" for name, why in self._troubles().items())

    def _health(self) -> tuple[bool, dict[str, Any]]:
        stalled = self._stalled()
        return not stalled, {"stalled": stalled, "model": self.judge.versions[0], "playbook": self.judge.versions[1]}

    def _watch_model(self) -> None:
        """A promoted model takes effect without a signal."""
        stamp = live_stamp(self.config.classifier.model_dir)
        if stamp != self._live_stamp:
            self._live_stamp = stamp
            self.reload()

    def reload(self) -> None:
        """SIGHUP: read playbook, templates and model anew; the loops go on meanwhile."""
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.ensure_future(self._reload())

    async def _reload(self) -> None:
        self.notifier.reloading()
        before = self.judge.versions[0]
        await asyncio.to_thread(self.judge.reload)
        self.notifier.ready()
        model = self.judge.versions[0]
        if model == before:
            return
        try:
            await rescore(
                self.database,
                lambda: self.judge.workers,
                profiles(self.config),
                model_version=model,
                now=self.clock.now(),
            )
        except Transient as error:  # the drafts stand as they are, labelled by the earlier model
            log.warning("service.rescore_failed", problem=str(error))
        self.advance.wake()


async def serve(config: Config, judge: Judge) -> None:
    """Run one App under the process's signals."""
    async with App(config, judge=judge) as app:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, app.stop.set)
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        await app.run()
