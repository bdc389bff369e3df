"""Where older messages begin in a text, and which lines belong to them.

One linear scan marks as quotation the lines behind ``>``, and whatever follows
an attribution ("On <date>, <name> wrote:"), a separator
("-----Original Message-----") or a block of header lines, in the words of
``data/quotation.toml``. Where the quotation is marked line by line, text below
and between it is the writer's; a forwarded message is the writer's too, for it
was sent to be read.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final

OWN: Final = "o"
QUOTE: Final = "q"

_QUOTED: Final = re.compile(r"\s{0,4}(?:>|&gt;|＞)")
_NOT_QUOTED: Final = re.compile(r"\s{0,10}>++[^\n]{0,500}<\s*$|\s{0,10}>\d")
_BLANK: Final = re.compile(r"[\s\u200b\u200c\u200d\ufeff\u00a0\u00ad]*$")
_INVISIBLE: Final = re.compile("[\u200b\u200e\u200f\ufeff\u2060]")
RULE: Final = re.compile(r"\s*(?:[-_=*~#—–─━]\s?){3,}\s*$")
_DASHES: Final = " \t-_=*~#—–─━+|:："
_DATE: Final = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d(?!\d)|\d{1,2}[./-]\s?(?:\d{1,2}|[^\W\d_]{3,9}\.?)[./-]\s?\d{2,4}(?!\d)|(?:19|20)?\d\d年)|(?<!\d)\d{1,2}\s?月\s?\d{1,2}\s?日"
)
_TIME: Final = re.compile(r"(?<!\d)\d{1,2}\s?[:h.：]\s?[0-5]\d(?!\d)|\d{1,2}\s?時|\d{1,2}\s?[ap]\.?m\b", re.IGNORECASE)
_ADDR: Final = re.compile(r"[^\s@<>]{1,128}@[^\s@<>]{1,200}\.[^\s@<>]{2,24}|<mailto:|@[^\s<>]{3,250}>")
# What may stand in front of the first digit of a date: after a lead word anything short, else the name of a weekday.
_DATE_AFTER_LEAD: Final = re.compile(r"(?:[^\W\d_]{1,14}[.,]{0,2}[ \u00a0]{1,3}){0,3}\(?\d{1,4}(?!\d)")
_WEEKDAY: Final = re.compile(
    r"(?:mon|monday|tue|tues|tuesday|wed|wednesday|thu|thur|thurs|thursday|fri|friday|sat|saturday|sun|sunday|mo|montag|di|dienstag|mi|mittwoch|do|donnerstag|fr|freitag|sa|samstag|sonnabend|so|sonntag"
    r"|lun|lundi|mar|mardi|mer|mercredi|jeu|jeudi|ven|vendredi|sam|samedi|dim|dimanche|lunes|martes|mié|mie|miércoles|jue|jueves|vie|viernes|sáb|sábado|dom|domingo|lunedì|martedì|mercoledì|gio|giovedì|venerdì|sabato|domenica"
    r"|seg|segunda|segunda-feira|ter|terça|terça-feira|qua|quarta|quarta-feira|qui|quinta|quinta-feira|sex|sexta|sexta-feira|ma|di|wo|vr|za|zo|maandag|dinsdag|woensdag|donderdag|vrijdag|zaterdag|zondag"
    r"|pon|poniedziałek|wt|wto|wtorek|śr|środa|czw|czwartek|pt|piątek|sob|sobota|niedz|nie|niedziela|mån|tis|ons|tors|tor|fre|lör|sön|måndag|tisdag|onsdag|torsdag|fredag|lördag|söndag|man|tir|tirs|lør|søn|mandag|tirsdag|lørdag|søndag"
    r"|ma|ti|ke|to|pe|la|su|maanantai|tiistai|keskiviikko|torstai|perjantai|lauantai|sunnuntai|po|út|st|čt|pá|so|ne|h|k|sze|cs|p|szo|v|пн|вт|ср|чт|пт|сб|вс|нд|понедельник|вторник|среда|четверг|пятница|суббота|воскресенье|понеділок|вівторок|середа"
    r"|lu|mi|jo|vi|sâ|du|pzt|sal|çar|per|cum|cmt|paz)[.,]{0,2}[ \u00a0]{1,3}(?:[^\W\d_]{3,12}[.,]?[ \u00a0])?\d",
    re.IGNORECASE,
)
_DIGIT: Final = re.compile(r"\d")
_BLANK_DIGIT: Final = re.compile("[ \u00a0]\\d")  # what every match of _WEEKDAY ends with
_FIRST_PERSON: Final = re.compile(
    r"\bI (?:wrote|sent|said)\b|\bich (?:schrieb|habe)\b|\bj'ai (?:écrit|envoyé)\b|\bescrib[ií]\b|\bho scritto\b|\bhe escrito\b|\bik (?:schreef|heb)\b|\bwe (?:wrote|sent|said)\b|\bI['’]?(?:ve| have)\b",
    re.IGNORECASE,
)
_SENTENCE: Final = re.compile(r"[^\W\d_]{6,}[.!?] [A-ZÄÖÜÉÈÀ]")
_INLINE: Final = re.compile(
    r"(?:(?<=[\s.!?:)>-])|(?<=---))(?:On|Am|Le|El|Il|Il giorno|Op|Em|W dniu|Den|På) (?=(?:\w{2,10}\.?,? )?(?:\d{1,2}|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\w{0,6})[\s.,/-])[^\n]{6,250}(?:wrote|schrieb|a écrit|escribió|ha scritto|schreef|escreveu|napisał|skrev)\s?:\s*$"
)
# Yahoo's phone programs put the older message on the same line.
_RUN_ON: Final = re.compile(
    r"^\s{0,10}(?:On|Am|Le|El|Il|Il giorno|Op|Em|W dniu|Den|På) [^\n<>]{0,100}\d[^\n<>]{0,120}<[^<>\s]{1,200}@[^<>\s]{1,200}>,?\s?(?:wrote|schrieb|a écrit|escribió|ha scritto|schreef|escreveu|napisał(?:\(a\))?|skrev)\s?:(?=\s+\S)"
)
# GroupWise names the older message between arrows and does not mark its lines.
_ARROWS: Final = re.compile(r"\s{0,3}>>>\s[^\n]{3,200}\s>>>\s*$")
_LABEL: Final = re.compile(r"[\s|*_]*([^\W\d_][^:：\n\d@<>]{0,24}?)[\s*_]*[:：][\s*_]*(.*)$")
_ABOVE: Final = re.compile(
    r"(?i)(?:reply|answer|write|respon[ds]e?|type)[^\n]{0,40}above th(?:is|e) line|(?:über|oberhalb)[^\n]{0,20}diese[rn]? (?:linie|zeile)|au[- ]dessus de cette ligne|(?:encima|arriba) de esta l[ií]nea|sopra questa (?:riga|linea)|boven deze (?:regel|lijn)|acima desta linha"
)
_LINK_ONLY: Final = re.compile(r"\s*[(<\[]?(?:https?://|www\.)\S{1,2000}[)>\]]?\s*>?\s*$")


@dataclass(frozen=True, slots=True)
class Words:
    verbs: re.Pattern[str]
    leads: re.Pattern[str]
    originals: tuple[str, ...]
    forwards: tuple[str, ...]
    labels: dict[str, frozenset[str]]
    mobile_leads: re.Pattern[str]
    brands: re.Pattern[str]
    farewells: frozenset[str]
    thanks: frozenset[str]
    disclaimers: tuple[str, ...]


@cache
def words() -> Words:
    data = tomllib.loads((files("daemon.mime") / "data" / "quotation.toml").read_text("utf-8"))
    labels: dict[str, set[str]] = {}
    for role, names in data["labels"].items():
        for name in names:
            labels.setdefault(name, set()).add(role)
    return Words(
        verbs=_any_of(data["verbs"]),
        leads=re.compile(rf"(?:{_alternatives(data['leads'])})[\s,:]+", re.IGNORECASE),
        originals=tuple(data["originals"]),
        forwards=tuple(data["forwards"]),
        labels={name: frozenset(roles) for name, roles in labels.items()},
        mobile_leads=re.compile(rf"[\s*_<(\[]*(?:{_alternatives(data['mobile']['leads'])})", re.IGNORECASE),
        brands=_any_of(data["mobile"]["brands"], endings=True),
        farewells=frozenset(data["letters"]["farewells"]),
        thanks=frozenset(data["letters"]["thanks"]),
        disclaimers=tuple(data["footers"]["disclaimers"]),
    )


def _alternatives(words: list[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True))


def _any_of(words: list[str], *, endings: bool = False) -> re.Pattern[str]:
    """Whole words where the script has them, substrings in scripts without spaces; ``endings`` allows case endings."""
    spaced = [word for word in words if ord(word[0]) < 0x2E80]
    dense = [word for word in words if ord(word[0]) >= 0x2E80]
    pattern = rf"(?<!\w)(?:{_alternatives(spaced)})"
    if endings:  # iPhonesta, iPhone에서
        long = [word for word in spaced if len(word) >= 5]
        pattern += rf"(?!\w)|(?<!\w)(?:{_alternatives(long)})\w{{0,4}}"
    pattern += r"(?!\w)"
    return re.compile(pattern + (f"|{_alternatives(dense)}" if dense else ""), re.IGNORECASE)


@lru_cache(maxsize=8)
def marked(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lines of a text and, for each, whether it is ``OWN`` or ``QUOTE``. The last few texts are remembered."""
    lines = split_lines(text)
    return tuple(lines), tuple(mark_quotations(lines))


