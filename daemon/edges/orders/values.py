"""Cells of order reports, cleaned: dates, amounts, ids, yes and no. What cannot be told is None, never a guess."""

from __future__ import annotations

import re
import unicodedata
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache

#: A spreadsheet turned an id into a number and lost its digits, as in 4.43655E+11.
_DAMAGED = re.compile(r"^\s*[+-]?\d(?:[.,]\d+)?E\+?\d+\s*$", re.IGNORECASE)
_ORDER_ID = {
    "amazon": re.compile(r"^(?:\d{3}|[A-Z]\d{2})-\d{7}-\d{7}$"),
    "ebay": re.compile(r"^(?:\d{2}-\d{5}-\d{5}|\d{8,14}[!-]\d{8,20})$"),
    "walmart": re.compile(r"^\d{10,15}$"),
}
_MONTHS = {
    name: n for n, name in enumerate(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1)
}
_ISO = re.compile(r"^(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)")
_KANJI = re.compile(r"^(\d{4})年(\d{1,2})月(\d{1,2})日")
_NUMERIC = re.compile(r"^(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})(?!\d)")
_NAMED = re.compile(
    r"^(\d{1,2})[ -]([A-Za-z]{3})[a-z]*[ -](\d{4}|\d{2})(?!\d)|^([A-Za-z]{3})[a-z]*[ -](\d{1,2}),?[ -](\d{4}|\d{2})(?!\d)"
)


def clean(cell: str | None) -> str:
    """The cell without NULs, surrounding blanks, and the apostrophe spreadsheets put before digits."""
    text = (cell or "").replace("\x00", "").strip().strip("\u00a0\ufeff")
    return text[1:] if len(text) > 1 and text[0] == "'" and (text[1].isdigit() or text[1] in "+0") else text


def is_damaged(cell: str) -> bool:
    """Whether a spreadsheet has destroyed this id."""
    return _DAMAGED.match(cell) is not None


def order_id(cell: str, shop: str) -> str | None:
    """The order id, or None when it is damaged or none of that shop's."""
    text = unicodedata.normalize("NFKC", cell).strip().strip('"').replace("\u2010", "-").replace("\u2013", "-")
    if not text or is_damaged(text) or len(text) > 60:
        return None
    pattern = _ORDER_ID.get(shop)
    if pattern is not None:
        return text if pattern.match(text) else None
    return None if re.search(r"\s{2,}|[\x00-\x1f]", text) else text


def order_key(shop: str, identifier: str) -> tuple[str, str]:
    """Under which key an order is kept: shops of one's own write #1001 and 1001 for the same order."""
    text = unicodedata.normalize("NFKC", identifier).strip().upper()
    own = shop in ("own", "shopify", "etsy")
    return ("own" if shop in ("own", "shopify") else shop, text.removeprefix("#") if own else text)


def tracking(cell: str) -> str | None:
    """A tracking number, or None when there is none or a spreadsheet has destroyed it."""
    return None if not cell or is_damaged(cell) or len(cell) > 60 else cell


@lru_cache(maxsize=4096)
def day(cell: str, *, month_first: bool = False) -> date | None:
    """The day of a date or time, as it stands there; 03/04/2026 is read with the month first only where that is the custom."""
    text = unicodedata.normalize("NFKC", cell).strip().strip('"')
    try:
        if match := _ISO.match(text) or _KANJI.match(text):
            return date(*(int(g) for g in match.groups()))
        if match := _NAMED.match(text):
            d, name, y = (match[1], match[2], match[3]) if match[1] else (match[5], match[4], match[6])
            month = _MONTHS.get(name.lower())
            return date(_year(y), month, int(d)) if month else None
        if match := _NUMERIC.match(text):
            first, second = int(match[1]), int(match[2])
            dotted = text[len(match[1])] == "."
            if first > 12 or dotted or (second <= 12 and not month_first):
                first, second = second, first
            return date(_year(match[3]), first, second)
    except ValueError:
        return None
    return None


def _year(text: str) -> int:
    return int(text) + 2000 if len(text) == 2 else int(text)


@lru_cache(maxsize=4096)
def amount(cell: str) -> Decimal | None:
    """A money amount with point or comma as decimal sign; the last separator with one or two digits behind it decides."""
    text = re.sub(r"[^\d.,-]", "", unicodedata.normalize("NFKC", cell))
    if not re.search(r"\d", text) or is_damaged(cell):
        return None
    match = re.search(r"[.,](\d{1,2})$", text)
    whole, fraction = (text[: match.start()], match[1]) if match else (text, "")
    try:
        return Decimal(re.sub(r"[.,]", "", whole) + (f".{fraction}" if fraction else ""))
    except InvalidOperation:
        return None


def count(cell: str) -> int | None:
    """A whole number of units."""
    text = unicodedata.normalize("NFKC", cell).strip()
    match = re.match(r"^(\d{1,6})(?:[.,]0+)?$", text)
    return int(match[1]) if match else None


def yes(cell: str) -> bool | None:
    """True, False, or None for a cell that says neither."""
    text = cell.strip().lower()
    if text in ("true", "yes", "y", "1", "ja", "oui", "sí", "si", "はい", "是"):
        return True
    return False if text in ("false", "no", "n", "0", "nein", "non", "いいえ", "否") else None


def moment(text: str) -> datetime:
    """An aware time from ISO 8601; ValueError otherwise."""
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError("a time needs its zone")
    return value
