"""A text taken apart: the writer's own words, what was quoted, and how the letter ended.

Quotations are found by ``daemon.mime.quotation``; then signatures, mobile
footers and disclaimers are taken off the end of what is left. In doubt text
stays: losing the writer's words is the worst error.

The published libraries were measured first (``benchmarks/reading.py`` prints
them beside this): none knows the languages needed, and most need quadratic
time on lines such as ``On On On``.
"""

from __future__ import annotations

import re
from typing import Final

from daemon.mime.html import html_to_text
from daemon.mime.quotation import OWN, QUOTE, RULE, blank, is_forward, marked, words
from daemon.vocab import Writing

_SIGNATURE: Final = "s"
_TAG: Final = re.compile(
    r"(?i)<(?:!doctype|html|head|body|div|p|br|span|blockquote|table|font|pre|b|i|a href|ul|ol|h[1-6]|style|meta)\b"
)
_SIGNED: Final = re.compile(r"-----BEGIN PGP SIGNED MESSAGE-----\s*$")


def own_words(text: str, *, html: bool = False, strip_signature: bool = True, names: tuple[str, ...] = ()) -> Writing:
    """Take ``text`` apart.

    ``html`` says that ``text`` is HTML source (the ``text`` of a ``ParsedMail``
    never is). ``names`` are the writer's known names, which may stand alone in
    the last line. Total and linear in the length of the text.
    """
    if html and _TAG.search(text):
        text = html_to_text(text)
    found, kinds = marked(text)
    lines, marks = list(found), list(kinds)
    if strip_signature:
        _signatures(lines, marks, names)
    own = _gathered(lines, marks, OWN)
    quote = _gathered(lines, marks, QUOTE)
    signature = _gathered(lines, marks, _SIGNATURE)
    if not own and signature:  # nothing but a greeting: it is what was written
        own, signature = signature, ""
    return Writing(text=own, quote=quote, signature=signature)


def _gathered(lines: list[str], marks: list[str], kind: str) -> str:
    kept: list[str] = []
    for line, mark in zip(lines, marks, strict=True):
        if mark == kind:
            kept.append(line)
        elif kept and kept[-1] != "" and kind == OWN:
            kept.append("")
    out: list[str] = []
    for line in kept:
        if blank(line) and (not out or blank(out[-1])):
            continue
        out.append(line.rstrip())
    while out and blank(out[-1]):
        out.pop()
    return "\n".join(out)


# --------------------------------------------------------------------------- signatures

_DELIMITER: Final = re.compile(r"\s{0,3}(?:-{2,3}|—|–|——|_{2,3}|={2,3}|\*{2,3})\s*$")
_LONG_RULE: Final = re.compile(r"\s*(?:[-_=*~—–─━]\s?){4,}\s*$")
_CONTACT: Final = re.compile(
    r"(?i)[^\s@]{1,64}@[^\s@]{1,100}\.[a-z]{2,}|https?://|www\.|(?:\+|00)?\(?\d[\d\s()/.-]{6,20}\d|\b(?:tel|fon|phone|fax|mobil|mobile|cell|téléphone|teléfono|telefono|tél|skype|ust-id|vat|hrb|ust\.?id)\b|电话|手机|\[cid:|\[image|@\w+$"
)
_STRONG_CONTACT: Final = re.compile(r"(?i)[^\s@]{1,64}@[^\s@]{1,100}\.[a-z]{2,}|https?://|www\.")
_SECRET: Final = re.compile(
    r"(?i)confiden|intended|recipient|virus|print|environment|unsubscri|privileged|vertraulich|empfänger|umwelt|viren|register|amtsgericht|destinat|riservat|ambiente|impri|medio ambiente|milieu|vertrouwelijk|poufn|adresat|drukuj|konfidenti|fortrolig|luottamuk|конфиденциал|вирус|保密|机密|機密|守秘|subscri|receiving this|registered|mailing list|confid|prohib|unbefugt|geschäftsführ"
)
_DASH_NAME: Final = re.compile(r"\s{0,3}[-–—~][ ]?[^\W\d_][^\W\d_.'’-]{0,20}(?:[ .][^\W\d_][\w.'’-]{0,20}){0,2}[.!]?\s*$")
_BULLET: Final = re.compile(r"\s*(?:[-*•–—+]|\d{1,2}[.)])\s")
_TAIL: Final = 40