def split_lines(text: str) -> list[str]:
    lines: list[str] = []
    for line in _INVISIBLE.sub("", text).replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        match = _INLINE.search(line) if 20 < len(line) < 700 and line.rstrip().endswith(":") and ">" not in line[:3] else None
        if match is not None and line[: match.start()].strip():
            lines.append(line[: match.start()].rstrip("- "))
            lines.append(line[match.start() :])
            continue
        match = _RUN_ON.match(line) if "@" in line and 30 < len(line) < 100_000 else None
        if match is not None:
            lines += [line[: match.end()], line[match.end() :]]
        else:
            lines.append(line)
    return lines


def blank(line: str) -> bool:
    return not line or line.isspace() or _BLANK.match(line) is not None


# --------------------------------------------------------------------------- quotations


_MOST_LINES: Final = 5_000  # among which the beginning of an older message is looked for


def mark_quotations(lines: list[str]) -> list[str]:
    marks = [OWN] * len(lines)
    quoted = [_is_quoted(line) for line in lines]
    index = 0
    while index < len(lines):
        line = lines[index]
        if quoted[index]:
            marks[index] = QUOTE
            index += 1
            continue
        if blank(line):
            index += 1
            continue
        if is_forward(lines, index):
            break  # the writer wants it read
        length = _opening(lines, quoted, index) if index < _MOST_LINES else 0
        if length == 0:
            index += 1
            continue
        body = index + length
        first = _back_over_rules(lines, index)
        follower = _next_text(lines, body)
        marks[first:body] = [QUOTE] * (body - first)
        if follower is None:
            break
        if quoted[follower]:
            index = body
            continue
        marks[body:] = [QUOTE] * (len(lines) - body)
        break
    _close_gaps(lines, marks, quoted)
    return marks


