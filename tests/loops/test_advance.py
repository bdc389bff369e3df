"""What becomes of stored mail: every destination, and what happens to other cases of its thread."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from daemon import mind, pipeline, resources
from daemon.clock import FixedClock
from daemon.edges.workers import WorkerFailure
from daemon.errors import Permanent
from daemon.loops.advance import Advance, AdvanceSettings
from daemon.loops.profiles import MailboxProfile
from daemon.loops.recheck import Recheck
from daemon.loops.rescore import rescore
from daemon.loops.settling import SettleSettings, Settling
from daemon.pipeline import Mind
from daemon.store import backup, cases, drafts, folders, outbox, settings
from daemon.store.db import Database
from daemon.store.tables import cases as cases_table
from daemon.store.tables import drafts as drafts_table
from daemon.store.tables import outbox as outbox_table
from daemon.tasks import GistTask, MindFiles, SettleTask
from daemon.vocab import Address, Caps, CaseState, Identity, Mode, OrderId, RawMail
from tests.conftest import NOW

BUYER = "k7j2m9x4q1w8+5f1e2a@marketplace.amazon.co.uk"
ORDER = "302-4820193-7756102"
ADDRESS = "service@lampenladen.example"


@pytest.fixture(scope="module")
def shipped_mind() -> Mind:
    return mind.load_mind(MindFiles(resources.starter_model(), resources.playbook(), resources.templates()))


def buyer_mail(text: str, *, number: int = 1, headers: str = "", sender: str = BUYER, order: str = ORDER) -> bytes:
    return (
        f"Return-Path: <{sender}>\r\n"
        "Authentication-Results: mx.lampenladen.example; dkim=pass header.d=amazon.co.uk; dmarc=pass header.from=marketplace.amazon.co.uk\r\n"
        f"From: Petra Lindner - Amazon Marketplace <{sender}>\r\nTo: {ADDRESS}\r\n"
        f"Subject: Order delivery inquiry from Amazon customer Petra Lindner (Order: {order})\r\n"
        f"Message-ID: <m{number}@email.amazon.co.uk>\r\nDate: Mon, 02 Nov 2026 09:{number:02}:00 +0000\r\n"
        f"X-Space-Notification-Type: BBC_MESSAGE_SENT_TO_MERCHANT\r\n{headers}"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        f"You have received a message.\r\n\r\n# {order}:\r\n1 / Garden lamp [ASIN: B0ABCDEFGH]\r\n\r\n"
        f"------------- Message:  -------------\r\n{text}\r\n------------- End message -------------\r\n"
    ).encode()


def order_row(state: str, **more: Any) -> dict[str, Any]:
    return {
        "shop": "amazon", "order_id": ORDER, "as_of": NOW.isoformat(), "source": "test", "state": state,
        "fulfilment": "FBM", "title": "Garden lamp", "value": "24.90", "currency": "EUR", "purchased_on": "2026-10-20", **more,
    }  # fmt: skip


SHIPPED = order_row("shipped", carrier="DHL", tracking="00340434161094042557", shipped_on="2026-10-29", eta="2026-11-05")
WHERE_IS_IT = "Hello, where is my parcel? The tracking has not moved for days now and I am waiting for it."


@dataclass
class Shop:
    """A mailbox whose mail is advanced in this process."""

    database: Database
    clock: FixedClock
    mind: Mind
    live: bool = True
    live_policies: tuple[str, ...] = ("*",)
    caps: Caps = field(default_factory=Caps)
    sends: bool = False  # every reply that would be asked for is to leave by itself
    rows: list[dict[str, Any]] = field(default_factory=list)
    commands: list[int] = field(default_factory=list)
    break_on: type | None = None
    _uids: Any = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        profile = MailboxProfile(
            name="lampen",
            sender=Address("Lampenladen", ADDRESS),
            shop_name="Lampenladen",
            identity=Identity(
                own_addresses=frozenset({ADDRESS}),
                approver_addresses=frozenset({"chef@lampenladen.example"}),
                message_id_domain="lampenladen.example",
                authserv_ids=("mx.lampenladen.example",),
            ),
            caps=self.caps,
            response_hours=24,
            max_age=timedelta(hours=48),
            undo=timedelta(seconds=90),
            message_id_domain="lampenladen.example",
        )
        quiet: dict[str, Any] = {"on_queued": lambda: None, "on_waiting": lambda: None}
        common: dict[str, Any] = {"database": self.database, "clock": self.clock, "profiles": {"lampen": profile}, **quiet}
        self.settling = Settling(
            settings=SettleSettings("test:1", self.live, self.live_policies, b"k" * 32),
            versions=lambda: ("model-1", "playbook-1"),
            **common,
        )
        self.loop = Advance(
            thinker=lambda: self,
            settings=AdvanceSettings(
                worker="test:1", batch=10, max_attempts=3, stale_after=timedelta(hours=24), defer=timedelta(minutes=15)
            ),
            settling=self.settling,
            lookup=self.lookup,
            carry_out=self.carry_out,
            **common,
        )

    async def map(self, items: Sequence[Any]) -> list[Any]:
        mind._mind = self.mind
        return [
            WorkerFailure("timeout", "too slow", "stack") if self.break_on is type(item) else self._think(item)
            for item in items
        ]

    def _think(self, item: Any) -> Any:
        if not self.sends or not isinstance(item, SettleTask) or item.circumstances.ask_reason:
            return mind.think(item)
        reading = pickle.loads(item.packed)
        outcome = pipeline.decide(reading, item.circumstances, self.mind)
        if outcome.draft is not None:
            outcome = replace(outcome, decision=replace(outcome.decision, mode=Mode.SEND))
        return mind.settled(reading, outcome, item)

    async def lookup(self, ids: Sequence[OrderId]) -> Mapping[OrderId, Sequence[Mapping[str, Any]]]:
        return {i: [r for r in self.rows if r["order_id"] == i.value] for i in ids}

    async def carry_out(self, case: cases.Claimed, reading: Any) -> None:
        self.commands.append(case.case_id)

    async def arrives(self, raw: bytes, **more: Any) -> int:
        now = self.clock.now()
        uid = next(self._uids)

        def store(connection: Any) -> int:
            if folders.get(connection, "lampen", "INBOX") is None:
                folders.open_folder(connection, "lampen", "INBOX", uidvalidity=1, newest_uid=0, now=now)
            mail = RawMail("lampen", "INBOX", 1, uid, raw, **{"internal_date": now, **more})
            return cases.receive(connection, [mail], now=now).case_ids[0]

        return await self.database.write(store)

    async def after(self, raw: bytes, **more: Any) -> Any:
        case_id = await self.arrives(raw, **more)
        await self.loop.run_until_idle()
        return await self.case(case_id)

    async def case(self, case_id: int) -> Any:
        return await self.database.read(lambda c: c.execute(select(cases_table).where(cases_table.c.id == case_id)).one())

    async def all(self, table: Any) -> list[Any]:
        return list(await self.database.read(lambda c: c.execute(select(table)).all()))


@pytest.fixture
def shop(database: Database, clock: FixedClock, shipped_mind: Mind) -> Shop:
    return Shop(database, clock, shipped_mind)


async def test_a_draft_waits_for_approval_with_its_frozen_bytes(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    case = await shop.after(buyer_mail(WHERE_IS_IT))
    assert (case.state, case.label, case.order_id) == (CaseState.AWAITING_APPROVAL, "logistics_question", ORDER)
    [draft] = await shop.all(drafts_table)
    assert draft.recipient == BUYER
    assert b"In-Reply-To: <m1@email.amazon.co.uk>" in draft.mime
    assert "00340434161094042557" in draft.body
    assert draft.order_state["state"] == "moving"
    assert await shop.all(outbox_table) == []


async def test_unknown_orders_wait_for_the_next_report_and_then_go_to_a_person(shop: Shop) -> None:
    case = await shop.after(buyer_mail(WHERE_IS_IT))
    assert (case.state, case.reason) == (CaseState.DEFERRED, "order_unknown")
    shop.clock.advance(timedelta(minutes=16))
    await shop.loop.run_until_idle()
    assert (await shop.case(case.id)).state == CaseState.HUMAN


async def test_a_report_that_comes_in_time_is_used(shop: Shop) -> None:
    case = await shop.after(buyer_mail(WHERE_IS_IT))
    shop.rows = [SHIPPED]
    shop.clock.advance(timedelta(minutes=2))
    await shop.loop.run_until_idle()
    assert (await shop.case(case.id)).state == CaseState.AWAITING_APPROVAL


async def test_shadow_mode_keeps_the_draft_and_sends_nothing(database: Database, clock: FixedClock, shipped_mind: Mind) -> None:
    shop = Shop(database, clock, shipped_mind, live=False, rows=[SHIPPED])
    case = await shop.after(buyer_mail(WHERE_IS_IT))
    assert case.state == CaseState.SHADOWED
    assert [d.state for d in await shop.all(drafts_table)] == ["shadow"]
    assert await shop.all(outbox_table) == []


async def test_an_auto_reply_is_ignored_with_its_reason(shop: Shop) -> None:
    case = await shop.after(buyer_mail("I am away until Monday.", headers="Auto-Submitted: auto-replied\r\n"))
    assert case.state == CaseState.IGNORED
    assert case.reason


async def test_safety_goes_to_a_person(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    case = await shop.after(buyer_mail("The lamp caught fire and my son burned his hand!"))
    assert case.state == CaseState.HUMAN


async def test_the_same_message_again_gets_nothing(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    first = await shop.after(buyer_mail(WHERE_IS_IT))
    again = await shop.after(buyer_mail(WHERE_IS_IT))
    assert (again.state, again.duplicate_of) == (CaseState.IGNORED, first.id)
    assert len(await shop.all(drafts_table)) == 1


async def test_another_text_under_a_used_message_id_goes_to_a_person(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    await shop.after(buyer_mail(WHERE_IS_IT))
    other = await shop.after(buyer_mail("Please cancel the order, I do not need the lamp any more."))
    assert (other.state, other.reason) == (CaseState.HUMAN, "message_id_reused")


async def test_a_newer_mail_withdraws_the_waiting_draft(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    first = await shop.after(buyer_mail(WHERE_IS_IT))
    shop.clock.advance(timedelta(minutes=5))
    second = await shop.after(buyer_mail("Any news? When will the parcel arrive now?", number=2))
    assert (await shop.case(first.id)).state == CaseState.WITHDRAWN
    assert second.thread_id == first.thread_id
    assert second.state in {CaseState.AWAITING_APPROVAL, CaseState.HUMAN}


async def test_two_mails_of_one_thread_in_one_batch_get_one_draft(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    first = await shop.arrives(buyer_mail(WHERE_IS_IT))
    second = await shop.arrives(buyer_mail("Once more: where is my parcel, when does it arrive?", number=2))
    await shop.loop.run_until_idle()
    assert (await shop.case(first)).state == CaseState.WITHDRAWN
    assert (await shop.case(second)).state == CaseState.AWAITING_APPROVAL


async def test_what_a_person_has_stays_with_the_person(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    first = await shop.after(buyer_mail("The lamp caught fire, my son is injured!"))
    second = await shop.after(buyer_mail("And when does the parcel with the second lamp arrive?", number=2))
    assert (await shop.case(first.id)).state == CaseState.HUMAN
    assert (second.state, second.reason) == (CaseState.HUMAN, "thread_with_person")


async def test_danger_is_not_hidden_by_a_second_mail_of_the_same_batch(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    first = await shop.arrives(buyer_mail("The lamp caught fire, my son is injured!"))
    second = await shop.arrives(buyer_mail("And when does the parcel with the second lamp arrive?", number=2))
    await shop.loop.run_until_idle()
    assert (await shop.case(first)).state == CaseState.HUMAN
    assert (await shop.case(second)).state in {CaseState.HUMAN, CaseState.AWAITING_APPROVAL}


async def test_the_copy_of_the_sellers_own_reply_withdraws_what_waits(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    first = await shop.after(buyer_mail(WHERE_IS_IT))
    copy = (
        "From: donotreply@amazon.com\r\nTo: " + ADDRESS + "\r\nSubject: Your e-mail to Petra\r\n"
        "Authentication-Results: mx.lampenladen.example; dkim=pass header.d=amazon.com; dmarc=pass header.from=amazon.com\r\n"
        "X-Space-Notification-Type: BBC_MESSAGE_CONFIRMATION_TO_MERCHANT\r\nMessage-ID: <copy1@email.amazon.com>\r\n"
        "Date: Mon, 02 Nov 2026 10:30:00 +0000\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
        f"<p>This is a copy of the e-mail that you sent about order {ORDER}.</p><p>The parcel arrives tomorrow.</p>"
    ).encode()
    seen = await shop.after(copy)
    assert (seen.state, seen.reason) == (CaseState.IGNORED, "own_copy")
    assert (await shop.case(first.id)).state == CaseState.WITHDRAWN


async def test_a_staff_label_decides_anew_and_asks(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    case = await shop.after(buyer_mail(WHERE_IS_IT))

    def relabel(connection: Any) -> None:
        from daemon.store import feedback

        feedback.learn(connection, case.id, "cancellation_request/mistake", by="chef", now=NOW)
        cases.release(connection, case.id, actor="chef", now=NOW)

    await shop.database.write(relabel)
    await shop.loop.run_until_idle()
    after = await shop.case(case.id)
    assert (after.label, after.sublabel, after.revision) == ("cancellation_request", "mistake", 2)
    assert after.state == CaseState.AWAITING_APPROVAL
    assert [d.state for d in await shop.all(drafts_table)] == ["superseded", "pending"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"truncated": True}, "too_large"), ({"internal_date": NOW - timedelta(days=9)}, "too_old")],
)
async def test_mail_that_a_person_must_see(shop: Shop, more: dict[str, Any], reason: str) -> None:
    shop.rows = [SHIPPED]
    case = await shop.after(buyer_mail(WHERE_IS_IT), **more)
    assert (case.state, case.reason) == (CaseState.HUMAN, reason)


async def test_a_message_that_breaks_its_worker_is_set_aside_and_the_next_goes_on(shop: Shop) -> None:
    shop.break_on = GistTask
    broken = await shop.after(buyer_mail(WHERE_IS_IT))
    assert (broken.state, broken.reason) == (CaseState.BROKEN, "worker_timeout")
    shop.break_on, shop.rows = None, [SHIPPED]
    assert (await shop.after(buyer_mail(WHERE_IS_IT, number=3))).state == CaseState.AWAITING_APPROVAL
    await shop.database.write(lambda c: cases.release(c, broken.id, actor="cli:op", now=NOW))
    await shop.loop.run_until_idle()
    assert (await shop.case(broken.id)).state in {CaseState.WITHDRAWN, CaseState.AWAITING_APPROVAL}


async def test_a_reply_of_an_approver_goes_to_the_office(shop: Shop) -> None:
    raw = (
        b"From: Chef <chef@lampenladen.example>\r\nTo: service+ok-abcdefghijklmnopqrstuvwxyz@lampenladen.example\r\n"
        b"Subject: Re: case\r\nMessage-ID: <ok1@x.example>\r\nDate: Mon, 02 Nov 2026 10:00:00 +0000\r\n\r\nOK\r\n"
    )
    case = await shop.arrives(raw)
    await shop.loop.step()
    assert shop.commands == [case]


async def test_an_order_source_that_is_down_holds_up_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(ids: Sequence[OrderId]) -> Mapping[OrderId, Sequence[Mapping[str, Any]]]:
        raise Permanent("the orders database refused the query")

    monkeypatch.setattr(shop.loop, "_lookup", down)
    asked = await shop.arrives(buyer_mail(WHERE_IS_IT))
    danger = await shop.arrives(buyer_mail("The lamp caught fire, my son is injured!", number=2))
    await shop.loop.run_until_idle()
    assert (await shop.case(asked)).state in {CaseState.DEFERRED, CaseState.HUMAN, CaseState.WITHDRAWN}
    assert (await shop.case(danger)).state == CaseState.HUMAN
    assert "refused" in str(shop.loop.orders_trouble)


async def test_recheck_sees_that_the_order_moved_on(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    case = await shop.after(buyer_mail(WHERE_IS_IT))
    recheck = Recheck(clock=shop.clock, lookup=shop.lookup, stale_after=timedelta(hours=24))
    assumed = await shop.database.read(lambda c: drafts.order_states(c, [(case.id, 1)]))
    assert await recheck(assumed) == {}
    shop.rows = [order_row("in_transit", carrier="DHL", tracking="00340434161094042557", shipped_on="2026-10-29")]
    assert await recheck(assumed) == {}
    shop.rows = [order_row("delivered", carrier="DHL", tracking="00340434161094042557", delivered_on="2026-11-02")]
    assert await recheck(assumed) == {(case.id, 1): "order_changed"}
    shop.rows = []
    assert await recheck(assumed) == {(case.id, 1): "order_changed"}


async def test_nothing_is_drafted_twice_when_the_claim_is_lost(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    case_id = await shop.arrives(buyer_mail(WHERE_IS_IT))
    lookup = shop.lookup

    async def meanwhile(ids: Sequence[OrderId]) -> Mapping[OrderId, Sequence[Mapping[str, Any]]]:
        await shop.database.write(lambda c: drafts.withdraw(c, case_id, reason="answered_elsewhere", actor="chef", now=NOW))
        return await lookup(ids)

    shop.loop._lookup = meanwhile
    await shop.loop.run_until_idle()
    assert (await shop.case(case_id)).state == CaseState.WITHDRAWN
    assert await shop.all(drafts_table) == []
    assert (await shop.database.read(lambda c: outbox.outlook(c, "lampen")))[1] is None


async def test_a_new_model_looks_at_waiting_drafts_again(shop: Shop) -> None:
    shop.rows = [SHIPPED]
    agreed = await shop.after(buyer_mail(WHERE_IS_IT))
    other = await shop.after(
        buyer_mail(WHERE_IS_IT + " Please tell me.", number=2, sender="other7j2m9x4q1w8+77@marketplace.amazon.co.uk")
    )

    def as_if_labelled_otherwise(connection: Any) -> None:
        connection.execute(
            update(cases_table).where(cases_table.c.id == other.id).values(label="complaint", sublabel="service")
        )

    await shop.database.write(as_if_labelled_otherwise)
    profile = shop.loop._profiles
    assert await rescore(shop.database, lambda: shop, profile, model_version="model-1", now=NOW) == 0
    assert await rescore(shop.database, lambda: shop, profile, model_version="model-2", now=NOW) == 1
    assert (await shop.case(agreed.id)).model_version == "model-2"
    assert (await shop.case(other.id)).state == CaseState.RECEIVED
    await shop.loop.run_until_idle()
    decided = await shop.case(other.id)
    assert (decided.state, decided.label, decided.revision) == (CaseState.AWAITING_APPROVAL, "logistics_question", 2)


async def _many_write(shop: Shop, first: int, count: int) -> list[str]:
    """States of the cases of that many buyers who ask where their parcel is."""
    states = []
    for number in range(first, first + count):
        case = await shop.after(buyer_mail(WHERE_IS_IT, number=number, sender=f"k7j2m9x4q1w{number}@marketplace.amazon.co.uk"))
        states.append(case.state)
    return states


async def test_a_group_that_went_live_sends_more_by_itself_day_by_day(
    database: Database, clock: FixedClock, shipped_mind: Mind
) -> None:
    caps = Caps(auto_per_group_day=4, ramp_days=1)
    shop = Shop(database, clock, shipped_mind, caps=caps, sends=True, rows=[SHIPPED])
    await shop.loop.start()
    assert await _many_write(shop, 1, 3) == [CaseState.QUEUED, CaseState.QUEUED, CaseState.AWAITING_APPROVAL]
    asked = (await shop.all(cases_table))[-1]
    assert (asked.reason, asked.mode) == ("cap_ramp", "ask")
    by_itself, _, to_ask = await shop.all(drafts_table)
    assert b"Auto-Submitted: auto-replied" in by_itself.mime
    assert b"Auto-Submitted" not in to_ask.mime  # approved, it will be a person's mail
    assert len(await shop.all(outbox_table)) == 2
    again = Shop(database, clock, shipped_mind, caps=caps, sends=True, rows=[SHIPPED], _uids=itertools.count(100))
    await again.loop.start()  # as after a restart
    assert await _many_write(again, 4, 1) == [CaseState.AWAITING_APPROVAL]
    clock.advance(timedelta(hours=14))  # the next day has begun
    assert await _many_write(again, 5, 5) == [CaseState.QUEUED] * 4 + [CaseState.AWAITING_APPROVAL]


async def test_a_group_that_was_not_live_for_a_while_starts_small_again(
    database: Database, clock: FixedClock, shipped_mind: Mind
) -> None:
    caps = Caps(auto_per_group_day=4, ramp_days=1)
    shop = Shop(database, clock, shipped_mind, caps=caps, sends=True, rows=[SHIPPED])
    assert await _many_write(shop, 1, 1) == [CaseState.QUEUED]
    clock.advance(timedelta(hours=14))
    others = Shop(
        database,
        clock,
        shipped_mind,
        caps=caps,
        sends=True,
        rows=[SHIPPED],
        live_policies=("returns",),
        _uids=itertools.count(100),
    )
    await others.loop.start()
    assert await _many_write(others, 2, 1) == [CaseState.SHADOWED]
    back = Shop(database, clock, shipped_mind, caps=caps, sends=True, rows=[SHIPPED], _uids=itertools.count(200))
    await back.loop.start()
    assert await _many_write(back, 3, 3) == [CaseState.QUEUED, CaseState.QUEUED, CaseState.AWAITING_APPROVAL]


async def test_after_a_restore_a_person_sees_what_may_have_been_answered(
    database: Database, clock: FixedClock, shipped_mind: Mind
) -> None:
    """The backup knows neither the mail nor the answer of the time after it."""
    shop = Shop(database, clock, shipped_mind, sends=True, rows=[SHIPPED])
    assert (await shop.after(buyer_mail(WHERE_IS_IT))).state == CaseState.QUEUED
    stopped = await database.write(lambda c: backup.distrust(c, actor="cli:root", now=clock.now()))
    assert stopped == 1
    assert [(row.state, row.reason) for row in await shop.all(cases_table)] == [(CaseState.HUMAN, "restored")]
    assert await database.read(lambda c: settings.paused(c, "lampen")) is not None
    await shop.loop.start()
    before = await shop.after(buyer_mail(WHERE_IS_IT, number=2, sender="k7j2m9x4q1w2@marketplace.amazon.co.uk"))
    assert (before.state, before.reason) == (CaseState.HUMAN, "restored")
    clock.advance(timedelta(minutes=5))
    after = await shop.after(buyer_mail(WHERE_IS_IT, number=3, sender="k7j2m9x4q1w3@marketplace.amazon.co.uk"))
    assert after.state == CaseState.QUEUED
