"""Retention, erasure and export, on both databases."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select

from daemon.store import forgetting
from daemon.store.db import Database
from daemon.store.tables import approvals, cases, drafts, events, feedback, metadata, orders, outbox, raw_mail, records
from daemon.vocab import CaseState
from tests.conftest import NOW

BUYER = "anna.canary@postbox.example"


def _case(
    connection: Connection, state: CaseState, *, days: int = 0, sender: str = BUYER, marketplace: str | None = None
) -> int:
    """A case with a row in every table that hangs on it."""
    at = NOW - timedelta(days=days)
    uid = connection.execute(select(cases.c.id).order_by(cases.c.id.desc())).scalars().first() or 0
    case_id: int = connection.execute(
        insert(cases).values(
            mailbox="shop", folder="INBOX", uidvalidity=1, uid=uid + 1, message_id=f"<canary{uid}@x>", raw_sha256="0" * 64, size=9,
            truncated=False, review=False, received_at=at, state=state.value, sender=sender, order_id="canary-1",
            marketplace=marketplace, label="complaint", updated_at=at, revision=1,
        )
    ).inserted_primary_key[0]  # fmt: skip
    connection.execute(insert(raw_mail).values(case_id=case_id, body=b"canary raw"))
    connection.execute(insert(records).values(case_id=case_id, reading={"text": "canary"}, outcome={}, traceback=None))
    connection.execute(
        insert(events).values(
            case_id=case_id, at=at, to_state=state.value, reason="x", actor="postsale", detail={"a": "canary"}
        )
    )
    connection.execute(
        insert(drafts).values(
            case_id=case_id, revision=1, state="pending", subject="canary", body="canary", language="en", author="postsale",
            recipient=sender, message_id=f"<r{case_id}@shop>", mime=b"canary", mime_sha256="1" * 64, created_at=at,
        )
    )  # fmt: skip
    connection.execute(
        insert(approvals).values(
            token_hash=f"{case_id:064d}", purpose="decide", case_id=case_id, revision=1, mime_sha256="1" * 64, approver="li",
            approver_address="li@shop.example", notice_message_id=f"<n{case_id}@shop>", created_at=at, expires_at=at,
        )
    )  # fmt: skip
    connection.execute(
        insert(outbox).values(
            kind="buyer_reply", mailbox="shop", case_id=case_id, revision=1, recipient=sender, envelope_from="s@shop.example",
            message_id=f"<r{case_id}@shop>", dedupe_key=f"k{case_id}", mime=b"canary", mime_sha256="1" * 64,
            state="queued" if state is CaseState.QUEUED else "sent", not_before=at, created_at=at, updated_at=at,
        )
    )  # fmt: skip
    connection.execute(
        insert(feedback).values(case_id=case_id, at=at, by="li", text="canary", final="complaint/product", trained_in="m1")
    )
    return case_id


def _dump(connection: Connection) -> str:
    rows = [dict(r) for table in metadata.sorted_tables for r in connection.execute(select(table)).mappings()]
    return repr(rows)


def _states(connection: Connection) -> dict[int, str]:
    return {row.id: row.state for row in connection.execute(select(cases.c.id, cases.c.state))}


def test_ended_cases_lose_their_content_after_the_marketplaces_days(database: Database) -> None:
    def build(connection: Connection) -> list[int]:
        return [
            _case(connection, CaseState.SENT, days=31, marketplace="amazon"),
            _case(connection, CaseState.SENT, days=29, marketplace="amazon"),
            _case(connection, CaseState.SENT, days=31, marketplace="ebay"),
            _case(connection, CaseState.HUMAN, days=400, marketplace="amazon"),
        ]

    old, young, ebay, waiting = database.write_now(build)
    gone = database.write_now(
        lambda c: forgetting.purge_content(c, now=NOW, days=60, days_by_marketplace={"amazon": 30, "ebay": 90})
    )
    assert gone["raw_mail"] == 1
    left = set(database.read_now(lambda c: c.execute(select(raw_mail.c.case_id)).scalars().all()))
    assert left == {young, ebay, waiting}
    row = database.read_now(lambda c: c.execute(select(cases).where(cases.c.id == old)).mappings().one())
    assert (row["sender"], row["order_id"], row["label"], row["uid"]) == (None, None, "complaint", 1)


def test_bare_rows_labels_and_orders_go_in_their_own_time(database: Database) -> None:
    database.write_now(lambda c: _case(c, CaseState.CLOSED, days=800))
    kept = database.write_now(lambda c: _case(c, CaseState.CLOSED, days=10))
    database.write_now(lambda c: _order(c, days=40))
    assert database.write_now(lambda c: forgetting.purge_feedback(c, now=NOW, days=365)) == 1
    assert database.write_now(lambda c: forgetting.purge_orders(c, now=NOW, days=30)) == 1
    assert database.write_now(lambda c: forgetting.purge_cases(c, now=NOW, days=730)) == 1
    assert set(database.read_now(_states)) == {kept}


@pytest.mark.parametrize(
    "state", [s for s in CaseState if s not in {CaseState.SENDING, CaseState.UNCERTAIN}], ids=lambda s: s.value
)
def test_erasing_leaves_nothing_about_the_person(database: Database, state: CaseState) -> None:
    mine = database.write_now(lambda c: _case(c, state))
    other = database.write_now(lambda c: _case(c, CaseState.SENT, sender="someone@else.example"))
    database.write_now(lambda c: _order(c, days=0))
    gone = database.write_now(lambda c: forgetting.erase(c, BUYER.upper(), actor="cli:test", now=NOW))
    assert (gone["cases"], gone["not_yet"], gone["models"]) == ([mine], [], ["m1"])
    assert gone["gone"]["orders"] == 1
    assert BUYER not in database.read_now(_dump)
    content = database.read_now(lambda c: forgetting.export(c, mine))
    assert "canary" not in json.dumps(content)
    assert "canary" in json.dumps(database.read_now(lambda c: forgetting.export(c, other)))


@pytest.mark.parametrize("state", [CaseState.SENDING, CaseState.UNCERTAIN], ids=lambda s: s.value)
def test_a_reply_on_its_way_is_not_touched(database: Database, state: CaseState) -> None:
    mine = database.write_now(lambda c: _case(c, state))
    gone = database.write_now(lambda c: forgetting.erase(c, BUYER, actor="cli:test", now=NOW))
    assert (gone["cases"], gone["not_yet"]) == ([], [mine])
    assert database.read_now(_states) == {mine: state.value}


def test_an_export_holds_every_row_but_no_key(database: Database) -> None:
    case_id = database.write_now(lambda c: _case(c, CaseState.SENT))
    content: dict[str, Any] = database.read_now(lambda c: forgetting.export(c, case_id))
    assert {"case", "raw_mail", "records", "events", "drafts", "approvals", "outbox", "feedback"} <= set(content)
    assert content["raw_mail"][0]["body"] == "canary raw"
    assert "token_hash" not in json.dumps(content)


def _order(connection: Connection, *, days: int, at: datetime = NOW) -> None:
    connection.execute(
        insert(orders).values(
            shop="own",
            order_id=f"canary-{days}",
            report="own",
            facts={"buyer_addr": BUYER},
            as_of=at - timedelta(days=days),
            source="x",
        )
    )