def _is_quoted(line: str) -> bool:
    return _QUOTED.match(line) is not None and _NOT_QUOTED.match(line) is None and not _names_older(line)


def _names_older(line: str) -> bool:
    return line.rstrip().endswith(">>>") and _ARROWS.match(line) is not None and _DATE.search(line) is not None


def _next_text(lines: list[str], start: int) -> int | None:
    for index in range(start, len(lines)):
        if not blank(lines[index]):
            return index
    return None


def _back_over_rules(lines: list[str], start: int) -> int:
    """The dashed or underscored line that a mail program draws above the older message."""
    first = start
    for index in range(start - 1, max(start - 4, -1), -1):
        if blank(lines[index]):
            continue
        if RULE.match(lines[index]) and lines[index].strip() != "--":
            first = index
        break
    return first


def _close_gaps(lines: list[str], marks: list[str], quoted: list[bool]) -> None:
    """Lines inside a marked quotation that lost their mark when they were wrapped."""
    for index in range(1, len(lines) - 1):
        if marks[index] != OWN or marks[index - 1] != QUOTE or not quoted[index + 1]:
            continue
        line, before = lines[index], lines[index - 1]
        if (
            blank(line)
            or _LINK_ONLY.match(line)
            or (quoted[index - 1] and _opens_bracket(before) and (")" in line or ">" in line))
            or (line.rstrip().endswith(" >") and "://" in line)
        ):
            marks[index] = QUOTE


