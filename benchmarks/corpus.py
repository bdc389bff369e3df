"""Buyer mail in any number, for measurements: invented people and orders, texts of the starter corpus.

The shape follows a seller's mailbox: two thirds come wrapped by a marketplace's relay, the rest directly, half of
those with an HTML part; every fiftieth carries a 200 KB picture; the median is around 7 KB because of the header
lines that servers add. The same seed gives the same mail.
"""

from __future__ import annotations

import base64
import email.utils
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from html import escape
from pathlib import Path

STARTER = Path(__file__).resolve().parent.parent / "classifiers" / "starter"
LANGUAGES = ("en", "de", "fr", "es", "it", "ja")
PICTURE_BYTES = 200_000
#: Every n-th mail carries a picture.
PICTURE_EVERY = 50
_SITES = {
    "en": "amazon.co.uk",
    "de": "amazon.de",
    "fr": "amazon.fr",
    "es": "amazon.es",
    "it": "amazon.it",
    "ja": "amazon.co.jp",
}
_NAMES = ("Petra Lindner", "Jonas Keller", "Ada Moran", "Luc Perrin", "Elena Ruiz", "Marco Bassi", "Hana Mori", "Tom Ashby")


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """(language, text) of every buyer text of the starter corpus."""
    found: list[tuple[str, str]] = []
    for language in LANGUAGES:
        for file in sorted((STARTER / language).glob("*.jsonl")):
            found.extend((language, json.loads(line)["text"]) for line in file.read_text("utf-8").splitlines())
    return tuple(found)


def order_id(number: int) -> str:
    """The order that mail number ``number`` is about."""
    return f"{200 + number % 800:03d}-{1_000_000 + number:07d}-{2_000_000 + number * 7 % 7_000_000:07d}"


def mails(count: int, *, seed: int = 20, tag: str = "b") -> Iterator[bytes]:
    """``count`` mails, each by a writer and about an order of its own. ``tag`` keeps Message-IDs of two runs apart."""
    chance = random.Random(seed)
    sources = texts()
    for number in range(count):
        language, text = chance.choice(sources)
        yield _mail(chance, number, language, text, tag)


def report(count: int) -> str:
    """An order report that knows two of three orders, as the marketplace writes it."""
    bought = datetime.now(UTC) - timedelta(days=9)
    shipped, due = bought + timedelta(days=1), bought + timedelta(days=12)
    head = (
        "amazon-order-id\tshipment-id\tpurchase-date\tshipment-date\tsku\tproduct-name\tquantity-shipped\tcurrency\titem-price\t"
        "carrier\ttracking-number\testimated-arrival-date\tfulfillment-channel\tsales-channel\n"
    )
    rows = (
        f"{order_id(n)}\tS{n}\t{bought.isoformat()}\t{shipped.isoformat()}\tLAMP-{n % 9}\tGarden lamp\t1\tEUR\t24.90\tDHL\t"
        f"JJD{n:012d}\t{due.isoformat()}\tMFN\t{_SITES['de']}\n"
        for n in range(count)
        if n % 3
    )
    return head + "".join(rows)


def _mail(chance: random.Random, number: int, language: str, text: str, tag: str) -> bytes:
    site, name = _SITES[language], chance.choice(_NAMES)
    relay = number % 3 != 2
    domain = f"marketplace.{site}" if relay else "buyers.example"
    sender = f"{chance.randrange(36**12):x}k{number}@{domain}" if relay else f"buyer{number}@{domain}"
    order = order_id(number)
    subject = f"Order inquiry from customer {name} (Order: {order})" if relay else f"Order {order}"
    if relay:
        text = (
            f"You have received a message.\r\n\r\n# {order}:\r\n1 / Garden lamp [ASIN: B0ABCDEFGH]\r\n\r\n"
            f"------------- Message:  -------------\r\n{text}\r\n------------- End message -------------\r\n"
        )
    lines = [
        f"Return-Path: <{sender}>",
        *(_trace(chance, hop) for hop in range(3)),
        f"Authentication-Results: mx.example.test; dkim=pass header.d={site}; dmarc=pass header.from={domain}",
        f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain}; s=k1;\r\n b={_filler(chance, 260)}",
        f"X-Server-Data: {_filler(chance, 5000)}",
        f"From: {name} <{sender}>",
        "To: shop@example.test",
        f"Subject: {subject}",
        f"Message-ID: <{tag}{number}.{chance.randrange(2**40):x}@{domain}>",
        f"Date: {email.utils.formatdate(usegmt=True)}",
        "MIME-Version: 1.0",
    ]
    plain = f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{text}\r\n"
    if number % 2:
        rows = "".join(
            f"<tr><td style='padding:4px;font:12px sans-serif'>{escape(line)}</td></tr>" for line in text.split("\r\n")
        )
        html = f"<html><head><style>td {{ color: #222 }}</style></head><body><table>{rows}</table></body></html>"
        parts = [plain, f"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{html}\r\n"]
        body = _multipart("alternative", parts, f"a{number}")
    else:
        body = plain
    if number % PICTURE_EVERY == 0:
        picture = base64.encodebytes(chance.randbytes(PICTURE_BYTES)).replace(b"\n", b"\r\n").decode("ascii")
        head = f'Content-Type: image/jpeg; name="photo.jpg"\r\nContent-Disposition: attachment; filename="photo{number}.jpg"'
        body = _multipart("mixed", [body, f"{head}\r\nContent-Transfer-Encoding: base64\r\n\r\n{picture}"], f"m{number}")
    return ("\r\n".join(lines) + "\r\n" + body).encode()


def _multipart(kind: str, parts: list[str], boundary: str) -> str:
    inside = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts)
    return f'Content-Type: multipart/{kind}; boundary="{boundary}"\r\n\r\n{inside}--{boundary}--\r\n'


def _trace(chance: random.Random, hop: int) -> str:
    return (
        f"Received: from relay{hop}.example.test ([192.0.2.{10 + hop}])\r\n by mx{hop}.example.test with ESMTPS id"
        f" {chance.randrange(2**60):x}\r\n for <shop@example.test>; {email.utils.formatdate(usegmt=True)}"
    )


def _filler(chance: random.Random, size: int) -> str:
    """A folded field body of about ``size`` characters, as signatures and filters leave them."""
    coded = base64.b64encode(chance.randbytes(size * 3 // 4)).decode("ascii")
    return "\r\n ".join(coded[at : at + 72] for at in range(0, len(coded), 72))
