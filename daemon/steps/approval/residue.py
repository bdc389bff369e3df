"""What may stand below a command without being words that matter: closings, signatures, disclaimers.

The rule is one-sided. A line counts as matter without meaning only when its
shape proves it (the writer's own name, a known closing, a mail program's line,
a disclaimer's phrases, contact data); anything else is taken for a message,
and a command with a message beside it is not carried out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from daemon.steps.approval.lexicon import (
    CLIENT_LINES,
    CLOSINGS,
    DISCLAIMERS_STRONG,
    DISCLAIMERS_WEAK,
    DOUBT,
    INSTRUCTIONS,
)

#: Lines that a signature may have before it is taken for a message.
SIGNATURE_LINES = 10
#: Signature lines are short; sentences are not.
SIGNATURE_LINE_LENGTH = 100

_CONTACT = re.compile(
    r"[\w.+-]+@[\w-]+(\.[\w-]+)+|https?://|\bwww\.|\+\d[\d ()./-]{6,}"
    r"|(?:\b(?:tel|telephone|phone|fon|mobile|mobil|cell|fax|office|direct|[tmpfe]|wechat|whatsapp|skype|qq|web|e-?mail|add|addr|address)\b|"
    r"电话|電話|手机|手機|传真|傳真|微信|邮箱|郵箱|地址|网址|網址|座机|座機|邮编|郵編)\s*[:|]?\s*(?:no\.?)?\s*[:|]?\s*\S"
)
#: The contact data themselves, with their labels.
_REACH = re.compile(
    r"[\w.+-]+@[\w-]+(\.[\w-]+)+|https?://\S+|\bwww\.\S+|\+?\d[\d ()./-]{6,}"
    r"|\b(?:tel|telephone|phone|fon|mobile|mobil|cell|fax|office|direct|wechat|whatsapp|skype|qq|web|e-?mail|add|addr|address)\b\s*[:|]?"
)
_COMPANY = re.compile(
    r"(?:公司|集团|集團|部门|部門|客服部|客服中心|售后部|售後部|运营部|運營部|事业部|事業部|有限|工作室|旗舰店|旗艦店|专员|專員|经理|經理|主管|助理|客服|店长|店長)$"
    r"|\b(?:gmbh|inc|ltd|llc|co|corp|limited|ag|kg|sarl|srl|s\.l|oy|ab|bv|store|shop|support|care|service|services|team|manager|department|dept)\.?$"
)
_NUMBERED = re.compile(r"\bno\.?\s*\d+|^add(?:ress)?\s*[:.]", re.ASCII)
_QUESTION = re.compile(r"[?？!！]|[.。]\s*$")


def _folded(text: str) -> str:
    visible = "".join(
        c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in {"Cf", "Cc"} or c in "\t\n"
    )
    return re.sub(r"\s+", " ", visible).strip().casefold()


def is_delimiter(line: str) -> bool:
    """The signature delimiter of RFC 3676 section 4.3, also where a client dropped its blank."""
    return line.rstrip("\r\n") in {"-- ", "--"}


def is_client_line(line: str) -> bool:
    """A line that a mail program adds by itself: "Sent from my iPhone", a rule of dashes."""
    folded = _folded(line)
    return any(p.match(folded) for p in CLIENT_LINES) and not DOUBT.search(_after_from(folded))


def _after_from(folded: str) -> str:
    """The part of a mail program's line that names the device; a clause in it would be the writer's."""
    match = re.search(r"[,;，；。](.*)$", folded)
    return match[1] if match else ""


def _is_closing(folded: str) -> bool:
    bare = folded.strip(" ,，.。!！~;:：")
    if bare in CLOSINGS:
        return True
    return bool(re.fullmatch(r"祝.{1,6}|顺颂.{2}|順頌.{2}", bare)) and not re.search(r"[不别別等但改]", bare)


def _names_writer(folded: str, writer_name: str) -> bool:
    """The line is the writer's display name, whole or a part of it, perhaps with a title behind."""
    name = _folded(writer_name)
    if len(name) < 2:
        return False
    bare, *behind = re.split(r"\s*[|,/(（-]\s*", folded.strip(" ,.-"), maxsplit=1)
    if behind and DOUBT.search(_without_contact(behind[0])):
        return False
    parts = [p for p in re.split(r"[\s.]+", name) if len(p) > 1]
    return bare == name or bare in parts or bare == " ".join(reversed(parts))