def _opens_bracket(line: str) -> bool:
    body = line.lstrip("> \t")
    return body.count("(") > body.count(")") or body.count("<") > body.count(">")


def is_forward(lines: list[str], index: int) -> bool:
    line = lines[index]
    stripped = line.strip(_DASHES).lower()
    if not 8 <= len(stripped) + 4 <= 90:
        return False
    if not stripped.startswith(words().forwards):
        return False
    for phrase in words().forwards:
        if stripped.startswith(phrase):
            rest = stripped[len(phrase) :]
            dashed = line.strip()[:2] in ("--", "__", "==", "**") or line.strip().endswith("--")
            return len(rest) < 50 if dashed else rest == "" and line.strip().endswith((":", "：", phrase[-1]))
    return False


def _opening(lines: list[str], quoted: list[bool], index: int) -> int:
    """How many lines from ``index`` announce an older message; 0 when they do not."""
    line = lines[index]
    if len(line) > 500:
        return 0
    if _names_older(line):
        return 1
    if _is_separator(lines, index):
        return 1 + _block_length(lines, _skip_blank(lines, index + 1), loose=True) + (_skip_blank(lines, index + 1) - index - 1)
    block = _block_length(lines, index)
    if block:
        return block
    return _attribution_length(lines, quoted, index)


def _skip_blank(lines: list[str], index: int) -> int:
    while index < len(lines) and blank(lines[index]) and index < len(lines):
        index += 1
    return index


def _is_separator(lines: list[str], index: int) -> bool:
    line = lines[index].strip()
    if len(line) > 160:
        return False
    if (
        line[:2] in ("--", "##", "__", "==", "**") or line[:1] in "-#—–=*[" or line.endswith(("-", "#", "—", "="))
    ) and _ABOVE.search(line):
        return True
    inner = line.strip(_DASHES).replace("\u00a0", " ").lower()
    if not inner:
        return False
    dashed = len(line) - len(line.lstrip("-_=*~—–─━")) >= 2 or len(line) - len(line.rstrip("-_=*~—–─━")) >= 2
    vocabulary = words()
    if dashed:
        if inner == "original" or any(
            inner.startswith(phrase) and len(inner) < len(phrase) + 60 for phrase in vocabulary.originals
        ):
            return True
        return (
            line[:2] in ("--", "——", "__")
            and line.endswith(("--", "——", "__"))
            and vocabulary.verbs.search(inner) is not None
            and len(inner) < 150
        )
    if inner in vocabulary.originals:
        following = _next_text(lines, index + 1)
        return following is not None and following <= index + 3 and (_label(lines[following]) is not None or line.endswith(":"))
    return False


@lru_cache(maxsize=2048)  # neighbouring lines are asked about again and again
def _label(line: str) -> tuple[frozenset[str], str] | None:
    match = _LABEL.match(line) if len(line) < 1000 else None
    if match is None:
        return None
    roles = words().labels.get(match.group(1).strip().lower())
    return (roles, match.group(2)) if roles is not None else None


def _block_length(lines: list[str], start: int, *, loose: bool = False) -> int:
    """Lines of a header block at ``start`` (From, Sent, To, Subject in any language), or 0."""
    if start >= len(lines):
        return 0
    first = _label(lines[start])
    if first is None or (not loose and not first[0] & {"from", "sent", "subject", "to"}):
        return 0
    roles: set[str] = set()
    single: list[frozenset[str]] = []
    end = start
    gap = 0
    evidence = ""
    for index in range(start, min(start + 14, len(lines))):
        line = lines[index]
        label = _label(line)
        if label is not None:
            single.append(label[0])
            end = index + 1
            gap = 0
            evidence += " " + line[:300]
        elif blank(line):
            gap += 1
            if gap > 1 or (len(single) >= 3 and not _next_is_label(lines, index + 1)):
                break
        elif gap or index - end >= 2:
            break
        else:
            evidence += " " + line[:300]  # a folded value
    for found in sorted(single, key=len):
        fresh = found - roles
        roles.add(min(fresh) if fresh else min(found))
    named = {role for found in single for role in found}
    addressed = _ADDR.search(evidence) is not None
    timed = _TIME.search(evidence) is not None and _DATE.search(evidence) is not None
    count = len(roles)
    certain = count >= 3 and "from" in named and (addressed or timed or "subject" in named)
    likely = count >= 2 and addressed and ("from" in named or timed)
    if certain or likely or (loose and count >= 2):
        return end - start
    return 0


