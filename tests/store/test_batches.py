"""A batch comes to the same as its messages one by one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from daemon.store import batches, cases, feedback
from daemon.store import drafts as drafting
from daemon.store import outbox as outbox_store
from daemon.store.batches import Asked, Filing
from daemon.store.cases import Settlement, Understood
from daemon.store.db import Database
from daemon.store.drafts import NewDraft
from daemon.store.outbox import FirstReply
from daemon.store.tables import cases as table
from daemon.store.tables import drafts, events, outbox, records, thread_keys
from daemon.store.transitions import IllegalMove
from daemon.vocab import CaseState, DraftState, JsonText, Kind
from tests.store.making import WORKER, mail, open_inbox, outgoing, queue_reply, read_case, store_case

#: What a case says that does not depend on the numbers that the database gives out.
SAID = ("uid", "content_key", "message_id", "sender", "kind", "order_id", "state", "deadline_at", "attempts", "revision")

names = st.sampled_from(["", "ann@b.test", "Ann@B.test", "bob@b.test"])
some_ids = st.sampled_from(["<1@x>", "<2@x>", "<3@x>", "<ours@y>"])
messages = st.builds(
    Understood,
    content_key=st.sampled_from(["c1", "c2", "c3", "c4", "c5", "c6"]),
    message_id=st.none() | some_ids,
    sender=names,
    kind=st.sampled_from([Kind.BUYER, Kind.SYSTEM]),
    order_id=st.none() | st.sampled_from(["o1", "o2"]),
    thread_keys=st.lists(st.sampled_from(["order:1", "order:2", "relay:3"]), max_size=2).map(tuple),
    vouched=st.booleans(),
    answers=st.lists(some_ids, max_size=2).map(tuple),
)


def claimed(c: Connection, uids: Sequence[int], now: datetime) -> list[int]:
    ids = [store_case(c, uid, now) for uid in uids]
    c.execute(table.update().where(table.c.id.in_(ids)).values(claimed_by=WORKER))
    return ids


def told(c: Connection, ids: Sequence[int], contexts: Sequence[Any]) -> list[Any]:
    """Everything that is known of these cases, with threads and cases numbered by their first appearance here."""
    rows = {row.id: row for row in c.execute(select(table).where(table.c.id.in_(ids)))}
    threads: dict[Any, int] = {None: -1}
    order = {case_id: at for at, case_id in enumerate(ids)}
    found: list[Any] = []
    for case_id, context in zip(ids, contexts, strict=True):
        row = rows[case_id]
        thread = threads.setdefault(row.thread_id, len(threads))
        keys = set(c.execute(select(thread_keys.c.key).where(thread_keys.c.thread_id == row.thread_id)).scalars())
        twin = order.get(row.duplicate_of)
        assert context.thread_id == row.thread_id
        assert context.duplicate_of == row.duplicate_of
        said = {name: getattr(row, name) for name in SAID if name != "uid"}
        found.append((said, thread, twin, keys, context.history, context.reused_message_id, len(context.proved)))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(messages, max_size=2), batch=st.lists(messages, min_size=1, max_size=6), delivered=st.booleans())
def test_understanding_a_batch_is_understanding_each(
    sqlite_database: Database, now: datetime, before: list[Understood], batch: list[Understood], delivered: bool
) -> None:
    check_understanding(sqlite_database, now, before, batch, delivered)


@pytest.mark.postgresql
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(messages, max_size=2), batch=st.lists(messages, min_size=1, max_size=6), delivered=st.booleans())
def test_the_same_on_both_databases(
    database: Database, now: datetime, before: list[Understood], batch: list[Understood], delivered: bool
) -> None:
    check_understanding(database, now, before, batch, delivered)


class _TakeBack(Exception):
    pass


def check_understanding(
    database: Database, now: datetime, before: list[Understood], batch: list[Understood], delivered: bool
) -> None:
    def scenario(c: Connection, *, together: bool) -> list[Any]:
        uids = range(100, 100 + len(before) + len(batch))
        if delivered:
            queue_reply(c, 1, now)
            c.execute(outbox.update().values(message_id="<ours@y>", recipient_key="ann@b.test", created_at=now))
        ids = claimed(c, uids, now)
        contexts = [
            cases.understand(c, case_id, what, worker=WORKER, response_hours=24, now=now)
            for case_id, what in zip(ids, before, strict=False)
        ]
        later = ids[len(before) :]
        if together:
            asked = [Asked(case_id, what, 24) for case_id, what in zip(later, batch, strict=True)]
            known = batches.understand_many(c, asked, worker=WORKER, now=now)
            contexts += [one.context for one in known if one is not None]
        else:
            contexts += [
                cases.understand(c, case_id, what, worker=WORKER, response_hours=24, now=now)
                for case_id, what in zip(later, batch, strict=True)
            ]
        return told(c, ids, contexts)

    def tried(together: bool) -> list[Any]:
        found: list[Any] = []

        def unit(c: Connection) -> None:
            found.extend(scenario(c, together=together))
            raise _TakeBack  # each run finds the store as the one before it did

        with pytest.raises(_TakeBack):
            database.write_now(unit)
        return found

    assert tried(True) == tried(False)


def test_who_lost_the_claim_is_left_out_and_a_persons_label_is_seen(database: Database, now: datetime) -> None:
    def scenario(c: Connection) -> list[batches.Known | None]:
        lost, labelled, plain = claimed(c, (1, 2, 3), now)
        read_case(c, labelled, now, content_key="x", sender="x@b.test")
        c.execute(records.insert().values(case_id=labelled, reading={"text": "t", "subject": "s"}))
        feedback.learn(c, labelled, "complaint", by="ann", now=now)
        c.execute(table.update().where(table.c.id == lost).values(claimed_by="other:1"))
        asked = [
            Asked(case_id, Understood(f"k{case_id}", None, f"{case_id}@b.test", Kind.BUYER), 24)
            for case_id in (lost, labelled, plain)
        ]
        return batches.understand_many(c, asked, worker=WORKER, now=now)

    lost, labelled, plain = database.write_now(scenario)
    assert lost is None
    assert labelled is not None
    assert labelled.staff_label == "complaint"
    assert plain is not None
    assert plain.staff_label is None


def first_draft(case_id: int) -> NewDraft:
    mail_out = outgoing(case_id)
    return NewDraft(
        case_id=case_id,
        revision=1,
        subject="Re: x",
        body="b",
        language="en",
        template="en/x",
        policy="p",
        author="postsale",
        recipient=mail_out.recipient,
        message_id=mail_out.message_id,
        mime=mail_out.mime,
        sha256=mail_out.sha256,
    )


def understood(c: Connection, ids: Sequence[int], now: datetime) -> dict[int, int]:
    """Let every case be a message of its own buyer; returns their threads."""
    asked = [Asked(i, Understood(f"k{i}", None, f"{i}@b.test", Kind.BUYER), 24) for i in ids]
    c.execute(table.update().where(table.c.id.in_(ids)).values(claimed_by=WORKER))
    known = batches.understand_many(c, asked, worker=WORKER, now=now)
    c.execute(
        table.update().where(table.c.id.in_(ids)).values(content_key="same", sender="anna@buyers.test", duplicate_of=None)
    )
    return {i: one.context.thread_id for i, one in zip(ids, known, strict=True) if one is not None}


def settlement(case_id: int, to: CaseState) -> Settlement:
    values = {"label": "complaint", "due_at": None}
    texts = {"reading": JsonText('{"a": 1}'), "outcome": JsonText('{"b": [2]}')}
    return Settlement(case_id, CaseState.RECEIVED, to, "why", values=values, **texts)


def test_settling_a_batch_writes_what_settling_each_writes(database: Database, now: datetime) -> None:
    def rows(c: Connection, uids: Sequence[int]) -> list[Any]:
        found: list[Any] = []
        for uid in uids:
            row = c.execute(select(table).where(table.c.uid == uid)).one()
            said = [getattr(row, name) for name in SAID if name not in {"uid", "message_id"}]
            trail = c.execute(
                select(events.c.from_state, events.c.to_state, events.c.reason, events.c.actor, events.c.detail)
                .where(events.c.case_id == row.id)
                .order_by(events.c.id)
            ).all()
            kept = c.execute(
                select(records.c.reading, records.c.outcome, records.c.traceback).where(records.c.case_id == row.id)
            ).one()
            written = c.execute(
                select(drafts.c.state, drafts.c.body, drafts.c.findings, drafts.c.order_state, drafts.c.decided_at).where(
                    drafts.c.case_id == row.id
                )
            ).all()
            queued = c.execute(
                select(outbox.c.kind, outbox.c.state, outbox.c.template, outbox.c.automatic, outbox.c.not_before).where(
                    outbox.c.case_id == row.id
                )
            ).all()
            keys = c.execute(select(thread_keys.c.key).where(thread_keys.c.thread_id == row.thread_id)).all()
            found.append((said, row.label, row.claimed_by, row.lease_until, trail, kept, written, queued, len(keys)))
        return found

    to = (CaseState.HUMAN, CaseState.AWAITING_APPROVAL, CaseState.IGNORED, CaseState.QUEUED)
    state_of = {CaseState.AWAITING_APPROVAL: DraftState.PENDING, CaseState.QUEUED: DraftState.APPROVED}

    def scenario(c: Connection) -> tuple[list[Any], list[Any]]:
        together, apart = (1, 2, 3, 4), (5, 6, 7, 8)
        ids = [*claimed(c, together, now), *claimed(c, apart, now)]
        threads_of = understood(c, ids, now)
        filings = [
            Filing(
                settlement(i, t),
                first_draft(i) if t in state_of else None,
                state_of.get(t, DraftState.PENDING),
                FirstReply(outgoing(i), "en/x", threads_of[i]) if t is CaseState.QUEUED else None,
            )
            for i, t in zip(ids, to, strict=False)
        ]
        assert batches.settle_many(c, filings, worker=WORKER, now=now) == ids[:4]
        for case_id, state in zip(ids[4:], to, strict=True):
            cases.settle(c, settlement(case_id, state), worker=WORKER, now=now)
            if state in state_of:
                drafting.create(c, first_draft(case_id), state=state_of[state], now=now)
            if state is CaseState.QUEUED:
                outbox_store.enqueue(c, outgoing(case_id), now=now, template="en/x", automatic=True)
        return rows(c, together), rows(c, apart)

    together, apart = database.write_now(scenario)
    assert together == apart
    assert together[0][5].reading == {"a": 1}


def test_only_what_is_still_held_is_settled(database: Database, now: datetime) -> None:
    def scenario(c: Connection) -> tuple[list[int], list[int], list[str]]:
        ids = claimed(c, (1, 2, 3), now)
        c.execute(table.update().where(table.c.id == ids[0]).values(claimed_by="other:1"))
        c.execute(table.update().where(table.c.id == ids[1]).values(state=CaseState.HUMAN.value))
        filings = [Filing(settlement(i, CaseState.IGNORED)) for i in ids]
        done = batches.settle_many(c, filings, worker=WORKER, now=now)
        return ids, done, list(c.execute(select(table.c.state).order_by(table.c.id)).scalars())

    ids, done, states = database.write_now(scenario)
    assert done == ids[2:]
    assert states == ["received", "human", "ignored"]


def test_what_no_batch_can_settle_is_refused(database: Database, now: datetime) -> None:
    ids = database.write_now(lambda c: claimed(c, (1,), now))
    for filing, error in (
        (Filing(settlement(ids[0], CaseState.SENT)), IllegalMove),
        (Filing(Settlement(ids[0], CaseState.RECEIVED, CaseState.HUMAN, "x")), ValueError),
    ):
        with pytest.raises(error):
            database.write_now(lambda c, f=filing: batches.settle_many(c, [f], worker=WORKER, now=now))


def test_a_claim_takes_no_more_mail_than_it_may(database: Database, now: datetime) -> None:
    database.write_now(lambda c: open_inbox(c, now))
    raws = [b"x" * size for size in (400, 400, 400, 2000)]
    database.write_now(lambda c: cases.receive(c, [mail(u, raw=r) for u, r in enumerate(raws, 1)], now=now))
    take: dict[str, Any] = {
        "worker": WORKER, "limit": 10, "lease": timedelta(minutes=5), "max_attempts": 3, "now": now, "max_bytes": 1000,
    }  # fmt: skip
    taken = [[len(c.raw) for c in database.write_now(lambda c: cases.claim(c, **take))] for _ in range(3)]
    assert taken == [[400, 400], [400], [2000]]
