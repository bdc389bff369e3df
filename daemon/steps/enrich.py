"""Rows of order reports become one fact per order, and who may be told about it.

A row is a JSON-able mapping with the names of :data:`ROW_FIELDS`; dates are
ISO 8601, amounts decimal strings. Several rows may speak of one order: one
per item, per parcel, per report. Every statement keeps the time it was true
(``as_of``); the newest wins where two disagree, and what nobody states stays
unknown. Unknown is never "not shipped".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from daemon.vocab import (
    Binding,
    Envelope,
    Fulfilment,
    OrderFacts,
    OrderItem,
    OrderState,
    Parcel,
    ParsedMail,
)

Row = Mapping[str, Any]

#: What a fact row may say, and what it means. Only shop, order_id, as_of and source must be there.
ROW_FIELDS: Mapping[str, str] = {
    "shop": "amazon, ebay, walmart, etsy, shopify or own",
    "order_id": "order id as the buyer sees it",
    "as_of": "when the source said so (ISO 8601 with zone)",
    "source": "which source said so",
    "report": "kind of report",
    "state": "one of the order states",
    "item_state": "state of this item, where items ship apart",
    "item_key": "marketplace's number of the order line",
    "partial": "true when the source says that only a part has left",
    "returned_quantity": "units of this item that came back",
    "fulfilment": "FBA, FBM, SFP, own or unknown",
    "site": "marketplace site, as in amazon.de",
    "title": "item title",
    "sku": "seller's item number",
    "asin": "marketplace's item number",
    "quantity": "units bought of this item",
    "quantity_shipped": "units of this item that have left",
    "price": "price of this row's units together",
    "shipping": "shipping paid for this row",
    "discount": "discount on this row",
    "value": "total of the whole order, when the source states it",
    "currency": "ISO 4217 code",
    "purchased_on": "day of the purchase",
    "ship_by": "day it was promised to leave by",
    "carrier": "carrier of this row's parcel",
    "tracking": "tracking number of this row's parcel",
    "shipped_on": "day the parcel left",
    "eta": "latest day the parcel is expected",
    "delivered_on": "day the parcel was delivered",
    "cancel_requested": "true when the buyer asked through the marketplace's own button",
    "cancel_reason": "reason given with that request",
    "return_state": "requested, authorized, shipped, received or closed",
    "return_disposition": "sellable, damaged or defective, as inspected on return",
    "refunded": "amount paid back so far",
    "buyer_addr": "relay alias or address the order belongs to",
    "buyer_name": "the buyer's name",
    "ship_country": "ISO 3166 code of the destination",
}

_PROGRESS = {
    OrderState.UNKNOWN: 0,
    OrderState.PENDING: 1,
    OrderState.UNSHIPPED: 2,
    OrderState.SHIPPED: 3,
    OrderState.IN_TRANSIT: 4,
    OrderState.DELIVERED: 5,
    OrderState.RETURNED: 6,
    OrderState.REFUNDED: 7,
}
_NOT_LEFT = (OrderState.PENDING, OrderState.UNSHIPPED)


def merge(rows: Iterable[Row], now: datetime, stale_after: timedelta) -> OrderFacts | None:
    """One fact from all rows about one order; None when there are none.

    ``stale`` is set when the statement the state rests on is older than
    ``stale_after``; the state is then not to be relied on.
    """
    ordered = sorted(rows, key=lambda r: _moment(r["as_of"]))
    if not ordered:
        return None
    newest = _latest_of_each_report(ordered)
    parcels = _parcels(newest)
    state, as_of, source, conflict = _state(newest, parcels)
    items = _items(newest)
    return OrderFacts(
        order_id=str(ordered[-1]["order_id"]),
        shop=str(ordered[-1]["shop"]),
        state=state,
        fulfilment=_fulfilment(newest, str(ordered[-1]["shop"])),
        as_of=as_of,
        source=source,
        site=_last(newest, "site"),
        value=_value(newest),
        currency=_last(newest, "currency"),
        purchased_on=_day(_last(newest, "purchased_on")),
        ship_by=_day(_last(newest, "ship_by")),
        items=items,
        parcels=parcels,
        cancel_requested=_any_true(newest, "cancel_requested"),
        cancel_reason=_last(newest, "cancel_reason"),
        return_state=_last(newest, "return_state"),
        return_disposition=_worst_disposition(newest),
        refunded=_decimal(_last(newest, "refunded")),
        buyer_addr=_last(newest, "buyer_addr"),
        buyer_name=_last(newest, "buyer_name"),
        ship_country=_last(newest, "ship_country"),
        stale=now - as_of > stale_after,
        partially_shipped=_partially_shipped(newest),
        conflict=conflict,
    )


def bind(envelope: Envelope, mail: ParsedMail, facts: OrderFacts | None) -> Binding:
    """Whether this writer may be told about that order.

    An address that the order belongs to proves it. So does the marketplace
    when it came through its own relay and named the order in its wrapper or
    subject: the buyer cannot write there. An order id that the buyer typed
    proves nothing, and an address that is not the order's disproves.
    """
    if facts is None:
        return Binding.NO_ORDER
    writer = envelope.reply_to or mail.from_addr
    if facts.buyer_addr and writer is not None:
        same = _account(facts.buyer_addr, envelope.relay) == _account(writer.addr, envelope.relay)
        return Binding.OWNER if same else Binding.STRANGER
    named = {o.value for o in envelope.order_ids if o.place in ("wrapper", "subject")}
    if envelope.relay and facts.order_id in named:
        return Binding.RELAY
    return Binding.UNPROVED


def facts_to_dict(facts: OrderFacts) -> dict[str, Any]:
    """A JSON-able copy of the facts, the inverse of :func:`facts_from_dict`."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime | date):
            return value.isoformat()
        if isinstance(value, Decimal):
            return str(value)
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        if isinstance(value, OrderItem | Parcel):
            return {f.name: plain(getattr(value, f.name)) for f in dataclass_fields(value)}
        return value

    return {f.name: plain(getattr(facts, f.name)) for f in dataclass_fields(facts)}


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
    return _assumed(
        facts.shop,
        facts.order_id,
        OrderState.UNKNOWN if facts.stale else facts.state,
        refunded=facts.refunded,
        cancel_requested=facts.cancel_requested,
        return_state=facts.return_state,
    )


