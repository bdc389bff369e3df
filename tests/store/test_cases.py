"""Cases: stored once, claimed by one, understood against what came before."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from daemon.store import cases, folders
from daemon.store.db import Database
from daemon.store.tables import cases as table
from daemon.store.tables import events, records
from daemon.store.transitions import CASE_MOVES, IllegalMove, StaleMove, move_case
from daemon.vocab import CaseState, Kind
from tests.store.making import LEASE, WORKER, mail, open_inbox, outgoing, queue_reply, raw_mail, read_case, store_case


def test_storing_again_changes_nothing_and_the_cursor_only_grows(database: Database, now: datetime) -> None:
    batch = [mail(uid) for uid in (5, 3, 4)]
    database.write_now(lambda c: open_inbox(c, now, newest_uid=2))
    first = database.write_now(lambda c: cases.receive(c, batch, now=now))
    again = database.write_now(lambda c: cases.receive(c, [*batch, mail(6)], now=now))
    late = database.write_now(lambda c: cases.receive(c, [mail(2)], now=now))
    assert (len(first.case_ids), first.known, len(again.case_ids), again.known) == (3, 0, 1, 3)
    assert len(late.case_ids) == 1
    place = database.read_now(lambda c: folders.get(c, "shop", "INBOX"))
    assert place is not None
    assert place.last_uid == 6
    assert database.read_now(lambda c: cases.load_raw(c, first.case_ids[0])) == raw_mail(5)


def test_mail_of_a_past_epoch_is_refused(database: Database, now: datetime) -> None:
    database.write_now(lambda c: open_inbox(c, now))
    with pytest.raises(ValueError, match="epoch"):
        database.write_now(lambda c: cases.receive(c, [mail(1, uidvalidity=2)], now=now))


def test_a_new_epoch_puts_old_mail_under_review_and_later_mail_not(database: Database, now: datetime) -> None:
    database.write_now(lambda c: open_inbox(c, now, newest_uid=2))
    database.write_now(lambda c: cases.receive(c, [mail(3)], now=now))
    place = database.write_now(lambda c: open_inbox(c, now, newest_uid=40, uidvalidity=9))
    assert (place.last_uid, place.baseline_uid, place.review_uid) == (40, 0, 40)
    database.write_now(lambda c: cases.receive(c, [mail(7, uidvalidity=9), mail(41, uidvalidity=9)], now=now))
    rows = database.read_now(lambda c: c.execute(select(table.c.uid, table.c.review).order_by(table.c.id)).all())
    assert list(rows) == [(3, False), (7, True), (41, False)]


def test_message_id_is_taken_from_the_header_only(database: Database, now: datetime) -> None:
    raws = {
        1: b"Subject: x\r\nmessage-ID:\r\n <folded@x>\r\n\r\n",
        2: b"Subject: x\r\n\r\nMessage-ID: <body@x>\r\n",
        3: b"Message-ID: <two words@x>\r\n\r\n",
        4: b"Message-ID: <" + b"a" * 400 + b"@x>\r\n\r\n",
        5: b"",
    }
    database.write_now(lambda c: open_inbox(c, now))
    database.write_now(lambda c: cases.receive(c, [mail(u, raw=r) for u, r in raws.items()], now=now))
    found = database.read_now(lambda c: {r.uid: r.message_id for r in c.execute(select(table.c.uid, table.c.message_id))})
    assert found == {1: "<folded@x>", 2: None, 3: None, 4: None, 5: None}


def test_two_workers_never_hold_the_same_case(database: Database, now: datetime) -> None:
    for uid in range(1, 7):
        database.write_now(lambda c, uid=uid: store_case(c, uid, now))

    def take(worker: str) -> list[int]:
        claimed = database.write_now(lambda c: cases.claim(c, worker=worker, limit=4, lease=LEASE, max_attempts=3, now=now))
        return [c.case_id for c in claimed]

    one, two, three = take("a:1"), take("b:1"), take("a:1")
    assert len(one) == 4
    assert len(two) == 2
    assert not set(one) & set(two)
    assert three == []


def test_a_message_that_kills_its_reader_is_set_aside_and_can_be_released(database: Database, now: datetime) -> None:
    case_id = database.write_now(lambda c: store_case(c, 1, now))
    for attempt in range(1, 4):
        moment = now + attempt * 2 * LEASE
        (claimed,) = database.write_now(
            lambda c, m=moment: cases.claim(c, worker=WORKER, limit=4, lease=LEASE, max_attempts=3, now=m)
        )
        assert claimed.attempts == attempt
    after = now + 10 * LEASE
    assert database.write_now(lambda c: cases.claim(c, worker=WORKER, limit=4, lease=LEASE, max_attempts=3, now=after)) == []
    state = database.read_now(lambda c: c.execute(select(table.c.state, table.c.reason)).one())
    assert tuple(state) == ("broken", "too_many_attempts")
    assert database.write_now(lambda c: cases.release(c, case_id, actor="cli:ann", now=after)) is CaseState.BROKEN
    (claimed,) = database.write_now(lambda c: cases.claim(c, worker=WORKER, limit=4, lease=LEASE, max_attempts=3, now=after))
    assert claimed.attempts == 1


def test_only_the_message_that_kills_its_reader_is_blamed(database: Database, now: datetime) -> None:
    ids = [database.write_now(lambda c, u=u: store_case(c, u, now)) for u in range(1, 7)]
    killer = ids[3]

    def life(c):  # type: ignore[no-untyped-def]
        """Claim and settle until the killer is among the claimed: then nothing is settled."""
        cases.forget_leases(c, workers_like="here:")
        while True:
            claimed = cases.claim(c, worker=WORKER, limit=4, lease=LEASE, max_attempts=3, now=now)
            if not claimed or killer in [one.case_id for one in claimed]:
                return bool(claimed)
            for one in claimed:
                what = cases.Settlement(one.case_id, one.state, CaseState.HUMAN, "x")
                cases.settle(c, what, worker=WORKER, now=now)

    lives = 1
    while database.write_now(life):
        lives += 1
    states = database.read_now(lambda c: {r.id: r.state for r in c.execute(select(table.c.id, table.c.state))})
    assert states == {one: "broken" if one == killer else "human" for one in ids}
    assert lives == 4


def test_a_clock_set_back_does_not_lock_cases_away(database: Database, now: datetime) -> None:
    database.write_now(lambda c: store_case(c, 1, now))
    take = {"limit": 1, "lease": LEASE, "max_attempts": 3}
    database.write_now(lambda c: cases.claim(c, worker="a:1", now=now, **take))  # type: ignore[arg-type]
    past = now - timedelta(days=1)
    assert len(database.write_now(lambda c: cases.claim(c, worker="b:1", now=past, **take))) == 1  # type: ignore[arg-type]


def test_leases_of_an_earlier_run_end_at_start(database: Database, now: datetime) -> None:
    database.write_now(lambda c: store_case(c, 1, now))
    take = {"limit": 1, "lease": LEASE, "max_attempts": 3, "now": now}
    database.write_now(lambda c: cases.claim(c, worker="host_a:1", **take))  # type: ignore[arg-type]
    assert database.write_now(lambda c: cases.forget_leases(c, workers_like="hostXa:")) == 0
    assert database.write_now(lambda c: cases.forget_leases(c, workers_like="host_a:")) == 1
    assert len(database.write_now(lambda c: cases.claim(c, worker="host_a:2", **take))) == 1  # type: ignore[arg-type]


def test_the_same_message_twice_is_a_duplicate_and_only_then(database: Database, now: datetime) -> None:
    def scenario(c):  # type: ignore[no-untyped-def]
        first, copy, forged = (store_case(c, uid, now) for uid in (1, 2, 3))
        one = read_case(c, first, now, content_key="k1", message_id="<same@x>")
        cases.give_back(c, [copy, forged], worker=WORKER)
        two = read_case(c, copy, now, content_key="k1", message_id="<same@x>")
        cases.give_back(c, [forged], worker=WORKER)
        three = read_case(c, forged, now, content_key="k2", message_id="<same@x>")
        return first, one, two, three

    first, one, two, three = database.write_now(scenario)
    assert (one.duplicate_of, two.duplicate_of, three.duplicate_of) == (None, first, None)
    assert (one.reused_message_id, two.reused_message_id, three.reused_message_id) == (False, False, True)


def test_a_stranger_cannot_join_a_thread_and_the_buyer_can(database: Database, now: datetime) -> None:
    def scenario(c):  # type: ignore[no-untyped-def]
        case_id, _ = queue_reply(c, 1, now)
        ours = outgoing(case_id).message_id
        contexts = []
        for uid, sender, keys in (
            (2, "mallory@evil.test", ("order:1",)),
            (3, "Anna@buyers.test", ()),
            (4, "notice@shop.test", ("order:1",)),
        ):
            new = store_case(c, uid, now)
            answers = (ours,) if uid != 4 else ()
            contexts.append(read_case(c, new, now, sender=sender, answers=answers, thread_keys=keys, vouched=uid == 4))
        thread = c.execute(select(table.c.thread_id).where(table.c.id == case_id)).scalar_one()
        return thread, contexts

    thread, (stranger, buyer, notice) = database.write_now(scenario)
    assert stranger.thread_id != thread
    assert buyer.thread_id == thread
    assert notice.thread_id not in {thread, stranger.thread_id}, "a key that only a stranger set leads a notice nowhere"
    assert buyer.history.earlier_in_thread == 1
    assert buyer.history.replies_to_address_24h == 1
    assert stranger.history.replies_to_address_24h == 0


def test_a_vouched_notice_joins_by_a_vouched_key(database: Database, now: datetime) -> None:
    def scenario(c):  # type: ignore[no-untyped-def]
        first = store_case(c, 1, now)
        one = read_case(c, first, now, sender="a+1@relay.test", thread_keys=("order:7",), vouched=True)
        second = store_case(c, 2, now)
        two = read_case(c, second, now, sender="notice@shop.test", thread_keys=("order:7",), vouched=True, kind=Kind.SYSTEM)
        return one.thread_id, two.thread_id

    one, two = database.write_now(scenario)
    assert one == two


def test_the_marketplace_clock_starts_at_the_first_unanswered_message(database: Database, now: datetime) -> None:
    def scenario(c):  # type: ignore[no-untyped-def]
        first = store_case(c, 1, now)
        read_case(c, first, now, thread_keys=("t",))
        later = now + timedelta(hours=5)
        cases.settle(c, cases.Settlement(first, CaseState.RECEIVED, CaseState.HUMAN, "x"), worker=WORKER, now=now)
        second = store_case(c, 2, later)
        read_case(c, second, later, thread_keys=("t",))
        return list(c.execute(select(table.c.deadline_at).order_by(table.c.id)).scalars())

    assert database.write_now(scenario) == [now + timedelta(hours=24)] * 2


def test_settling_needs_the_claim_and_leaves_a_trail(database: Database, now: datetime) -> None:
    def scenario(c):  # type: ignore[no-untyped-def]
        case_id = store_case(c, 1, now)
        read_case(c, case_id, now)
        return case_id

    case_id = database.write_now(scenario)
    what = cases.Settlement(
        case_id, CaseState.RECEIVED, CaseState.HUMAN, "abstained", values={"label": "complaint"}, reading={"a": 1}
    )
    with pytest.raises(StaleMove):
        database.write_now(lambda c: cases.settle(c, what, worker="other:1", now=now))
    database.write_now(lambda c: cases.settle(c, what, worker=WORKER, now=now))
    with pytest.raises(StaleMove):
        database.write_now(lambda c: cases.settle(c, what, worker=WORKER, now=now))
    row = database.read_now(
        lambda c: c.execute(select(table.c.state, table.c.label, table.c.attempts, table.c.claimed_by)).one()
    )
    assert tuple(row) == ("human", "complaint", 0, None)
    trail = database.read_now(lambda c: c.execute(select(events.c.from_state, events.c.to_state)).all())
    assert list(trail) == [(None, "received"), ("received", "human")]
    assert database.read_now(lambda c: c.execute(select(records.c.reading)).scalar_one()) == {"a": 1}


def test_a_deferred_case_comes_back_when_due(database: Database, now: datetime) -> None:
    def defer(c):  # type: ignore[no-untyped-def]
        case_id = store_case(c, 1, now)
        read_case(c, case_id, now)
        due = {"due_at": now + timedelta(minutes=15)}
        cases.settle(
            c, cases.Settlement(case_id, CaseState.RECEIVED, CaseState.DEFERRED, "no_facts", due), worker=WORKER, now=now
        )

    database.write_now(defer)

    def take(moment: datetime) -> list[cases.Claimed]:
        return database.write_now(lambda c: cases.claim(c, worker=WORKER, limit=1, lease=LEASE, max_attempts=3, now=moment))

    assert take(now + timedelta(minutes=14)) == []
    assert database.read_now(cases.next_due) == now + timedelta(minutes=15)
    assert take(now + timedelta(minutes=15))[0].state is CaseState.DEFERRED


def test_rescan_sees_what_the_cursor_passed_over(database: Database, now: datetime) -> None:
    place = database.write_now(lambda c: open_inbox(c, now, newest_uid=10))
    database.write_now(lambda c: cases.receive(c, [mail(11), mail(13)], now=now))
    assert database.read_now(lambda c: folders.unknown_uids(c, place, [9, 10, 13, 12, 11, 14])) == [12, 14]
    many = list(range(11, 3000))
    assert len(database.read_now(lambda c: folders.unknown_uids(c, place, many))) == len(many) - 2
    assert database.read_now(lambda c: folders.oldest_uid_to_rescan(c, place, now)) == 11
    assert database.read_now(lambda c: folders.oldest_uid_to_rescan(c, place, now + timedelta(seconds=1))) == 14


@pytest.mark.parametrize("from_", list(CaseState))
def test_every_arrow_that_is_not_in_the_table_is_refused(sqlite_database: Database, now: datetime, from_: CaseState) -> None:
    case_id = sqlite_database.write_now(lambda c: store_case(c, 1, now))
    sqlite_database.write_now(lambda c: c.execute(table.update().values(state=from_.value)))
    for to in CaseState:
        before = sqlite_database.read_now(lambda c: len(c.execute(select(events.c.id)).all()))
        if to in CASE_MOVES[from_]:
            sqlite_database.write_now(lambda c, to=to: move_case(c, case_id, from_, to, reason="t", actor="t", now=now))
            sqlite_database.write_now(lambda c: c.execute(table.update().values(state=from_.value)))
            before += 1
        else:
            with pytest.raises(IllegalMove):
                sqlite_database.write_now(lambda c, to=to: move_case(c, case_id, from_, to, reason="t", actor="t", now=now))
        assert sqlite_database.read_now(lambda c: len(c.execute(select(events.c.id)).all())) == before


def test_hostile_lengths_fit(database: Database, now: datetime) -> None:
    def scenario(c):  # type: ignore[no-untyped-def]
        case_id = store_case(c, 1, now)
        read_case(c, case_id, now, sender="\x00\ud800" + "a" * 5000 + "@x.test", message_id="<" + "m" * 900 + "@x>")

    database.write_now(scenario)


def test_two_hosts_share_the_work(database: Database, connect, now: datetime) -> None:  # type: ignore[no-untyped-def]
    database.write_now(lambda c: [store_case(c, uid, now) for uid in range(1, 41)])
    other: Database = connect()
    jitter = random.Random(1)
    held: dict[str, list[int]] = {"a:1": [], "b:1": []}
    pending = True
    while pending:
        pending = False
        for worker, db in (("a:1", database), ("b:1", other)):
            got = db.write_now(
                lambda c, w=worker: cases.claim(c, worker=w, limit=jitter.randint(1, 5), lease=LEASE, max_attempts=3, now=now)
            )
            held[worker].extend(c.case_id for c in got)
            pending = pending or bool(got)
    everything = held["a:1"] + held["b:1"]
    assert len(everything) == len(set(everything)) == 40
    assert held["a:1"]
    assert held["b:1"]
