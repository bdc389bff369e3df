"""Drift: what the model did, what staff corrected, and when that is more than chance."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Connection, func, insert, select, update

from daemon.store import labelling
from daemon.store.db import Database
from daemon.store.labelling import Labelling
from daemon.store.tables import cases, feedback, records
from tests.conftest import NOW
from tests.store.making import store_case


def test_counts_of_the_model_in_force(database: Database) -> None:
    def fill(connection: object) -> None:
        for uid, (label, abstained, final, age, model) in enumerate(
            [
                ("complaint", False, "complaint/product", 1, "new"),
                ("complaint", True, "return_request/damaged", 2, "new"),
                ("other", False, None, 3, "new"),
                ("other", False, "complaint", 40, "new"),
                ("other", True, "complaint", 1, "old"),
            ],
            1,
        ):
            case_id = store_case(connection, uid, NOW)  # type: ignore[arg-type]
            connection.execute(  # type: ignore[attr-defined]
                update(cases)
                .where(cases.c.id == case_id)
                .values(label=label, kind="buyer", model_version=model, received_at=NOW - timedelta(days=age))
            )
            connection.execute(  # type: ignore[attr-defined]
                insert(records).values(case_id=case_id, reading={"prediction": {"abstained": abstained}})
            )
            if final:
                connection.execute(  # type: ignore[attr-defined]
                    insert(feedback).values(
                        case_id=case_id, at=NOW - timedelta(days=age), by="li", predicted=label, final=final
                    )
                )

    database.write_now(fill)
    seen = database.read_now(lambda c: labelling.labelling(c, now=NOW, model_version="new"))
    assert seen == Labelling("new", {"complaint": 2, "other": 1}, abstained=1, decided=2, corrected=1)
    assert database.read_now(lambda c: labelling.labelling(c, now=NOW)).model_version == "old"


def test_a_day_that_is_closed_is_not_counted_again(database: Database) -> None:
    def arrive(connection: Connection, uid: int, moment: datetime, model: str, abstained: bool) -> None:
        values = {"label": "complaint", "kind": "buyer", "model_version": model, "received_at": moment}
        connection.execute(update(cases).where(cases.c.id == store_case(connection, uid, NOW)).values(**values))
        case_id = connection.execute(select(func.max(cases.c.id))).scalar_one()
        connection.execute(insert(records).values(case_id=case_id, reading={"prediction": {"abstained": abstained}}))

    def all_closed(connection: Connection) -> int:
        days = 0
        while labelling.close_day(connection, now=NOW):
            days += 1
        return days

    def seen() -> tuple[int, int]:
        found = database.read_now(lambda c: labelling.labelling(c, now=NOW, model_version="m"))
        return found.labelled, found.abstained

    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    for uid, (moment, model, abstained) in enumerate(
        [
            (NOW, "m", True),
            (midnight, "m", False),
            (midnight - timedelta(seconds=1), "m", True),
            (midnight - timedelta(days=2), "m", False),
            (midnight - timedelta(days=2), "other", True),
        ],
        1,
    ):
        database.write_now(lambda c, what=(uid, moment, model, abstained): arrive(c, *what))  # type: ignore[misc]
    assert seen() == (4, 2)
    assert database.write_now(all_closed) == 30
    assert seen() == (4, 2)
    assert database.write_now(all_closed) == 0
    database.write_now(lambda c: arrive(c, 9, midnight - timedelta(days=1), "m", False))  # of a day that is closed
    database.write_now(lambda c: arrive(c, 10, NOW, "m", False))
    assert seen() == (5, 2)


@pytest.mark.parametrize(
    ("decided", "corrected", "expected", "drifted"),
    [(100, 30, 0.9, True), (100, 12, 0.9, False), (20, 20, 0.9, False), (100, 30, 0.0, False), (30, 1, 1.0, True)],
)
def test_drift_is_more_than_chance(decided: int, corrected: int, expected: float, drifted: bool) -> None:
    assert Labelling("m", {"other": decided}, 0, decided, corrected).drifted(expected) is drifted


def test_nothing_labelled_yet(database: Database) -> None:
    assert database.read_now(lambda c: labelling.labelling(c, now=NOW)).labelled == 0