def _is_frame(folded: str) -> bool:
    """A line of bars, as NetEase frames its visiting cards."""
    return re.fullmatch(r"[|\s]+", folded) is not None


def _is_address(folded: str) -> bool:
    """A line that is nothing but a mail address, as Foxmail puts below a text."""
    return re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", folded) is not None


def _is_disclaimer(paragraph: str) -> bool:
    folded = _folded(paragraph)
    if len(folded) < 40 and not (len(folded) >= 12 and re.search(r"[\u4e00-\u9fff]", folded)):
        return False
    strong = sum(phrase in folded for phrase in DISCLAIMERS_STRONG)
    weak = sum(word in folded for word in DISCLAIMERS_WEAK)
    return strong >= 1 or weak >= 2


def _without_contact(folded: str) -> str:
    return _NUMBERED.sub(" ", folded)


def _is_signature_line(line: str) -> bool:
    """A short line of a signature: contact data, a company, a name."""
    folded = _folded(line)
    if len(folded) > SIGNATURE_LINE_LENGTH:
        return False
    if _CONTACT.search(folded):
        # Contact data stand behind their label; a clause before or after it would be words.
        return not _QUESTION.search(line.strip().rstrip(".")) and not DOUBT.search(
            _NUMBERED.sub(" ", _CONTACT.split(folded)[0] or "")
        )
    if _QUESTION.search(line):
        return False
    if _COMPANY.search(folded) and not re.match(r"[不别別等先请請但再让讓告叫问問]", folded):
        return not re.search(r"(?<![a-z])(?:not|don't|do not|wait|but|send|ask|tell|refund|call|stop|contact)(?![a-z])", folded)
    if DOUBT.search(_without_contact(folded)):
        return False
    words = re.findall(r"[^\W\d_]+", line)
    if not words:
        return len(folded) <= 3
    if re.search(r"[\u4e00-\u9fff]", folded):
        return len(re.findall(r"[\u4e00-\u9fff]", folded)) <= 4
    if len(words) == 1 and len(words[0]) <= 15:
        return True
    long_words = [w for w in words if len(w) > 3] or words
    return len(words) <= 8 and all(w[0].isupper() for w in long_words)


