"""Where order facts come from: reports in watched folders, a read-only query, a JSON endpoint.

:class:`OrderBook` is all that others need. It gives fact rows
(daemon.steps.enrich.ROW_FIELDS); putting them together is thinking and is
done there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from daemon.edges.orders.folder import FolderReports, MemoryShelf, Shelf
from daemon.edges.orders.formats import FORMATS
from daemon.edges.orders.live import HttpOrders, LiveSource, SqlOrders
from daemon.edges.orders.values import order_key
from daemon.errors import PostsaleError, Transient
from daemon.vocab import OrderId

__all__ = ["FolderReports", "HttpOrders", "LiveSource", "MemoryShelf", "OrderBook", "Shelf", "SqlOrders"]

#: (kind, sites, as of) of a report that was loaded.
Edition = tuple[str, tuple[str, ...], datetime]

_SNAPSHOTS = frozenset(f.kind for f in FORMATS if f.snapshot)


class OrderBook:
    """Every order source behind one question: what is known about these orders?"""

    def __init__(self, shelf: Shelf, *, folders: Sequence[FolderReports] = (), live: Sequence[LiveSource] = ()) -> None:
        self._shelf = shelf
        self._folders = tuple(folders)
        self._live = tuple(live)
        self._loading = asyncio.Lock()

    async def refresh(self) -> int:
        """Load new and changed reports; returns how many. Transient when a folder cannot be read."""
        async with self._loading:
            return sum([await asyncio.to_thread(folder.load_new, self._shelf) for folder in self._folders])

    async def lookup(self, order_ids: Sequence[OrderId], now: datetime) -> dict[OrderId, list[dict[str, Any]]]:
        """Fact rows of each order, from every source that knows its shop.

        Rows carry the id as it was asked for (#1001 also where the report says 1001). An order nobody
        knows has an empty list. Transient when an order was
        found nowhere while a source could not be asked: it may still be there.
        """
        if not order_ids:
            return {}
        keys = {o: order_key(o.shop, o.value) for o in order_ids}
        kept, editions = await asyncio.to_thread(self._kept, list(dict.fromkeys(keys.values())))
        found = {o: [_superseded({**r, "order_id": o.value}, editions) for r in kept[key]] for o, key in keys.items()}
        failure: PostsaleError | None = None
        for source in self._live:
            for order in order_ids:
                if order_key(source.shop, "")[0] != keys[order][0]:
                    continue
                try:
                    found[order].extend(await source.rows(order.value, now))
                except PostsaleError as error:
                    failure = error
        if failure is not None and not all(found.values()):
            raise Transient(str(failure)) from failure
        return found

    def _kept(self, keys: list[tuple[str, str]]) -> tuple[dict[tuple[str, str], list[dict[str, Any]]], Sequence[Edition]]:
        """Rows of reports, with every report's editions where the rows have to be compared with them."""
        rows = self._shelf.rows_of(keys)
        compared = any(row["report"] in _SNAPSHOTS for found in rows.values() for row in found)
        return rows, self._shelf.editions() if compared else ()

    async def ping(self) -> None:
        """Ask every source once. Raises Transient or Permanent from the first that does not answer."""
        for folder in self._folders:
            if not await asyncio.to_thread(folder.path.is_dir):
                raise Transient(f"order reports: {folder.path} is no folder")
        for source in self._live:
            await source.ping()

    async def close(self) -> None:
        """Give connections back."""
        for source in self._live:
            await source.close()


def _superseded(row: dict[str, Any], editions: Sequence[Edition]) -> dict[str, Any]:
    """The row without its state when a newer edition of the same snapshot no longer lists the order.

    The unshipped report lists what still has to leave. An order that is missing in a newer one has left or
    was cancelled; which, nobody said.
    """
    if row["report"] not in _SNAPSHOTS:
        return row
    as_of, site = datetime.fromisoformat(row["as_of"]), row.get("site")
    newer = any(
        kind == row["report"] and at > as_of and (not site or not sites or site in sites) for kind, sites, at in editions
    )
    return {k: v for k, v in row.items() if k not in ("state", "quantity_shipped")} if newer else row
