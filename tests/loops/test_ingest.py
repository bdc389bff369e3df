"""Ingest: nothing lost, nothing twice, whatever the server and the connection do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from daemon.clock import SystemClock
from daemon.config import ImapConfig, TlsMode
from daemon.edges.credentials import PasswordSignIn, read_secret_file
from daemon.edges.errors import SignInRefused
from daemon.edges.imap import Imap
from daemon.loops.account import Account
from daemon.loops.ingest import Ingest
from daemon.store import accounts, folders
from daemon.store.db import Database
from daemon.store.tables import cases, raw_mail
from tests.edges.accounts import Login
from tests.fakes.faults import Fault, Kind
from tests.fakes.imap import FakeImap
from tests.servers import MailServers, User


def mail(number: int, size: int = 100) -> bytes:
    body = ("x" * 60 + "\r\n") * (size // 62)
    return (
        f"From: Anna <anna@buyers.test>\r\nTo: shop\r\nSubject: no. {number}\r\nMessage-ID: <{number}@buyers.test>\r\n\r\n{body}"
    ).encode()


class Watch:
    """An Ingest with its settings and what it reported."""

    def __init__(self, database: Database, server: ImapConfig, login: Login, **how: Any) -> None:
        self.arrivals = 0
        self.imap = Imap(server, login)
        self.loop = Ingest(
            database,
            SystemClock(),
            mailbox="shop",
            server=server,
            imap=self.imap,
            max_message_bytes=how.get("max_message_bytes", 25_000_000),
            sign_in_pause=timedelta(minutes=15),
            arrived=self._arrived,
        )

    def _arrived(self) -> None:
        self.arrivals += 1

    def forget_pause(self) -> None:
        self.loop._try_at = 0.0


@pytest.fixture
def server() -> Iterator[FakeImap]:
    server = FakeImap()
    yield server
    server.close()


@asynccontextmanager
async def watching(database: Database, server: FakeImap, **how: Any) -> AsyncIterator[Watch]:
    settings = {"host": "127.0.0.1", "port": server.port, "tls": TlsMode.NONE, "timeout_seconds": 1.0}
    config = ImapConfig(**settings | how.pop("settings", {}))
    watch = Watch(database, config, Login(), **how)
    try:
        yield watch
    finally:
        await watch.loop.close()


def stored(database: Database) -> list[tuple[int, int, bytes]]:
    """(UIDVALIDITY, UID, bytes) of every case."""
    query = select(cases.c.uidvalidity, cases.c.uid, raw_mail.c.body).join(raw_mail).order_by(cases.c.id)
    return [tuple(row) for row in database.read_now(lambda c: c.execute(query).all())]  # type: ignore[misc]


async def test_first_contact_leaves_old_mail_alone(database: Database, server: FakeImap) -> None:
    for number in (1, 2, 3):
        server.add(mail(number))
    async with watching(database, server) as watch:
        assert await watch.loop.run_until_idle() == 0
        server.add(mail(4))
        server.add(mail(5))
        assert await watch.loop.run_until_idle() == 2
        assert await watch.loop.run_until_idle() == 0
    assert stored(database) == [(1, 4, mail(4)), (1, 5, mail(5))]
    assert watch.arrivals == 1
    async with watching(database, server) as again:
        server.add(mail(6))
        assert await again.loop.run_until_idle() == 1
    assert not any(b"STORE" in command for command in server.commands), "the folder is only read"


async def test_mail_that_came_while_we_were_away_is_taken(database: Database, server: FakeImap) -> None:
    async with watching(database, server) as watch:
        await watch.loop.run_until_idle()
    for number in range(1, 131):
        server.add(mail(number))
    async with watching(database, server) as watch:
        assert await watch.loop.run_until_idle() == 130
    assert [uid for _, uid, _ in stored(database)] == list(range(1, 131))


async def test_a_uid_that_turns_up_late_is_found_by_comparison(database: Database, server: FakeImap) -> None:
    async with watching(database, server) as watch:
        await watch.loop.run_until_idle()
        server.add(mail(1))
        server.folders["INBOX"].next_uid = 5
        server.add(mail(5))
        await watch.loop.run_until_idle()
        late = server.folders["INBOX"].messages[5]
        server.folders["INBOX"].messages[3] = type(late)(mail(3), date=late.date)
        assert await watch.loop.run_until_idle() == 0, "below the cursor: only the comparison finds it"
        await watch.imap.drop()
        assert await watch.loop.run_until_idle() == 1
    assert [uid for _, uid, _ in stored(database)] == [1, 5, 3]


async def test_a_renumbered_mailbox_is_taken_under_review(database: Database, server: FakeImap) -> None:
    server.add(mail(0))
    async with watching(database, server) as watch:
        await watch.loop.run_until_idle()
        for number in range(1, 6):
            server.add(mail(number))
        await watch.loop.run_until_idle()
        server.renumber()
        await watch.imap.drop()
        assert await watch.loop.run_until_idle() == 6
        server.add(mail(9))
        assert await watch.loop.run_until_idle() == 1
    rows = database.read_now(lambda c: c.execute(select(cases.c.uidvalidity, cases.c.review)).all())
    assert [tuple(row) for row in rows] == [(1, False)] * 5 + [(1001, True)] * 6 + [(1001, False)]


async def test_large_messages_are_taken_in_part_and_batches_are_bounded(database: Database, server: FakeImap) -> None:
    async with watching(database, server, max_message_bytes=300_000) as watch:
        await watch.loop.run_until_idle()
        sizes = [100, 400_000, 250_000, 100]
        for number, size in enumerate(sizes):
            server.add(mail(number, size))
        assert await watch.loop.run_until_idle() == 4
    rows = database.read_now(lambda c: c.execute(select(cases.c.size, cases.c.truncated).order_by(cases.c.uid)).all())
    assert [row.truncated for row in rows] == [False, True, False, False]
    assert rows[1].size > 390_000
    assert {uid: len(raw) for _, uid, raw in stored(database)}[2] == 262_144


async def test_a_message_that_the_server_will_not_give_holds_nobody_up(database: Database, server: FakeImap) -> None:
    async with watching(database, server) as watch:
        await watch.loop.run_until_idle()
        for number in range(1, 6):
            server.add(mail(number))
        server.refuse_fetch = {3}
        assert await watch.loop.run_until_idle() == 4
        for _ in range(4):
            await watch.imap.drop()
            await watch.loop.run_until_idle()
    raws = {uid: raw for _, uid, raw in stored(database)}
    assert sorted(raws) == [1, 2, 3, 4, 5]
    assert raws[3] == b""
    assert database.read_now(lambda c: c.execute(select(cases.c.truncated).where(cases.c.uid == 3)).scalar_one())


async def test_a_message_that_breaks_the_connection_holds_nobody_up(database: Database, server: FakeImap) -> None:
    async with watching(database, server) as watch:
        await watch.loop.run_until_idle()
        for number in range(1, 6):
            server.add(mail(number))
        server.break_on_fetch = {2}
        for _ in range(12):
            watch.forget_pause()
            await watch.loop.run_until_idle()
    assert sorted(uid for _, uid, _ in stored(database)) == [1, 2, 3, 4, 5]
    assert {uid: raw for _, uid, raw in stored(database)}[2] == b""


async def test_expunged_between_search_and_fetch(database: Database, server: FakeImap) -> None:
    async with watching(database, server) as watch:
        await watch.loop.run_until_idle()
        for number in range(1, 4):
            server.add(mail(number))

        def expunge(verb: str) -> None:
            if verb == "UID FETCH":
                server.folders["INBOX"].messages.pop(2, None)

        server.on_command = expunge
        assert await watch.loop.run_until_idle() == 2


async def test_a_keyword_for_people(database: Database, server: FakeImap) -> None:
    async with watching(database, server, settings={"handled_keyword": "$Postsale"}) as watch:
        await watch.loop.run_until_idle()
        server.add(mail(1))
        await watch.loop.run_until_idle()
    assert server.folders["INBOX"].messages[1].flags == {"$Postsale"}


async def test_stored_before_the_server_sees_a_trace(database: Database, server: FakeImap) -> None:
    seen: list[int] = []

    def look(verb: str) -> None:
        if verb == "UID STORE":
            seen.append(len(stored(database)))

    server.on_command = look
    async with watching(database, server, settings={"handled_keyword": "$Postsale"}) as watch:
        await watch.loop.run_until_idle()
        server.add(mail(1))
        await watch.loop.run_until_idle()
    assert seen == [1]


async def test_failures_are_written_down_and_tried_again(database: Database, server: FakeImap) -> None:
    async with watching(database, server) as watch:
        await watch.loop.run_until_idle()
        server.add(mail(1))
        server.fault = Fault("fetch_body", Kind.RST)
        await watch.imap.drop()
        pace = await watch.loop.step()
        assert pace.done == 0
        assert pace.next_seconds == 1
        row = database.read_now(lambda c: c.execute(select(folders.folders)).one())
        assert row.last_error is not None
        assert row.last_error_at is not None
        assert (await watch.loop.step()).done == 0, "not before the pause is over"
        watch.forget_pause()
        assert await watch.loop.run_until_idle() == 1
        row = database.read_now(lambda c: c.execute(select(folders.folders)).one())
        assert row.last_error is None


async def test_a_refused_login_waits_for_the_breaker(database: Database, server: FakeImap) -> None:
    server.password = "changed"
    async with watching(database, server) as watch:
        pace = await watch.loop.step()
        assert pace.next_seconds == 15 * 60
        for _ in range(5):
            await watch.loop.step()
    assert len(server.logins) == 1


async def test_a_refusal_that_somebody_else_met_is_heeded_and_a_restart_tries_at_once(
    database: Database, server: FakeImap
) -> None:
    async with watching(database, server) as watch:
        await watch.loop.step()
        await Account(database, "shop", pause=timedelta(minutes=15)).refused(SignInRefused("no"), SystemClock().now())
        await watch.imap.drop()
        pace = await watch.loop.step()
        assert 14 * 60 < (pace.next_seconds or 0) <= 15 * 60
        assert len(server.logins) == 1
    async with watching(database, server) as again:
        assert await again.loop.run_until_idle() == 0
    assert len(server.logins) == 2
    assert database.read_now(lambda c: accounts.refusal(c, "shop")) is None


@pytest.mark.parametrize(
    "answer", [b"NO [ALERT] Too many simultaneous connections", b"NO [UNAVAILABLE] Temporary authentication failure"]
)
async def test_a_login_that_is_put_off_is_not_tried_every_few_seconds(
    database: Database, server: FakeImap, answer: bytes
) -> None:
    server.login_answer = answer
    async with watching(database, server) as watch:
        assert (await watch.loop.step()).next_seconds == 15 * 60


async def test_a_password_that_is_gone_for_a_while_does_not_end_the_watch(database: Database, server: FakeImap) -> None:
    """A file that is being written anew is empty for a moment."""
    way = PasswordSignIn("shop@example.test", lambda: read_secret_file(Path("/nowhere/password"), "sign_in.password_file"))
    async with watching(database, server) as watch:
        watch.imap._sign_in = way
        pace = await watch.loop.step()
        assert pace.next_seconds == 15 * 60
    refusal = database.read_now(lambda c: accounts.refusal(c, "shop"))
    assert refusal is not None
    assert "sign_in.password_file" in refusal.why


async def test_one_watcher_per_mailbox(database: Database, connect: Callable[[], Database], server: FakeImap) -> None:
    async with watching(database, server) as first, watching(connect(), server) as second:
        await first.loop.run_until_idle()
        server.add(mail(1))
        assert (await second.loop.step()).done == 0
        assert server.connections == 1
        await first.loop.close()
        assert await second.loop.run_until_idle() == 1


async def test_it_runs_stops_at_once_and_sees_mail_by_idle(database: Database, server: FakeImap) -> None:
    async with watching(database, server, settings={"timeout_seconds": 30}) as watch:
        stop = asyncio.Event()
        running = asyncio.create_task(watch.loop.run(stop))
        deadline = time.monotonic() + 10
        while not any(b"IDLE" in c for c in server.commands) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        server.add(mail(1))
        while not stored(database) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert len(stored(database)) == 1
        assert watch.loop.healthy
        began = time.monotonic()
        stop.set()
        await asyncio.wait_for(running, 5)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("step", ["search", "idle", "fetch_body", "connect"])
async def test_it_stops_at_once_while_the_server_hangs(sqlite_database: Database, server: FakeImap, step: str) -> None:
    async with watching(sqlite_database, server, settings={"timeout_seconds": 60}) as watch:
        await watch.loop.run_until_idle()
        server.add(mail(1))
        server.fault = Fault(step, Kind.STALL, times=99)
        await watch.imap.drop()
        stop = asyncio.Event()
        running = asyncio.create_task(watch.loop.run(stop))
        deadline = time.monotonic() + 10
        while not server.fault.struck and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        stop.set()
        await asyncio.wait_for(running, 10)
        assert time.monotonic() - began < 3
        server.fault.ended.set()


@pytest.mark.mailservers
async def test_dovecot_end_to_end(database: Database, mail_servers: MailServers) -> None:
    user: User = mail_servers.add_user()
    config = ImapConfig(host="localhost", port=mail_servers.imaps_port, ca_file=mail_servers.ca_file)
    watch = Watch(database, config, Login(user.address, user.password))
    await watch.loop.run_until_idle()
    for number in range(60):
        mail_servers.deliver(user, mail(number))
    mail_servers.wait_for_mails(user, 60)
    assert await watch.loop.run_until_idle() == 60
    await watch.loop.close()
    assert [raw.split(b"Message-ID: ")[1].split(b"\r\n")[0] for _, _, raw in stored(database)] == [
        f"<{n}@buyers.test>".encode() for n in range(60)
    ]