def order_state_now(rows: Iterable[Row], now: datetime, stale_after: timedelta) -> dict[str, Any] | None:
    """As order_state of the facts that merge makes of the rows, without those that it does not look at."""
    ordered = sorted(rows, key=lambda r: _moment(r["as_of"]))
    if not ordered:
        return None
    newest = _latest_of_each_report(ordered)
    state, as_of, _, _ = _state(newest, _parcels(newest))
    return _assumed(
        str(ordered[-1]["shop"]),
        str(ordered[-1]["order_id"]),
        OrderState.UNKNOWN if now - as_of > stale_after else state,
        refunded=_decimal(_last(newest, "refunded")),
        cancel_requested=_any_true(newest, "cancel_requested"),
        return_state=_last(newest, "return_state"),
    )


def _assumed(
    shop: str,
    order_id: str,
    state: OrderState,
    *,
    refunded: Decimal | None,
    cancel_requested: bool | None,
    return_state: str | None,
) -> dict[str, Any]:
    return {
        "shop": shop,
        "order_id": order_id,
        "state": _ALIKE.get(state, state.value),
        "refunded": str(refunded) if refunded else None,
        "cancel_requested": bool(cancel_requested),
        "return_state": return_state,
    }


def facts_from_dict(data: Mapping[str, Any]) -> OrderFacts:
    """The facts that :func:`facts_to_dict` wrote down."""
    plain = dict(data)
    plain["state"] = OrderState(plain["state"])
    plain["fulfilment"] = Fulfilment(plain["fulfilment"])
    plain["as_of"] = _moment(plain["as_of"])
    for name in ("purchased_on", "ship_by"):
        plain[name] = _day(plain.get(name))
    for name in ("value", "refunded"):
        plain[name] = _decimal(plain.get(name))
    plain["items"] = tuple(OrderItem(**{**i, "price": _decimal(i.get("price"))}) for i in plain.get("items", ()))
    days = ("shipped_on", "eta", "delivered_on")
    plain["parcels"] = tuple(Parcel(**{**p, **{d: _day(p.get(d)) for d in days}}) for p in plain.get("parcels", ()))
    return OrderFacts(**plain)


# --------------------------------------------------------------------------- pieces