def _paragraphs(lines: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if _folded(line):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [p for p in found if p]


def is_closing_matter(lines: Sequence[str], writer_name: str) -> bool:
    """Whether the lines below a command say nothing more: see the module's rule."""
    for at, line in enumerate(lines):
        if is_delimiter(line):
            lines = lines[:at]
            break
    begun = False
    count = 0
    for paragraph in _paragraphs(lines):
        if _is_disclaimer(" ".join(paragraph)):
            continue
        has_contact = len(paragraph) > 1 and any(_CONTACT.search(_folded(line)) for line in paragraph)
        for line in paragraph:
            folded = _folded(line)
            if is_client_line(line):
                begun = begun or _is_frame(folded)
                continue
            count += 1
            if count > SIGNATURE_LINES:
                return False
            if _is_closing(folded) or _names_writer(folded, writer_name) or _is_address(folded):
                begun = True
                continue
            if not (begun or has_contact) or not _is_signature_line(line):
                return False
    return True


def trim_tail(lines: Sequence[str], writer_name: str, *, closings: bool = False) -> list[str]:
    """The lines without what a mail program or company server put below them.

    Greetings and closings stay (they may be meant for the buyer) unless
    ``closings`` is set; a signature delimiter, a mail program's line, a
    disclaimer, and a block that begins with the writer's own full name go.
    """
    kept = list(lines)
    for at, line in enumerate(kept):
        if is_delimiter(line):
            kept = kept[:at]
            break
    if closings:
        start = next((i for i in range(len(kept)) if is_closing_matter(kept[i:], writer_name)), len(kept))
        return kept[:start]
    card = False  # whether a visiting card has begun from below
    while True:
        while kept and not _folded(kept[-1]):
            kept.pop()
        if not kept:
            return kept
        start = len(kept) - 1
        while start > 0 and _folded(kept[start - 1]):
            start -= 1
        block = kept[start:]
        last = _folded(kept[-1])
        framed = card and len(kept) > 1 and _is_frame(_folded(kept[-2])) and _is_signature_line(kept[-1])
        if is_client_line(kept[-1]) or _is_address(last) or framed or (card and last == _folded(writer_name)):
            card = card or _is_address(last) or "@" in last or "|" in last
            kept.pop()
        elif _is_disclaimer(" ".join(block)) or (start > 0 and _folded(block[0]) == _folded(writer_name) != ""):
            kept = kept[:start]
        else:
            return kept


_QUOTE_MARK = re.compile(r"\s{0,4}(?:>|&gt;|＞|\|)")
_HEADER_LABEL = re.compile(
    r"\s*[*_]*(?:from|sent|date|to|cc|subject|von|gesendet|an|betreff|de|envoyé|à|objet|para|asunto|da|inviato|a|oggetto|"
    r"发件人|寄件者|寄件人|发送时间|寄件日期|时间|日期|收件人|收件者|抄送|主题|主旨|差出人|送信日時|宛先|件名)[*_]*\s*[:：]",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"\s*[-_=*—–─]{3,}.{0,40}$")
_LEAD = re.compile(r"\s*(?:on|at|am|le|el|il|op|em|den|在|于|於)?\s*[^\n]{0,20}\d", re.IGNORECASE)


def before_quote(quote: str, sender_names: Sequence[str]) -> str:
    """Lines at the head of a quotation that may be the writer's own words after all.

    Finding where a quotation begins is guesswork, and a line lost to it could
    be the one that matters. Up to the first line that surely belongs to the
    quotation (it is marked, labelled, or names us as the quoted sender, as
    ``sender_names`` do), only rules and the beginning of "On <date> …" are
    taken as the mail program's.
    """
    kept: list[str] = []
    names = [_folded(name) for name in sender_names if name]
    for line in quote.splitlines():
        folded = _folded(line)
        if _QUOTE_MARK.match(line) or _HEADER_LABEL.match(line) or any(name in folded for name in names):
            break
        if not folded or _SEPARATOR.match(line):
            continue
        lead = _LEAD.match(line) is not None and re.match(r"\d|on\b|at\b|am\b|le\b|el\b|il\b|op\b|em\b|den\b|[在于於]", folded)
        if lead and not DOUBT.search(
            re.sub(r"^(?:on|at|am)\b|(?:mon|tues|wednes|thurs|fri|satur|sun)day|[年月日周点點]", " ", folded)
        ):
            continue
        kept.append(line)
    return "\n".join(kept)


def unwrap(text: str) -> str:
    """Join lines that a mail program broke at a fixed width (65 to 80 columns).

    Lines are joined only where the next word would not have fitted, which is
    the mark of a mechanical break; lists, short lines and blank lines stay.
    """
    lines = [line.rstrip() for line in text.splitlines()]
    width = max((len(line) for line in lines), default=0)
    if not 60 <= width <= 80:
        return "\n".join(lines)
    out: list[str] = []
    last, open_line = "", False
    for line in lines:
        first = line.split(" ", 1)[0]
        if open_line and line and not line[0].isspace() and not re.match(r"[-*•>]|\d+[.)]", line):
            broken = len(last) + 1 + len(first) > width
            if broken and len(last) >= 50:
                out[-1] = f"{out[-1]} {line}"
                last = line
                continue
        out.append(line)
        last, open_line = line, bool(line)
    return "\n".join(out)


def looks_like_instruction(text: str) -> bool:
    """Whether an edited text reads as words to a colleague ("make it shorter") rather than to the buyer."""
    folded = _folded(text)
    return len(text) < 25 or ("\n\n" not in text and len(text) < 200 and any(p.search(folded) for p in INSTRUCTIONS))
