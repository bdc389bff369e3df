"""The morning of the demonstration as bytes: mail as a receiving server stores it, and order reports."""

from __future__ import annotations

import base64
import csv
import io
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime, formataddr, parseaddr
from importlib.resources import files
from typing import Any

#: A picture of one pixel: what matters is that a photo is attached.
_PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
_SITES = {
    "Amazon.de": "A1PA6795UKMFR9",
    "Amazon.com": "ATVPDKIKX0DER",
    "Amazon.fr": "A13V1IB3VIYZZH",
    "Amazon.es": "A1RKKUPIHCS9HS",
    "Amazon.it": "APJ6JRA9NG5V4",
    "Amazon.co.jp": "A1VC38T7YXB528",
}
#: What the marketplace puts around a buyer's words, in the language of the seller's account.
_WRAPPER = """\
You have received a message.

# {order}:
1 / {title} [ASIN: B0DEMO{number:04d}]

------------- Message:  -------------
{text}
------------- End message -------------

Was this email helpful? https://www.amazon.com/gp/satisfaction/survey-form.html
--------------------------
Copyright 2026 Amazon, Inc. or its affiliates. All rights reserved.
"""


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail of the morning; ``about`` is the order that the shop knows it is about, if any."""

    key: str
    message_id: str
    subject: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Morning:
    """The whole script."""

    shop: str
    address: str
    approver: str
    letters: tuple[Letter, ...]
    answers: Mapping[str, str]  # order id → what the approver writes back
    orders: tuple[Mapping[str, Any], ...]


def load(now: datetime) -> Morning:
    """The morning as if it were now."""
    script = tomllib.loads((files("daemon.demo") / "morning.toml").read_text(encoding="utf-8"))
    orders = {order["id"]: order for order in script["orders"]}
    letters = tuple(
        _letter(number, mail, script["address"], orders, now)
        for number, mail in enumerate(sorted(script["mail"], key=lambda m: -m["minutes"]), start=1)
    )
    return Morning(
        shop=script["shop"],
        address=script["address"],
        approver=script["approver"],
        letters=letters,
        answers={answer["order"]: answer["text"].strip() + "\n" for answer in script["answers"]},
        orders=tuple(script["orders"]),
    )


def amazon_report(orders: tuple[Mapping[str, Any], ...], today: date) -> str:
    """The marketplace's "All Orders" report: tab-separated, by header name."""
    rows = [
        {
            "amazon-order-id": order["id"],
            "purchase-date": f"{_day(today, order['purchased'])}T09:12:00+00:00",
            "last-updated-date": f"{today}T06:00:00+00:00",
            "order-status": "Unshipped" if order["state"] == "unshipped" else "Shipped",
            "fulfillment-channel": "Amazon" if order["fulfilment"] == "FBA" else "Merchant",
            "sales-channel": order["site"],
            "product-name": order["title"],
            "sku": order["sku"],
            "quantity": "1",
            "currency": order["currency"],
            "item-price": order["price"],
            "ship-country": order["country"],
        }
        for order in orders
        if order["shop"] == "amazon"
    ]
    return _table(rows, delimiter="\t")


def parcel_report(orders: tuple[Mapping[str, Any], ...], today: date, *, shop: str) -> str:
    """The shop's own list of what went out, as its parcel software writes it."""
    rows = [
        {
            "Order": order["id"],
            "Status": order["state"],
            "Carrier": order.get("carrier", ""),
            "Tracking": order.get("tracking", ""),
            "Shipped": _day(today, order.get("shipped")),
            "Expected": _day(today, order.get("eta")),
            "Delivered": _day(today, order.get("delivered")),
            "Ordered": _day(today, order["purchased"]),
            "Fulfilment": order["fulfilment"],
            "Article": order["title"],
            "SKU": order["sku"],
            "Price": order["price"],
            "Currency": order["currency"],
            "Customer": order.get("buyer", ""),
        }
        for order in orders
        if order["shop"] == shop
    ]
    return _table(rows, delimiter=",")


def _table(rows: list[dict[str, str]], *, delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _day(today: date, ago: int | None) -> str:
    return "" if ago is None else (today - timedelta(days=ago)).isoformat()


def _letter(number: int, mail: Mapping[str, Any], to: str, orders: Mapping[str, Any], now: datetime) -> Letter:
    domain = to.rpartition("@")[2]
    when = format_datetime(now - timedelta(minutes=mail["minutes"]))
    stamp = f"{mail['key']}.{int(now.timestamp())}"
    if mail["form"] == "raw":
        message_id = f"<{stamp}@mail.{parseaddr(_field(mail['head'], 'From'))[1].rpartition('@')[2]}>"
        head = f"{mail['head'].strip()}\nTo: {to}\nDate: {when}\nMessage-ID: {message_id}\n"
        if "Content-Type:" not in head:
            head += "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
        raw = f"{head}\n{mail['text'].strip()}\n".replace("\n", "\r\n").encode()
        return Letter(mail["key"], message_id, _field(head, "Subject"), raw)
    message = EmailMessage(policy=policy.SMTP)
    authserv = f"mx.{domain}"
    text = mail["text"].strip()
    if mail["form"] == "amazon":
        order = orders[mail["order"]]
        host = f"marketplace.{order['site'].lower()}"
        sender = formataddr((mail["name"], f"{mail['alias']}+{number:08x}@{host}"))
        text = _WRAPPER.format(order=order["id"], title=order["title"], number=number, text=text)
        message["Return-Path"] = f"<bounces-{number}@{host}>"
        message["X-Space-Notification-Type"] = "BBC_MESSAGE_SENT_TO_MERCHANT"
        message["X-Marketplace-ID"] = _SITES[order["site"]]
        signer = order["site"].lower()
    else:
        sender = mail["from"]
        host = signer = parseaddr(sender)[1].rpartition("@")[2]
        message["Return-Path"] = f"<{parseaddr(sender)[1]}>"
    message["Authentication-Results"] = (
        f"{authserv}; dkim=pass header.d={signer}; spf=pass smtp.mailfrom={host}; dmarc=pass header.from={host}"
    )
    message["Received"] = f"from mail.{host} by {authserv} with ESMTPS; {when}"
    message["From"] = sender
    message["To"] = to
    message["Subject"] = mail["subject"]
    message["Date"] = when
    message_id = f"<{stamp}@mail.{host}>"
    message["Message-ID"] = message_id
    message.set_content(text)
    if "photo" in mail:
        message.add_attachment(_PIXEL, maintype="image", subtype="png", filename=mail["photo"])
    return Letter(mail["key"], message_id, mail["subject"], message.as_bytes())


def _field(head: str, name: str) -> str:
    return next(line for line in head.splitlines() if line.startswith(f"{name}:")).partition(": ")[2]