def _latest_of_each_report(ordered: Sequence[Row]) -> list[Row]:
    """Rows of the newest edition of every report: an older edition of the same report says nothing more."""
    edition = {str(r.get("report", "")): _moment(r["as_of"]) for r in ordered}
    return [r for r in ordered if _moment(r["as_of"]) == edition[str(r.get("report", ""))]]


def _state(rows: Sequence[Row], parcels: Sequence[Parcel]) -> tuple[OrderState, datetime, str, str | None]:
    """The furthest state that is stated, when it was stated, by whom, and a contradiction if there is one."""
    said: list[tuple[OrderState, datetime, str]] = [
        (OrderState(str(r["state"])), _moment(r["as_of"]), str(r["source"])) for r in rows if r.get("state")
    ]
    last = rows[-1]
    tracked = [(_moment(r["as_of"]), str(r["source"])) for r in rows if r.get("tracking") or r.get("shipped_on")]
    if tracked:
        said.append((OrderState.SHIPPED, *max(tracked)))
    arrived = [(_moment(r["as_of"]), str(r["source"])) for r in rows if r.get("delivered_on")]
    if arrived and all(p.delivered_on for p in parcels):
        said.append((OrderState.DELIVERED, *max(arrived)))
    back = [r for r in rows if r.get("return_state") == "received"]
    if back and _all_came_back(rows, back):
        newest_return = max(back, key=lambda r: _moment(r["as_of"]))
        said.append((OrderState.RETURNED, _moment(newest_return["as_of"]), str(newest_return["source"])))
    known = [s for s in said if s[0] is not OrderState.UNKNOWN]
    if not known:
        return OrderState.UNKNOWN, _moment(last["as_of"]), str(last["source"]), None
    cancelled = [s for s in known if s[0] is OrderState.CANCELLED]
    going = [s for s in known if s[0] is not OrderState.CANCELLED]
    if cancelled and going:
        latest_cancelled = max(cancelled, key=lambda s: s[1])
        if max(going, key=lambda s: _PROGRESS[s[0]])[0] not in _NOT_LEFT and any(s[1] >= latest_cancelled[1] for s in going):
            return OrderState.UNKNOWN, latest_cancelled[1], latest_cancelled[2], "cancelled, yet a parcel left"
        if latest_cancelled[1] >= max(s[1] for s in going):
            return (*latest_cancelled, None)
    pool = going or cancelled
    best = max(pool, key=lambda s: (_PROGRESS.get(s[0], 0), s[1]))
    if best[0] in _NOT_LEFT:  # "has not left" is only as good as the newest word on it
        newest = max(pool, key=lambda s: s[1])
        return (best[0], newest[1], newest[2], None)
    return (*best, None)


def _all_came_back(rows: Sequence[Row], back: Sequence[Row]) -> bool:
    """Whether everything that was bought is back; without quantities on both sides one return speaks for all."""
    bought = sum(i.quantity for i in _items([r for r in rows if r.get("quantity") is not None]))
    returned = sum(int(r["returned_quantity"]) for r in back if r.get("returned_quantity") is not None)
    return not bought or not returned or returned >= bought


def _partially_shipped(rows: Sequence[Row]) -> bool:
    if any(r.get("partial") for r in rows):
        return True
    per_row = [(r.get("quantity"), r.get("quantity_shipped")) for r in rows if r.get("quantity_shipped") is not None]
    bought = sum(int(q) for q, _ in per_row if q is not None)
    shipped = sum(int(s) for _, s in per_row if s is not None)
    if per_row and 0 < shipped < bought:
        return True
    states = {OrderState(str(r["item_state"])) for r in rows if r.get("item_state")}
    return bool(states & set(_NOT_LEFT)) and bool(states & {OrderState.SHIPPED, OrderState.IN_TRANSIT, OrderState.DELIVERED})