def _next_is_label(lines: list[str], index: int) -> bool:
    return index < len(lines) and _label(lines[index]) is not None


_ENDS: Final = (":", "：")


def _attribution_length(lines: list[str], quoted: list[bool], index: int) -> int:
    line = lines[index].strip()
    if len(line) > 400 or _ends_sentence(line) or not _may_open(line):
        return 0
    joined = ""
    blanks = 0
    for length in range(1, 7):
        position = index + length - 1
        if position >= len(lines):
            return 0
        piece = lines[position].strip()
        if blank(piece):
            blanks += 1
            if blanks > 1 or not (_starts_with_date(line) and _DATE.search(line) and _TIME.search(line)):
                return 0
            continue
        if length > 1 and quoted[position] and not _closes(piece):
            return length - 1 if _dated_sender(joined) else 0
        joined = f"{joined} {piece}".strip()
        if len(joined) > 500:
            return 0
        if _closes(piece):
            following = _next_text(lines, position + 1)
            marked = following is not None and quoted[following]
            if _is_attribution(joined, marked=marked):
                return length
            if not _starts_with_date(line):
                return 0
        following = _next_text(lines, position + 1)
        if following is not None and quoted[following] and _dated_sender(joined) and not _closes(lines[following].strip()):
            return length
        if not _starts_with_date(line) and length >= 2 and "<" not in joined:
            return 0
    return 0


def _may_open(line: str) -> bool:
    return (
        _starts_with_date(line)
        or line.endswith((*_ENDS, "<"))
        or ("<" in line and "@" in line)
        or words().verbs.search(line[-60:]) is not None
    )


def _starts_with_date(line: str) -> bool:
    head = line.lstrip("*_-–— >").lower()[:90]
    if _DIGIT.search(head) is None:
        return False  # every date has one
    if head[:1].isdigit():
        if _DATE.match(head) is not None or _DATE.search(head[:40]) is not None:
            return True
        return _BLANK_DIGIT.search(head[:40]) is not None and _WEEKDAY.search(head[:40]) is not None
    if _WEEKDAY.match(head):
        return True
    lead = words().leads.match(head)
    return lead is not None and _DATE_AFTER_LEAD.match(head, lead.end()) is not None


def _ends_sentence(line: str) -> bool:
    return line.endswith(("?", "!", "。", "？", "！")) or _FULL_STOP.match(line[-6:]) is not None


_FULL_STOP: Final = re.compile(r"[^\W\d_]{5}[.]")


def _closes(piece: str) -> bool:
    if piece.endswith(_ENDS):
        return True
    stripped = piece.rstrip(" *_-")
    found = None
    for match in words().verbs.finditer(stripped[-40:]):
        found = match
    return found is not None and found.end() == len(stripped[-40:])


def _is_attribution(joined: str, *, marked: bool) -> bool:
    if _FIRST_PERSON.search(joined) or _SENTENCE.search(joined):
        return False
    verb = words().verbs.search(joined) is not None
    date = _DATE.search(joined) is not None
    time = _TIME.search(joined) is not None
    addr = _ADDR.search(joined) is not None
    if (
        (verb and (date or _starts_with_date(joined)) and (time or addr))
        or (date and addr)
        or (verb and addr and joined.endswith(_ENDS))
    ):
        return True
    return marked and ((verb and len(joined) < 160) or (date and time))


def _dated_sender(joined: str) -> bool:
    """A line of a date and an address in front of marked lines, without verb or colon."""
    return _starts_with_date(joined) and _ADDR.search(joined) is not None and len(joined) < 200 and not _SENTENCE.search(joined)
