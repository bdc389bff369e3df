"""What is asked for every message costs the same on day one and after a million: each question goes by an index.

PostgreSQL chooses by statistics, so the plans are looked at on SQLite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection

from daemon.store import batches, cases, forgetting, labelling, orders, outbox, reports, requests
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.store.tables import metadata
from daemon.vocab import DeliveryKind, DeliveryState, Kind
from tests.store import making
from tests.store.watching import Asked, watched

NOW = datetime(2026, 11, 2, 10, tzinfo=UTC)


def _plans(connection: Connection, asked: Sequence[Asked]) -> list[str]:
    return [
        str(step[3])
        for statement, values, _ in asked
        for step in connection.connection.cursor()
        .execute(f"EXPLAIN QUERY PLAN {statement}", values[0] if values and isinstance(values[0], tuple) else values)
        .fetchall()
    ]


def _asked_by(tmp_path: Path, work: Callable[[Connection], object]) -> tuple[int, list[str]]:
    """How many statements that read a piece of work asks, and the steps of their plans."""
    database = Database(f"sqlite:///{tmp_path}/plans.db")
    upgrade(database)

    def unit(connection: Connection) -> tuple[int, list[str]]:
        with watched(connection) as all_asked:
            work(connection)
        asked = [each for each in all_asked if each.statement.startswith(("SELECT", "UPDATE", "DELETE"))]
        return len(asked), _plans(connection, asked)

    found = database.write_now(unit)
    database.close()
    return found


def test_the_history_of_a_message_is_found_by_indexes(tmp_path: Path) -> None:
    number, plans = _asked_by(
        tmp_path, lambda c: cases.history(c, "shop", sender="a@example.test", thread_id=7, before=9, now=NOW)
    )
    assert number == 5
    assert not [step for step in plans if step.startswith("SCAN")]
    for step in plans:
        if step.startswith("SEARCH outbox"):  # by time or by case, never everything that a mailbox ever sent
            assert "created_at>?" in step or "case_id=?" in step, step


def test_a_sender_with_nothing_to_do_looks_at_nothing_else(tmp_path: Path) -> None:
    def work(c: Connection) -> None:
        outbox.outlook(c, "shop")
        outbox.uncertain_due(c, "shop", now=NOW)
        outbox.without_copy(c, "shop", before=NOW)
        outbox.waiting(c, "shop", now=NOW)
        outbox.due(c, "shop", now=NOW)
        outbox.forget_notices(c, before=NOW)

    _, plans = _asked_by(tmp_path, work)
    searched = {step for step in plans if "outbox" in step}
    assert searched == {
        "SEARCH outbox USING COVERING INDEX ix_outbox_updated_at",  # its end
        "SEARCH outbox USING INDEX ix_outbox_kept (kind=? AND mailbox=?)",
        "SEARCH outbox USING INDEX ix_outbox_kept (kind=?)",
        "SEARCH outbox USING INDEX ix_outbox_state_not_before (state=?)",  # queued or uncertain ones
        "SEARCH outbox USING INTEGER PRIMARY KEY (rowid=?)",
    }


def test_the_last_look_at_a_reply_goes_by_its_thread_its_writer_and_the_last_hour(tmp_path: Path) -> None:
    row = outbox.Delivery(
        *(1, DeliveryKind.BUYER_REPLY, "shop", 1, 1, "a@b.test", "s@b.test", "<1@b>", b"", "", DeliveryState.QUEUED, NOW, 0),
        *("t", True, NOW, None, NOW, None),
    )

    def work(c: Connection) -> None:
        outbox.left_in_hour(c, row.mailbox, besides=row.id, now=NOW)
        outbox.traffic(c, row, now=NOW)
        outbox.overtaken(c, row)

    number, plans = _asked_by(tmp_path, work)
    assert number == 5
    assert {step.partition(" USING ")[2] for step in plans if "outbox" in step} == {
        "INDEX ix_outbox_mailbox_transmitted_at (mailbox=? AND transmitted_at>?)",
        "INDEX ix_outbox_mailbox_recipient_key (mailbox=? AND recipient_key=?)",
        "INDEX ix_outbox_state_not_before (state=?)",  # those that are about to leave
        "INDEX ix_outbox_case_id (case_id=?)",
    }


def test_a_start_looks_at_what_was_left_over_alone(tmp_path: Path) -> None:
    def work(c: Connection) -> None:
        cases.forget_leases(c, workers_like="host:")
        outbox.recover(c, "shop", under_way={1}, now=NOW)

    _, plans = _asked_by(tmp_path, work)
    assert {step for step in plans if "SEARCH" in step or "SCAN" in step} == {
        "SEARCH cases USING INDEX ix_cases_state_due (state=?)",
        "SEARCH outbox USING INDEX ix_outbox_state_not_before (state=?)",
    }


def test_messages_that_came_before_are_found_by_what_they_are(tmp_path: Path) -> None:
    """By Message-ID and content, an index for each: not by one of all that a mailbox ever received."""

    def work(c: Connection) -> None:
        making.read_case(c, making.store_case(c, 1, NOW), NOW)
        new = [making.store_case(c, uid, NOW) for uid in (2, 3, 4)]
        cases.claim(c, worker=making.WORKER, limit=10, lease=making.LEASE, max_attempts=3, now=NOW)
        strangers = [cases.Understood(f"{n}" * 64, f"<m{n}@buyers.test>", f"b{n}@buyers.test", Kind.BUYER) for n in new]
        batches.understand_many(
            c, [batches.Asked(n, s, 24) for n, s in zip(new, strangers, strict=True)], worker=making.WORKER, now=NOW
        )

    _, plans = _asked_by(tmp_path, work)
    assert not [step for step in plans if step.startswith("SCAN") or step.endswith("(mailbox=?)")]
    by_what_it_is = {step.partition(" USING INDEX ")[2] for step in plans if "ix_cases_mailbox" in step}
    assert by_what_it_is >= {
        "ix_cases_mailbox_message_id (mailbox=? AND message_id=?)",
        "ix_cases_mailbox_content_key (mailbox=? AND content_key=?)",
    }
    assert not [step for step in by_what_it_is if "content_key>" in step]


def test_a_report_is_loaded_by_the_keys_of_its_orders(tmp_path: Path) -> None:
    row = {"report": "orders", "as_of": NOW.isoformat(), "source": "report.txt", "buyer_addr": None}
    _, plans = _asked_by(tmp_path, lambda c: orders.save(c, [(("amazon", f"204-{n}"), row) for n in range(3)]))
    assert plans == ["SEARCH orders USING INDEX sqlite_autoindex_orders_1 (shop=? AND order_id=?)"]


def test_a_round_of_upkeep_goes_by_what_is_open(tmp_path: Path) -> None:
    def work(c: Connection) -> None:
        requests.unasked(c, "shop")
        requests.undecided(c, "shop")
        requests.unasked_people(c)
        requests.asked_since(c, "human", NOW)
        requests.unasked_uncertain(c)
        requests.due(c, now=NOW)
        requests.hold_over(c, now=NOW)
        requests.vetoed(c)
        requests.orphaned(c)
        requests.answerable(c, "shop")
        requests.next_due(c)

    _, plans = _asked_by(tmp_path, work)
    assert [step for step in plans if step.startswith("SCAN")] == ["SCAN approvals USING INDEX ix_approvals_live"]
    for step in plans:
        if "SEARCH cases" in step:
            assert "ix_cases_state_due (state=?" in step or "rowid=?" in step, step


def test_retention_goes_from_the_oldest_up_to_what_is_due(tmp_path: Path) -> None:
    def work(c: Connection) -> None:
        forgetting.purge_content(c, now=NOW, days=30, days_by_marketplace={"amazon": 20})
        forgetting.purge_cases(c, now=NOW, days=365)

    _, plans = _asked_by(tmp_path, work)
    assert {step for step in plans if "SEARCH" in step or "SCAN" in step} == {
        "SEARCH cases USING COVERING INDEX ix_cases_received_at (received_at<?)",
        "SEARCH raw_mail USING INTEGER PRIMARY KEY (rowid<?)",
        "SEARCH cases USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH cases USING INTEGER PRIMARY KEY (rowid<?)",
        "SEARCH copies USING INDEX ix_cases_duplicate_of (duplicate_of=?)",
    }


def test_a_row_that_goes_is_asked_after_by_indexes() -> None:
    """Each row that is removed has the database look for rows that name it."""
    for table in metadata.sorted_tables:
        led = {next(iter(index.columns.keys())) for index in table.indexes} | {table.primary_key.columns.keys()[0]}
        for key in table.foreign_keys:
            assert key.parent.name in led, f"{table.name}.{key.parent.name}"


@pytest.mark.parametrize("number", [1, 2, 4, 16, 64])
def test_mail_of_ours_is_found_by_its_names_however_many_they_are(tmp_path: Path, number: int) -> None:
    names = [f"<{n}@example.test>" for n in range(number)]

    def work(c: Connection) -> None:
        outbox.ours(c, "shop", names)
        outbox.prove(c, "shop", names, now=NOW)

    _, plans = _asked_by(tmp_path, work)
    assert {step for step in plans if "outbox" in step} == {
        "SEARCH outbox USING INDEX sqlite_autoindex_outbox_2 (message_id=?)"
    }


def test_status_goes_by_what_is_open_and_by_the_last_day(tmp_path: Path) -> None:
    def work(c: Connection) -> None:
        reports.overview(c, now=NOW)
        labelling.labelling(c, now=NOW, model_version="m")

    _, plans = _asked_by(tmp_path, work)
    for step in plans:
        for large in ("cases", "outbox", "records", "feedback"):
            if (
                f" {large}" in step and step != "SCAN cases"
            ):  # the newest case that was judged: from the end, at most a few rows
                assert step.startswith("SEARCH"), step
                assert any(key in step for key in ("state=?", "rowid=?", "received_at>?", "at>?")), step
