"""What the order reports of the marketplaces say, told by the names in their header, whatever the file is called.

Each format names the columns that give it away and turns one row into the
field names of a fact row (daemon.steps.enrich.ROW_FIELDS). A row that says
nothing about an order's state leaves the state out: unknown is never "not
shipped".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.edges.orders import values

Cells = Mapping[str, str]
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of report. ``snapshot``: an order that a newer edition leaves out is no longer in that state."""

    kind: str
    shop: str
    needs: frozenset[str]  # header names, lower case, that a report of this kind has
    read: Callable[[Cells], Fields]
    id_column: str
    snapshot: bool = False
    carry_id: bool = False  # further rows of an order leave the id blank


class NotThisFormat(Exception):
    """The row is no row of an order (a trailer, an empty line)."""


def canonical(header: str) -> str:
    """A header name for comparison: lower case, single blanks, translated where the marketplace translates it."""
    name = re.sub(r"[\s_]+", " ", values.clean(header).strip('"').lower()).strip()
    return _TRANSLATED.get(name, name)


def recognise(headers: list[str]) -> Format | None:
    """The format whose tell-tale columns are all there; the one with most of them wins."""
    present = {canonical(h) for h in headers}
    fitting = [f for f in FORMATS if f.needs <= present]
    return max(fitting, key=lambda f: len(f.needs), default=None)


# --------------------------------------------------------------------------- helpers


def _getter(cells: Cells) -> Callable[[str], str]:
    return lambda name: cells.get(name, "")


def _month_first(cells: Cells) -> bool:
    where = " ".join(cells.get(k, "") for k in ("sales-channel", "currency", "ship-country")).lower()
    return bool(re.search(r"amazon\.com\b(?!\.)|\busd\b|\bus\b", where))


def _put(fields: Fields, name: str, value: Any) -> None:
    if value not in (None, ""):
        fields[name] = value


def _day(fields: Fields, name: str, cell: str, *, month_first: bool = False) -> None:
    found = values.day(cell, month_first=month_first) if cell else None
    _put(fields, name, found.isoformat() if found else None)


def _amount(fields: Fields, name: str, *cells: str) -> None:
    found = [a for c in cells if c and (a := values.amount(c)) is not None]
    _put(fields, name, str(sum(found)) if found else None)


def _site(cell: str) -> str | None:
    text = cell.strip().lower()
    return text if re.fullmatch(r"(?:amazon|ebay|walmart)(?:\.[a-z]{2,3}){1,2}", text) else None


_STATUS = {
    "pending": "pending", "pendingavailability": "pending", "unshipped": "unshipped", "partiallyshipped": "shipped",
    "shipping": "unshipped", "shipped": "shipped", "invoiceunconfirmed": "shipped", "canceled": "cancelled", "cancelled": "cancelled",
    "unfulfillable": None,
}  # fmt: skip


def _amazon_status(cell: str) -> str | None:
    text = cell.strip().lower()
    base, _, detail = text.partition(" - ")
    if detail:
        if "delivered to buyer" in detail or detail.startswith("picked up"):
            return "delivered"
        if "return" in detail or "reject" in detail:
            return "returned" if "returned" in detail else "in_transit"
        if "out for delivery" in detail or "transit" in detail:
            return "in_transit"
    if base == "delivered":
        return "delivered"
    return _STATUS.get(base.replace(" ", ""))


def _fulfilment(cell: str) -> str | None:
    text = cell.strip().lower()
    if text in ("amazon", "afn") or text.startswith("amazon_"):
        return "FBA"
    return "FBM" if text in ("merchant", "mfn", "default", "seller") else None


# --------------------------------------------------------------------------- Amazon


def _all_orders(cells: Cells) -> Fields:
    get = _getter(cells)
    first = _month_first(cells)
    fields: Fields = {}
    _put(fields, "state", _amazon_status(get("order-status")))
    _put(fields, "item_state", _amazon_status(get("item-status")))
    _put(fields, "fulfilment", _fulfilment(get("fulfillment-channel")))
    _put(fields, "site", _site(get("sales-channel")))
    for name, column in (
        ("title", "product-name"),
        ("sku", "sku"),
        ("asin", "asin"),
        ("currency", "currency"),
        ("ship_country", "ship-country"),
    ):
        _put(fields, name, get(column))
    _put(fields, "quantity", values.count(get("quantity")))
    _amount(fields, "price", get("item-price"))
    _amount(fields, "shipping", get("shipping-price"))
    _amount(fields, "discount", get("item-promotion-discount"), get("ship-promotion-discount"))
    _day(fields, "purchased_on", get("purchase-date"), month_first=first)
    _requested(fields, cells)
    return fields


