"""The last look at a reply: what a marketplace would punish does not leave.

The rules O1 to O21 and their severities per marketplace are data
(``data/guard.json``). The final text is read after the order ids, tracking
numbers and dates that belong in it are masked, with full-width characters
folded and invisible ones dropped. The same look is taken at machine drafts
and at what staff wrote; of a staff edit, ``overridable`` says which findings
are theirs to overrule.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import phonenumbers

from daemon.languages import reply_language
from daemon.phrases import literals
from daemon.vocab import Attachment, Draft, Finding, OrderFacts, Severity

MAX_REPLY_CHARACTERS = 4000
MAX_ATTACHMENT_BYTES = 10_000_000
#: Replies without a person in one thread, after which one looks.
MAX_AUTOMATIC_PER_THREAD = 2

_EXCERPT = 60
_MASK = "▯"
# The edge of a word. Chinese and Japanese are written without blanks, so their characters beside a number or a
# Latin word part it as a blank would: 订单026-… begins at the 0. Case is off inside: the compiler would fold every
# character of the range.
_BEGIN, _END = r"(?-i:(?<![^\W\u2e80-\uffff]))", r"(?-i:(?![^\W\u2e80-\uffff]))"
#: Those characters. It takes the compiler milliseconds to go through the range.
_DENSE = re.compile(r"[\u2e80-\uffff]")
_DOT = r"(?:\.|\s?[\(\[\{]\s?(?:dot|punkt|point|punto)\s?[\)\]\}]\s?|\s(?:dot|DOT)\s)"
_TLD = (
    r"(?:com|net|org|info|biz|shop|store|online|site|xyz|top|club|app|dev|io|me|tv|cc|co|eu|de|fr|es|it|uk|jp|cn|tw|hk|us|ca|at|ch|nl|pl|br|mx|ly|link|gl|gg|ws|vip|page|website"
    r"|COM|NET|ORG|INFO|SHOP|DE|FR|ES|UK|JP|CN|EU|Com|Net|Org)"
)
# Most replies have nothing that the wide expressions below look for. What every match of one contains is cheap to look
# for first: one of these words for an address or a host, a dot before a known ending for a host, five digits in a row.
_MAY_BE_DOT = ("dot", "DOT", "punkt", "punto", "point")
_MAY_BE_EMAIL = ("@", "_at_", "arroba", "chiocciola", "arobase", *_MAY_BE_DOT)
_AT_IN_BRACKETS = re.compile(r"[\(\[\{]\s?(?:at|AT|ät|arroba|chiocciola)")
_HOST_END = re.compile(rf"\.\s?{_TLD}")
_FIVE_DIGITS = re.compile(r"\d(?:[ ()./\-‐‑–]{0,2}\d){4}")
_URL = re.compile(r"(?:https?|ftp|hxxps?)\s?:\s?/\s?/\s?\S+|" + _BEGIN + r"www\s?\.\s?\S+", re.IGNORECASE)
_BARE_DOMAIN = re.compile(rf"{_BEGIN}(?<![@.-])(?:[A-Za-z0-9][A-Za-z0-9-]*(?:{_DOT}|\s\.\s))+{_TLD}{_END}(?!-)(?:/\S*)?")
_EMAIL = re.compile(
    rf"[\w.+-]{{1,64}}\s?(?:@|[\(\[\{{]\s?(?:at|AT|ät|arroba|chiocciola)\s?[\)\]\}}])\s?[\w-]{{1,63}}(?:\s?{_DOT}\s?[\w-]{{1,63}})+"
    rf"|[\w.+-]{{1,64}}\s(?:at|AT|arroba|chiocciola|arobase)\s[\w-]{{1,63}}(?:\s(?:dot|DOT|punkt|punto|point)\s)[\w-]{{2,63}}"
    r"|[\w.+-]{1,64}(?:_at_|\s?@\s?)(?:[\w-]{1,63}\.[\w-]{2,63}|gmail|yahoo|hotmail|outlook|icloud|qq|163|126|foxmail|gmx|aol)\b"
    rf"|[\w.+-]{{1,64}}\s(?:arroba|chiocciola|arobase)\s[\w-]{{1,63}}\.[\w-]{{2,63}}"
)
_DIGITS = re.compile(rf"{_BEGIN}(?<![▯-])(?:\+|00)?\(?\d(?:[ ()./\-‐‑–]{{0,2}}\d){{7,15}}{_END}(?![▯-])")
#: A number behind a word that says what it is for.
_CALLED = re.compile(
    r"(?:\b(?:tel|telephone|phone|call|dial|mobile|cell|fon|telefon|handy|anruf|téléphone|teléfono|telefono|móvil|hotline)\b|電話|电话|手机|手機|热线|熱線)"
    r"[^\d▯\n]{0,25}(\d(?:[ ()./-]{0,2}\d){4,14})",
    re.IGNORECASE,
)
#: Too short for _DIGITS, long enough to be dialled: the numbering plans decide.
_NUMBERISH = re.compile(rf"{_BEGIN}(?<![▯.,-])[+(]?\d(?:[ ()./-]{{0,2}}\d){{5,6}}{_END}(?![▯-])")
_HTML = re.compile(
    r"<\s*/?\s*(?:a|b|i|u|p|br|div|span|img|font|table|tr|td|html|body|script|style|center|h\d|ul|li|em|strong)\b[^>]*>",
    re.IGNORECASE,
)
_FILE_END = re.compile(r"cid:|\.(?:gif|png|jpe?g|webp|svg)", re.IGNORECASE)
_GIF = re.compile(r"\bcid:\S{1,80}|[\w-]{1,80}\.(?:gif|png|jpe?g|webp|svg)\b", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"\{\{|\}\}|\{%|%\}|\{#|#\}|\[\[|\]\]|\$\{[^}]*\}|%\([a-z_]+\)s|\{[a-z_.]+\}|<(?:[a-z][a-z0-9_ ]{1,30})>|\[(?i:name|order|date|item|tracking|your|insert|order id|customer)[^\]]{0,30}\]"
    r"|#(?:N/A|REF!|VALUE!)"
    rf"|{_BEGIN}(?:None|nan|NaN|undefined|NULL|null|NoneType|XXX+|TODO|TBD|(?i:lorem ipsum)){_END}"
)
_MAY_BE_PLACEHOLDER = (
    "{", "}", "%", "[", "]", "<", "#", "None", "nan", "NaN", "undefined", "NULL", "null", "XXX", "TODO", "TBD",
)  # fmt: skip
_ORDER_ID = re.compile(
    rf"{_BEGIN}(?<!-)(?:\d{{3}}-\d{{7}}-\d{{7}}|[A-Z]\d{{2}}-\d{{7}}-\d{{7}}|\d{{2}}-\d{{5}}-\d{{5}}){_END}(?!-)"
)
#: Order numbers of shops of one's own, as in #LO2048.
_HASH_ID = re.compile(r"(?<![\w&#])#\s?([A-Za-z]{0,4}-?\d{3,8})(?![\w-])")
_DATE_FORMS = r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{4}\s?年\s?\d{1,2}\s?月\s?\d{1,2}\s?日|\d{1,2}(?:\.|st|nd|rd|th|er|º)?\s(?:de\s)?[^\W\d]{3,12}\.?,?\s(?:de\s)?\d{4}"
_DATE = re.compile(rf"(?<!\d)(?:{_DATE_FORMS})(?!\d)")
#: With the form that begins with the month. It tries every letter as a month, so it is used where such an end stands.
_DATE_OR_MONTH_FIRST = re.compile(rf"(?<!\d)(?:{_DATE_FORMS}|[^\W\d]{{3,12}}\s\d{{1,2}},\s\d{{4}})(?!\d)")
_MONTH_FIRST_END = re.compile(r"\d,\s\d{4}")
_ATTACHMENT_NAMES = re.compile(r"\.(?:pdf|docx?|txt|jpe?g|png)$", re.IGNORECASE)
_ATTACHMENT_KINDS = frozenset({"instructions", "warranty", "invoice"})
#: What a filter does not see, and dashes that read as one.
_FOLDED = dict.fromkeys(
    (0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0x2061, 0x2062, 0x2063, 0x2064, 0xFEFF, 0x180E, 0x034F)
) | dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE63), "-")
_FOLDED_ONE = re.compile("[" + "".join(map(chr, _FOLDED)) + "]")
_SYMBOL = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f\u2b00-\u2bff\u20e3]")
#: Where an emoji begins, other than © and ®: the library's list takes 4 MB, and a millisecond to take a text apart, and
#: hardly a reply has a character of it. A test holds this against that list.
_EMOJI_START = re.compile(
    "\u2122\ufe0f|[\u203c\u2049\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf\u23e9-\u23f3\u23f8-\u23fa\u24c2\u25aa\u25ab"
    "\u25b6\u25c0\u25fb-\u25fe\u2600-\u27bf\u2934\u2935\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_TEXT_EMOTICON = re.compile(r"(?<![\w:/])(?:[:;=8xX][-^']?[)(DPpOo3*|\\/]{1,2}|<3|\^_\^|\(\^[^)]{1,3}\^\)|T_T|xD|XD)(?![\w/])")


@dataclass(frozen=True, slots=True)
class GuardContext:
    """What a draft is compared with. ``recipient`` is whom it would go to, ``thread_recipient`` whom it answers."""

    marketplace: str | None
    language: str | None  # of the buyer's text
    facts: OrderFacts | None
    order_ids: tuple[str, ...] = ()  # ids of this message and its thread
    recipient: str | None = None
    thread_recipient: str | None = None
    templates_used: tuple[str, ...] = ()
    automatic: bool = False  # would leave without a person
    automatic_in_thread: int = 0
    critical: bool = False  # the policy may mark its subject [Important]
    attachments: tuple[Attachment, ...] = ()
    attachment_kinds: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()  # secrets that must never leave


def inspect(
    draft: Draft, context: GuardContext, detect: Callable[[str], str | None] | None = None
) -> tuple[Draft, tuple[Finding, ...]]:
    """The draft with what the guard may mend mended, and everything it found.

    ``detect`` tells the language of a text; without it the draft's own word counts.
    """
    mended, findings = _mend(draft, context)
    text = _fold(f"{_subject_of_ours(mended.subject)}\n{mended.body}")
    masked = _mask(text, context)
    checks: Sequence[Iterator[Finding]] = (
        _addresses(masked, context),
        _words(masked, context),
        _styling(mended, context),
        _envelope(mended, text, context),
        _substance(mended, masked, context, detect),
    )
    for check in checks:
        findings.extend(check)
    return mended, tuple(sorted(dict.fromkeys(findings), key=lambda f: (int(f.rule[1:]), f.excerpt)))


def blocked(findings: Sequence[Finding]) -> bool:
    """Whether anything found forbids leaving."""
    return any(f.severity is Severity.BLOCK for f in findings)


def held(findings: Sequence[Finding]) -> bool:
    """Whether a person has to look before it may leave."""
    return any(f.severity is not Severity.FIX for f in findings)


def overridable(finding: Finding) -> bool:
    """Whether staff may send in spite of this finding: style and content are theirs to judge, safety is not."""
    return finding.severity is not Severity.BLOCK or finding.rule in _data()["override"]


# --------------------------------------------------------------------------- reading the text


@cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(resources.files("daemon.steps").joinpath("data/guard.json").read_text("utf-8"))
    return loaded


@dataclass(frozen=True, slots=True)
class _Words:
    """The expressions of the rules about words, found by what every match of them contains.

    A reply of a thousand characters would otherwise cost a thousand
    expressions at every one of them.
    """

    expressions: tuple[tuple[str, str, bool], ...]  # (rule, expression, whether for text without scripts that have no spaces)
    always: tuple[int, ...]  # expressions that may match text with none of the literals
    behind: Mapping[str, tuple[int, ...]]  # literal -> expressions it may be part of
    by_start: Mapping[str, tuple[str, ...]]  # first three characters -> literals
    short: tuple[str, ...]  # literals of one or two characters
    dense: tuple[str, ...]  # such literals in scripts without spaces


@cache
def _word_rules() -> _Words:
    """Whole words where the script has spaces, anywhere where it has none."""
    expressions: list[tuple[str, str, bool]] = []
    always: list[int] = []
    behind: dict[str, list[int]] = {}
    for rule in _WORD_RULES:
        for word in _data()["words"][rule]:
            spaced = all(ord(c) < 0x2E80 for c in word)
            needed = literals(word)
            for literal in needed:
                behind.setdefault(literal, []).append(len(expressions))
            if not needed:
                always.append(len(expressions))
            expressions.append((rule, rf"(?<!\w)(?:{word})(?!\w)" if spaced else word, spaced))
    by_start: dict[str, list[str]] = {}
    for literal in behind:
        if len(literal) >= 3:
            by_start.setdefault(literal[:3], []).append(literal)
    return _Words(
        expressions=tuple(expressions),
        always=tuple(always),
        behind={literal: tuple(found) for literal, found in behind.items()},
        by_start={start: tuple(found) for start, found in by_start.items()},
        short=tuple(literal for literal in behind if len(literal) < 3 and max(literal) < "\u2e80"),
        dense=tuple(literal for literal in behind if len(literal) < 3 and max(literal) >= "\u2e80"),
    )


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.IGNORECASE)


def _matches(text: str) -> Iterator[tuple[str, str]]:
    """(rule, excerpt) of every match of the rules about words."""
    known = _word_rules()
    # The characters that IGNORECASE takes for an i, and lower() does not.
    low = text.lower().replace("i\u0307", "i").replace("ı", "i")
    # The edges of words as _BEGIN and _END have them, made by the text: a thousand expressions compile in 50 ms without the range.
    spaced = text if text.isascii() else _DENSE.sub("\ufffd", text)
    likely = set(known.always)
    for line in low.split("\n"):
        likely.update(_likely_in_template(line) if len(line) <= _TEMPLATE_LINE else _likely(line))
    for index in likely:
        rule, expression, of_spaced = known.expressions[index]
        for match in _compiled(expression).finditer(spaced if of_spaced else text):
            yield rule, text[match.start() : match.end()]


def _likely(line: str) -> frozenset[int]:
    """The expressions of which a literal stands in a line of text in lower case."""
    known = _word_rules()
    found: set[int] = set()
    for start in known.by_start.keys() & {line[at : at + 3] for at in range(len(line))}:
        for literal in known.by_start[start]:
            if literal in line:
                found.update(known.behind[literal])
    for literal in (*known.short, *(known.dense if max(line, default="") >= "\u2e80" else ())):
        if literal in line:
            found.update(known.behind[literal])
    return frozenset(found)


_TEMPLATE_LINE = 500
#: Replies are made of the same lines again and again.
_likely_in_template = lru_cache(maxsize=4096)(_likely)


@cache
def _thanks() -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(_data()["thanks_only"]) + ")", re.IGNORECASE)


def _fold(text: str) -> str:
    """Text as a filter sees through it: NFKC, and no invisible characters."""
    if text.isascii():
        return text
    return _FOLDED_ONE.sub(lambda m: _FOLDED[ord(m.group())] or "", unicodedata.normalize("NFKC", text))


def _mask(text: str, context: GuardContext) -> str:
    """Replace what belongs in the text: known ids and tracking numbers, item titles, dates, amounts."""
    known = list(context.order_ids)
    if context.facts is not None:
        known.append(context.facts.order_id)
        known.extend(p.tracking for p in context.facts.parcels)
        known.extend(i.title for i in context.facts.items)
        known.extend(p.carrier for p in context.facts.parcels)
    for value in sorted({_fold(k) for k in known if len(k) >= 3}, key=len, reverse=True):
        text = _masked(text, value, _whole)
        if len(value) > 60:  # a template shortens long titles
            text = _masked(text, value[:40], _shortened)
    dates = _DATE_OR_MONTH_FIRST if _MONTH_FIRST_END.search(text) else _DATE
    return dates.sub(_MASK, text)


def _masked(text: str, value: str, ending: Callable[[str, int], int | None]) -> str:
    """The text with every ``value`` masked that begins like a word and ends as ``ending`` says.

    By hand: an expression for each order's own values would have to be compiled for each order.
    """
    pieces: list[str] = []
    done = 0
    at = text.find(value) if value else -1
    while at >= 0:
        end = None if at and _in_word(text[at - 1]) else ending(text, at + len(value))
        if end is not None:
            pieces += (text[done:at], _MASK)
            done = end
        at = text.find(value, at + 1 if end is None else end)
    return "".join([*pieces, text[done:]]) if pieces else text


def _whole(text: str, end: int) -> int | None:
    """The end of a value that no word goes on behind."""
    return None if end < len(text) and _in_word(text[end]) else end


def _shortened(text: str, end: int) -> int | None:
    """The end of a title that is cut off with … in the same line."""
    stop = text.find("…", end, end + 61)
    return None if stop < 0 or "\n" in text[end:stop] else stop + 1


def _in_word(character: str) -> bool:
    """Whether the character keeps a word beside it from being one of its own; the same as _BEGIN and _END."""
    return (character.isalnum() or character == "_") and not "\u2e80" <= character <= "\uffff"


def _subject_of_ours(subject: str) -> str:
    """The part of a subject that is ours to answer for: a reply repeats the buyer's own."""
    return "" if re.match(r"re\s*:", subject, re.IGNORECASE) else subject


