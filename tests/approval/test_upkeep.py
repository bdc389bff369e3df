"""What happens by itself and in time: reminders, the next approver, the alarm, expiry, holds, digests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import pytest

from daemon.clock import FixedClock
from daemon.config import RunMode
from daemon.errors import NeedsHuman, Transient
from daemon.loops.upkeep import PEOPLE_PER_HOUR, Approvals, Task, Upkeep
from daemon.store import drafts
from daemon.store.db import Database
from daemon.store.tables import outbox
from daemon.vocab import CaseState, DraftState
from daemon.worktime import Calendar
from tests.approval.office import Office, config, reply, text_of


async def to_whom(office: Office, case_id: int) -> list[str]:
    return [str(n["To"]).partition("@")[0] for n in await office.notices(case_id)]


async def test_reminders_come_in_business_hours(office: Office) -> None:
    case_id = await office.draft_waits(deadline=None)
    await office.run_upkeep()  # Monday 10:00 UTC: 11:00 in Berlin, 18:00 in Shanghai
    assert await to_whom(office, case_id) == ["anna.schmidt", "li.wei"]
    office.clock.advance(timedelta(hours=3, minutes=59))
    assert await office.run_upkeep() == 0
    office.clock.advance(timedelta(minutes=1))
    await office.run_upkeep()
    assert (await to_whom(office, case_id))[2:] == ["anna.schmidt"]
    assert "Reminder" in text_of(await office.notice(case_id))
    office.clock.advance(timedelta(hours=16))  # Tuesday 06:00 UTC: 14:00 in Shanghai
    await office.run_upkeep()
    assert "li.wei" in (await to_whom(office, case_id))[3:]


async def test_the_next_approver_is_asked_when_nobody_decides(office: Office) -> None:
    case_id = await office.draft_waits(deadline=None)
    await office.run_upkeep()
    for _ in range(30):
        office.clock.advance(timedelta(hours=1))
        await office.run_upkeep()
    notices = await office.notices(case_id, to="chen")
    assert len(notices) == 1
    assert "還沒有人" in text_of(notices[0])
    await office.arrive(reply(notices[0], "同意", who="chen"))
    assert len(await office.buyer_replies(case_id)) == 1


async def test_the_alarm_comes_before_the_deadline_at_any_hour(office: Office) -> None:
    case_id = await office.draft_waits(deadline=timedelta(hours=20))
    await office.run_upkeep()
    due = office.clock.now() + timedelta(hours=20)
    while office.clock.now() < due - timedelta(hours=4):
        assert not [n for n in await office.notices(case_id) if "ALARM" in text_of(n)]
        office.clock.advance(timedelta(minutes=30))
        await office.run_upkeep()
    alarms = [n for n in await office.notices(case_id) if "ALARM" in text_of(n) or "警报" in text_of(n) or "警報" in text_of(n)]
    assert sorted(str(n["To"]).partition("@")[0] for n in alarms) == ["anna.schmidt", "chen", "li.wei"]


async def test_every_notice_of_a_case_can_be_answered(office: Office) -> None:
    case_id = await office.draft_waits(deadline=timedelta(hours=20))
    await office.run_upkeep()
    for _ in range(20):
        office.clock.advance(timedelta(hours=1))
        await office.run_upkeep()
    first = (await office.notices(case_id, to="anna"))[0]
    await office.arrive(reply(first, "OK"))
    assert len(await office.buyer_replies(case_id)) == 1
    for notice in await office.notices(case_id, to="anna"):
        await office.arrive(reply(notice, "OK"))
    assert len(await office.buyer_replies(case_id)) == 1


async def test_expiry_never_sends(office: Office) -> None:
    case_id = await office.draft_waits(deadline=None)
    await office.run_upkeep()
    request = await office.notice(case_id)
    for _ in range(40):
        office.clock.advance(timedelta(hours=6))
        await office.run_upkeep()
    row = await office.case(case_id)
    assert (row.state, row.reason) == (CaseState.HUMAN.value, "approval_expired")
    draft = await office.database.read(lambda c: drafts.load(c, case_id))
    assert draft is not None
    assert draft.state == DraftState.EXPIRED.value
    await office.arrive(reply(request, "OK"))
    assert await office.buyer_replies() == []
    texts = [text_of(n) for n in await office.notices(case_id, to="anna")]
    assert any("nobody decided in time" in t for t in texts)


async def test_a_taken_case_is_left_in_peace(office: Office) -> None:
    case_id = await office.draft_waits()
    await office.run_upkeep()
    await office.arrive(reply(await office.notice(case_id), "TAKE"))
    before = len(await office.notices(case_id))
    for _ in range(30):
        office.clock.advance(timedelta(hours=6))
        await office.run_upkeep()
    assert len(await office.notices(case_id)) == before


async def test_those_who_were_asked_hear_of_a_withdrawal(office: Office) -> None:
    case_id = await office.draft_waits()
    await office.run_upkeep()
    request = await office.notice(case_id)
    await office.database.write(
        lambda c: drafts.withdraw(c, case_id, reason="buyer_wrote_again", actor="postsale", now=office.clock.now())
    )
    await office.run_upkeep()
    texts = [text_of(n) for n in (await office.notices(case_id))[2:]]
    assert len(texts) == 2
    assert "the buyer wrote again" in texts[0]
    assert "买家又来信了" in texts[1]
    await office.arrive(reply(request, "OK"))
    assert "was withdrawn" in text_of(await office.notice(case_id))
    assert await office.buyer_replies() == []
    before = len(await office.notices())
    await office.run_upkeep()
    assert len(await office.notices()) == before


async def test_a_case_for_a_person_is_told_and_can_be_answered(office: Office) -> None:
    case_id = await office.draft_waits(state=CaseState.HUMAN, reason="abstained")
    await office.run_upkeep()
    notice = await office.notice(case_id)
    assert "needs a person" in str(notice["Subject"])
    assert "the classifier is not sure" in text_of(notice)
    await office.run_upkeep()
    assert len(await office.notices(case_id, to="anna")) == 1
    await office.arrive(
        reply(notice, "EDIT\nSehr geehrte Frau Keller,\n\nwir prüfen das und melden uns bis Freitag.\n\nIhr Vasenhaus")
    )
    assert [r.revision for r in await office.buyer_replies(case_id)] == [2]


# --------------------------------------------------------------------------- digests


@pytest.fixture
def busy(sqlite_database: Database, clock: FixedClock) -> Office:
    """An office that gets a digest when more than four drafts wait."""
    return Office(
        sqlite_database, clock, config(digest_above=4, ok_all_low_max_value=25, ok_all_low_labels=("return_request",))
    )


async def digest_of(office: Office, number: int) -> list[int]:
    cases = [await office.draft_waits(deadline=timedelta(hours=10 + n)) for n in range(number)]
    await office.run_upkeep()
    return cases


async def test_many_drafts_come_in_one_mail(busy: Office) -> None:
    cases = await digest_of(busy, 8)
    notices = await busy.notices()
    assert len(notices) == 2
    text = text_of(notices[0])
    for line, case_id in enumerate(cases, 1):
        assert f"{line}. [#{case_id}]" in text


async def test_each_line_is_decided_once_and_answered(busy: Office) -> None:
    cases = await digest_of(busy, 8)
    anna, liwei = await busy.notices()
    await busy.arrive(reply(anna, "OK 1-3, 5\nNO 4 wrong amount\nHOLD 6 4h\nTAKE 7"))
    states = [(await busy.case(c)).state for c in cases]
    assert states == ["queued", "queued", "queued", "declined", "queued", "awaiting_approval", "human", "awaiting_approval"]
    answer = text_of((await busy.notices(to="anna"))[-1])
    assert [f"{n}. [#{cases[n - 1]}]" in answer for n in range(1, 8)] == [True] * 7
    await busy.arrive(reply(liwei, "同意 1-8", who="liwei"))
    assert len(await busy.buyer_replies()) == 5
    told = text_of((await busy.notices(to="liwei"))[-1])
    assert told.count("没有任何改变") == 7
    assert (await busy.case(cases[7])).state == "queued"


@pytest.mark.parametrize(
    "words",
    [
        "OK 1-50",
        "OK 0",
        "OK",
        "OK 1-3\nNO 2",
        "OK 3-1",
        "OK 1,1",
        "OK 1-3 but not 2",
        "1-3",
        "OK 1-3\nmaybe 4",
        "OK all",
        "OK 9",
    ],
)
async def test_an_unclear_digest_reply_changes_nothing(busy: Office, words: str) -> None:
    cases = await digest_of(busy, 8)
    await busy.arrive(reply((await busy.notices())[0], words))
    assert [(await busy.case(c)).state for c in cases] == ["awaiting_approval"] * 8


async def test_edit_in_a_digest(busy: Office) -> None:
    cases = await digest_of(busy, 5)
    await busy.arrive(
        reply((await busy.notices())[0], "OK 1\nEDIT 2\nSehr geehrte Frau Keller,\n\nwir senden Ersatz.\n\nIhr Vasenhaus")
    )
    assert [r.case_id for r in await busy.buyer_replies()] == cases[:2]


async def test_all_low_covers_what_the_operator_allows(busy: Office) -> None:
    small = {"facts": {"value": "19.90", "currency": "EUR"}, "decision": {"reasons": []}}
    large = {"facts": {"value": "199.00", "currency": "EUR"}, "decision": {"reasons": []}}
    plain = {"subject": "Paket", "text": "Ich schicke sie zurück.", "flags": [], "attachments": []}
    flagged = {**plain, "flags": ["legal"]}
    given = [(small, plain), (large, plain), (small, flagged), (small, plain), ({"facts": None}, plain)]
    cases = [await busy.draft_waits(outcome=o, reading=r, deadline=timedelta(hours=10 + n)) for n, (o, r) in enumerate(given)]
    await busy.run_upkeep()
    notice = (await busy.notices())[0]
    assert "(1, 4)" in text_of(notice)
    await busy.arrive(reply(notice, "OK ALL LOW"))
    assert [r.case_id for r in await busy.buyer_replies()] == [cases[0], cases[3]]


async def test_all_low_is_off_by_default(sqlite_database: Database, clock: FixedClock) -> None:
    office = Office(sqlite_database, clock, config(digest_above=4))
    await digest_of(office, 5)
    await office.arrive(reply((await office.notices())[0], "OK ALL LOW"))
    assert await office.buyer_replies() == []


async def test_a_trickle_is_gathered_while_many_wait(busy: Office) -> None:
    await digest_of(busy, 6)
    await busy.draft_waits(deadline=timedelta(hours=30))
    await busy.run_upkeep()
    assert len(await busy.notices()) == 2
    busy.clock.advance(timedelta(minutes=15))
    await busy.run_upkeep()
    assert len(await busy.notices()) == 4


# --------------------------------------------------------------------------- business hours


@pytest.mark.parametrize(
    ("start", "hours", "expected"),
    [
        (datetime(2026, 11, 2, 9, tzinfo=UTC), 4, datetime(2026, 11, 2, 13, tzinfo=UTC)),
        (datetime(2026, 11, 2, 15, tzinfo=UTC), 4, datetime(2026, 11, 3, 10, tzinfo=UTC)),  # to 17:00, then from 08:00
        (datetime(2026, 11, 6, 16, tzinfo=UTC), 4, datetime(2026, 11, 9, 11, tzinfo=UTC)),  # over a weekend
        (datetime(2026, 11, 7, 12, tzinfo=UTC), 1, datetime(2026, 11, 9, 9, tzinfo=UTC)),
        (datetime(2026, 10, 23, 15, tzinfo=UTC), 2, datetime(2026, 10, 26, 9, tzinfo=UTC)),  # summer time ends in between
        (datetime(2026, 12, 24, 16, tzinfo=UTC), 2, datetime(2026, 12, 28, 9, tzinfo=UTC)),  # Christmas
    ],
)
def test_business_hours_in_berlin(start: datetime, hours: float, expected: datetime) -> None:
    assert Calendar("Europe/Berlin", country="DE").after(start, hours) == expected


def test_a_calendar_without_working_time_counts_every_hour() -> None:
    start = datetime(2026, 11, 2, 9, tzinfo=UTC)
    assert Calendar("UTC", work_days=()).after(start, 4) == start + timedelta(hours=4)


async def test_tokens_are_forgotten_with_the_notices_that_carried_them(office: Office) -> None:
    case_id = await office.draft_waits()
    await office.run_upkeep()
    await office.database.write(lambda c: c.execute(outbox.update().values(state="sent")).rowcount)
    office.clock.advance(timedelta(hours=2))
    await office.upkeep.forget(office.clock.now())
    rows = await office.database.read(lambda c: c.execute(outbox.select().where(outbox.c.case_id == case_id)).all())
    assert [row.mime for row in rows] == [None, None]
    assert office.config.service.mode is RunMode.SHADOW


# --------------------------------------------------------------------------- replies that staff write themselves


async def test_a_reply_seen_in_sent_closes_or_withdraws(sqlite_database: Database, clock: FixedClock) -> None:
    office = Office(sqlite_database, clock)
    taken, waiting, other = [await office.draft_waits() for _ in range(3)]
    await office.run_upkeep()
    await office.arrive(reply(await office.notice(taken), "TAKE"))
    seen = {(await office.case(c)).message_id for c in (taken, waiting)}

    async def answered(mailbox: str, message_ids: Sequence[str], since: date) -> set[str]:
        assert (mailbox, since) == ("shop", clock.now().date())
        return seen & set(message_ids)

    office.upkeep = Approvals(office.desk, on_notice=lambda: None, answered=answered)
    await office.run_upkeep()
    states = [(await office.case(c)).state for c in (taken, waiting, other)]
    assert states == ["closed", "withdrawn", "awaiting_approval"]
    texts = [text_of(n) for n in await office.notices(waiting, to="anna")]
    assert any("your own reply was seen" in t for t in texts)


async def test_a_sent_folder_behind_a_refused_sign_in_is_left_alone(sqlite_database: Database, clock: FixedClock) -> None:
    office = Office(sqlite_database, clock)
    await office.draft_waits()
    tries: list[datetime] = []

    async def answered(_mailbox: str, _ids: Sequence[str], _since: date) -> set[str]:
        tries.append(clock.now())
        raise NeedsHuman("sign_in_needed", "run `postsale login shop` once")

    office.upkeep = Approvals(office.desk, on_notice=lambda: None, answered=answered)
    for _ in range(12):
        await office.upkeep.own_replies(clock.now())
        clock.advance(timedelta(minutes=5))
    assert len(tries) == 3


# --------------------------------------------------------------------------- trouble


async def test_one_case_that_cannot_be_shown_does_not_hold_up_the_others(office: Office) -> None:
    broken = await office.draft_waits(outcome={"facts": {"items": "not a list"}, "decision": {"reasons": 5}})
    fine = await office.draft_waits()
    await office.run_upkeep()
    assert await office.notices(broken) == []
    assert len(await office.notices(fine)) == 2


async def test_a_task_that_the_world_fails_leaves_the_others_alone(clock: FixedClock) -> None:
    done: list[str] = []

    async def fail(_now: datetime) -> int:
        raise Transient("the server is away")

    async def work(_now: datetime) -> int:
        done.append("work")
        return 0

    async def never() -> None:
        return None

    loop = Upkeep(tasks=(Task("fail", fail), Task("work", work)), clock=clock, next_due=never)
    assert (await loop.step()).done == 0
    assert done == ["work"]


async def test_a_flood_of_cases_for_people_does_not_flood_them(office: Office) -> None:
    for _ in range(PEOPLE_PER_HOUR + 5):
        await office.draft_waits(state=CaseState.HUMAN, reason="spam")
    await office.run_upkeep()
    assert len(await office.notices(to="anna")) == PEOPLE_PER_HOUR
    office.clock.advance(timedelta(hours=1, minutes=1))
    await office.upkeep.people(office.clock.now())
    assert len(await office.notices(to="anna")) == PEOPLE_PER_HOUR + 5