def _requested(fields: Fields, cells: Cells) -> None:
    asked = values.yes(cells.get("is-buyer-requested-cancellation", ""))
    if asked is not None:
        fields["cancel_requested"] = asked
    _put(fields, "cancel_reason", cells.get("buyer-requested-cancel-reason", "")[:200])


def _seller_shipped(cells: Cells) -> Fields:
    """Order and unshipped report: only quantities tell the state, and only where the report has them."""
    get = _getter(cells)
    first = _month_first(cells)
    fields: Fields = {"fulfilment": "SFP" if values.yes(get("is-prime")) else "FBM"}
    bought, shipped, left = (values.count(get(k)) for k in ("quantity-purchased", "quantity-shipped", "quantity-to-ship"))
    if shipped is not None or left is not None:
        known_left = left if left is not None else (bought or 0) - (shipped or 0)
        _put(fields, "state", "unshipped" if known_left > 0 else "shipped" if shipped else None)
        if shipped is None and bought is not None and left is not None:
            shipped = bought - left
        if shipped is not None:
            fields["quantity_shipped"] = max(shipped, 0)
    _put(fields, "quantity", bought)
    _put(fields, "site", _site(get("sales-channel")))
    columns = (("title", "product-name"), ("sku", "sku"), ("asin", "asin"), ("currency", "currency"), ("buyer_addr", "buyer-email"),
               ("buyer_name", "buyer-name"), ("ship_country", "ship-country"))  # fmt: skip
    for name, column in columns:
        _put(fields, name, get(column))
    _amount(fields, "price", get("item-price"))
    _amount(fields, "shipping", get("shipping-price"))
    _day(fields, "purchased_on", get("purchase-date"), month_first=first)
    _day(fields, "ship_by", get("promise-date") or get("latest-ship-date"), month_first=first)
    _put(fields, "item_key", get("order-item-id"))
    _requested(fields, cells)
    return fields


def _fba_shipments(cells: Cells) -> Fields:
    get = _getter(cells)
    first = _month_first(cells)
    fields: Fields = {"state": "shipped", "fulfilment": _fulfilment(get("fulfillment-channel")) or "FBA"}
    _put(fields, "site", _site(get("sales-channel")))
    columns = (("title", "product-name"), ("sku", "sku"), ("currency", "currency"), ("buyer_addr", "buyer-email"),
               ("buyer_name", "buyer-name"), ("carrier", "carrier"), ("ship_country", "ship-country"))  # fmt: skip
    for name, column in columns:
        _put(fields, name, get(column))
    _put(fields, "tracking", values.tracking(get("tracking-number")))
    _put(fields, "quantity", values.count(get("quantity-shipped")))
    _amount(fields, "price", get("item-price"))
    _amount(fields, "shipping", get("shipping-price"))
    _day(fields, "purchased_on", get("purchase-date"), month_first=first)
    _day(fields, "shipped_on", get("shipment-date"), month_first=first)
    _day(fields, "eta", get("estimated-arrival-date"), month_first=first)
    return fields


def _fba_returns(cells: Cells) -> Fields:
    get = _getter(cells)
    disposition = get("detailed-disposition").upper()
    fields: Fields = {"fulfilment": "FBA", "return_state": "received"}
    if disposition:
        fields["return_disposition"] = (
            "sellable" if disposition == "SELLABLE" else "defective" if "DEFECT" in disposition else "damaged"
        )
    _put(fields, "returned_quantity", values.count(get("quantity")))
    for name, column in (("title", "product-name"), ("sku", "sku"), ("asin", "asin")):
        _put(fields, name, get(column))
    return fields


def _fbm_returns(cells: Cells) -> Fields:
    get = _getter(cells)
    status = get("return request status").lower()
    fields: Fields = {"fulfilment": "FBM"}
    if get("return delivery date"):
        fields["return_state"] = "received"
        _put(fields, "returned_quantity", values.count(get("return quantity")))
    elif "approved" in status or "authori" in status:
        fields["return_state"] = "authorized"
    elif "pending" in status:
        fields["return_state"] = "requested"
    elif "complete" in status or "closed" in status or "denied" in status:
        fields["return_state"] = "closed"
    _amount(fields, "refunded", get("refunded amount"))
    if fields.get("refunded") in ("0", "0.0", "0.00"):
        del fields["refunded"]
    columns = (("title", "item name"), ("sku", "merchant sku"), ("asin", "asin"), ("currency", "currency code"))
    for name, column in columns:
        _put(fields, name, get(column))
    _day(fields, "purchased_on", get("order date"), month_first=get("currency code").upper() == "USD")
    return fields