def _found(rule: str, excerpt: str, context: GuardContext) -> Iterator[Finding]:
    severities = _data()["severity"][rule]
    severity = severities.get(context.marketplace or "own", severities["*"])
    if severity != "off":
        yield Finding(rule, Severity(severity), " ".join(excerpt.split())[:_EXCERPT])


# --------------------------------------------------------------------------- rules


def _mend(draft: Draft, context: GuardContext) -> tuple[Draft, list[Finding]]:
    body = re.sub(r"\n[ \t\u3000]*\n(?:[ \t\u3000]*\n)+", "\n\n", draft.body.replace("\r\n", "\n"))
    if body == draft.body:
        return draft, []
    return replace(draft, body=body), list(_found("O10", "empty lines", context))


def _addresses(text: str, context: GuardContext) -> Iterator[Finding]:
    without_mail = text
    if any(part in text for part in _MAY_BE_EMAIL) or _AT_IN_BRACKETS.search(text):
        for match in _EMAIL.finditer(text):
            yield from _found("O2", match.group(), context)
        without_mail = _EMAIL.sub(_MASK, text)
    urls: tuple[re.Match[str], ...] = ()
    numbers = without_mail
    if (":" in text and "/" in text) or "www" in text.lower():
        urls = tuple(_URL.finditer(without_mail))
        numbers = _URL.sub(_MASK, without_mail)
    may_be_host = _HOST_END.search(numbers) is not None or any(part in numbers for part in _MAY_BE_DOT)
    for match in (*urls, *(_BARE_DOMAIN.finditer(numbers) if may_be_host else ())):
        if not _is_own_host(match.group(), context.marketplace):
            yield from _found("O1", match.group(), context)
    if _FIVE_DIGITS.search(numbers) is None:
        return
    spans: list[tuple[int, int]] = []  # what was found, in order, none over another
    for match in _DIGITS.finditer(numbers):
        spans.append(match.span())
        yield from _found("O3", match.group(), context)
    for match in _CALLED.finditer(numbers):
        if not _overlaps(spans, match.span(1)):
            insort(spans, match.span(1))
            yield from _found("O3", match.group(1), context)
    for candidate in _NUMBERISH.finditer(numbers):
        if not _overlaps(spans, candidate.span()) and _is_phone(candidate.group()):
            yield from _found("O3", candidate.group(), context)


