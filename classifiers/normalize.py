"""From raw words to comparable ones: width, case, accents, script, masks.

Amounts, dates and plain numbers tell one order from another, never one wish
from another, so each becomes one mask character. Ids of orders and parcels go
altogether, with the words that announce them: whether somebody names an order
depends on where they write from. Standard library only: a labelling process
imports this.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import groupby
from pathlib import Path

#: Mask characters of the private use area, and how they are shown to people.
MASKS = {
    "\ue000": "<number>",
    "\ue001": "<amount>",
    "\ue002": "<date>",
    "\ue004": "<link>",
    "\ue005": "<mail>",
    "\ue006": "<time>",
}
NUMBER, AMOUNT, DATE, LINK, MAIL, TIME = MASKS
_ID_MASK = "\ue003"  # stands for an id for as long as it takes to find what announces it

#: Longest text that is looked at. The wish stands at the beginning or the end, so the middle is left out.
MAX_CHARS = 6000

_LINK = re.compile(r"(?:https?://|www\.)[^\s<>\"]+")
_MAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
# Both look ahead for what may begin a match, since at most places nothing does.
_ID = re.compile(
    r"\b(?=[a-z0-9]*\d)(?:\d{3}-\d{7}-\d{7}|[a-z]{0,4}\d[\da-z]*(?:-[\da-z]+)*-\d[\da-z]*|(?=[a-z0-9]*\d[a-z0-9]*\d[a-z0-9]*\d)(?=[a-z0-9]*[a-z])[a-z0-9]{8,}|\d{8,})\b"
)
_AMOUNT = re.compile(
    r"(?=[$€£¥\d]|\b[eugcjrtnh])(?:(?:[$€£¥]|\b(?:eur|usd|gbp|chf|jpy|rmb|cny|twd|ntd?|hkd)\b\$?) ?\d+(?:[.,']\d+)*"
    # from the first digit of all alone: what does not end in money from there does not from a later one either
    r"|(?<!\d)(?<!\d[.,'])\d+(?:[.,']\d+)*(?:[.,]-)? ?(?:[$€£¥円元块塊]|(?:eur|euros?|usd|dollars?|gbp|pounds?|chf|francs?|franken|yen|rmb|cny|twd|hkd)\b))"
)
_DATE = re.compile(  # the look ahead spares the alternatives at most places
    r"(?=\d)(?:\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b|\b\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})\b|\b\d{1,2}[./]\d{1,2}\.(?!\d)|\b\d{1,2}/\d{1,2}\b"
    r"|(?:\d{4}年)?\d{1,2}月\d{1,2}[日号])"
)
_TIME = re.compile(r"\b\d{1,2}[:h]\d{2}(?: ?[ap]m)?\b|\b\d{1,2} ?[ap]m\b")
_NUMBER = re.compile(r"\d+(?:[.,']\d+)*")
_LONG = re.compile(r"(?=(.)\1)(?:([^\W\d_])\2{2,}|([!?~.])\3+)")
_SPACE = re.compile(r" [ \t\f\v]+|[\t\f\v][ \t\f\v]*")  # all but the single spaces, which stay as they are
_DIGIT = re.compile(r"\d")
#: An id with what announces it, as in "(Order: 113-…)", "numero de commande 404-…" or "订单号:113-…"; each repetition is bounded.
_ANNOUNCED_ID = re.compile(
    r"""
    (?:[(\[【]\ ?)?
    (?:
        (?:
            \b(?:(?:my|your|the|meine[rm]?|ma|votre|mi|su|mio)\ )?
            (?:order|purchase|amazon|bestell\w{0,9}|auftrag\w{0,9}|kauf|commande|pedido|ordine|ref(?:eren[cz]\w{0,3})?)\b
            |ご?注文|订单|单号|受注|伝票
        )
        (?:[\ -]?(?:id|n[ro]?|num|number|numero|nummer|番号|号码|号|编号|ref(?:eren[cz]\w{0,3})?)\b)?
        |\b(?:n[ro]?|num|number|numero)\b[\ .°]{0,3}(?:de|di|of|der|dell)?[\ ']?(?:la\ |l'|el\ |the\ )?
        (?:order|bestell\w{0,9}|commande|pedido|ordine)\b
        |\b(?:id|n[ro]?|num|number|numero|nummer|ref(?:eren[cz]\w{0,3})?)\b
    )?
    [\ .:#°]{0,4}\ue003(?:\ ?[)\]】])?
    """,
    re.VERBOSE,
)
_KANA = re.compile(r"[\u3041-\u30ff]")
#: High bytes of UTF-16 units that lie before U+3000, and of those outside U+3400 to U+9FFF.
_BEFORE_CJK = bytes(range(0x30))
_NOT_HAN = bytes([*range(0x34), *range(0xA0, 0x100)])
_APOSTROPHES = {"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00b4": "'", "`": "'", "\u00ad": ""}
_MARK = re.compile(r"[\u0300-\u036f]")


@cache
def _simplified() -> dict[int, str]:
    path = Path(__file__).parent / "data" / "hanzi.txt"
    traditional, simplified = path.read_text(encoding="utf-8").splitlines()[1:3]
    return {ord(a): b for a, b in zip(traditional, simplified, strict=True)}


def bounded(text: str) -> str:
    """At most MAX_CHARS characters: the first third and the last two thirds of that."""
    if len(text) <= MAX_CHARS:
        return text
    head = MAX_CHARS // 3
    return text[:head] + "\n" + text[head - MAX_CHARS :]


def normalize(text: str) -> str:
    """Lower case, NFKC, no accents, simplified Chinese, masked numbers, dates and links, no ids.

    Line breaks stay, they end sentences. Text with kana keeps its characters,
    since the same code point may be a different word in Japanese.
    """
    text = unicodedata.normalize("NFKC", bounded(text))
    for sign, plain in _APOSTROPHES.items():
        if sign in text:
            text = text.replace(sign, plain)
    text = text.casefold()
    if not text.isascii():
        if not _KANA.search(text):
            text = text.translate(_simplified()) if _has_han(text) else _MARK.sub("", unicodedata.normalize("NFD", text))
        text = unicodedata.normalize("NFC", text)
    if "@" in text:
        text = _MAIL.sub(MAIL, text)
    if "http" in text or "www." in text:
        text = _LINK.sub(LINK, text)
    if _DIGIT.search(text):
        for pattern, mask in ((_AMOUNT, AMOUNT), (_ID, _ID_MASK), (_DATE, DATE), (_TIME, TIME), (_NUMBER, NUMBER)):
            text = pattern.sub(mask, text)
        if _ID_MASK in text:
            text = _ANNOUNCED_ID.sub(" ", text)
    return _SPACE.sub(" ", _LONG.sub(_shorter, text)).strip()


def _has_han(text: str) -> bool:
    return _holds(text, _NOT_HAN)


def _holds(text: str, others: bytes) -> bool:
    """Whether a character's UTF-16 unit begins with any byte but these.

    Not a regular expression: to compile one for so many characters takes longer than to read a message.
    """
    return bool(text.encode("utf-16-be", "surrogatepass")[::2].translate(None, others))


def _shorter(match: re.Match[str]) -> str:
    """Two of a repeated letter or sign say as much as nine."""
    return match.group(1) * 2


def is_cjk(text: str) -> bool:
    """Whether the first character belongs to Japanese or Chinese, which put no spaces between words."""
    return "\u3005" <= text < "\ua000" or "\uf900" <= text < "\ufb00"


def is_unspaced_pair(term: str) -> bool:
    """Whether a pair of words is one of characters of unspaced script."""
    return len(term) == 3 and is_cjk(term) and term[1] == " " and is_cjk(term[2])


def has_cjk(text: str) -> bool:
    """Whether any character of a text may be Japanese or Chinese."""
    return not text.isascii() and _holds(text, _BEFORE_CJK)


def is_all_cjk(text: str) -> bool:
    """Whether every character is one of the Japanese and Chinese ones below U+A000; False of nothing."""
    return text != "" and min(text) >= "\u3005" and max(text) <= "\u9fff"


def runs(token: str) -> list[str]:
    """A token cut where unspaced script begins or ends."""
    if token.isascii() or is_all_cjk(token):
        return [token]
    return ["".join(run) for _, run in groupby(token, is_cjk)]


def shown(term: str) -> str:
    """A term as people read it: masks written out, and no space between characters of unspaced script."""
    for mask, name in MASKS.items():
        term = term.replace(mask, name)
    return term.replace(" ", "") if is_unspaced_pair(term) else term
