"""Contexts for policy tests: a plain, unsuspicious message about a known order, changed where a test says so."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import Any

from daemon.playbook import OpenPlaybook, open_playbook
from daemon.steps.policy import PolicyContext
from daemon.vocab import (
    Binding,
    Flag,
    Fulfilment,
    GateVerdict,
    History,
    Kind,
    OrderFacts,
    OrderItem,
    OrderState,
    Parcel,
    Prediction,
    Verdict,
)

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
LABELS = ("cancellation_request", "logistics_question", "return_request", "complaint", "other")


@cache
def shipped() -> OpenPlaybook:
    """The playbook that ships."""
    return open_playbook()


def facts(**changes: Any) -> OrderFacts:
    """A shipped order of middle value, known since three hours."""
    base: dict[str, Any] = {
        "order_id": "026-4471926-8830517",
        "shop": "amazon",
        "state": OrderState.SHIPPED,
        "fulfilment": Fulfilment.FBM,
        "as_of": datetime(2026, 11, 24, 6, tzinfo=UTC),
        "source": "test",
        "site": "amazon.co.uk",
        "value": Decimal("64.90"),
        "currency": "GBP",
        "purchased_on": date(2026, 11, 16),
        "items": (OrderItem("Desk lamp", "LAMP-1"),),
        "parcels": (Parcel("DHL", "JJD000390007881254", date(2026, 11, 18), date(2026, 11, 27)),),
    }
    base.update(changes)
    base["state"], base["fulfilment"] = OrderState(base["state"]), Fulfilment(base["fulfilment"])
    return OrderFacts(**base)


def context(label: str, *, order: OrderFacts | None = None, **changes: Any) -> PolicyContext:
    """A message of that label (``label`` or ``label/sublabel``) about that order."""
    name, _, sublabel = label.partition("/")
    base: dict[str, Any] = {
        "verdict": Verdict(GateVerdict.REPLY, "buyer"),
        "kind": Kind.BUYER,
        "prediction": Prediction(name, sublabel or None, 0.99, {label: 0.99}, False, second=changes.pop("second", None)),
        "flags": frozenset(Flag(f) for f in changes.pop("flags", ())),
        "language": "en",
        "marketplace": "amazon",
        "site": "amazon.co.uk",
        "facts": order,
        "binding": Binding.RELAY if order else Binding.NO_ORDER,
        "authenticated": True,
        "relay": True,
        "now": NOW,
        "order_ids": ((order.order_id, "wrapper"),) if order else (),
        "history": History(templates_used_in_thread=changes.pop("templates", ()), earlier_in_thread=changes.pop("earlier", 0)),
    }
    base.update(changes)
    if base["marketplace"] in (None, "shopify", "etsy"):
        base["site"] = None
        base["relay"] = changes.get("relay", False)
    return PolicyContext(**base)