def _overlaps(spans: Sequence[tuple[int, int]], span: tuple[int, int]) -> bool:
    """Whether a span shares a character with one of those, which stand in order and apart."""
    start, end = span
    before = bisect_left(spans, (end,))  # how many begin before this one ends: only the last of them can reach it
    return before > 0 and spans[before - 1][1] > start


def _is_phone(candidate: str) -> bool:
    """Whether somebody in one of the regions would dial this number."""
    return any(
        next(iter(phonenumbers.PhoneNumberMatcher(candidate, region, leniency=phonenumbers.Leniency.VALID)), None)
        for region in _data()["phone_regions"]
    )


def _is_own_host(url: str, marketplace: str | None) -> bool:
    """An https link, or the plain name, of the marketplace's own site: exactly that host or one below it."""
    bare = re.sub(r"\s", "", url).lower()
    if bare.startswith(("http:", "ftp:", "hxxp")):
        return False
    host = re.split(r"[/?#]", bare.removeprefix("https://"), maxsplit=1)[0].rstrip(".,;:!)]'\"")
    if "@" in host or ":" in host:
        return False
    return any(host == own or host.endswith(f".{own}") for own in _data()["own_hosts"].get(marketplace or "", ()))


#: Rules that are lists of words and phrases.
_WORD_RULES = ("O4", "O5", "O6", "O7", "O8", "O18", "O19", "O14")


