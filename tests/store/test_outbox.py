"""The outbox: at most once to buyers, at least once to staff, never silent."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from daemon.store import cases, outbox, settings
from daemon.store.db import Database
from daemon.store.tables import attempts
from daemon.store.tables import cases as case_table
from daemon.store.tables import outbox as table
from daemon.store.transitions import StaleMove
from daemon.vocab import CaseState, DeliveryKind, DeliveryState
from tests.store.making import WORKER, outgoing, queue_reply, read_case, store_case

BOOT = "boot-1"


def states(database: Database, delivery_id: int) -> tuple[str, str | None]:
    """The states of a delivery and of its case."""

    def look(c):  # type: ignore[no-untyped-def]
        row = c.execute(select(table.c.state, table.c.case_id).where(table.c.id == delivery_id)).one()
        case = c.execute(select(case_table.c.state).where(case_table.c.id == row.case_id)).scalar_one_or_none()
        return row.state, case

    found: tuple[str, str | None] = database.read_now(look)
    return found


def begin(database: Database, delivery_id: int, now: datetime, *, transmit: bool = True) -> None:
    database.write_now(lambda c: outbox.claim(c, outbox.get(c, delivery_id), boot_id=BOOT, now=now))
    if transmit:
        database.write_now(lambda c: outbox.begin_transmit(c, delivery_id, boot_id=BOOT, now=now))


@pytest.fixture
def queued(database: Database, now: datetime) -> tuple[int, int]:
    return database.write_now(lambda c: queue_reply(c, 1, now))


def test_the_way_of_a_reply_that_is_accepted(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    _, delivery = queued
    assert states(database, delivery) == ("queued", "queued")
    begin(database, delivery, now, transmit=False)
    assert states(database, delivery) == ("claimed", "sending")
    database.write_now(lambda c: outbox.begin_transmit(c, delivery, boot_id=BOOT, now=now))
    assert states(database, delivery) == ("transmitting", "sending")
    database.write_now(
        lambda c: outbox.accepted(c, outbox.get(c, delivery), boot_id=BOOT, code=250, reply="queued as 1", now=now)
    )
    assert states(database, delivery) == ("sent", "sent")
    tries = database.read_now(lambda c: c.execute(select(attempts.c.number, attempts.c.phase, attempts.c.code)).all())
    assert list(tries) == [(1, "accepted", 250)]


def test_a_case_has_one_reply_whatever_is_tried(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    case_id, delivery = queued
    assert database.write_now(lambda c: outbox.enqueue(c, outgoing(case_id), now=now)) == delivery
    second = outgoing(case_id, revision=2)
    with pytest.raises(outbox.AlreadyReplying):
        database.write_now(lambda c: outbox.enqueue(c, second, now=now))
    other_bytes = dataclasses.replace(outgoing(case_id, recipient="b@buyers.test"), dedupe_key=outgoing(case_id).dedupe_key)
    with pytest.raises(outbox.NotDeliverable):
        database.write_now(lambda c: outbox.enqueue(c, other_bytes, now=now))
    assert database.write_now(lambda c: outbox.cancel(c, case_id, now=now))
    assert database.write_now(lambda c: outbox.enqueue(c, second, now=now)) != delivery


@pytest.mark.parametrize(
    "change",
    [
        {"recipient": "a@b.test, c@d.test"},
        {"recipient": "a@b.test\r\nBcc: c@d.test"},
        {"recipient": "buyer@example.com)x@evil.com"},
        {"recipient": "<a@b.test>"},
        {"recipient": ""},
        {"recipient": "a@b.test\n"},
        {"message_id": "<a@b>\n"},
        {"recipient": "ä@b.test"},
        {"envelope_from": "a b@c.test"},
        {"message_id": "no brackets"},
        {"message_id": "<a@b>\r\nX: y"},
        {"sha256": "0" * 64},
        {"revision": None},
        {"case_id": None},
    ],
    ids=str,
)
def test_what_cannot_be_right_is_not_queued(database: Database, now: datetime, change: dict[str, object]) -> None:
    case_id = database.write_now(lambda c: store_case(c, 1, now))
    bad = dataclasses.replace(outgoing(case_id), **change)  # type: ignore[arg-type]
    with pytest.raises(outbox.NotDeliverable):
        database.write_now(lambda c: outbox.enqueue(c, bad, now=now))


def test_undo_window_and_cancel_against_claim(database: Database, now: datetime) -> None:
    later = now + timedelta(seconds=90)
    case_id, delivery = database.write_now(lambda c: queue_reply(c, 1, now, not_before=later))
    assert database.read_now(lambda c: outbox.due(c, "shop", now=now)) == []
    with pytest.raises(StaleMove):
        begin(database, delivery, now)
    assert [d.id for d in database.read_now(lambda c: outbox.due(c, "shop", now=later))] == [delivery]
    begin(database, delivery, later, transmit=False)
    assert not database.write_now(lambda c: outbox.cancel(c, case_id, now=later))


def test_pause_holds_buyer_mail_and_lets_staff_mail_go(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    notice = outgoing(None, recipient="ann@example.test", kind=DeliveryKind.STAFF_NOTICE)
    staff = database.write_now(lambda c: outbox.enqueue(c, notice, now=now))
    assert [d.id for d in database.read_now(lambda c: outbox.due(c, "shop", now=now))] == [staff, queued[1]]
    assert database.write_now(lambda c: settings.pause(c, actor="cli:ann", now=now))
    assert not database.write_now(lambda c: settings.pause(c, actor="cli:bob", now=now, mailbox="shop"))
    assert [d.id for d in database.read_now(lambda c: outbox.due(c, "shop", now=now))] == [staff]
    with pytest.raises(StaleMove, match="paused"):
        begin(database, queued[1], now)
    assert database.write_now(lambda c: settings.resume(c))
    assert not database.write_now(lambda c: settings.resume(c))
    begin(database, queued[1], now)


def test_a_failed_attempt_comes_back_after_the_backoff_and_gives_up_at_the_end(
    database: Database, now: datetime, queued: tuple[int, int]
) -> None:
    _, delivery = queued
    waits = []
    moment = now
    while states(database, delivery)[0] == "queued":
        begin(database, delivery, moment, transmit=False)
        database.write_now(
            lambda c, m=moment: outbox.deferred(c, delivery, boot_id=BOOT, phase="rcpt", code=451, reply="later", now=m)
        )
        row = database.read_now(lambda c: c.execute(select(table.c.not_before)).scalar_one())
        waits.append((row - moment).total_seconds())
        moment = max(row, moment)
    assert waits[:5] == [60, 120, 300, 900, 3600]
    assert states(database, delivery) == ("failed", "human")


def test_garbage_from_a_server_can_be_kept(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    begin(database, queued[1], now, transmit=False)
    garbage = "\x00\x01 \udc80\ud800 no" + "x" * 2000
    database.write_now(lambda c: outbox.refused(c, queued[1], boot_id=BOOT, phase="rcpt", code=550, reply=garbage, now=now))
    kept = database.read_now(lambda c: c.execute(select(table.c.smtp_reply)).scalar_one())
    assert kept.startswith("\ufffd\x01 \ufffd\ufffd no")
    assert len(kept) == 500


def test_trouble_with_the_account_burns_no_attempt(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    _, delivery = queued
    begin(database, delivery, now, transmit=False)
    until = now + timedelta(minutes=15)
    database.write_now(
        lambda c: outbox.postponed(c, delivery, boot_id=BOOT, until=until, phase="connect", reply="535", now=now)
    )
    row = database.read_now(lambda c: c.execute(select(table.c.attempts, table.c.not_before, table.c.state)).one())
    assert tuple(row) == (0, until, "queued")


def test_a_refusal_goes_to_a_person_and_makes_room(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    case_id, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.refused(c, delivery, boot_id=BOOT, phase="body", code=554, reply="no", now=now))
    assert states(database, delivery) == ("failed", "human")
    database.write_now(lambda c: outbox.enqueue(c, outgoing(case_id, revision=2), now=now))


def test_lost_after_data_is_searched_then_asked_and_resend_keeps_bytes(
    database: Database, now: datetime, queued: tuple[int, int]
) -> None:
    case_id, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.lost(c, delivery, boot_id=BOOT, reply="eof", now=now))
    assert states(database, delivery) == ("uncertain", "uncertain")
    assert database.read_now(lambda c: outbox.due(c, "shop", now=now + timedelta(days=9))) == []
    looks = 0
    moment = now
    while states(database, delivery)[0] == "uncertain":
        at = database.read_now(lambda c: outbox.outlook(c, "shop"))[1]
        assert at is not None
        assert at > moment
        moment = at
        (row,) = database.read_now(lambda c, m=moment: outbox.uncertain_due(c, "shop", now=m))
        database.write_now(lambda c, m=moment, r=row: outbox.no_evidence(c, r.id, search_minutes=30, now=m))
        looks += 1
    assert looks >= 5
    assert moment - now == timedelta(minutes=30)
    assert states(database, delivery) == ("needs_human", "uncertain")
    assert [d.id for d in database.read_now(outbox.needing_decision)] == [delivery]
    assert not database.write_now(lambda c: outbox.cancel(c, case_id, now=moment))
    database.write_now(lambda c: outbox.resend(c, delivery, actor="ann", now=moment))
    (again,) = database.read_now(lambda c: outbox.due(c, "shop", now=moment))
    assert again.mime == outgoing(case_id).mime
    assert again.message_id == outgoing(case_id).message_id
    assert not database.write_now(lambda c: outbox.cancel(c, case_id, now=moment)), "it may have arrived the first time"


def test_done_by_a_person(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    _, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.lost(c, delivery, boot_id=BOOT, reply="eof", now=now))
    database.write_now(lambda c: outbox.done(c, delivery, actor="ann", now=now))
    assert states(database, delivery) == ("sent", "sent")
    with pytest.raises(StaleMove):
        database.write_now(lambda c: outbox.resend(c, delivery, actor="ann", now=now))


@pytest.mark.parametrize("by", ["answer", "copy", "sent"])
def test_evidence_settles_what_is_uncertain(database: Database, now: datetime, queued: tuple[int, int], by: str) -> None:
    case_id, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.lost(c, delivery, boot_id=BOOT, reply="eof", now=now))
    ours = outgoing(case_id).message_id
    if by == "sent":
        assert database.write_now(lambda c: outbox.found_in_sent(c, delivery, now=now))
        assert not database.write_now(lambda c: outbox.found_in_sent(c, delivery, now=now))
    else:
        new = database.write_now(lambda c: store_case(c, 2, now))
        how = {"answers": (ours,)} if by == "answer" else {"message_id": ours}
        context = database.write_now(lambda c: read_case(c, new, now, **how))  # type: ignore[arg-type]
        assert context.proved == (delivery,)
    assert states(database, delivery) == ("sent", "sent")


def test_an_answer_that_comes_before_the_resend_stops_it(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    case_id, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.lost(c, delivery, boot_id=BOOT, reply="eof", now=now))
    database.write_now(lambda c: outbox.resend(c, delivery, actor="ann", now=now))
    assert database.write_now(lambda c: outbox.prove(c, "shop", [outgoing(case_id).message_id], now=now)) == [delivery]
    assert states(database, delivery) == ("sent", "sent")


def test_restart_queues_what_was_claimed_and_doubts_what_was_transmitting(database: Database, now: datetime) -> None:
    (_, claimed), (_, moving) = (database.write_now(lambda c, u=u: queue_reply(c, u, now)) for u in (1, 2))
    notice = outgoing(None, recipient="ann@example.test", kind=DeliveryKind.STAFF_NOTICE)
    staff = database.write_now(lambda c: outbox.enqueue(c, notice, now=now))
    begin(database, claimed, now, transmit=False)
    begin(database, moving, now)
    begin(database, staff, now)
    assert database.write_now(lambda c: outbox.recover(c, "shop", under_way=[claimed, moving, staff], now=now)) == (0, 0)
    assert database.write_now(lambda c: outbox.recover(c, "other", under_way=(), now=now)) == (0, 0)
    assert database.write_now(lambda c: outbox.recover(c, "shop", under_way=(), now=now)) == (1, 2)
    assert states(database, claimed) == ("queued", "queued")
    assert states(database, moving) == ("uncertain", "uncertain")
    assert states(database, staff) == ("queued", None)
    with pytest.raises(StaleMove):
        database.write_now(lambda c: outbox.begin_transmit(c, claimed, boot_id=BOOT, now=now))


def test_a_late_word_of_the_server_settles_what_another_run_doubted(
    database: Database, now: datetime, queued: tuple[int, int]
) -> None:
    _, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.recover(c, "shop", under_way=(), now=now))
    database.write_now(lambda c: outbox.accepted(c, outbox.get(c, delivery), boot_id=BOOT, code=250, reply="ok", now=now))
    assert states(database, delivery) == ("sent", "sent")


def test_withdrawing_a_reply_that_may_have_arrived_asks_a_person(
    database: Database, now: datetime, queued: tuple[int, int]
) -> None:
    case_id, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.lost(c, delivery, boot_id=BOOT, reply="eof", now=now))
    database.write_now(lambda c: outbox.resend(c, delivery, actor="ann", now=now))
    database.write_now(lambda c: outbox.withdraw(c, delivery, to=CaseState.RECEIVED, reason="order_changed", now=now))
    assert states(database, delivery) == ("needs_human", "uncertain")
    with pytest.raises(outbox.AlreadyReplying):
        database.write_now(lambda c: outbox.enqueue(c, outgoing(case_id, revision=2), now=now))


def test_withdrawing_a_fresh_reply_has_it_decided_anew(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    _, delivery = queued
    database.write_now(lambda c: outbox.withdraw(c, delivery, to=CaseState.RECEIVED, reason="order_changed", now=now))
    assert states(database, delivery) == ("cancelled", "received")


def test_a_refused_resend_still_blocks_a_second_reply(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    case_id, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.lost(c, delivery, boot_id=BOOT, reply="eof", now=now))
    database.write_now(lambda c: outbox.resend(c, delivery, actor="ann", now=now))
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.refused(c, delivery, boot_id=BOOT, phase="body", code=550, reply="no", now=now))
    assert states(database, delivery) == ("failed", "human")
    with pytest.raises(outbox.AlreadyReplying):
        database.write_now(lambda c: outbox.enqueue(c, outgoing(case_id, revision=2), now=now))


def test_a_bounce_reopens_the_case(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    case_id, delivery = queued
    ours = outgoing(case_id).message_id
    early = {"message_id": ours, "recipient": None, "reason": "550 no such user", "now": now}
    assert database.write_now(lambda c: outbox.bounced(c, "shop", **early)) is None, "nothing has left yet"  # type: ignore[arg-type]
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.accepted(c, outbox.get(c, delivery), boot_id=BOOT, code=250, reply="ok", now=now))
    assert database.write_now(lambda c: outbox.bounced(c, "other", **early)) is None  # type: ignore[arg-type]
    assert database.write_now(lambda c: outbox.bounced(c, "shop", **early)) == delivery  # type: ignore[arg-type]
    assert states(database, delivery) == ("bounced", "human")
    assert database.write_now(lambda c: outbox.bounced(c, "shop", **early)) is None, "told twice, done once"  # type: ignore[arg-type]


def test_a_notice_without_our_message_id_is_matched_by_its_only_recipient(database: Database, now: datetime) -> None:
    _, one = database.write_now(lambda c: queue_reply(c, 1, now))
    begin(database, one, now)
    database.write_now(lambda c: outbox.accepted(c, outbox.get(c, one), boot_id=BOOT, code=250, reply="ok", now=now))
    what = {"message_id": "<unknown@x>", "recipient": "Anna@buyers.test", "reason": "not passed on", "now": now}
    _, two = database.write_now(lambda c: queue_reply(c, 2, now))
    begin(database, two, now)
    assert database.write_now(lambda c: outbox.bounced(c, "shop", **what)) is None, "two could be meant"  # type: ignore[arg-type]
    database.write_now(lambda c: outbox.deferred(c, two, boot_id=BOOT, phase="body", code=451, reply="", now=now))
    database.write_now(lambda c: c.execute(table.update().where(table.c.id == two).values(transmitted_at=None)))
    assert database.write_now(lambda c: outbox.bounced(c, "shop", **what)) == one  # type: ignore[arg-type]


def test_overtaken_by_a_newer_message_of_the_buyer(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    case_id, _ = queued
    (row,) = database.read_now(lambda c: outbox.due(c, "shop", now=now))
    assert database.read_now(lambda c: outbox.overtaken(c, row)) is None
    later = now + timedelta(seconds=10)
    newer = database.write_now(lambda c: store_case(c, 2, later))
    database.write_now(lambda c: read_case(c, newer, later, answers=(outgoing(case_id).message_id,)))
    assert database.read_now(lambda c: outbox.overtaken(c, row)) == "being_read"

    def settle(to: CaseState) -> None:
        what = cases.Settlement(newer, CaseState.RECEIVED, to, "x")
        database.write_now(lambda c: cases.settle(c, what, worker=WORKER, now=later))

    settle(CaseState.IGNORED)
    assert database.read_now(lambda c: outbox.overtaken(c, row)) is None, "a thank-you changes nothing"
    database.write_now(lambda c: c.execute(case_table.update().where(case_table.c.id == newer).values(state="human")))
    assert database.read_now(lambda c: outbox.overtaken(c, row)) == "wrote_again"


def test_traffic_counts_what_left_and_nothing_else(database: Database, now: datetime) -> None:
    pairs = [database.write_now(lambda c, u=u: queue_reply(c, u, now)) for u in range(1, 5)]
    for _, delivery in pairs[:2]:
        begin(database, delivery, now)
    begin(database, pairs[2][1], now, transmit=False)
    row = database.read_now(lambda c: outbox.due(c, "shop", now=now))[0]

    def look(minutes: int) -> tuple[int, int, int]:
        moment = now + timedelta(minutes=minutes)
        left, _ = database.read_now(lambda c: outbox.left_in_hour(c, row.mailbox, besides=row.id, now=moment))
        seen = database.read_now(lambda c: outbox.traffic(c, row, now=moment))
        return left, seen.recipient_day, seen.automatic_recipient_day

    assert look(5) == (3, 3, 0), "one of them is under way"
    assert look(61) == (1, 3, 0)


def test_copies_for_the_sent_folder(database: Database, now: datetime, queued: tuple[int, int]) -> None:
    _, delivery = queued
    begin(database, delivery, now)
    database.write_now(lambda c: outbox.accepted(c, outbox.get(c, delivery), boot_id=BOOT, code=250, reply="ok", now=now))
    later = now + timedelta(minutes=1)
    assert database.read_now(lambda c: outbox.without_copy(c, "shop", before=now)) == []
    assert [d.id for d in database.read_now(lambda c: outbox.without_copy(c, "shop", before=later))] == [delivery]
    database.write_now(lambda c: outbox.copied(c, delivery, now=later))
    assert database.read_now(lambda c: outbox.without_copy(c, "shop", before=later)) == []


def test_every_state_can_be_left_or_is_an_end(now: datetime) -> None:
    from daemon.store.transitions import DELIVERY_MOVES

    assert set(DELIVERY_MOVES) == set(DeliveryState)
    ends = {state for state, to in DELIVERY_MOVES.items() if not to}
    assert ends == {DeliveryState.FAILED, DeliveryState.BOUNCED, DeliveryState.CANCELLED}
