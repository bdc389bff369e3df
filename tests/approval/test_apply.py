"""The one door for decisions: what each command does, and what it refuses."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from daemon.store import approvals, drafts, feedback, outbox, requests, settings
from daemon.store.approvals import Applied, Effect, Instruction
from daemon.store.db import Database
from daemon.store.tables import approvals as approvals_table
from daemon.store.tables import cases, events
from daemon.store.tables import outbox as outbox_table
from daemon.vocab import CaseState, Command, DeliveryState, DraftState, Verb
from tests.approval import seeds

UNDO = 90


def apply(connection: Connection, case_id: int, token: str | None, verb: Verb, now: datetime, **values: Any) -> Applied:
    who = values.pop("who", "anna")
    argument = values.pop("argument", "")
    instruction = Instruction(
        case_id=case_id,
        revision=values.pop("revision", 1),
        command=Command(verb, argument),
        actor=who,
        used_by="mail:99",
        proof="dmarc=pass by mx.shop.example",
        token_hash=token,
        **values,
    )
    return approvals.apply(connection, instruction, undo_seconds=UNDO, envelope_from=seeds.ADDRESS, now=now)


def state_of(connection: Connection, case_id: int) -> CaseState:
    return CaseState(connection.execute(select(cases.c.state).where(cases.c.id == case_id)).scalar_one())


def replies(connection: Connection, case_id: int) -> list[tuple[str, int]]:
    rows = connection.execute(
        select(outbox_table.c.state, outbox_table.c.revision)
        .where(outbox_table.c.case_id == case_id, outbox_table.c.kind == "buyer_reply")
        .order_by(outbox_table.c.id)
    )
    return [(row.state, row.revision) for row in rows]


@pytest.fixture
def waiting(database: Database, now: datetime) -> tuple[int, dict[str, str]]:
    """A case with one draft and three approvers who were asked."""

    def seed(connection: Connection) -> tuple[int, dict[str, str]]:
        case_id = seeds.add_case(connection, now=now)
        seeds.add_draft(connection, case_id, now=now)
        return case_id, {name: seeds.add_request(connection, case_id, name, now=now) for name in ("anna", "bo", "chen")}

    return database.write_now(seed)


def test_ok_queues_the_shown_bytes_after_the_undo_window(
    database: Database, waiting: tuple[int, dict[str, str]], now: datetime
) -> None:
    case_id, tokens = waiting
    done = database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now))
    assert done.effect is Effect.APPROVED
    assert done.not_before == now + timedelta(seconds=UNDO)

    def look(connection: Connection) -> None:
        assert state_of(connection, case_id) is CaseState.QUEUED
        row = connection.execute(select(outbox_table)).one()
        draft = drafts.load(connection, case_id)
        assert draft is not None
        assert (row.mime, row.recipient, row.not_before) == (draft.mime, seeds.BUYER, now + timedelta(seconds=UNDO))
        assert (draft.state, draft.decided_by) == (DraftState.APPROVED.value, "anna")
        event = connection.execute(select(events).where(events.c.to_state == "queued")).one()
        assert event.actor == "anna"
        assert event.detail["proof"] == "dmarc=pass by mx.shop.example"
        assert feedback.staff_label(connection, case_id) == "return_request/damaged"

    database.read_now(look)


def test_the_second_ok_learns_who_decided_when(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now))
    late = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.APPROVE, now + timedelta(seconds=30), who="bo"))
    assert (late.effect, late.reason, late.by, late.at) == (Effect.REFUSED, "already_decided", "anna", now)
    assert database.read_now(lambda c: replies(c, case_id)) == [("queued", 1)]


def test_a_token_works_once(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.HOLD, now, argument="3600"))
    again = database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now))
    assert (again.effect, again.reason) == (Effect.REFUSED, "token_used")
    assert database.read_now(lambda c: replies(c, case_id)) == []


def test_using_one_token_spends_the_approvers_other_ones(database: Database, now: datetime) -> None:
    def seed(connection: Connection) -> tuple[int, str, str]:
        case_id = seeds.add_case(connection, now=now)
        seeds.add_draft(connection, case_id, now=now)
        first = seeds.add_request(connection, case_id, "anna", now=now)
        return case_id, first, seeds.add_request(connection, case_id, "anna", now=now, purpose="reminder")

    case_id, first, second = database.write_now(seed)
    database.write_now(lambda c: apply(c, case_id, first, Verb.HOLD, now, argument="3600"))
    assert database.write_now(lambda c: apply(c, case_id, second, Verb.APPROVE, now)).reason == "token_used"


@pytest.mark.parametrize("what", ["unknown", "expired", "revoked", "other_case", "other_revision"])
def test_a_token_that_does_not_fit_changes_nothing(
    database: Database, waiting: tuple[int, dict[str, str]], now: datetime, what: str
) -> None:
    case_id, tokens = waiting
    token, at = tokens["anna"], now

    def spoil(connection: Connection) -> str:
        if what == "revoked":
            requests.revoke(connection, case_id, now=now)
        if what == "other_case":
            other = seeds.add_case(connection, now=now)
            seeds.add_draft(connection, other, now=now)
            return seeds.add_request(connection, other, "anna", now=now)
        if what == "other_revision":
            seeds.add_draft(connection, case_id, now=now, revision=2)
        return "0" * 64 if what == "unknown" else token

    token = database.write_now(spoil)
    if what == "expired":
        at = now + timedelta(hours=73)
    done = database.write_now(lambda c: apply(c, case_id, token, Verb.APPROVE, at))
    assert done.effect is Effect.REFUSED
    assert done.reason in {"unknown_token", "expired", "replaced", "not_waiting"}
    assert database.read_now(lambda c: replies(c, case_id)) == []
    assert database.read_now(lambda c: state_of(c, case_id)) is CaseState.AWAITING_APPROVAL


def test_other_bytes_than_the_shown_ones_are_never_approved(
    database: Database, waiting: tuple[int, dict[str, str]], now: datetime
) -> None:
    case_id, tokens = waiting
    database.write_now(
        lambda c: (
            c.execute(
                update(approvals_table).where(approvals_table.c.token_hash == tokens["anna"]).values(mime_sha256="f" * 64)
            ).rowcount
        )
    )
    assert database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now)).effect is Effect.REFUSED
    assert database.read_now(lambda c: replies(c, case_id)) == []


def test_no_declines(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    done = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.REJECT, now, who="bo", argument="wrong amount"))
    assert (done.effect, done.state) == (Effect.REJECTED, CaseState.DECLINED)
    late = database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now))
    assert (late.reason, late.by) == ("already_declined", "bo")
    assert database.read_now(lambda c: replies(c, case_id)) == []


def test_no_in_the_undo_window_by_the_same_person_takes_it_back(
    database: Database, waiting: tuple[int, dict[str, str]], now: datetime
) -> None:
    case_id, tokens = waiting
    database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now))
    done = database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.REJECT, now))
    assert (done.effect, done.state) == (Effect.UNDONE, CaseState.DECLINED)
    assert database.read_now(lambda c: replies(c, case_id)) == [("cancelled", 1)]


def test_no_in_the_undo_window_by_another_person_asks_once_more(
    database: Database, waiting: tuple[int, dict[str, str]], now: datetime
) -> None:
    case_id, tokens = waiting
    database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now))
    done = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.REJECT, now, who="bo"))
    assert (done.effect, done.state, done.by) == (Effect.VETOED, CaseState.AWAITING_APPROVAL, "anna")
    assert database.read_now(lambda c: replies(c, case_id)) == [("cancelled", 1)]
    assert [w.case_id for w in database.read_now(requests.vetoed)] == [case_id]


def test_no_after_the_attempt_began_is_too_late(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now))
    later = now + timedelta(seconds=UNDO)

    def claim(connection: Connection) -> None:
        (row,) = outbox.due(connection, seeds.MAILBOX, now=later)
        outbox.claim(connection, row, boot_id="boot", now=later)

    database.write_now(claim)
    done = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.REJECT, later, who="bo"))
    assert (done.effect, done.reason, done.by) == (Effect.REFUSED, "already_sent", "anna")
    assert database.read_now(lambda c: replies(c, case_id)) == [("claimed", 1)]


def test_edit_becomes_the_next_revision_and_goes(
    database: Database, waiting: tuple[int, dict[str, str]], now: datetime
) -> None:
    case_id, tokens = waiting
    revised = seeds.new_draft(case_id, 2, "Neuer Text\n", author="anna")
    done = database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.EDIT, now, revised=revised))
    assert (done.effect, done.revision) == (Effect.EDITED, 2)
    assert database.read_now(lambda c: replies(c, case_id)) == [("queued", 2)]
    late = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.APPROVE, now, who="bo"))
    assert (late.effect, late.reason, late.by) == (Effect.REFUSED, "already_decided", "anna")


def test_an_edit_to_look_at_again_waits(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    revised = seeds.new_draft(case_id, 2, "mach es kürzer\n", author="anna")
    done = database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.EDIT, now, revised=revised, look_again=True))
    assert (done.effect, done.state) == (Effect.ASKED_AGAIN, CaseState.AWAITING_APPROVAL)
    assert [w.revision for w in database.read_now(lambda c: requests.unasked(c, seeds.MAILBOX))] == [2]
    old = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.APPROVE, now, who="bo"))
    assert (old.effect, old.reason) == (Effect.REFUSED, "replaced")


def test_two_edits_of_one_revision_make_one_reply(
    database: Database, waiting: tuple[int, dict[str, str]], now: datetime
) -> None:
    case_id, tokens = waiting
    for who, text in (("anna", "eins\n"), ("bo", "zwei\n")):
        revised = seeds.new_draft(case_id, 2, text, author=who)
        database.write_now(lambda c, w=who, r=revised: apply(c, case_id, tokens[w], Verb.EDIT, now, who=w, revised=r))  # type: ignore[misc]
    assert database.read_now(lambda c: replies(c, case_id)) == [("queued", 2)]


def test_label_teaches_and_decides_anew(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    done = database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.LABEL, now, argument="complaint/product"))
    assert (done.effect, done.state) == (Effect.RELABELLED, CaseState.RECEIVED)
    assert database.read_now(lambda c: feedback.staff_label(c, case_id)) == "complaint/product"


def test_hold_comes_back(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.HOLD, now, argument="3600"))
    assert database.read_now(lambda c: requests.hold_over(c, now=now + timedelta(minutes=59))) == []
    over = database.read_now(lambda c: requests.hold_over(c, now=now + timedelta(minutes=60)))
    assert [w.case_id for w in over] == [case_id]


def test_take_is_for_one(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    done = database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.TAKE, now))
    assert (done.effect, done.state) == (Effect.TAKEN, CaseState.HUMAN)
    late = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.TAKE, now, who="bo"))
    assert (late.effect, late.reason, late.by) == (Effect.REFUSED, "someone_elses", "anna")
    assert database.read_now(requests.unasked_people) == []


def test_done_closes_a_case_that_was_taken(database: Database, now: datetime) -> None:
    def seed(connection: Connection) -> tuple[int, str]:
        case_id = seeds.add_case(connection, now=now, state=CaseState.HUMAN, owner="anna", revision=0)
        return case_id, seeds.add_request(connection, case_id, "anna", now=now, revision=0)

    case_id, token = database.write_now(seed)
    done = database.write_now(lambda c: apply(c, case_id, token, Verb.DONE, now, revision=0))
    assert (done.effect, done.state) == (Effect.CLOSED, CaseState.CLOSED)


@pytest.mark.parametrize(("verb", "effect", "state"), [
    (Verb.RESEND, Effect.RESENT, CaseState.QUEUED),
    (Verb.DONE, Effect.CONFIRMED, CaseState.SENT),
])  # fmt: skip
def test_a_reply_of_unknown_fate_is_decided_by_a_person(
    database: Database,
    waiting: tuple[int, dict[str, str]],
    now: datetime,
    verb: Verb,
    effect: Effect,
    state: CaseState,
) -> None:
    case_id, tokens = waiting
    later = now + timedelta(minutes=5)

    def lose(connection: Connection) -> None:
        apply(connection, case_id, tokens["anna"], Verb.APPROVE, now)
        (row,) = outbox.due(connection, seeds.MAILBOX, now=later)
        outbox.claim(connection, row, boot_id="boot", now=later)
        outbox.begin_transmit(connection, row.id, boot_id="boot", now=later)
        outbox.lost(connection, row.id, boot_id="boot", reply="connection lost", now=later)

    database.write_now(lose)
    done = database.write_now(lambda c: apply(c, case_id, tokens["bo"], verb, later, who="bo"))
    assert (done.effect, done.state) == (effect, state)
    assert database.read_now(lambda c: state_of(c, case_id)) is state
    stored = database.read_now(lambda c: replies(c, case_id))
    assert stored == [(DeliveryState.QUEUED.value if verb is Verb.RESEND else DeliveryState.SENT.value, 1)]


def test_stop_halts_everything_once(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    assert database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.STOP, now)).effect is Effect.STOPPED
    assert database.read_now(lambda c: settings.paused(c, seeds.MAILBOX)) is not None
    again = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.STOP, now, who="bo"))
    assert (again.effect, again.reason) == (Effect.REFUSED, "already_stopped")


@pytest.mark.parametrize("verb", list(Verb))
@pytest.mark.parametrize("state", [s for s in CaseState if s is not CaseState.BROKEN])
def test_no_command_breaks_in_any_state(sqlite_database: Database, now: datetime, state: CaseState, verb: Verb) -> None:
    database = sqlite_database

    def seed(connection: Connection) -> tuple[int, str]:
        case_id = seeds.add_case(connection, now=now, state=state)
        seeds.add_draft(connection, case_id, now=now)
        return case_id, seeds.add_request(connection, case_id, "anna", now=now)

    case_id, token = database.write_now(seed)
    revised = seeds.new_draft(case_id, 2, author="anna")
    argument = {Verb.HOLD: "3600", Verb.LABEL: "complaint"}.get(verb, "")
    done = database.write_now(lambda c: apply(c, case_id, token, verb, now, argument=argument, revised=revised))
    sent = database.read_now(lambda c: replies(c, case_id))
    if not (state is CaseState.AWAITING_APPROVAL and verb in {Verb.APPROVE, Verb.EDIT}) and not (
        state is CaseState.HUMAN and verb is Verb.EDIT
    ):
        assert sent == []
    if not done.changed:
        assert done.reason
        assert database.read_now(lambda c: state_of(c, case_id)) is state


def test_withdrawn_by_the_buyers_next_mail(database: Database, waiting: tuple[int, dict[str, str]], now: datetime) -> None:
    case_id, tokens = waiting
    database.write_now(lambda c: apply(c, case_id, tokens["anna"], Verb.APPROVE, now))
    assert database.write_now(lambda c: drafts.withdraw(c, case_id, reason="buyer_wrote_again", actor="postsale", now=now))
    assert database.read_now(lambda c: replies(c, case_id)) == [("cancelled", 1)]
    late = database.write_now(lambda c: apply(c, case_id, tokens["bo"], Verb.APPROVE, now, who="bo"))
    assert (late.effect, late.reason) == (Effect.REFUSED, "overtaken")
