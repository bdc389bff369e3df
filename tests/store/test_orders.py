"""Order rows on the shelf: newest edition per report, by primary key, on both databases."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from daemon.store.db import Database
from daemon.store.orders import OrderShelf


def row(
    number: int, at: datetime, *, source: str = "a@1", report: str = "amazon_all_orders", **more: Any
) -> tuple[tuple[str, str], dict[str, Any]]:
    order = f"302-{number:07d}-0000001"
    return ("amazon", order), {
        "shop": "amazon",
        "order_id": order,
        "as_of": at.isoformat(),
        "source": source,
        "report": report,
        **more,
    }


def test_rows_of_one_edition_gather_and_a_newer_edition_replaces_them(database: Database, now: datetime) -> None:
    shelf = OrderShelf(database)
    key = row(1, now)[0]
    shelf.save([row(1, now, sku="A"), row(2, now)])
    shelf.save([row(1, now, sku="B")])
    assert [r["sku"] for r in shelf.rows_of([key])[key]] == ["A", "B"]
    shelf.save([row(1, now - timedelta(hours=1), source="old@2", sku="C")])
    assert [r["sku"] for r in shelf.rows_of([key])[key]] == ["A", "B"]
    shelf.save([row(1, now + timedelta(hours=1), source="new@3", sku="D")])
    assert [r["sku"] for r in shelf.rows_of([key])[key]] == ["D"]


def test_every_kind_of_report_keeps_its_own_rows(database: Database, now: datetime) -> None:
    shelf = OrderShelf(database)
    key = row(1, now)[0]
    shelf.save([row(1, now), row(1, now, report="amazon_unshipped", buyer_addr="x@marketplace.amazon.de")])
    assert {r["report"] for r in shelf.rows_of([key])[key]} == {"amazon_all_orders", "amazon_unshipped"}


def test_many_at_once_and_unknown_ones(database: Database, now: datetime) -> None:
    shelf = OrderShelf(database)
    shelf.save([row(n, now) for n in range(1300)])
    keys = [row(n, now)[0] for n in range(0, 2600, 2)]
    found = shelf.rows_of(keys)
    assert len(found) == 1300
    assert sum(map(len, found.values())) == 650


def test_reports_are_remembered(database: Database, now: datetime) -> None:
    shelf = OrderShelf(database)
    report = {
        "path": "/r/a.txt", "sha256": "1" * 64, "kind": "amazon_unshipped", "rows": 3, "refused": 0, "loaded_at": now, "problem": None, "as_of": now,
        "sites": ["amazon.de"],
    }  # fmt: skip
    shelf.record_report(report)
    shelf.record_report({**report, "sha256": "2" * 64})
    shelf.record_report({**report, "path": "/r/b.txt", "as_of": None, "problem": "the file is empty"})
    assert shelf.known_reports() == {"/r/a.txt": ("2" * 64, now), "/r/b.txt": ("1" * 64, None)}
    assert shelf.editions() == [("amazon_unshipped", ("amazon.de",), now)]