def _shipment_confirmation(cells: Cells) -> Fields:
    get = _getter(cells)
    fields: Fields = {"state": "shipped"}
    _put(fields, "carrier", get("carrier-name") or get("carrier") or get("carrier-code"))
    _put(fields, "tracking", values.tracking(get("tracking-number")))
    _day(fields, "shipped_on", get("ship-date"))
    return fields


# --------------------------------------------------------------------------- Shopify and eBay


def _shopify(cells: Cells) -> Fields:
    get = _getter(cells)
    fields: Fields = {"fulfilment": "own"}
    paid, sent = get("financial status").lower(), get("fulfillment status").lower()
    if paid:  # only the first row of an order speaks of the order
        if get("cancelled at"):
            fields["state"] = "cancelled"
        elif paid == "refunded":
            fields["state"] = "refunded"
        elif sent in ("fulfilled", "partial", "partially fulfilled"):
            fields["state"] = "shipped"
        elif sent in ("", "unfulfilled", "on hold", "scheduled"):
            fields["state"] = "pending" if paid in ("pending", "authorized") else "unshipped"
        if sent in ("partial", "partially fulfilled"):
            fields["item_state"] = "unshipped"
            fields["partial"] = True
        _amount(fields, "value", get("total"))
        _amount(fields, "refunded", get("refunded amount"))
        if (values.amount(get("refunded amount")) or 0) == 0:
            fields.pop("refunded", None)
    line_state = get("lineitem fulfillment status").lower()
    _put(fields, "item_state", {"fulfilled": "shipped", "pending": "unshipped", "unfulfilled": "unshipped"}.get(line_state))
    columns = (("title", "lineitem name"), ("sku", "lineitem sku"), ("currency", "currency"), ("buyer_addr", "email"),
               ("buyer_name", "billing name"), ("ship_country", "shipping country"))  # fmt: skip
    for name, column in columns:
        _put(fields, name, get(column))
    _put(fields, "quantity", values.count(get("lineitem quantity")))
    unit, units = values.amount(get("lineitem price")), values.count(get("lineitem quantity"))
    _put(fields, "price", str(unit * units) if unit is not None and units else None)
    _day(fields, "purchased_on", get("created at"))
    _day(fields, "shipped_on", get("fulfilled at"))
    return fields


def _ebay(cells: Cells) -> Fields:
    get = _getter(cells)
    if not any(get(k) for k in ("order number", "item title", "item number", "transaction id")):
        raise NotThisFormat
    fields: Fields = {"fulfilment": "FBM"}
    if get("shipped on date") or get("tracking number"):
        fields["state"] = "shipped"
    elif "shipped on date" in cells and get("paid on date"):
        fields["state"] = "unshipped"
    elif "shipped on date" in cells and "paid on date" in cells and get("sale date"):
        fields["state"] = "pending"
    columns = (("title", "item title"), ("sku", "custom label"), ("asin", "item number"), ("buyer_addr", "buyer email"),
               ("buyer_name", "buyer name"), ("carrier", "shipping service"), ("ship_country", "ship to country"),
               ("item_key", "transaction id"))  # fmt: skip
    for name, column in columns:
        _put(fields, name, get(column))
    if "item number" in cells and "custom label" not in cells:
        _put(fields, "sku", get("custom label (sku)"))
    _put(fields, "tracking", values.tracking(get("tracking number")))
    if "tracking" not in fields:
        fields.pop("carrier", None)
    _put(fields, "quantity", values.count(get("quantity")))
    price = get("sold for")
    unit, units = values.amount(price) if price else None, values.count(get("quantity"))
    _put(fields, "price", str(unit * units) if unit is not None and units else None)
    if get("buyer username"):
        _amount(fields, "value", get("total price"))
    if price and (code := re.search(r"\b[A-Z]{3}\b|[$£€¥]", price)):
        _put(fields, "currency", {"$": "USD", "£": "GBP", "€": "EUR", "¥": "JPY"}.get(code.group(), code.group()))
    _day(fields, "purchased_on", get("sale date"), month_first="$" in price)
    _day(fields, "shipped_on", get("shipped on date"), month_first="$" in price)
    _day(fields, "ship_by", get("ship by date"), month_first="$" in price)
    return fields


_TRANSLATED = {
    "注文番号": "order-id", "amazon注文番号": "amazon-order-id", "注文id": "order-id", "出荷日": "ship-date", "配送業者": "carrier",
    "伝票番号": "tracking-number", "追跡番号": "tracking-number", "bestellnummer": "order-id", "numéro de commande": "order-id",
    "número de pedido": "order-id", "numero ordine": "order-id", "carrier name": "carrier-name", "tracking id": "tracking-id",
    "order number": "order number", "sales record number": "sales record number",
}  # fmt: skip

