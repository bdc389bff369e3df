"""Approval by reply, from the request in the outbox to the answer: the commands, one by one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from daemon.store import settings
from daemon.vocab import CaseState, Finding, Severity
from tests.approval import seeds
from tests.approval.office import APPROVERS, Office, encoded, quoted, reply, staff_reply_to, text_of


async def asked(office: Office) -> int:
    case_id = await office.draft_waits()
    await office.run_upkeep()
    return case_id


async def test_every_approver_is_asked_in_their_language(office: Office) -> None:
    case_id = await asked(office)
    notices = await office.notices(case_id)
    assert [n["To"] for n in notices] == ["anna.schmidt@staff.example", "li.wei@staff.example"]
    english, chinese = map(text_of, notices)
    assert "A reply is ready and waits for your word" in english
    assert "回复已拟好，等您一句话" in chinese
    for text in (english, chinese):
        for needed in (
            "302-1234567-1234567",
            "zerbrochen",
            "vase.jpg",
            "es tut uns leid",
            "return_request/damaged",
            "19.90 EUR",
            "91",
        ):
            assert needed in text


async def test_a_request_is_marked_and_threaded_and_its_subject_tells_no_secret(office: Office) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id)
    token = staff_reply_to(notice).partition("+")[2].partition("@")[0]
    assert len(token) == len("ok-") + 26
    assert token.removeprefix("ok-") not in str(notice["Subject"])
    assert str(notice["Subject"]) == f"[#{case_id}] return_request/damaged · 302-1234567-1234567 · 20 h left"
    assert str(notice["Auto-Submitted"]).startswith("auto-notified")
    assert notice["X-Auto-Response-Suppress"] == "All"
    assert notice.get_content_type() == "multipart/alternative"
    html = notice.get_body(("html",))
    assert html is not None
    assert "es tut uns leid" in html.get_content()
    assert token not in text_of(notice)
    office.clock.advance(timedelta(hours=5))
    await office.run_upkeep()
    later = await office.notice(case_id)
    assert later["References"] == notice["References"]


@pytest.mark.parametrize("who", ["anna", "liwei"])
@pytest.mark.parametrize("word", ["OK", "ok", "Approve.", "同意", "批准。", "ＯＫ"])
async def test_one_word_sends_the_reply(office: Office, who: str, word: str) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id, who)
    row = await office.arrive(reply(notice, f"{word}\n\n{quoted(notice)}", who=who))
    assert (row.state, row.reason) == (CaseState.APPLIED.value, "command")
    (sent,) = await office.buyer_replies(case_id)
    assert sent.recipient == seeds.BUYER
    assert (await office.case(case_id)).state == CaseState.QUEUED.value
    answer = text_of(await office.notice(case_id, who))
    assert ("Approved" if who == "anna" else "已同意") in answer


async def test_the_second_approver_is_told_who_decided(office: Office) -> None:
    case_id = await asked(office)
    first, second = await office.notice(case_id, "anna"), await office.notice(case_id, "liwei")
    await office.arrive(reply(first, "OK"))
    await office.arrive(reply(second, "同意", who="liwei"))
    assert len(await office.buyer_replies(case_id)) == 1
    answer = text_of(await office.notice(case_id, "liwei"))
    assert "anna 已于" in answer


async def test_no_to_the_confirmation_stops_the_reply(office: Office) -> None:
    case_id = await asked(office)
    await office.arrive(reply(await office.notice(case_id), "OK"))
    confirmation = await office.notice(case_id)
    office.clock.advance(timedelta(seconds=60))
    await office.arrive(reply(confirmation, "NO"))
    (sent,) = await office.buyer_replies(case_id)
    assert sent.state == "cancelled"
    assert (await office.case(case_id)).state == CaseState.DECLINED.value


async def test_another_approvers_no_asks_everybody_once_more(office: Office) -> None:
    case_id = await asked(office)
    other = await office.notice(case_id, "liwei")
    await office.arrive(reply(await office.notice(case_id), "OK"))
    await office.arrive(reply(other, "拒绝 金额不对", who="liwei"))
    await office.run_upkeep()
    again = await office.notice(case_id, "anna")
    assert "liwei stopped this reply" in text_of(again)
    assert (await office.case(case_id)).revision == 2
    await office.arrive(reply(again, "OK"))
    assert [r.state for r in await office.buyer_replies(case_id)] == ["cancelled", "queued"]


async def test_edit_sends_the_new_text_and_shows_it(office: Office) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id)
    body = "EDIT\nSehr geehrte Frau Keller,\n\nwir senden Ihnen eine neue Vase.\n\nIhr Vasenhaus\n\n-- \nAnna Schmidt\nStaff GmbH\n"
    await office.arrive(reply(notice, body + "\n" + quoted(notice)))
    (sent,) = await office.buyer_replies(case_id)
    assert sent.revision == 2
    answer = text_of(await office.notice(case_id))
    assert "exactly what the buyer will read" in answer
    assert "| wir senden Ihnen eine neue Vase." in answer
    assert "Staff GmbH" not in answer


async def test_an_edit_the_guard_objects_to_is_shown_again(office: Office) -> None:
    case_id = await asked(office)
    office.findings = (Finding("O14", Severity.HOLD, "erstattet"),)
    await office.arrive(reply(await office.notice(case_id), "EDIT\nWir haben Ihnen den Betrag heute erstattet, Ihr Vasenhaus"))
    assert await office.buyer_replies(case_id) == []
    await office.run_upkeep()
    again = text_of(await office.notice(case_id))
    assert "look at it once more" in again
    await office.arrive(reply(await office.notice(case_id), "OK"))
    assert [r.revision for r in await office.buyer_replies(case_id)] == [2]


async def test_an_edit_with_what_may_never_be_sent_is_refused(office: Office) -> None:
    case_id = await asked(office)
    office.findings = (Finding("O15", Severity.BLOCK, "{{ name }}"),)
    await office.arrive(reply(await office.notice(case_id), "EDIT\nSehr geehrte {{ name }}, wir senden Ihnen eine neue Vase."))
    assert await office.buyer_replies(case_id) == []
    assert (await office.case(case_id)).revision == 1
    assert "may never be sent" in text_of(await office.notice(case_id))


async def test_an_edit_that_reads_like_an_instruction_is_asked_back(office: Office) -> None:
    case_id = await asked(office)
    await office.arrive(reply(await office.notice(case_id), "EDIT\nplease make it friendlier and mention the coupon"))
    assert await office.buyer_replies(case_id) == []
    await office.run_upkeep()
    assert "like words to a colleague" in text_of(await office.notice(case_id))


async def test_label_hold_take_and_done(office: Office) -> None:
    one, two, three = [await asked(office) for _ in range(3)]
    await office.arrive(reply(await office.notice(one), "LABEL complaint/product"))
    assert (await office.case(one)).state == CaseState.RECEIVED.value
    await office.arrive(reply(await office.notice(two), "HOLD 4h"))
    assert (await office.case(two)).hold_until == office.clock.now() + timedelta(hours=4)
    await office.arrive(reply(await office.notice(three), "TAKE"))
    assert (await office.case(three)).owner == "anna"
    office.clock.advance(timedelta(hours=4))
    await office.run_upkeep()
    assert "hold on this draft is over" in text_of(await office.notice(two))
    await office.arrive(reply(await office.notice(three), "DONE"))
    assert (await office.case(three)).state == CaseState.CLOSED.value
    assert await office.buyer_replies() == []


async def test_a_held_draft_can_be_decided_early_from_the_answer(office: Office) -> None:
    case_id = await asked(office)
    await office.arrive(reply(await office.notice(case_id), "HOLD 4h"))
    await office.arrive(reply(await office.notice(case_id), "OK"))
    assert len(await office.buyer_replies(case_id)) == 1


async def test_stop_needs_no_request_and_everybody_hears(office: Office) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id)
    raw = reply(notice, "STOP", to=seeds.ADDRESS, thread=False, subject="stop")
    await office.arrive(raw)
    assert await office.database.read(lambda c: settings.paused(c, seeds.MAILBOX)) is not None
    texts = [text_of(n) for n in await office.notices()]
    assert any("已停止" in t or "停止了向买家发送" in t for t in texts)
    assert len([n for n in await office.notices() if "halt" in str(n["Subject"]).lower() or "停止" in str(n["Subject"])]) >= 2


@pytest.mark.parametrize("subject", ["STOP", "停止", "Stop!"])
async def test_a_subject_alone_can_stop(office: Office, subject: str) -> None:
    notice = await office.notice(await asked(office))
    await office.arrive(reply(notice, "", to=seeds.ADDRESS, thread=False, subject=encoded(subject)))
    assert await office.database.read(lambda c: settings.paused(c, seeds.MAILBOX)) is not None


async def test_a_reply_that_breaks_something_changes_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id)

    def fail(*_args: object, **_values: object) -> None:
        raise RuntimeError("the template is gone")

    monkeypatch.setattr(office.desk.staff, "render", fail)
    row = await office.arrive(reply(notice, "OK"))
    assert (row.state, row.reason) == (CaseState.BROKEN.value, "approval_failed")
    assert await office.buyer_replies() == []
    assert (await office.case(case_id)).state == CaseState.AWAITING_APPROVAL.value


async def test_without_plus_addressing_the_message_id_carries_it(office: Office) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id)
    await office.arrive(reply(notice, "OK", to=seeds.ADDRESS))
    assert len(await office.buyer_replies(case_id)) == 1


async def test_an_unclear_reply_is_answered_with_the_state(office: Office) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id)
    await office.arrive(reply(notice, "Looks good to me, but is the amount right?"))
    answer = await office.notice(case_id)
    assert "first line is no command" in text_of(answer)
    assert "it waits for a decision" in text_of(answer)
    assert answer["In-Reply-To"]
    await office.arrive(reply(answer, "OK"))
    assert len(await office.buyer_replies(case_id)) == 1


async def test_the_same_mail_again_changes_nothing(office: Office) -> None:
    case_id = await asked(office)
    raw = reply(await office.notice(case_id), "OK")
    for _ in range(3):
        await office.arrive(raw)
    assert len(await office.buyer_replies(case_id)) == 1


async def test_an_approvers_ordinary_mail_is_left_alone(office: Office) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id)
    before = len(await office.notices())
    row = await office.arrive(reply(notice, "Hi all, lunch at one?", to=seeds.ADDRESS, thread=False, subject="lunch"))
    assert row.state == CaseState.RECEIVED.value  # not an approval: the ordinary way of a mail
    assert len(await office.notices()) == before


async def test_answers_to_unclear_mail_end(office: Office) -> None:
    case_id = await asked(office)
    notice = await office.notice(case_id)
    for number in range(30):
        await office.arrive(reply(notice, f"what is this about? {number}"))
    assert len(await office.notices(case_id, to="anna")) <= 12
    assert await office.buyer_replies() == []


def test_the_configuration_names_who_is_next() -> None:
    assert [a.name for a in APPROVERS] == ["anna", "liwei", "chen"]
