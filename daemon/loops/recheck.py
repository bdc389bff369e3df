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
from daemon.vocab import OrderFacts, OrderId, OrderState

OrderRows = Mapping[OrderId, Sequence[Mapping[str, Any]]]

#: States between which a reply stays true: what is on its way is on its way.
_ALIKE = {
    OrderState.PENDING: "not_left",
    OrderState.UNSHIPPED: "not_left",
    OrderState.SHIPPED: "moving",
    OrderState.IN_TRANSIT: "moving",
}


def order_state(facts: OrderFacts | None) -> dict[str, Any] | None:
    """What a draft takes for granted about its order; kept with it and compared before it leaves."""
    if facts is None:
        return None
    return {
        "shop": facts.shop,
        "order_id": facts.order_id,
        "state": OrderState.UNKNOWN.value if facts.stale else _ALIKE.get(facts.state, facts.state.value),
        "refunded": str(facts.refunded) if facts.refunded else None,
        "cancel_requested": bool(facts.cancel_requested),
        "return_state": facts.return_state,
    }


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
        return None if order_state(facts) == assumed else "order_changed"