def _items(rows: Sequence[Row]) -> tuple[OrderItem, ...]:
    """Items once each: several reports repeat them, and one item may come in several parcels."""
    per_report: dict[str, dict[tuple[str, str], OrderItem]] = {}
    for row in rows:
        title, sku, asin = (str(row.get(k) or "") for k in ("title", "sku", "asin"))
        if not (title or sku or asin):
            continue
        found = per_report.setdefault(str(row.get("report", "")), {})
        key = (sku or asin or title, str(row.get("item_key") or ""))
        quantity = int(row.get("quantity") or 1)
        price = _decimal(row.get("price"))
        if key in found:
            before = found[key]
            total = before.price + price if before.price is not None and price is not None else before.price
            found[key] = OrderItem(before.title, before.sku, before.asin, before.quantity + quantity, total)
        else:
            found[key] = OrderItem(title, sku, asin, quantity, price)
    if not per_report:
        return ()
    fullest = max(per_report.values(), key=lambda items: (len(items), sum(i.price is not None for i in items.values())))
    return tuple(fullest.values())


def _parcels(rows: Sequence[Row]) -> tuple[Parcel, ...]:
    """One parcel per tracking number; rows without one add what they know to a single untracked parcel."""
    found: dict[str, Parcel] = {}
    for row in rows:
        tracking = str(row.get("tracking") or "")
        days = {k: _day(row.get(k)) for k in ("shipped_on", "eta", "delivered_on")}
        carrier = str(row.get("carrier") or "")
        if not (tracking or carrier or any(days.values())):
            continue
        before = found.get(tracking, Parcel())
        found[tracking] = Parcel(
            carrier=carrier or before.carrier,
            tracking=tracking,
            shipped_on=days["shipped_on"] or before.shipped_on,
            eta=days["eta"] or before.eta,
            delivered_on=days["delivered_on"] or before.delivered_on,
        )
    if "" in found and len(found) > 1:
        loose = found.pop("")
        if len(found) == 1:
            tracking, parcel = next(iter(found.items()))
            found[tracking] = Parcel(
                carrier=parcel.carrier or loose.carrier,
                tracking=tracking,
                shipped_on=parcel.shipped_on or loose.shipped_on,
                eta=parcel.eta or loose.eta,
                delivered_on=parcel.delivered_on or loose.delivered_on,
            )
    return tuple(found.values())


def _value(rows: Sequence[Row]) -> Decimal | None:
    stated = _decimal(_last(rows, "value"))
    if stated is not None:
        return stated
    per_report: dict[str, Decimal] = {}
    for row in rows:
        price = _decimal(row.get("price"))
        if price is None:
            continue
        extra = (_decimal(row.get("shipping")) or Decimal(0)) - abs(_decimal(row.get("discount")) or Decimal(0))
        report = str(row.get("report", ""))
        per_report[report] = per_report.get(report, Decimal(0)) + price + extra
    return max(per_report.values()) if per_report else None


def _fulfilment(rows: Sequence[Row], shop: str) -> Fulfilment:
    """Who ships and serves; Amazon's multi-channel parcels for other shops are the seller's to answer for."""
    said = {Fulfilment(str(r["fulfilment"])) for r in rows if r.get("fulfilment")} - {Fulfilment.UNKNOWN}
    if said == {Fulfilment.SFP, Fulfilment.FBM}:
        return Fulfilment.SFP
    if len(said) != 1:
        return Fulfilment.UNKNOWN
    one = said.pop()
    return Fulfilment.OWN if shop != "amazon" and one in (Fulfilment.FBA, Fulfilment.SFP) else one


def _worst_disposition(rows: Sequence[Row]) -> str | None:
    said = [str(r["return_disposition"]) for r in rows if r.get("return_disposition")]
    return next((d for d in said if d != "sellable"), said[0] if said else None)


def _last(rows: Sequence[Row], name: str) -> str | None:
    return next((str(r[name]) for r in reversed(rows) if r.get(name) not in (None, "")), None)


def _any_true(rows: Sequence[Row], name: str) -> bool | None:
    said = [bool(r[name]) for r in rows if r.get(name) is not None]
    return any(said) if said else None


def _account(address: str, relay: bool) -> str:
    """The address as one buyer's: a relay adds the case after a plus sign, and that part is dropped."""
    local, _, domain = address.strip().lower().rpartition("@")
    return f"{local.partition('+')[0] if relay else local}@{domain}"


def _moment(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _day(value: Any) -> date | None:
    if value in (None, ""):
        return None
    if isinstance(value, datetime):
        return value.date()
    return value if isinstance(value, date) else date.fromisoformat(str(value)[:10])


def _decimal(value: Any) -> Decimal | None:
    return None if value in (None, "") else Decimal(str(value))
