"""Ingest: every message of the watched folder into the store, once, before the server sees a trace of it.

One :class:`Ingest` watches one mailbox. IDLE is a hint and polling the net
beneath it; the cursor is an optimisation, and on each new connection and
every quarter of an hour the server's list of recent mail is compared with the
store's. Nothing is ever deleted or moved.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from daemon import log
from daemon.clock import RECONNECT_BACKOFF_SECONDS, Clock, backoff
from daemon.config import ImapConfig
from daemon.edges.imap import FolderMissing, Imap, Listed, MessageRefused, Opened
from daemon.errors import ConfigError, NeedsHuman, Transient
from daemon.loops.account import Account, SignInTrouble
from daemon.loops.loop import Loop, Pace
from daemon.store import cases, folders
from daemon.store.db import Database
from daemon.store.folders import Folder
from daemon.store.locks import Lock
from daemon.vocab import RawMail

#: Messages whose sizes are asked for in one command.
LIST_BATCH = 500
#: Messages and bytes that one FETCH and one transaction take.
FETCH_BATCH = 100
FETCH_BYTES = 8_000_000
RESCAN_SECONDS = 900.0
#: UIDs that a rescan compares at a time.
RESCAN_WINDOW = 5_000
#: A rescan goes at least this far back, and a day further than the last success.
RESCAN_REACH = timedelta(days=3)
#: Tries after which a message that the server does not give out is stored as far as it could be had.
FETCH_TRIES = 3
IDLE_SLICE_SECONDS = 60.0
#: How often at most it is written down that a folder was read to its end.
NOTE_EVERY_SECONDS = 20.0
#: IDLE failures in a row after which polling has to do, until the next connection that holds.
IDLE_TRIES = 3
LOCK_RETRY_SECONDS = 5.0
#: Least wait when the folder cannot be opened.
FOLDER_MISSING_SECONDS = 15.0

_logger = log.get(__name__)


class Ingest(Loop):
    """The watcher of one mailbox."""

    name = "ingest"
    bound_seconds = 900  # a slow server may take its time over a large batch

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        mailbox: str,
        server: ImapConfig,
        imap: Imap,
        max_message_bytes: int,
        sign_in_pause: timedelta,
        arrived: Callable[[], None],
    ) -> None:
        super().__init__(clock)
        self.name = f"ingest:{mailbox}"
        self.mailbox = mailbox
        self._database = database
        self._server = server
        self._imap = imap
        self._max_message_bytes = max_message_bytes
        self._sign_in_pause = sign_in_pause
        self._arrived = arrived
        self._account = Account(database, mailbox, pause=sign_in_pause)
        self._tried = False  # whether this life has signed in; the first try is made whatever an earlier life saw
        self._lock = Lock(database, f"watch.{mailbox}")
        self._opened: Opened | None = None
        self._rescanned_at: float | None = None
        self._noted_at: float | None = None  # when it was last written down that all is well
        self._failures = 0
        self._idle_failures = 0
        self._try_at = 0.0  # monotonic; no connection is tried before
        self._tries: dict[int, int] = {}  # UIDs that could not be fetched, and how often
        self._single = False  # fetch one by one, since a batch broke the connection

    # ------------------------------------------------------------------ life

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until ``stop`` is set; a wait for the server ends at once then."""
        stopping = asyncio.ensure_future(stop.wait())
        stopping.add_done_callback(lambda _: self._imap.abort() if stop.is_set() else None)
        try:
            while not stop.is_set():
                self._woken.clear()
                pace = await self.step()
                self.beat()
                if stop.is_set() or pace.done:
                    continue
                if self._opened is not None and pace.next_seconds is None:
                    await self._wait_for_mail(stopping)
                else:
                    await self._sleep(stopping, pace.next_seconds or self._server.poll_seconds)
        finally:
            stopping.cancel()
            await self.close()

    def wake(self) -> None:
        """Look for mail at once."""
        super().wake()
        self._imap.wake()

    async def close(self) -> None:
        """Say goodbye to the server and let another host watch."""
        await self._imap.close()
        await asyncio.to_thread(self._lock.release)

    async def _sleep(self, stopping: asyncio.Future[Any], seconds: float) -> None:
        woken: asyncio.Future[Any] = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({woken, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    async def _wait_for_mail(self, stopping: asyncio.Future[Any]) -> None:
        seconds = min(self._server.poll_seconds, IDLE_SLICE_SECONDS)
        if self._server.idle and self._idle_failures < IDLE_TRIES and not self._woken.is_set():
            try:
                if await self._imap.idle(seconds):
                    self._idle_failures = 0
                    return
                self._idle_failures = IDLE_TRIES
            except Transient as error:
                self._idle_failures += 1
                if not stopping.done():
                    await self._failed(error)
                return
        await self._sleep(stopping, seconds)

    # ------------------------------------------------------------------ one round

    async def step(self) -> Pace:
        """Take in everything that is there now."""
        wait = self._try_at - self.clock.monotonic()
        if wait > 0:
            return Pace(0, wait)
        try:
            if not self._lock.kept and not await asyncio.to_thread(self._lock.acquire):
                return Pace(0, LOCK_RETRY_SECONDS)
            if self._tried and not self._imap.connected and (closed := await self._account.closed(self.clock.now())):
                return Pace(0, closed.total_seconds())
            taken = await self._round()
        except (Transient, NeedsHuman, ConfigError) as error:
            return Pace(0, await self._failed(error))
        self._failures = 0
        self._idle_failures = 0 if taken else self._idle_failures
        return Pace(taken)

    async def _round(self) -> int:
        if self._imap.due_for_renewal:
            await self._imap.drop()
        if not self._imap.connected or self._opened is None:
            self._tried = True
            self._opened = await self._imap.open()
            await self._account.accepted()
            self._rescanned_at = None
        opened = self._opened
        place = await self._place(opened)
        uids = await self._imap.uids_after(place.last_uid)
        newest = max([opened.newest_uid, place.last_uid, *uids])
        rescan = self._rescanned_at is None or self.clock.monotonic() - self._rescanned_at >= RESCAN_SECONDS
        if rescan:
            uids = sorted({*uids, *await self._recent(place, newest)})
        unknown = await self._database.read(lambda c: folders.unknown_uids(c, place, uids)) if uids else ()
        taken = await self._take(place, unknown)
        if rescan:
            self._rescanned_at = self.clock.monotonic()
        await self._note_success()
        return taken

    async def _note_success(self) -> None:
        """Write down that the folder was read to its end; not at each look, for that would be most of what is written."""
        if self._noted_at is None or self.clock.monotonic() - self._noted_at >= NOTE_EVERY_SECONDS:
            await self._database.write(lambda c: folders.succeeded(c, self.mailbox, self._server.folder, now=self.clock.now()))
            self._noted_at = self.clock.monotonic()

    async def _place(self, opened: Opened) -> Folder:
        known = await self._database.read(lambda c: folders.get(c, self.mailbox, self._server.folder))
        if known is not None and known.uidvalidity == opened.uidvalidity:
            return known
        if known is None:
            _logger.info("folder.baseline", mailbox=self.mailbox, newest_uid=opened.newest_uid)
        else:
            _logger.warning("folder.renumbered", mailbox=self.mailbox, uidvalidity=opened.uidvalidity)
        return await self._database.write(
            lambda c: folders.open_folder(
                c,
                self.mailbox,
                self._server.folder,
                uidvalidity=opened.uidvalidity,
                newest_uid=opened.newest_uid,
                now=self.clock.now(),
            )
        )

    async def _recent(self, place: Folder, newest: int) -> list[int]:
        """UIDs of mail that arrived lately and is not stored, wherever the cursor stands.

        Compared part by part: the list of a busy mailbox's days would be the largest thing in memory.
        """
        since = self.clock.now() - RESCAN_REACH
        if place.last_success_at is not None:
            since = min(since, place.last_success_at - timedelta(days=1))
        lowest = await self._database.read(lambda c: folders.oldest_uid_to_rescan(c, place, since - timedelta(days=1)))
        missing: list[int] = []
        for start in range(lowest, newest + 1, RESCAN_WINDOW):
            seen = await self._imap.uids_since(start, min(start + RESCAN_WINDOW - 1, newest), since.date())
            missing += await self._database.read(partial(folders.unknown_uids, folder=place, uids=seen))
        return missing

    # ------------------------------------------------------------------ taking messages in

    async def _take(self, place: Folder, uids: Sequence[int]) -> int:
        """Fetch and store messages, the next batch being fetched while one is stored; returns how many were new."""
        taken = 0
        storing: asyncio.Task[int] | None = None
        try:
            for start in range(0, len(uids), LIST_BATCH):
                listed = await self._imap.sizes(uids[start : start + LIST_BATCH])
                for batch in self._batches(listed):
                    mails = await self._fetch(place, batch)
                    self.beat()
                    if storing is not None:
                        before, storing = storing, None
                        taken += await before
                    if mails:
                        storing = asyncio.create_task(self._store(mails))
        finally:
            if storing is not None:
                taken += await storing
        self._single = False
        return taken

    async def _store(self, mails: Sequence[RawMail]) -> int:
        received = await self._database.write(partial(cases.receive, batch=mails, now=self.clock.now()))
        if received.case_ids:
            self._arrived()
            _logger.info("mail.stored", mailbox=self.mailbox, count=len(received.case_ids))
        await self._mark([mail.uid for mail in mails])
        return len(received.case_ids)

    def _batches(self, listed: Sequence[Listed]) -> list[list[Listed]]:
        batches: list[list[Listed]] = []
        size = 0
        limit = 1 if self._single else FETCH_BATCH
        for message in listed:
            cost = min(message.size, self._max_message_bytes)
            if not batches or len(batches[-1]) >= limit or size + cost > FETCH_BYTES:
                batches.append([])
                size = 0
            batches[-1].append(message)
            size += cost
        return batches

    async def _fetch(self, place: Folder, batch: Sequence[Listed]) -> list[RawMail]:
        """The bytes of a batch; messages that the server refuses are left for later, and at last stored without."""
        whole = [m for m in batch if m.size <= self._max_message_bytes and not self._given_up(m.uid)]
        large = [m for m in batch if m.size > self._max_message_bytes and not self._given_up(m.uid)]
        found: dict[int, bytes] = {}
        try:
            if whole:
                found |= await self._imap.fetch([m.uid for m in whole], size=sum(m.size for m in whole))
            if large:
                found |= await self._imap.fetch_head([m.uid for m in large])
        except MessageRefused:
            if len(batch) == 1:
                self._count_try(batch[0].uid)
            else:
                return [mail for message in batch for mail in await self._fetch(place, [message])]
        except Transient:
            # one message may be what breaks the connection: next time they come one by one
            if len(batch) == 1:
                self._count_try(batch[0].uid)
            self._single = True
            raise
        for message in batch:
            if self._given_up(message.uid):
                found[message.uid] = b""
        return [
            RawMail(
                mailbox=self.mailbox,
                folder=self._server.folder,
                uidvalidity=place.uidvalidity,
                uid=message.uid,
                raw=found[message.uid],
                internal_date=message.internal_date,
                truncated=message in large or self._given_up(message.uid),
                size=message.size,
            )
            for message in batch
            if message.uid in found
        ]

    def _count_try(self, uid: int) -> None:
        self._tries[uid] = self._tries.get(uid, 0) + 1
        if self._given_up(uid):
            _logger.warning("mail.unfetchable", mailbox=self.mailbox, uid=uid)

    def _given_up(self, uid: int) -> bool:
        return self._tries.get(uid, 0) >= FETCH_TRIES

    async def _mark(self, uids: Sequence[int]) -> None:
        """For people who look into the mailbox; nothing rests on it."""
        keyword = self._server.handled_keyword
        if keyword is not None and self._imap.connected and self._opened is not None and not self._opened.read_only:
            await self._imap.mark(uids, keyword)

    # ------------------------------------------------------------------ failing

    async def _failed(self, error: Transient | NeedsHuman | ConfigError) -> float:
        """Write the failure down and say how long to wait."""
        await self._imap.drop()
        self._opened = None
        self._noted_at = None
        self._failures += 1
        wait = backoff(RECONNECT_BACKOFF_SECONDS, self._failures)
        turned_away = isinstance(error, SignInTrouble) and not isinstance(error, FolderMissing)
        if turned_away:
            wait = self._sign_in_pause.total_seconds()  # more tries lock the account
        elif isinstance(error, FolderMissing):
            wait = max(wait, FOLDER_MISSING_SECONDS)
        elif isinstance(error, Transient) and error.retry_after is not None:
            wait = max(wait, error.retry_after)
        with contextlib.suppress(Transient):  # the database may be what failed
            if turned_away:
                wait = (await self._account.refused(error, self.clock.now())).total_seconds()
            await self._database.write(
                lambda c: folders.failed(c, self.mailbox, self._server.folder, error=str(error), now=self.clock.now())
            )
        self._try_at = self.clock.monotonic() + wait
        _logger.warning("mailbox.unreachable", mailbox=self.mailbox, problem=str(error), retry_seconds=round(wait))
        return wait
