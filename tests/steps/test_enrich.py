"""Rows become facts, and facts are told only to the one they belong to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.steps.enrich import bind, facts_from_dict, facts_to_dict, merge, order_state, order_state_now
from daemon.steps.parse import parse
from daemon.vocab import Address, Binding, Envelope, Fulfilment, Kind, OrderId, OrderState
from tests.steps.cases import facts

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
DAY = timedelta(hours=24)
ID = "302-4471926-8830517"


def row(state: str | None = None, *, hours: float = 1, report: str = "a", **more: Any) -> dict[str, Any]:
    base = {
        "shop": "amazon",
        "order_id": ID,
        "as_of": (NOW - timedelta(hours=hours)).isoformat(),
        "source": f"{report}@{hours}",
        "report": report,
    }
    return {**base, **({"state": state} if state else {}), **more}


def state(*rows: dict[str, Any]) -> OrderState:
    found = merge(rows, NOW, DAY)
    assert found is not None
    return found.state


_SAID = st.fixed_dictionaries(
    {"hours": st.integers(0, 60), "report": st.sampled_from("abc")},
    optional={
        "state": st.sampled_from([state.value for state in OrderState]),
        "tracking": st.sampled_from(["", "1Z", "JJ"]),
        "shipped_on": st.sampled_from(["2026-11-20", "2026-11-22"]),
        "delivered_on": st.sampled_from(["2026-11-23", ""]),
        "return_state": st.sampled_from(["requested", "received", ""]),
        "refunded": st.sampled_from(["0", "12.50", 3, ""]),
        "cancel_requested": st.booleans(),
        "quantity": st.integers(1, 3),
        "returned_quantity": st.integers(1, 3),
        "title": st.just("Lamp"),
    },
)


@given(st.lists(_SAID, max_size=5))
def test_the_short_look_at_an_order_sees_what_the_whole_one_does(said: list[dict[str, Any]]) -> None:
    rows = [row(each.pop("state", None), **each) for each in said]
    assert order_state_now(rows, NOW, DAY) == order_state(merge(rows, NOW, DAY))


def test_nothing_gives_nothing() -> None:
    assert merge([], NOW, DAY) is None


def test_silence_is_unknown_and_never_unshipped() -> None:
    assert state(row()) is OrderState.UNKNOWN
    assert state(row(title="Lamp", quantity=1)) is OrderState.UNKNOWN


def test_the_furthest_state_counts() -> None:
    assert state(row("unshipped", report="a"), row("shipped", report="b", hours=5)) is OrderState.SHIPPED
    assert state(row("shipped", report="a"), row("delivered", report="b", hours=9)) is OrderState.DELIVERED
    assert state(row("unshipped", report="a"), row(report="b", hours=3, tracking="X1")) is OrderState.SHIPPED


def test_not_left_is_as_old_as_its_newest_word() -> None:
    found = merge([row("unshipped", report="a", hours=30), row("unshipped", report="b", hours=2)], NOW, DAY)
    assert found is not None
    assert not found.stale
    old = merge([row("unshipped", report="a", hours=30), row(report="b", hours=2, buyer_addr="x@y.example")], NOW, DAY)
    assert old is not None
    assert old.stale, "a fresh address does not make an old state fresh"


def test_all_parcels_must_have_arrived() -> None:
    first = row(report="p", tracking="1", delivered_on="2026-11-20", shipped_on="2026-11-18")
    second = row(report="p", tracking="2", shipped_on="2026-11-18")
    assert state(first, second) is OrderState.SHIPPED
    assert state(first, {**second, "delivered_on": "2026-11-21"}) is OrderState.DELIVERED


@pytest.mark.parametrize(
    ("cancelled_hours", "shipped_hours", "expected", "conflict"),
    [(1, 5, OrderState.CANCELLED, False), (5, 1, OrderState.UNKNOWN, True)],
)
def test_cancelled_or_gone(cancelled_hours: float, shipped_hours: float, expected: OrderState, conflict: bool) -> None:
    found = merge(
        [row("cancelled", hours=cancelled_hours, report="a"), row("shipped", hours=shipped_hours, report="b")], NOW, DAY
    )
    assert found is not None
    assert (found.state, found.conflict is not None) == (expected, conflict)


def test_cancelled_before_it_left() -> None:
    assert state(row("unshipped", hours=5, report="a"), row("cancelled", hours=1, report="b")) is OrderState.CANCELLED
    assert state(row("cancelled", hours=5, report="a"), row("unshipped", hours=1, report="b")) is OrderState.UNSHIPPED


@pytest.mark.parametrize(
    ("said", "shop", "fulfilment"),
    [
        (("FBA",), "amazon", Fulfilment.FBA), (("FBA", "FBM"), "amazon", Fulfilment.UNKNOWN), (("SFP", "FBM"), "amazon", Fulfilment.SFP), ((), "amazon", Fulfilment.UNKNOWN),
        (("FBA",), "shopify", Fulfilment.OWN), (("own",), "own", Fulfilment.OWN),
    ],
)  # fmt: skip
def test_who_ships(said: tuple[str, ...], shop: str, fulfilment: Fulfilment) -> None:
    rows = [row("shipped", report=str(n), fulfilment=f, shop=shop) for n, f in enumerate(said)] or [row("shipped", shop=shop)]
    found = merge([{**r, "shop": shop} for r in rows], NOW, DAY)
    assert found is not None
    assert found.fulfilment is fulfilment


def test_value_is_counted_once_though_two_reports_name_it() -> None:
    items = [
        {"title": "Lamp", "sku": "A", "price": "20.00", "shipping": "4.99", "quantity": 1},
        {"title": "Shade", "sku": "B", "price": "5.00", "quantity": 2},
    ]
    rows = [row("shipped", report=r, **i) for r in ("a", "b") for i in items]
    found = merge(rows, NOW, DAY)
    assert found is not None
    assert found.value == Decimal("29.99")
    assert [(i.sku, i.quantity) for i in found.items] == [("A", 1), ("B", 2)]


def test_facts_survive_json() -> None:
    import json

    original = facts(refunded=Decimal("3.50"), cancel_requested=True, stale=True)
    assert facts_from_dict(json.loads(json.dumps(facts_to_dict(original)))) == original


# --------------------------------------------------------------------------- may this writer be told?


def envelope(
    addr: str, *, relay: bool, place: str = "wrapper", order_id: str = ID, marketplace: str | None = "amazon"
) -> Envelope:
    return Envelope(
        marketplace=marketplace, site=None, kind=Kind.BUYER, notice=None, inner="", order_ids=(OrderId(order_id, "amazon", place),),
        reply_to=Address("", addr), relay=relay, relay_case=None, thread_keys=(), buyer_name=None, item=None, no_response_url=None, suspicions=(),
    )  # fmt: skip


ALIAS = "abc123@marketplace.amazon.de"


@pytest.mark.parametrize(
    ("writer", "relay", "place", "owner", "binding"),
    [
        (ALIAS, True, "body", ALIAS, Binding.OWNER),
        ("abc123+9f2d@marketplace.amazon.de", True, "wrapper", ALIAS, Binding.OWNER),
        ("ABC123@Marketplace.Amazon.de", True, "wrapper", ALIAS, Binding.OWNER),
        ("zzz999@marketplace.amazon.de", True, "wrapper", ALIAS, Binding.STRANGER),
        ("zzz999@marketplace.amazon.de", True, "wrapper", None, Binding.RELAY),
        ("zzz999@marketplace.amazon.de", True, "subject", None, Binding.RELAY),
        ("zzz999@marketplace.amazon.de", True, "body", None, Binding.UNPROVED),
        ("zzz999@marketplace.amazon.de", True, "quote", None, Binding.UNPROVED),
        ("harriet@mail.example", False, "body", "harriet@mail.example", Binding.OWNER),
        ("harriet@mail.example", False, "subject", "otto@mail.example", Binding.STRANGER),
        ("harriet+x@mail.example", False, "body", "harriet@mail.example", Binding.STRANGER),
        ("harriet@mail.example", False, "wrapper", None, Binding.UNPROVED),
    ],
)
def test_binding(writer: str, relay: bool, place: str, owner: str | None, binding: Binding) -> None:
    mail = parse(b"From: x@y.example\r\n\r\nhello\r\n")
    found = bind(envelope(writer, relay=relay, place=place), mail, facts(order_id=ID, buyer_addr=owner))
    assert found is binding
    assert found.discloses == (binding in (Binding.OWNER, Binding.RELAY))


def test_no_order_is_no_order() -> None:
    assert bind(envelope(ALIAS, relay=True), parse(b"From: x@y.example\r\n\r\nhi\r\n"), None) is Binding.NO_ORDER
