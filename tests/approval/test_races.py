"""Many approvers, many drafts, every mail twice, in any order: exactly one decision each."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy import Connection, func, select

from daemon.store import approvals
from daemon.store.approvals import Effect, Instruction
from daemon.store.db import Database
from daemon.store.tables import cases, drafts, events, outbox
from daemon.vocab import CaseState, Command, DraftState, Verb
from tests.approval import seeds

DRAFTS, APPROVERS = 1_000, 10
#: Enough for every pull request on both databases; benchmarks/approvals.py runs all of them.
SHORT = 120


def race(url: str, number: int, now: datetime, *, seed: int) -> Counter[str]:
    """Let ten approvers decide on ``number`` drafts through four connections at once, every mail delivered twice."""
    rng = random.Random(seed)
    database = Database(url)
    tokens: list[tuple[int, str, str]] = []

    def prepare(connection: Connection) -> None:
        for uid in range(number):
            case_id = seeds.add_case(connection, now=now, uid=uid + 1)
            seeds.add_draft(connection, case_id, now=now)
            for approver in range(APPROVERS):
                name = f"approver{approver}"
                tokens.append((case_id, name, seeds.add_request(connection, case_id, name, now=now)))

    database.write_now(prepare)
    mails = [*tokens, *tokens]
    rng.shuffle(mails)
    verbs = {mail: rng.choice([Verb.APPROVE, Verb.APPROVE, Verb.REJECT, Verb.TAKE, Verb.HOLD]) for mail in tokens}
    databases = [database, *(Database(url) for _ in range(3))]

    def deliver(worker: int) -> Counter[str]:
        done: Counter[str] = Counter()
        for case_id, name, token in mails[worker :: len(databases)]:
            verb = verbs[(case_id, name, token)]
            instruction = Instruction(
                case_id=case_id,
                revision=1,
                command=Command(verb, "3600" if verb is Verb.HOLD else ""),
                actor=name,
                used_by=f"mail:{worker}",
                proof="test",
                token_hash=token,
            )
            applied = databases[worker].write_now(
                lambda c, i=instruction: approvals.apply(c, i, undo_seconds=0, envelope_from=seeds.ADDRESS, now=now)  # type: ignore[misc]
            )
            done[applied.effect.value] += 1
        return done

    with ThreadPoolExecutor(len(databases)) as pool:
        counts: Counter[str] = sum(pool.map(deliver, range(len(databases))), Counter())
    for other in databases[1:]:
        other.close()
    database.read_now(lambda c: check(c, number))
    database.close()
    return counts


def check(connection: Connection, number: int) -> None:
    """Every case was decided once: one verdict on its draft, at most one reply, one event that ended the waiting."""
    fits = {
        CaseState.QUEUED.value: {DraftState.APPROVED.value},
        CaseState.DECLINED.value: {DraftState.REJECTED.value},
        # taken while it waited, or after another approver had stopped it in time
        CaseState.HUMAN.value: {DraftState.SUPERSEDED.value, DraftState.REJECTED.value},
        CaseState.AWAITING_APPROVAL.value: {DraftState.HELD.value, DraftState.REJECTED.value},
    }
    rows = connection.execute(
        select(cases.c.id, cases.c.state, drafts.c.state.label("draft"), drafts.c.decided_by).join(
            drafts, drafts.c.case_id == cases.c.id
        )
    ).all()
    assert len(rows) == number
    for row in rows:
        replies = connection.execute(
            select(outbox.c.state).where(outbox.c.case_id == row.id, outbox.c.kind == "buyer_reply")
        ).all()
        moves = connection.execute(
            select(func.count())
            .select_from(events)
            .where(events.c.case_id == row.id, events.c.from_state == "awaiting_approval", events.c.to_state == "queued")
        ).scalar_one()
        live = [r for r in replies if r.state != "cancelled"]
        assert len(live) == (row.state == CaseState.QUEUED.value)
        assert len(replies) <= 1
        assert moves <= 1
        assert row.draft in fits[row.state]


@pytest.mark.timeout(600)
def test_exactly_one_decision_each(database_url: str, now: datetime) -> None:
    counts = race(database_url, SHORT, now, seed=7)
    assert sum(counts.values()) == SHORT * APPROVERS * 2
    assert counts[Effect.REFUSED.value] > SHORT
