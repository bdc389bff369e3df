"""Looks at an order once more, at the last moment before its reply leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from daemon.clock import Clock
from daemon.steps import enrich
from daemon.store.agenda import Assumed, Reply
from daemon.vocab import OrderId

OrderRows = Mapping[OrderId, Sequence[Mapping[str, Any]]]


class Recheck:
    """Callable by the delivery loop: which replies may no longer leave, and why."""

    def __init__(
        self,
        *,
        clock: Clock,
        lookup: Callable[[Sequence[OrderId]], Awaitable[OrderRows]],
        stale_after: timedelta,
    ) -> None:
        self._clock = clock
        self._lookup = lookup
        self._stale_after = stale_after

    async def __call__(self, assumed: Assumed) -> dict[Reply, str]:
        """``order_changed`` for each reply whose order is no longer what its draft took for granted."""
        orders = {r: OrderId(a["order_id"], a["shop"], "record") for r, a in assumed.items() if a is not None}
        rows = await self._lookup(list(dict.fromkeys(orders.values()))) if orders else {}
        now = self._clock.now()
        changed: dict[Reply, str] = {}
        for reply, order in orders.items():
            if enrich.order_state_now(rows.get(order, ()), now, self._stale_after) != assumed[reply]:
                changed[reply] = "order_changed"
        return changed
