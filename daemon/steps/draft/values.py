"""The values a reply template may use. None means unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from babel.numbers import format_currency

from daemon.languages import locale
from daemon.vocab import OrderFacts, Parcel

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class ReplyParcel:
    carrier: str | None
    tracking: str | None
    shipped_on: date | None
    eta: date | None
    delivered_on: date | None


@dataclass(frozen=True, slots=True)
class ReplyOrder:
    """The order as a template sees it. None means unknown."""

    id: str | None = field(default=None, metadata={"help": "order id as the buyer knows it"})
    item: str | None = field(default=None, metadata={"help": "title of the first item, shortened"})
    item_count: int | None = field(default=None, metadata={"help": "number of different items"})
    fulfilment: str | None = field(default=None, metadata={"help": "FBA, FBM, SFP, own or unknown"})
    carrier: str | None = field(default=None, metadata={"help": "carrier of the latest parcel"})
    tracking: str | None = field(default=None, metadata={"help": "tracking number of the latest parcel"})
    parcels: tuple[ReplyParcel, ...] | None = field(
        default=None, metadata={"help": "parcels, each with carrier, tracking, shipped_on, eta, delivered_on"}
    )
    purchased_on: date | None = field(default=None, metadata={"help": "day of the purchase"})
    ship_by: date | None = field(default=None, metadata={"help": "day it was promised to leave by"})
    shipped_on: date | None = field(default=None, metadata={"help": "day the latest parcel left"})
    eta: date | None = field(default=None, metadata={"help": "latest day the parcel is expected"})
    delivered_on: date | None = field(default=None, metadata={"help": "day the parcel was delivered"})
    return_until: date | None = field(default=None, metadata={"help": "last day of a return without a reason"})
    warranty_until: date | None = field(default=None, metadata={"help": "last day of the guarantee"})
    total: str | None = field(default=None, metadata={"help": "value of the order with its currency"})
    refunded: str | None = field(default=None, metadata={"help": "amount paid back, with its currency"})


@dataclass(frozen=True, slots=True)
class ReplyBuyer:
    name: str | None = field(default=None, metadata={"help": "name to greet, when it is usable as one"})


@dataclass(frozen=True, slots=True)
class ReplyShop:
    name: str | None = field(default=None, metadata={"help": "how replies are signed"})


@dataclass(frozen=True, slots=True)
class ReplyAnswer:
    """Dates a reply may name for itself."""

    today: date | None = field(default=None, metadata={"help": "day the reply is written"})
    by: date | None = field(default=None, metadata={"help": "day by which the next word is promised"})
    until: date | None = field(default=None, metadata={"help": "day until which the buyer may answer without hurry"})


@dataclass(frozen=True, slots=True)
class ReplyValues:
    """Everything a template may use."""

    order: ReplyOrder
    buyer: ReplyBuyer
    shop: ReplyShop
    answer: ReplyAnswer
    marketplace: str | None
    site: str | None = None

    def get(self, dotted: str) -> Any:
        """The value of a declared name, as in ``order.tracking``."""
        value: Any = self
        for part in dotted.split("."):
            value = getattr(value, part)
        return value


#: Every name a template may use, with its meaning.
VALUES: Mapping[str, str] = {
    **{f"order.{f.name}": f.metadata["help"] for f in fields(ReplyOrder)},
    **{f"buyer.{f.name}": f.metadata["help"] for f in fields(ReplyBuyer)},
    **{f"shop.{f.name}": f.metadata["help"] for f in fields(ReplyShop)},
    **{f"answer.{f.name}": f.metadata["help"] for f in fields(ReplyAnswer)},
    "marketplace": "amazon, ebay, walmart, etsy, shopify, or none for the own shop",
}

#: Values that are there in every reply and need no declaration.
ALWAYS = frozenset({"answer.today", "answer.by", "answer.until"})


def reply_values(
    facts: OrderFacts | None,
    *,
    language: str,
    marketplace: str | None,
    buyer_name: str | None,
    shop_name: str,
    now: datetime,
    answer_days: int,
    photo_days: int,
    return_until: date | None,
    warranty_until: date | None,
    site: str | None = None,
) -> ReplyValues:
    """The values for one reply. Pass ``facts`` only when the writer may be told about that order."""
    today = now.date()
    site = facts.site if facts else site
    order = ReplyOrder() if facts is None else _reply_order(facts, language, return_until, warranty_until)
    return ReplyValues(
        order=order,
        buyer=ReplyBuyer(greeting_name(buyer_name)),
        shop=ReplyShop(one_line(shop_name, 80) or None),
        answer=ReplyAnswer(today, _workday(today, answer_days), today + timedelta(days=photo_days)),
        marketplace=marketplace,
        site=site,
    )


def greeting_name(name: str | None) -> str | None:
    """A name fit to greet with, or None: no address, no digits, no markup, no sentence."""
    clean = one_line(name or "", 60)
    if (
        not clean
        or len(clean) > 40
        or len(clean.split()) > 4
        or re.search(r"[@\d<>{}\[\]|/\\:;!?%#*\"“”„]|https?|www\.", clean)
    ):
        return None
    return clean


def one_line(text: str, limit: int) -> str:
    """Text without control characters and line breaks, at most ``limit`` characters, cut at a word."""
    clean = " ".join(CONTROLS.sub(" ", text).split())
    if len(clean) <= limit:
        return clean
    cut = clean[: limit - 1]
    space = cut.rfind(" ")
    return (cut[:space] if space > limit // 2 else cut).rstrip(" ,;-(") + "…"


def _reply_order(facts: OrderFacts, language: str, until: date | None, warranty: date | None) -> ReplyOrder:
    parcels = sorted(facts.parcels, key=lambda p: p.shipped_on or date.min)
    latest = parcels[-1] if parcels else Parcel()
    item = one_line(facts.items[0].title, 80) if facts.items else None
    return ReplyOrder(
        id=facts.order_id,
        item=item or None,
        item_count=len(facts.items) or None,
        fulfilment=facts.fulfilment.value,
        carrier=one_line(latest.carrier, 60) or None,
        tracking=one_line(latest.tracking, 60) or None,
        parcels=tuple(
            ReplyParcel(one_line(p.carrier, 60) or None, one_line(p.tracking, 60) or None, p.shipped_on, p.eta, p.delivered_on)
            for p in parcels
        )
        or None,
        purchased_on=facts.purchased_on,
        ship_by=facts.ship_by,
        shipped_on=latest.shipped_on,
        eta=latest.eta,
        delivered_on=latest.delivered_on,
        return_until=until,
        warranty_until=warranty,
        total=_money(facts, facts.value, language),
        refunded=_money(facts, facts.refunded, language),
    )


def _money(facts: OrderFacts, amount: Decimal | None, language: str) -> str | None:
    if not amount or not facts.currency:
        return None
    return str(format_currency(amount, facts.currency, locale=locale(language, facts.site)))


def _workday(start: date, days: int) -> date:
    """``days`` days later, moved from a weekend to the Monday."""
    day = start + timedelta(days=days)
    return day + timedelta(days=7 - day.weekday()) if day.weekday() > 4 else day