FORMATS: tuple[Format, ...] = (
    Format("amazon_all_orders", "amazon", frozenset({"amazon-order-id", "order-status", "fulfillment-channel"}), _all_orders, "amazon-order-id"),
    Format("amazon_unshipped", "amazon", frozenset({"order-id", "order-item-id", "quantity-purchased", "quantity-to-ship"}), _seller_shipped, "order-id", snapshot=True),
    Format("amazon_orders", "amazon", frozenset({"order-id", "order-item-id", "quantity-purchased", "purchase-date"}), _seller_shipped, "order-id"),
    Format("amazon_fba_shipments", "amazon", frozenset({"amazon-order-id", "shipment-id", "shipment-date", "tracking-number"}), _fba_shipments, "amazon-order-id"),
    Format("amazon_fba_returns", "amazon", frozenset({"return-date", "order-id", "detailed-disposition"}), _fba_returns, "order-id"),
    Format("amazon_fbm_returns", "amazon", frozenset({"order id", "return request date", "return request status"}), _fbm_returns, "order id"),
    Format("amazon_shipment_confirmation", "amazon", frozenset({"order-id", "ship-date", "tracking-number"}), _shipment_confirmation, "order-id"),
    Format("shopify_orders", "shopify", frozenset({"name", "financial status", "fulfillment status", "lineitem name"}), _shopify, "name", carry_id=True),
    Format("ebay_orders", "ebay", frozenset({"order number", "item title", "buyer username"}), _ebay, "order number", carry_id=True),
)  # fmt: skip

#: States that plain files may write for ours.
STATE_WORDS = {
    "pending": "pending", "on hold": "pending", "awaiting payment": "pending", "unpaid": "pending", "unshipped": "unshipped",
    "unfulfilled": "unshipped", "paid": "unshipped", "processing": "unshipped", "not shipped": "unshipped", "new": "unshipped",
    "open": "unshipped", "acknowledged": "unshipped", "created": "unshipped", "shipped": "shipped", "fulfilled": "shipped", "dispatched": "shipped",
    "sent": "shipped", "in_transit": "in_transit", "in transit": "in_transit", "out for delivery": "in_transit", "delivered": "delivered",
    "returned": "returned", "refunded": "refunded", "cancelled": "cancelled", "canceled": "cancelled", "voided": "cancelled", "unknown": "unknown",
    "待付款": "pending", "待发货": "unshipped", "未发货": "unshipped", "已发货": "shipped", "已发出": "shipped", "运输中": "in_transit", "已签收": "delivered",
    "已送达": "delivered", "已退货": "returned", "已退款": "refunded", "已取消": "cancelled", "未出荷": "unshipped", "出荷済み": "shipped", "発送済み": "shipped",
    "配達完了": "delivered", "キャンセル": "cancelled", "versendet": "shipped", "zugestellt": "delivered", "storniert": "cancelled", "offen": "unshipped",
}  # fmt: skip

_DAYS = ("purchased_on", "ship_by", "shipped_on", "eta", "delivered_on")
_AMOUNTS = ("price", "shipping", "discount", "value", "refunded")
_COUNTS = ("quantity", "quantity_shipped", "returned_quantity")
_TEXTS = (
    "site", "title", "sku", "asin", "currency", "carrier", "cancel_reason", "return_state", "return_disposition", "buyer_addr", "buyer_name",
    "ship_country",
)  # fmt: skip
PLAIN_FIELDS = ("order_id", "shop", "state", "fulfilment", "tracking", "cancel_requested", *_DAYS, *_AMOUNTS, *_COUNTS, *_TEXTS)


def plain(cells: Cells) -> Fields:
    """A row whose columns already carry our names: a mapped CSV, a SQL query, a JSON answer."""
    fields: Fields = {}

    def get(name: str) -> str:
        return values.clean(cells.get(name, ""))

    if get("state"):
        fields["state"] = STATE_WORDS.get(get("state").lower(), "unknown")
    fulfilment = get("fulfilment").upper()
    if fulfilment in ("FBA", "FBM", "SFP", "OWN"):
        fields["fulfilment"] = "own" if fulfilment == "OWN" else fulfilment
    elif fulfilment:
        _put(fields, "fulfilment", _fulfilment(fulfilment))
    for name in _DAYS:
        _day(fields, name, get(name))
    for name in _AMOUNTS:
        _amount(fields, name, get(name))
    for name in _COUNTS:
        _put(fields, name, values.count(get(name)))
    for name in _TEXTS:
        _put(fields, name, get(name))
    _put(fields, "tracking", values.tracking(get("tracking")))
    asked = values.yes(get("cancel_requested"))
    if asked is not None:
        fields["cancel_requested"] = asked
    return fields
