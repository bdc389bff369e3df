"""Order rows from reports: written in batches, looked up by primary key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from daemon.store.db import Database
from daemon.store.dialect import padded
from daemon.store.direct import fetch
from daemon.store.tables import orders, reports

#: Keys of one SELECT, under every database's limit of parameters.
_KEYS_AT_ONCE = 500
#: Fact rows kept of one order and report; a larger order is cut, and nothing is decided about it by itself.
_ROWS_OF_ONE_ORDER = 200

Key = tuple[str, str]


def save(connection: Connection, batch: Sequence[tuple[Key, dict[str, Any]]]) -> None:
    """Keep fact rows under their (shop, order id), the newest edition of each report.

    Rows of the edition that is already kept are added to it; those of an
    older one are left out; those of a newer one replace it.
    """
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for (shop, order_id), row in batch:
        grouped.setdefault((shop, order_id, str(row["report"])), []).append(row)
    keys = list(grouped)
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        _save_some(connection, {k: grouped[k] for k in keys[start : start + _KEYS_AT_ONCE]})


def _save_some(connection: Connection, grouped: dict[tuple[str, str, str], list[dict[str, Any]]]) -> None:
    kept: dict[tuple[str, str, str], Any] = {}
    for shop in {shop for shop, _, _ in grouped}:
        ids = {order_id for of, order_id, _ in grouped if of == shop}
        kept |= {(shop, r.order_id, r.report): r for r in fetch(connection, _KEPT, {"of": shop, "ids": padded(ids)})}
    fresh: list[dict[str, Any]] = []
    for key, rows in grouped.items():
        as_of, source = datetime.fromisoformat(rows[0]["as_of"]), str(rows[0]["source"])[:200]
        before = kept.get(key)
        if before is not None and before.source == source:
            rows = [*before.facts["rows"], *(r for r in rows if r not in before.facts["rows"])]
        elif before is not None and before.as_of > as_of:
            continue
        buyer = next((r["buyer_addr"] for r in rows if r.get("buyer_addr")), None)
        facts = {"buyer_addr": buyer, "rows": rows[:_ROWS_OF_ONE_ORDER]}
        if before is None:
            fresh.append(
                {"shop": key[0], "order_id": key[1], "report": key[2], "facts": facts, "as_of": as_of, "source": source}
            )
        else:
            where = (orders.c.shop == key[0]) & (orders.c.order_id == key[1]) & (orders.c.report == key[2])
            connection.execute(update(orders).where(where).values(facts=facts, as_of=as_of, source=source))
    if fresh:
        connection.execute(insert(orders), fresh)


# Not by rows of three values: SQLite would look through every order there is.
_KEPT = select(orders).where(orders.c.shop == bindparam("of"), orders.c.order_id.in_(bindparam("ids", expanding=True)))


def rows_of(connection: Connection, keys: Sequence[Key]) -> dict[Key, list[dict[str, Any]]]:
    """Every kept fact row of these orders."""
    found: dict[Key, list[dict[str, Any]]] = {k: [] for k in keys}
    ids_of: dict[str, list[str]] = {}
    for shop, order_id in found:
        ids_of.setdefault(shop, []).append(order_id)
    for shop, ids in ids_of.items():
        for start in range(0, len(ids), _KEYS_AT_ONCE):
            asked = {"of": shop, "ids": padded(ids[start : start + _KEYS_AT_ONCE])}
            for row in fetch(connection, _ROWS_OF, asked):
                found[shop, row.order_id].extend(row.facts["rows"])
    return found


_ROWS_OF = select(orders.c.order_id, orders.c.facts).where(
    orders.c.shop == bindparam("of"), orders.c.order_id.in_(bindparam("ids", expanding=True))
)


def record_report(connection: Connection, report: dict[str, Any]) -> None:
    """Note that a report was loaded, or why it could not be."""
    connection.execute(delete(reports).where(reports.c.path == report["path"]))
    connection.execute(insert(reports).values(**report))


def known_reports(connection: Connection) -> dict[str, tuple[str, datetime | None]]:
    """(digest, as of) of every report that was looked at, by path."""
    chosen = select(reports.c.path, reports.c.sha256, reports.c.as_of)
    return {r.path: (r.sha256, r.as_of) for r in connection.execute(chosen)}


def editions(connection: Connection) -> list[tuple[str, tuple[str, ...], datetime]]:
    """(kind, sites, as of) of every report that was loaded."""
    chosen = select(reports.c.kind, reports.c.sites, reports.c.as_of).where(reports.c.as_of.is_not(None), reports.c.rows > 0)
    return [(r.kind, tuple(r.sites or ()), r.as_of) for r in connection.execute(chosen)]


class OrderShelf:
    """The store's side of daemon.edges.orders.OrderBook, for plain threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, batch: Sequence[tuple[Key, dict[str, Any]]]) -> None:
        self._database.write_now(lambda c: save(c, batch))

    def rows_of(self, keys: Sequence[Key]) -> dict[Key, list[dict[str, Any]]]:
        return self._database.read_now(lambda c: rows_of(c, keys))

    def record_report(self, report: dict[str, Any]) -> None:
        self._database.write_now(lambda c: record_report(c, report))

    def known_reports(self) -> dict[str, tuple[str, datetime | None]]:
        return self._database.read_now(known_reports)

    def editions(self) -> list[tuple[str, tuple[str, ...], datetime]]:
        return self._database.read_now(editions)
