"""Deliver: looked at again, sent once, known or asked about."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from daemon.clock import Clock, FixedClock, SystemClock
from daemon.config import CapsConfig, ImapConfig, SmtpConfig, TlsMode
from daemon.edges.imap import Imap
from daemon.edges.smtp import Smtp
from daemon.loops import deliver as deliver_module
from daemon.loops.deliver import Deliver
from daemon.store import accounts, cases, outbox, settings
from daemon.store.db import Database
from daemon.store.tables import cases as case_table
from daemon.store.tables import outbox as table
from daemon.vocab import CaseState, DeliveryKind
from tests.edges.accounts import Login
from tests.fakes.faults import Fault, Kind
from tests.fakes.imap import FakeImap
from tests.fakes.smtp import FakeSmtp
from tests.servers import MailServers
from tests.store.making import WORKER, outgoing, queue_reply, read_case, store_case


@dataclasses.dataclass
class Sending:
    """A Deliver and the knobs of what it asks."""

    loop: Deliver
    changed: str | None = None
    leaking: bool = False
    asked: int = 0


@asynccontextmanager
async def sending(
    database: Database,
    clock: Clock,
    smtp: FakeSmtp,
    *,
    sent: FakeImap | None = None,
    caps: CapsConfig | None = None,
    final: float = 1.0,
    boot_id: str = "boot-1",
    **how: Any,
) -> AsyncIterator[Sending]:
    config = SmtpConfig(host="127.0.0.1", port=smtp.port, tls=TlsMode.NONE, timeout_seconds=how.pop("timeout", 1.0))
    imap = None
    if sent is not None:
        place = ImapConfig(host="127.0.0.1", port=sent.port, tls=TlsMode.NONE, timeout_seconds=1)
        imap = Imap(place, Login())
    state: Sending

    async def recheck(replies: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        return dict.fromkeys(replies, state.changed) if state.changed else {}

    async def leaks(mime: bytes) -> bool:
        return state.leaking

    def asked() -> None:
        state.asked += 1

    loop = Deliver(
        database,
        clock,
        mailbox="shop",
        smtp=Smtp(config, how.pop("login", None), final_reply_seconds=final),
        sent=imap,
        caps=caps or CapsConfig(),
        boot_id=boot_id,
        evidence_minutes=30,
        breaker=timedelta(minutes=15),
        append_to_sent=how.pop("append_to_sent", False),
        max_connections=how.pop("max_connections", 2),
        final_reply_seconds=final,
        recheck=recheck,
        leaks=leaks,
        asked=asked,
    )
    state = Sending(loop)
    try:
        yield state
    finally:
        await loop.close()


@pytest.fixture
def smtp() -> Iterator[FakeSmtp]:
    server = FakeSmtp()
    yield server
    server.close()


def state_of(database: Database, delivery_id: int) -> str:
    found: str = database.read_now(lambda c: c.execute(select(table.c.state).where(table.c.id == delivery_id)).scalar_one())
    return found


def case_of(database: Database, case_id: int) -> tuple[str, str | None]:
    query = select(case_table.c.state, case_table.c.reason).where(case_table.c.id == case_id)
    row = database.read_now(lambda c: c.execute(query).one())
    return row.state, row.reason


async def test_a_reply_leaves_once_with_its_own_bytes(database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    case_id, delivery = database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    async with sending(database, clock, smtp) as state:
        assert await state.loop.run_until_idle() == 1
        assert await state.loop.run_until_idle() == 0
    assert [(t.data, t.recipients, t.sender) for t in smtp.taken] == [
        (outgoing(case_id).mime, ("anna@buyers.test",), "shop@example.test")
    ]
    assert (state_of(database, delivery), case_of(database, case_id)) == ("sent", ("sent", "accepted"))


async def test_the_undo_window_holds_even_when_the_clock_jumps(database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    later = clock.now() + timedelta(seconds=90)
    database.write_now(lambda c: queue_reply(c, 1, clock.now(), not_before=later))
    async with sending(database, clock, smtp) as state:
        await state.loop.run_until_idle()
        clock.jump(timedelta(days=1))
        await state.loop.run_until_idle()
        assert smtp.taken == [], "the jump ended the window, but ninety seconds have not passed"
        clock.advance(timedelta(seconds=91))
        assert await state.loop.run_until_idle() == 1


async def test_a_clock_set_back_stops_sending(database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    async with sending(database, clock, smtp) as state:
        clock.jump(timedelta(days=-3650))
        await state.loop.run_until_idle()
        assert smtp.taken == []
        clock.jump(timedelta(days=3650))
        assert await state.loop.run_until_idle() == 1


async def test_a_clock_that_ran_ahead_for_a_while_holds_nothing_up_for_long(
    database: Database, clock: FixedClock, smtp: FakeSmtp
) -> None:
    clock.jump(timedelta(days=1))
    database.write_now(lambda c: queue_reply(c, 1, clock.now(), not_before=clock.now() + timedelta(seconds=90)))
    clock.jump(timedelta(days=-1))
    async with sending(database, clock, smtp) as state:
        await state.loop.run_until_idle()
        clock.advance(timedelta(minutes=9))
        await state.loop.run_until_idle()
        assert smtp.taken == []
        clock.advance(timedelta(minutes=2))
        assert await state.loop.run_until_idle() == 1


async def test_pause_holds_replies_and_lets_notices_go(database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    notice = outgoing(None, recipient="ann@example.test", kind=DeliveryKind.STAFF_NOTICE)
    database.write_now(lambda c: outbox.enqueue(c, notice, now=clock.now()))
    database.write_now(lambda c: settings.pause(c, actor="cli:ann", now=clock.now()))
    async with sending(database, clock, smtp) as state:
        assert await state.loop.run_until_idle() == 1
        assert [t.recipients for t in smtp.taken] == [("ann@example.test",)]
        database.write_now(lambda c: settings.resume(c))
        assert await state.loop.run_until_idle() == 1


async def test_a_changed_order_has_the_case_decided_anew(database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    case_id, delivery = database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    async with sending(database, clock, smtp) as state:
        state.changed = "order_changed"
        await state.loop.run_until_idle()
    assert smtp.taken == []
    assert (state_of(database, delivery), case_of(database, case_id)) == ("cancelled", ("received", "order_changed"))


async def test_a_newer_message_takes_over(database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    case_id, delivery = database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    clock.advance(timedelta(seconds=5))

    def write_again(c: Any) -> int:
        newer = store_case(c, 2, clock.now())
        read_case(c, newer, clock.now(), answers=(outgoing(case_id).message_id,))
        return newer

    newer = database.write_now(write_again)
    async with sending(database, clock, smtp) as state:
        await state.loop.run_until_idle()
        assert state_of(database, delivery) == "queued", "first it must be known what the newer one wants"
        what = cases.Settlement(newer, CaseState.RECEIVED, CaseState.HUMAN, "abstained")
        database.write_now(lambda c: cases.settle(c, what, worker=WORKER, now=clock.now()))
        clock.advance(timedelta(seconds=30))
        await state.loop.run_until_idle()
    assert smtp.taken == []
    assert (state_of(database, delivery), case_of(database, case_id)) == ("cancelled", ("withdrawn", "wrote_again"))


async def test_a_token_in_a_reply_goes_to_a_person(database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    case_id, _ = database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    async with sending(database, clock, smtp) as state:
        state.leaking = True
        await state.loop.run_until_idle()
    assert smtp.taken == []
    assert case_of(database, case_id) == ("human", "token_in_reply")


TAMPERINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("second recipient", lambda m: m.replace(b"To: anna@buyers.test", b"To: anna@buyers.test, eve@evil.test")),
    ("other recipient", lambda m: m.replace(b"To: anna@buyers.test", b"To: eve@evil.test")),
    ("two To fields", lambda m: b"To: eve@evil.test\r\n" + m),
    ("Bcc", lambda m: b"Bcc: eve@evil.test\r\n" + m),
    ("Cc", lambda m: b"Cc: eve@evil.test\r\n" + m),
    ("Resent-To", lambda m: b"Resent-To: eve@evil.test\r\n" + m),
    ("other Message-ID", lambda m: m.replace(b"<r.", b"<x.")),
    ("receipt", lambda m: b"Disposition-Notification-To: eve@evil.test\r\n" + m),
    ("no Date", lambda m: m.replace(b"Date: ", b"X-Date: ")),
    ("two senders", lambda m: m.replace(b"<shop@example.test>", b"<shop@example.test>, eve@evil.test")),
]


@pytest.mark.parametrize("tamper", [t for _, t in TAMPERINGS], ids=[name for name, _ in TAMPERINGS])
async def test_bytes_that_do_not_say_what_the_row_says_stay(
    sqlite_database: Database, clock: FixedClock, smtp: FakeSmtp, tamper: Callable[[bytes], bytes]
) -> None:
    case_id, _ = sqlite_database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    mime = tamper(outgoing(case_id).mime)
    assert mime != outgoing(case_id).mime
    digest = hashlib.sha256(mime).hexdigest()
    sqlite_database.write_now(lambda c: c.execute(update(table).values(mime=mime, mime_sha256=digest)))
    async with sending(sqlite_database, clock, smtp) as state:
        await state.loop.run_until_idle()
    assert smtp.taken == []
    assert case_of(sqlite_database, case_id) == ("human", "frozen_mail_differs")


async def test_bytes_changed_after_approval_stay(sqlite_database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    case_id, _ = sqlite_database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    other = outgoing(case_id).mime.replace(b"on its way", b"lost")
    sqlite_database.write_now(lambda c: c.execute(update(table).values(mime=other)))
    async with sending(sqlite_database, clock, smtp) as state:
        await state.loop.run_until_idle()
    assert smtp.taken == []
    assert case_of(sqlite_database, case_id) == ("human", "frozen_mail_differs")


# --------------------------------------------------------------------------- caps and rates


async def test_the_mailbox_rate_holds_for_everybody(sqlite_database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    for uid in range(1, 8):
        how = {"recipient": f"b{uid}@buyers.test"}
        sqlite_database.write_now(lambda c, u=uid, h=how: queue_reply(c, u, clock.now(), **h))
    async with sending(sqlite_database, clock, smtp, caps=CapsConfig(per_hour=3)) as state:
        await state.loop.run_until_idle()
        assert len(smtp.taken) == 3
        clock.advance(timedelta(minutes=59))
        await state.loop.run_until_idle()
        assert len(smtp.taken) == 3
        clock.advance(timedelta(minutes=2))
        await state.loop.run_until_idle()
        assert len(smtp.taken) == 6
        clock.advance(timedelta(minutes=62))
        await state.loop.run_until_idle()
    assert len(smtp.taken) == 7


async def test_automatic_replies_to_one_address_are_capped(
    sqlite_database: Database, clock: FixedClock, smtp: FakeSmtp
) -> None:
    for uid in range(1, 6):
        sqlite_database.write_now(lambda c, u=uid: queue_reply(c, u, clock.now()))
    sqlite_database.write_now(lambda c: c.execute(update(table).values(automatic=True)))
    async with sending(sqlite_database, clock, smtp) as state:
        await state.loop.run_until_idle()
    assert len(smtp.taken) == 1
    reasons = [case_of(sqlite_database, n) for n in range(1, 6)]
    assert reasons.count(("human", "cap_address")) == 4


async def test_a_person_may_write_more_than_the_machine(sqlite_database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    for uid in range(1, 6):
        sqlite_database.write_now(lambda c, u=uid: queue_reply(c, u, clock.now()))
    async with sending(sqlite_database, clock, smtp) as state:
        await state.loop.run_until_idle()
    assert len(smtp.taken) == 5


# --------------------------------------------------------------------------- failing


@pytest.mark.parametrize(("kind", "wait"), [(Kind.R4XX, 60), (Kind.RST, 1)])
async def test_put_off_and_tried_again(database: Database, clock: FixedClock, smtp: FakeSmtp, kind: Kind, wait: int) -> None:
    _, delivery = database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    smtp.fault = Fault("rcpt", kind)
    async with sending(database, clock, smtp) as state:
        await state.loop.run_until_idle()
        assert state_of(database, delivery) == "queued"
        clock.advance(timedelta(seconds=wait - 0.5))
        await state.loop.run_until_idle()
        assert smtp.taken == []
        clock.advance(timedelta(seconds=1))
        await state.loop.run_until_idle()
    assert state_of(database, delivery) == "sent"


async def test_a_refused_mail_goes_to_a_person(database: Database, clock: FixedClock, smtp: FakeSmtp) -> None:
    case_id, delivery = database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    smtp.fault = Fault("rcpt", Kind.R5XX)
    async with sending(database, clock, smtp) as state:
        await state.loop.run_until_idle()
    assert (state_of(database, delivery), case_of(database, case_id)) == ("failed", ("human", "refused"))


async def test_a_refused_login_opens_the_breaker_and_burns_no_attempt(sqlite_database: Database, clock: FixedClock) -> None:
    server = FakeSmtp(password="right")
    for uid in (1, 2, 3):
        sqlite_database.write_now(lambda c, u=uid: queue_reply(c, u, clock.now()))
    async with sending(sqlite_database, clock, server, login=Login(password="wrong"), max_connections=1) as state:
        await state.loop.run_until_idle()
        assert len(server.auth_tries) == 1
        clock.advance(timedelta(minutes=14))
        await state.loop.run_until_idle()
        assert len(server.auth_tries) == 1
        clock.advance(timedelta(minutes=2))
        await state.loop.run_until_idle()
        assert len(server.auth_tries) == 2
        tries = sqlite_database.read_now(lambda c: c.execute(select(table.c.attempts)).scalars().all())
        assert set(tries) == {0}
    server.close()


async def test_a_lost_answer_is_searched_in_sent_and_never_repeated(
    database: Database, clock: FixedClock, smtp: FakeSmtp
) -> None:
    case_id, delivery = database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    sent = FakeImap()
    smtp.fault = Fault("dot", Kind.FIN)
    async with sending(database, clock, smtp, sent=sent) as state:
        await state.loop.run_until_idle()
        assert state_of(database, delivery) == "uncertain"
        clock.advance(timedelta(minutes=2))
        await state.loop.run_until_idle()
        assert state_of(database, delivery) == "uncertain"
        sent.add(smtp.taken[0].data, folder="Sent")
        clock.advance(timedelta(minutes=4))
        await state.loop.run_until_idle()
    assert (state_of(database, delivery), case_of(database, case_id)) == ("sent", ("sent", "sent_folder"))
    assert len(smtp.taken) == 1
    sent.close()


async def test_without_evidence_staff_are_asked_and_resend_sends_the_same_mail(
    database: Database, clock: FixedClock, smtp: FakeSmtp
) -> None:
    _, delivery = database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    smtp.fault = Fault("dot", Kind.RST)
    smtp.takes_before_fault = False
    async with sending(database, clock, smtp, sent=None) as state:
        for _ in range(40):
            await state.loop.run_until_idle()
            clock.advance(timedelta(minutes=1))
        assert (state_of(database, delivery), state.asked) == ("needs_human", 1)
        assert smtp.taken == []
        database.write_now(lambda c: outbox.resend(c, delivery, actor="ann", now=clock.now()))
        await state.loop.run_until_idle()
    assert [t.message_id for t in smtp.taken] == [outgoing(1).message_id]
    assert state_of(database, delivery) == "sent"


async def test_a_restart_in_the_middle_of_data_asks_before_it_sends(
    database: Database, clock: FixedClock, smtp: FakeSmtp
) -> None:
    pairs = [database.write_now(lambda c, u=u: queue_reply(c, u, clock.now())) for u in (1, 2)]
    for _, delivery in pairs:
        database.write_now(lambda c, d=delivery: outbox.claim(c, outbox.get(c, d), boot_id="dead", now=clock.now()))
    database.write_now(lambda c: outbox.begin_transmit(c, pairs[1][1], boot_id="dead", now=clock.now()))
    async with sending(database, clock, smtp) as state:
        await state.loop.run_until_idle()
    assert [t.message_id for t in smtp.taken] == [outgoing(1).message_id]
    assert state_of(database, pairs[1][1]) == "uncertain"


async def test_a_sign_in_that_the_watcher_was_refused_is_not_tried_for_copies(
    sqlite_database: Database, clock: FixedClock, smtp: FakeSmtp
) -> None:
    """Reading, evidence and copies share one account: together they must not lock it."""
    sqlite_database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    sent = FakeImap(password="changed")
    async with sending(sqlite_database, clock, smtp, sent=sent, append_to_sent=True) as state:
        await state.loop.run_until_idle()
        for _ in range(60):
            clock.advance(timedelta(minutes=1))
            await state.loop.run_until_idle()
        assert 1 <= len(sent.logins) <= 4
        refusal = sqlite_database.read_now(lambda c: accounts.refusal(c, "shop"))
        assert refusal is not None
        assert "refused" in refusal.why
        sent.password = "correct horse"
        for _ in range(32):
            clock.advance(timedelta(minutes=1))
            await state.loop.run_until_idle()
    assert sqlite_database.read_now(lambda c: accounts.refusal(c, "shop")) is None
    assert len(sent.folders["Sent"].messages) == 1
    sent.close()


async def test_copies_are_put_into_sent_once_and_only_where_missing(
    database: Database, clock: FixedClock, smtp: FakeSmtp
) -> None:
    pairs = [database.write_now(lambda c, u=u: queue_reply(c, u, clock.now())) for u in (1, 2)]
    sent = FakeImap()
    async with sending(database, clock, smtp, sent=sent, append_to_sent=True) as state:
        await state.loop.run_until_idle()
        sent.add(smtp.taken[0].data, folder="Sent")  # the server keeps its own copy of one
        for _ in range(3):
            clock.advance(timedelta(seconds=31))
            await state.loop.run_until_idle()
    kept = [m.raw for m in sent.folders["Sent"].messages.values()]
    assert sorted(kept) == sorted(t.data for t in smtp.taken)
    assert {state_of(database, d) for _, d in pairs} == {"sent"}
    sent.close()


async def test_the_outcome_is_written_down_when_the_database_comes_back(
    sqlite_database: Database, smtp: FakeSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SystemClock()
    _, delivery = sqlite_database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    monkeypatch.setattr(deliver_module, "RECONNECT_BACKOFF_SECONDS", (0.05,))
    real = outbox.accepted
    failures = 3

    def away_for_a_while(connection: Any, **how: Any) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise deliver_module.Transient("disk full")
        real(connection, **how)

    monkeypatch.setattr(outbox, "accepted", away_for_a_while)
    async with sending(sqlite_database, clock, smtp) as state:
        await state.loop.run_until_idle()
    assert state_of(sqlite_database, delivery) == "sent"
    assert len(smtp.taken) == 1


# --------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("step", ["connect", "greeting", "ehlo", "mail", "rcpt", "data"])
async def test_a_stop_before_data_puts_the_mail_back(sqlite_database: Database, smtp: FakeSmtp, step: str) -> None:
    clock = SystemClock()
    case_id, delivery = sqlite_database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    smtp.fault = Fault(step, Kind.STALL)
    async with sending(sqlite_database, clock, smtp, timeout=30) as state:
        began = await run_and_stop(state.loop, lambda: smtp.fault is not None and smtp.fault.struck > 0)
    smtp.fault.ended.set()
    assert time.monotonic() - began < 3
    assert (state_of(sqlite_database, delivery), case_of(sqlite_database, case_id)[0]) == ("queued", "queued")
    assert smtp.taken == []
    row = sqlite_database.read_now(lambda c: c.execute(select(table.c.attempts)).scalar_one())
    assert row == 0


async def test_a_stop_after_data_waits_for_the_servers_word(sqlite_database: Database, smtp: FakeSmtp) -> None:
    clock = SystemClock()
    _, delivery = sqlite_database.write_now(lambda c: queue_reply(c, 1, clock.now()))
    smtp.fault = Fault("dot", Kind.SLOW)
    async with sending(sqlite_database, clock, smtp, final=30) as state:
        await run_and_stop(state.loop, lambda: len(smtp.taken) > 0)
    assert state_of(sqlite_database, delivery) == "sent", "a clean stop leaves no doubt behind"


async def run_and_stop(loop: Deliver, when: Callable[[], bool]) -> float:
    """Run, stop when the moment has come; returns when it was stopped."""
    stop = asyncio.Event()
    running = asyncio.create_task(loop.run(stop))
    deadline = time.monotonic() + 10
    while not when() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    began = time.monotonic()
    stop.set()
    await asyncio.wait_for(running, 20)
    return began


async def test_one_sender_per_mailbox(
    database: Database, connect: Callable[[], Database], clock: FixedClock, smtp: FakeSmtp
) -> None:
    async with sending(database, clock, smtp) as first, sending(connect(), clock, smtp, boot_id="boot-2") as second:
        await first.loop.run_until_idle()
        database.write_now(lambda c: queue_reply(c, 1, clock.now()))
        assert (await second.loop.step()).done == 0
        assert smtp.taken == []
        await first.loop.close()
        assert await second.loop.run_until_idle() == 1


@pytest.mark.mailservers
async def test_through_postfix_into_dovecot(sqlite_database: Database, mail_servers: MailServers) -> None:
    clock = SystemClock()
    shop, buyer = mail_servers.add_user(), mail_servers.add_user()
    _, delivery = sqlite_database.write_now(lambda c: queue_reply(c, 1, clock.now(), recipient=buyer.address))
    login = Login(shop.address, shop.password)
    config = SmtpConfig(host="localhost", port=mail_servers.smtps_port, ca_file=mail_servers.ca_file)
    imap = Imap(ImapConfig(host="localhost", port=mail_servers.imaps_port, ca_file=mail_servers.ca_file), login)

    async def fine(replies: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        return {}

    async def clean(mime: bytes) -> bool:
        return False

    loop = Deliver(
        sqlite_database,
        clock,
        mailbox="shop",
        smtp=Smtp(config, login, final_reply_seconds=20),
        sent=imap,
        caps=CapsConfig(),
        boot_id="b",
        evidence_minutes=30,
        breaker=timedelta(minutes=15),
        append_to_sent=True,
        max_connections=2,
        final_reply_seconds=20,
        recheck=fine,
        leaks=clean,
        asked=lambda: None,
    )
    assert await loop.run_until_idle() == 1
    sqlite_database.write_now(lambda c: c.execute(update(table).values(updated_at=datetime(2026, 1, 1, tzinfo=UTC))))
    loop._copies_at = 0.0
    await loop.run_until_idle()
    await loop.close()
    assert state_of(sqlite_database, delivery) == "sent"
    (seen,) = mail_servers.wait_for_mails(buyer, 1)
    assert b"It is on its way." in seen
    (copy,) = mail_servers.mails(shop, "Sent")
    assert copy == outgoing(1, recipient=buyer.address).mime


async def test_a_claim_whose_answer_was_lost_is_not_forgotten(
    database: Database, clock: FixedClock, smtp: FakeSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the link to PostgreSQL dies in COMMIT: the row is claimed, and the sender does not know."""
    pairs = [database.write_now(lambda c, u=u: queue_reply(c, u, clock.now())) for u in (1, 2)]
    async with sending(database, clock, smtp) as state:
        real = database.write
        lost = [False]

        async def loses_one(work: Any) -> Any:
            value = await real(work)
            if getattr(work, "func", None) == state.loop._claim and work.keywords["row"].id == pairs[1][1] and not lost[0]:
                lost[0] = True
                raise deliver_module.Transient("the link died in COMMIT")
            return value

        monkeypatch.setattr(database, "write", loses_one)
        await state.loop.step()
        assert state_of(database, pairs[1][1]) == "claimed"
        await state.loop.run_until_idle()
    assert [state_of(database, d) for _, d in pairs] == ["sent", "sent"]
    assert len(smtp.taken) == 2