def _words(text: str, context: GuardContext) -> Iterator[Finding]:
    paid_back = context.facts is not None and bool(context.facts.refunded)
    for rule, excerpt in _matches(text):
        if rule != "O14" or not paid_back:
            yield from _found(rule, excerpt, context)


def _styling(draft: Draft, context: GuardContext) -> Iterator[Finding]:
    whole = f"{_subject_of_ours(draft.subject)}\n{draft.body}"
    for match in _SYMBOL.finditer(whole):
        yield from _found("O9", f"U+{ord(match.group()):04X}", context)
    if _EMOJI_START.search(whole):
        import emoji

        for item in emoji.emoji_list(whole):
            if item["emoji"] not in "©®™":
                yield from _found("O9", f"U+{ord(item['emoji'][0]):04X}", context)
    for pattern in (_HTML, *((_GIF,) if _FILE_END.search(whole) else ()), _TEXT_EMOTICON):
        for match in pattern.finditer(whole):
            yield from _found("O9", match.group(), context)
    if any(part in whole for part in _MAY_BE_PLACEHOLDER) or "ipsum" in whole.lower():
        for match in _PLACEHOLDER.finditer(whole):
            if not _HTML.match(match.group()):
                yield from _found("O15", match.group(), context)


def _envelope(draft: Draft, text: str, context: GuardContext) -> Iterator[Finding]:
    if re.search(r"\[\s*important\s*\]", _fold(draft.subject), re.IGNORECASE) and not context.critical:
        yield from _found("O12", "[Important]", context)
    known = {*context.order_ids, *((context.facts.order_id,) if context.facts else ())}
    both = f"{_fold(draft.subject)}\n{text}"
    for match in _ORDER_ID.finditer(both):
        if match.group() not in known:
            yield from _found("O16", match.group(), context)
    if context.marketplace in (None, "shopify"):
        named = {k.lstrip("#").upper() for k in known}
        for match in _HASH_ID.finditer(both):
            if match.group(1).upper() not in named:
                yield from _found("O16", match.group(), context)
    if context.thread_recipient is not None and (context.recipient or "").lower() != context.thread_recipient.lower():
        yield from _found("O16", "another recipient than the one it answers", context)
    for token in context.tokens:
        if token and token in f"{draft.subject}\n{draft.body}":
            yield from _found("O16", "a secret of ours", context)
    total = sum(a.size for a in context.attachments)
    if total > MAX_ATTACHMENT_BYTES:
        yield from _found("O11", f"{total} bytes", context)
    for index, attachment in enumerate(context.attachments):
        kind = context.attachment_kinds[index] if index < len(context.attachment_kinds) else ""
        if not _ATTACHMENT_NAMES.search(attachment.name) or kind not in _ATTACHMENT_KINDS:
            yield from _found("O11", attachment.name, context)


