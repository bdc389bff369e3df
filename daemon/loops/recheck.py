"""Looks at an order once more, at the last moment before its reply leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from daemon.clock import Clock
from daemon.steps import enrich
from daemon.store import drafts
from daemon.store.db import Database
from daemon.vocab import OrderId

OrderRows = Mapping[OrderId, Sequence[Mapping[str, Any]]]


class Recheck:
    """Callable by the delivery loop: why a reply may no longer leave, or None."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        lookup: Callable[[Sequence[OrderId]], Awaitable[OrderRows]],
        stale_after: timedelta,
    ) -> None:
        self._db = database
        self._clock = clock
        self._lookup = lookup
        self._stale_after = stale_after

    async def __call__(self, case_id: int, revision: int) -> str | None:
        """``order_changed`` when the order is no longer what the draft took for granted."""

        def load(connection: Connection) -> dict[str, Any] | None:
            row = drafts.load(connection, case_id, revision)
            assumed: dict[str, Any] | None = row.order_state if row is not None else None
            return assumed

        assumed = await self._db.read(load)
        if assumed is None:
            return None
        order = OrderId(assumed["order_id"], assumed["shop"], "record")
        rows = (await self._lookup([order])).get(order, ())
        facts = enrich.merge(rows, self._clock.now(), self._stale_after) if rows else None
        return None if enrich.order_state(facts) == assumed else "order_changed"