def _signatures(lines: list[str], marks: list[str], names: tuple[str, ...]) -> None:
    """Mark the signature at the end of every stretch of own text; only the last one is judged in full."""
    stretches = _stretches(marks)
    for number, (start, end) in enumerate(stretches):
        block = lines[start:end]
        if any(is_forward(block, index) for index in range(len(block)) if block[index][:1] in "-_=*BbAIDW"):
            continue
        whole = number == len(stretches) - 1 or not any(
            not blank(line) for later in stretches[number + 1 :] for line in lines[later[0] : later[1]]
        )
        earlier = any(not blank(lines[index]) for index in range(start) if marks[index] == OWN)
        cut = _cut(block, names, whole=whole, earlier=earlier)
        for index in range(start + cut, end):
            marks[index] = _SIGNATURE
        for index in range(start, start + cut):
            if _SIGNED.match(lines[index]) or (
                index > start and lines[index].startswith("Hash: ") and _SIGNED.match(lines[index - 1])
            ):
                marks[index] = _SIGNATURE


def _stretches(marks: list[str]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    start = -1
    for index, mark in enumerate([*marks, QUOTE]):
        if mark == OWN and start < 0:
            start = index
        elif mark != OWN and start >= 0:
            found.append((start, index))
            start = -1
    return found


def _cut(block: list[str], names: tuple[str, ...], *, whole: bool, earlier: bool) -> int:
    """Index in ``block`` from which on it is signature."""
    end = _trimmed(block, len(block))
    least = 0 if earlier else _least(block)
    for index in range(least, end):
        if block[index].startswith("-----BEGIN PGP SIGNATURE-----"):
            end = _trimmed(block, index)
            break
    finders = (
        (_delimited, _mobile, _disclaimer, _list_footer, _letter_end, _contacts, _dash_name) if whole else (_delimited, _mobile)
    )
    for _ in range(8):
        before = end
        for finder in finders:
            end = _trimmed(block, max(finder(block, end, least), least if end > least else 0))
        if whole and names:
            end = _trimmed(block, _known_name(block, end, least, names))
        if end == before:
            break
    return end


def _least(block: list[str]) -> int:
    """The first line that may be signature: never the first line of text."""
    for index, line in enumerate(block):
        if not blank(line):
            return index + 1
    return len(block)


def _trimmed(block: list[str], end: int) -> int:
    while end > 0 and blank(block[end - 1]):
        end -= 1
    return end


def _delimited(block: list[str], end: int, least: int) -> int:
    for index in range(max(least, end - 60), end):
        line = block[index]
        if line in ("-- ", "--\u00a0"):
            return index
        if line.strip() in ("-", "–") and index + 2 >= end and _is_name(block[index + 1] if index + 1 < end else ""):
            return index
        if _DELIMITER.match(line):
            tail = [text for text in block[index + 1 : end] if not blank(text)]
            if tail and len(tail) <= 25 and _ends_like_signature(tail, strict=line.strip() != "--"):
                return index
        elif _LONG_RULE.match(line):
            tail = [text for text in block[index + 1 : end] if not blank(text)]
            if (
                0 < len(tail) <= 20
                and all(len(text) <= 70 for text in tail)
                and sum(_CONTACT.search(text) is not None for text in tail) >= 2
            ):
                return index
    return end


def _ends_like_signature(tail: list[str], *, strict: bool) -> bool:
    if sum(len(text) for text in tail if not _is_disclaimer(text)) > 800:
        return False
    if any(_DELIMITER.match(text) for text in tail) and not strict:
        return True
    prose = sum(1 for text in tail if len(text.split()) > 10 and not _is_disclaimer(text) and not _CONTACT.search(text))
    if not strict:
        return prose <= 1
    return prose == 0 and not any(text.rstrip().endswith("?") for text in tail)


def _mobile(block: list[str], end: int, least: int) -> int:
    cut = end
    for index in range(end - 1, max(least - 1, end - 5), -1):
        line = block[index]
        if blank(line):
            continue
        if not _is_mobile(line):
            break
        cut = index
    if (
        cut < end
        and cut - 1 >= least
        and not blank(block[cut - 1])
        and cut - 2 >= 0
        and blank(block[cut - 2])
        and _is_name(block[cut - 1])
    ):
        return cut - 1
    return cut


_DEVICE_SENT: Final = re.compile(r"(?i)gönder|送信|küld|보냄|傳送|发送")


def _is_mobile(line: str) -> bool:
    text = line.strip(" *_<>()[]\t")
    if not 4 <= len(text) <= 140:
        return False
    vocabulary = words()
    lead = vocabulary.mobile_leads.match(text)
    dense = ord(text[0]) >= 0x2E80 or text.endswith(("から送信", "에서 보냄"))
    if lead is None and not text.lower().startswith(("iphone", "ipad", "発", "发", "從")) and not dense:
        return text.lower() in ("via mobile", "mobile")
    if dense and len(text) <= 40 and (vocabulary.brands.search(text) or "送信" in text):
        return True
    if text.lower().startswith(("iphone", "ipad")) and len(text) <= 40 and _DEVICE_SENT.search(text):
        return True
    if lead is None:
        return False
    rest = text[lead.end() :].strip(" .!")
    opening = lead.group(0).strip().lower()
    if opening in (
        "get",
        "download",
        "hent",
        "få",
        "hanki",
        "hämta",
        "skaffa",
        "obter",
        "obtener",
        "obtén",
        "pobierz",
        "scarica",
        "ottieni",
        "vom",
        "via",
        "私の",
        "内",
        "내",
        "通过",
        "télécharger",
        "obtenez",
        "descargar",
    ):
        return rest.lower().startswith(("outlook", "mobile", "iphone", "handy")) or (
            opening == "via" and rest.lower() in ("mobile", "phone")
        )
    branded = vocabulary.brands.search(rest) is not None
    if branded and len(text.split()) <= 16 and "," not in rest and not rest.endswith("?"):
        return True
    return (
        opening in ("sent from my", "von meinem", "gesendet von", "envoyé de mon", "enviado desde", "inviato da")
        and len(rest.split()) <= 3
        and "," not in rest
    )


def _is_disclaimer(line: str) -> bool:
    head = line.strip(" *_#>[](){}|\"'-–—\t").lower()[:60]
    return head.startswith(words().disclaimers)


def _disclaimer(block: list[str], end: int, least: int) -> int:
    floor = max(least, end - _TAIL)
    for index in range(floor, end):
        if (index > 0 and not blank(block[index - 1]) and not RULE.match(block[index - 1])) or not _is_disclaimer(block[index]):
            continue
        paragraph = " ".join(block[index : min(end, index + 12)])
        if _SECRET.search(paragraph):
            while index - 1 >= least and (RULE.match(block[index - 1]) or blank(block[index - 1])):
                index -= 1
            return index
    return end


def _list_footer(block: list[str], end: int, least: int) -> int:
    for index in range(max(least, end - 10), end):
        if not _LONG_RULE.match(block[index]) or len(block[index].strip()) < 10:
            continue
        tail = [text for text in block[index + 1 : end] if not blank(text)]
        if (
            tail
            and len(tail) <= 8
            and any(_STRONG_CONTACT.search(text) for text in tail)
            and all(len(text) < 120 for text in tail)
        ):
            return index
    return end


_EDGES: Final = " \t*_.,;:!~-–—'\"’“”()<>，。！、…・☺😊🙂️\u200d"


def _farewell(line: str) -> tuple[str, str]:
    """Which kind of leave a line takes, and the name in it: ("farewell" | "thanks" | "", name)."""
    if len(line) > 90:
        return "", ""
    text = line.strip(_EDGES)
    low = text.lower()
    vocabulary = words()
    if low in vocabulary.farewells:
        return "farewell", ""
    if low in vocabulary.thanks:
        return "thanks", ""
    for size in range(min(6, len(low.split())), 0, -1):
        parts = text.split()
        head = " ".join(parts[:size]).strip(_EDGES).lower()
        name = " ".join(parts[size:]).strip(_EDGES)
        kind = "farewell" if head in vocabulary.farewells else "thanks" if head in vocabulary.thanks else ""
        if kind and name and len(name.split()) <= 4:
            comma = parts[size - 1].endswith((",", "!", ".", "-", "–")) or parts[size].startswith(("-", "–"))
            if name.lower().strip(_EDGES) in vocabulary.farewells or name.lower() in vocabulary.thanks:
                return kind, ""
            if _is_name(name) and (
                comma
                or (
                    kind == "farewell"
                    and (
                        size > 1
                        or len(head) <= 3
                        or head
                        in (
                            "saludos",
                            "gruß",
                            "grüße",
                            "cordialement",
                            "saluti",
                            "groet",
                            "groeten",
                            "pozdrawiam",
                            "cdlt",
                            "regards",
                            "cumprimentos",
                        )
                    )
                )
            ):
                return kind, name
    return "", ""


def _is_name(line: str) -> bool:
    text = line.strip(_EDGES)
    if not text or len(text) > 50 or any(char.isdigit() for char in text) or line.rstrip().endswith(("?", ":")):
        return False
    parts = text.split()
    if ord(text[0]) >= 0x2E80:
        return len(text) <= 12 and not any(char in text for char in "。、？！，")
    if len(parts) > 4:
        return False
    if len(parts) == 1:
        return len(text) >= 1 and text.replace("-", "").replace(".", "").replace("'", "").isalpha()
    return all(part[:1].isupper() or part.lower() in _PARTICLES or not part[:1].isalpha() for part in parts)


_ABBREVIATION: Final = re.compile(r"(?:[A-Z][A-Za-z]{0,3}\.|&)\s*$")
_PARTICLES: Final = frozenset(
    {
        "von",
        "van",
        "de",
        "der",
        "den",
        "da",
        "di",
        "del",
        "della",
        "la",
        "le",
        "und",
        "and",
        "&",
        "et",
        "y",
        "e",
        "zu",
        "ter",
        "bin",
        "al",
        "dos",
        "du",
        "af",
        "av",
    }
)


def _like_signature(line: str) -> bool:
    text = line.strip(_EDGES)
    if not text:
        return True
    if len(text) > 75 or line.rstrip().endswith("?"):
        return _is_disclaimer(line)
    if _CONTACT.search(text) or _is_mobile(line) or _is_disclaimer(line):
        return True
    parts = text.split()
    if len(parts) > 7:
        return False
    if len(parts) >= 4 and line.rstrip().endswith((".", "!")) and not _ABBREVIATION.search(line):
        return False
    if ord(text[0]) >= 0x2E80:
        return len(text) <= 20
    capital = sum(part[:1].isupper() or not part[:1].isalpha() or part.lower() in _PARTICLES for part in parts)
    return len(parts) <= 2 or capital * 2 >= len(parts)


def _letter_end(block: list[str], end: int, least: int) -> int:
    cut = end
    for index in range(end - 1, max(least - 1, end - 25), -1):
        line = block[index]
        if blank(line):
            continue
        kind, name = _farewell(line)
        if kind:
            tail = [text for text in block[index + 1 : end] if not blank(text)]
            if kind == "thanks" and not name and not (tail and _is_name(tail[0])):
                break
            if kind == "farewell" and line.rstrip().endswith("?"):
                break
            if all(_like_signature(text) for text in tail) and not (name == "" and tail and _BULLET.match(tail[0])):
                cut = index
                continue
            break
        if not _like_signature(line):
            break
    return cut


def _contacts(block: list[str], end: int, least: int) -> int:
    """A last paragraph that is a visiting card: name, and at least two ways to reach it."""
    start = end
    while start > least and not blank(block[start - 1]):
        start -= 1
    lines = block[start:end]
    if not 2 <= len(lines) <= 12 or start <= least - 1 or start == 0 or not blank(block[start - 1]):
        return end
    above = _trimmed(block, start)
    if above and block[above - 1].rstrip().endswith((":", "：")):
        return end
    strong = sum(_STRONG_CONTACT.search(line) is not None for line in lines)
    reach = sum(_CONTACT.search(line) is not None for line in lines)
    if strong >= 1 and reach >= 2 and all(_like_signature(line) for line in lines) and not _CONTACT.search(lines[0]):
        return start
    return end


def _dash_name(block: list[str], end: int, least: int) -> int:
    index = end - 1
    if index < least or not _DASH_NAME.match(block[index]):
        return end
    above = _trimmed(block, index)
    if above == 0 or block[above - 1].rstrip().endswith((":", "：")) or _BULLET.match(block[above - 1]):
        return end
    spaced = block[index].strip()[1:2] == " "
    if spaced and above == index:
        return end
    return index


def _known_name(block: list[str], end: int, least: int, names: tuple[str, ...]) -> int:
    index = end - 1
    if index < least:
        return end
    last = block[index].strip(_EDGES).lower()
    known = {name.lower() for name in names if name} | {
        part.lower() for name in names for part in name.split() if len(part) > 2
    }
    return (
        index
        if last and (last in known) and (index == 0 or blank(block[index - 1]) or _farewell(block[index - 1])[0] != "")
        else end
    )