def _substance(
    draft: Draft, masked: str, context: GuardContext, detect: Callable[[str], str | None] | None
) -> Iterator[Finding]:
    if _only_thanks(masked):
        yield from _found("O13", draft.body, context)
    wanted = reply_language(context.language)
    written = detect(draft.body) if detect else None
    if wanted is not None and draft.language != wanted:
        yield from _found("O17", f"{draft.language} instead of {wanted}", context)
    elif written is not None and not _same_language(written, wanted or draft.language):
        yield from _found("O17", f"reads as {written}", context)
    if draft.template and draft.template in context.templates_used:
        yield from _found("O20", draft.template, context)
    if context.automatic and context.automatic_in_thread >= MAX_AUTOMATIC_PER_THREAD:
        yield from _found("O20", f"{context.automatic_in_thread} replies without a person", context)
    if len(draft.body) > MAX_REPLY_CHARACTERS:
        yield from _found("O21", f"{len(draft.body)} characters", context)


def _only_thanks(masked: str) -> bool:
    """Whether no word is left once the phrases of thanks are taken off; looks no further than the first that is left."""
    at = 0
    while (word := _WORD_OR_MASK.search(masked, at)) is not None:
        # As sub() would: the phrase that begins first counts, and a word before it is left over.
        phrase = next(
            (found for start in range(at, word.start() + 1) if (found := _thanks().match(masked, start)) and found.group()),
            None,
        )
        if phrase is None:
            return False
        at = phrase.end()
    return True


_WORD_OR_MASK = re.compile(rf"\w|{_MASK}")


def _same_language(detected: str, wanted: str) -> bool:
    """Whether a detected language is the wanted one; a detector that knows no scripts says just zh."""
    return detected == wanted.partition("-")[0] or reply_language(detected) == wanted


def severities() -> Mapping[str, Mapping[str, str]]:
    """Severity of every rule per marketplace, as the data say (for the documentation)."""
    table: Mapping[str, Mapping[str, str]] = _data()["severity"]
    return table
