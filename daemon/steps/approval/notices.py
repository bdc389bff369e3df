"""Mails to staff: requests, digests, answers and news, rendered from templates in the reader's language.

A template writes light marks: ``## `` begins a heading, ``- `` an item, ``| ``
a line that is shown as it was written. The plain text is what the template
wrote; the HTML of the same words is made from the marks, with everything
escaped, so both parts always say the same. Notices are marked so that no
out-of-office answers them (RFC 3834 section 5, RFC 5436 section 2.7.1), and
their subject never carries a token.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, tzinfo
from email.headerregistry import Address as HeaderAddress
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from babel.dates import format_datetime as format_moment
from jinja2 import DictLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from daemon.languages import formats

#: Lines and characters of a text that a notice shows; the rest is in the mailbox.
SHOWN_LINES, SHOWN_CHARACTERS = 120, 6000
#: The language that stands in where a staff language has no templates.
FALLBACK = "en"


@dataclass(frozen=True, slots=True)
class Shown:
    """An attachment or finding as a notice names it."""

    name: str = ""
    type: str = ""
    size: int = 0
    rule: str = ""
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class CaseView:
    """A case as staff see it: plain values only, codes still to be put into words."""

    number: int
    mailbox: str
    revision: int
    state_reason: str = ""
    label: str | None = None
    sublabel: str | None = None
    confidence: float | None = None
    terms: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    order_id: str | None = None
    marketplace: str | None = None
    facts: tuple[tuple[str, str], ...] = ()
    actions: tuple[str, ...] = ()
    findings: tuple[Shown, ...] = ()
    deadline: datetime | None = None
    subject: str = ""
    text: str = ""
    attachments: tuple[Shown, ...] = ()
    recipient: str = ""
    draft_language: str = ""
    draft_subject: str = ""
    draft_body: str = ""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads a notice: language and time zone decide how it is written."""

    name: str
    address: str
    language: str
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Rendered:
    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one staff language for codes; an unknown code is shown as it is."""

    data: Mapping[str, Any] = field(default_factory=dict)

    def say(self, kind: str, code: str) -> str:
        """The words for a code; ``code:detail`` falls back to the words for ``code:`` with the detail behind."""
        table: Mapping[str, str] = self.data.get(kind, {})
        if code in table:
            return table[code]
        head, colon, detail = code.partition(":")
        if colon and f"{head}:" in table:
            return f"{table[f'{head}:']} {self._detail(detail)}".strip()
        return code

    def _detail(self, detail: str) -> str:
        for kind in ("flags", "reasons", "labels"):
            if detail in self.data.get(kind, {}):
                return str(self.data[kind][detail])
        return detail

    def label(self, label: str | None, sublabel: str | None) -> str:
        """A label in words, with its exact name so that LABEL can repeat it."""
        if not label:
            return self.say("labels", "none")
        full = f"{label}/{sublabel}" if sublabel else label
        words = self.data.get("labels", {}).get(full) or self.data.get("labels", {}).get(label)
        return f"{words} ({full})" if words else full


class StaffRenderer:
    """Templates of all staff languages, by ``<language>/<name>.txt.j2``, and their ``words.json``."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.languages = frozenset(name.partition("/")[0] for name in files if name.endswith("/request.txt.j2"))
        self._words = {
            name.partition("/")[0]: Words(json.loads(text)) for name, text in files.items() if name.endswith("/words.json")
        }
        self._env = _Environment(
            loader=DictLoader({name: text for name, text in files.items() if name.endswith(".txt.j2")}),
            undefined=StrictUndefined,
            autoescape=False,
            auto_reload=False,
        )
        self._env.filters |= {name: _filter(name) for name in _SPOKEN}
        self._env.filters |= {"boxed": boxed, "bytes": _bytes}

    def render(self, kind: str, reader: Reader, now: datetime, **values: Any) -> Rendered:
        """A notice of that kind. A missing template or value is a fault of the templates and raises."""
        language = reader.language if reader.language in self.languages else FALLBACK
        speaker = _Speaker(self._words[language], reader.zone, language, now)
        template = self._env.get_template(f"{language}/{kind}.txt.j2")
        safe = {name: _safe(value) for name, value in values.items()}
        head, _, body = template.render(**safe, w=speaker).lstrip().partition("\n")
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in body.splitlines())).strip() + "\n"
        return Rendered(one_line(head.partition(":")[2], 200), text, to_html(text, language))


class _Environment(ImmutableSandboxedEnvironment):
    """An included part is the one of the including template's language."""

    def join_path(self, template: str, parent: str) -> str:
        return f"{parent.partition('/')[0]}/{template}"


@dataclass(frozen=True, slots=True)
class _Speaker:
    """Puts codes, moments and spans of time into one reader's words."""

    words: Words
    zone: tzinfo
    language: str
    now: datetime

    def label(self, label: str | None, sublabel: str | None) -> str:
        return self.words.label(label, sublabel)

    def moment(self, value: datetime) -> str:
        return str(format_moment(value.astimezone(self.zone), "EEE d MMM, HH:mm", locale=formats(self.language)))

    def left(self, value: datetime) -> str:
        minutes = int((value - self.now).total_seconds() // 60)
        late, minutes = minutes < 0, abs(minutes)
        units = self.words.data["units"]
        amount = units["minutes"].format(minutes)
        if minutes >= 90:
            amount = units["hours"].format(round(minutes / 60))
        if minutes >= 72 * 60:
            amount = units["days"].format(round(minutes / 1440))
        return str(units["overdue" if late else "left"].format(amount))

    def refusal(self, code: str, details: Mapping[str, Any]) -> str:
        """Why nothing changed, with who decided and when where the words ask for it."""
        at = details.get("at")
        return self.words.say("refusals", code).format(
            by=details.get("by") or self.words.say("people", "postsale"),
            at=self.moment(at) if isinstance(at, datetime) else "",
            excerpt=details.get("excerpt", ""),
        )

    def reason(self, code: str) -> str:
        return self.words.say("reasons", code)

    def flag(self, code: str) -> str:
        return self.words.say("flags", code)

    def fact(self, code: str) -> str:
        return self.words.say("facts", code)

    def value(self, code: str) -> str:
        return self.words.say("values", code)

    def rule(self, code: str) -> str:
        return self.words.say("rules", code)

    def state(self, code: str) -> str:
        return self.words.say("states", code)

    def headline(self, code: str) -> str:
        return self.words.say("headlines", code)


_SPOKEN = ("moment", "left", "refusal", "reason", "flag", "fact", "value", "rule", "state", "headline")


def _filter(name: str) -> Any:
    """A template filter that speaks with the reader's words."""

    @pass_context
    def speak(context: Context, *arguments: Any) -> str:
        return str(getattr(context["w"], name)(*arguments))

    return speak


def _bytes(size: int) -> str:
    return f"{max(1, round(size / 1024))} kB" if size < 1024 * 1024 else f"{size / 1024 / 1024:.1f} MB"


# --------------------------------------------------------------------------- text and HTML


def one_line(text: str, limit: int) -> str:
    """Text without control and invisible characters, on one line, at most ``limit`` characters."""
    clean = "".join(
        " " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in text if unicodedata.category(c) != "Cf"
    )
    clean = " ".join(clean.split())
    return clean if len(clean) <= limit else clean[: limit - 1].rstrip() + "…"


#: Fields of a case that may have several lines; a template shows them boxed.
_LONG = frozenset({"text", "draft_body"})
#: Characters of a value that stands within a line.
_VALUE_CHARACTERS = 300


def _safe(value: Any) -> Any:
    """Values of a case as they may stand in a notice: on one line, so that a buyer cannot write headings or commands."""
    if isinstance(value, CaseView | Shown):
        kept = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{name: v if name in _LONG else _safe(v) for name, v in kept.items()})
    if isinstance(value, str):
        return one_line(value, _VALUE_CHARACTERS)
    if isinstance(value, tuple):
        return tuple(_safe(v) for v in value)
    if isinstance(value, list) and value and isinstance(value[0], CaseView):
        return [_safe(v) for v in value]
    return value


def boxed(text: str) -> str:
    """Text as a block that is shown as it was written, bounded in size."""
    clean = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf"})
    lines = clean.strip("\n")[:SHOWN_CHARACTERS].splitlines() or [""]
    shown = lines[:SHOWN_LINES]
    if len(lines) > SHOWN_LINES or len(clean) > SHOWN_CHARACTERS:
        shown.append("[…]")
    return "\n".join(f"| {line}".rstrip() for line in shown)


def to_html(text: str, language: str) -> str:
    """The same words as simple HTML: headings, paragraphs, lists, and blocks kept as written."""
    parts: list[str] = []
    group: list[str] = []
    kind = ""

    def close() -> None:
        if not group:
            return
        if kind == "box":
            style = "white-space:pre-wrap;border-left:3px solid #888;margin:0.5em 0;padding:0.2em 0 0.2em 0.8em"
            parts.append(f'<div style="{style}">' + "<br>\n".join(group) + "</div>")
        elif kind == "list":
            parts.append("<ul>" + "".join(f"<li>{item}</li>" for item in group) + "</ul>")
        else:
            parts.append("<p>" + "<br>\n".join(group) + "</p>")
        group.clear()

    for line in text.splitlines():
        now_kind, shown = _mark(line)
        if now_kind != kind or now_kind == "blank":
            close()
            kind = now_kind
        if now_kind == "heading":
            parts.append(f"<h3>{html.escape(shown)}</h3>")
        elif now_kind != "blank":
            group.append(html.escape(shown))
    close()
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="{html.escape(language)}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"></head>'
        f'<body style="font-family:sans-serif;max-width:42em">\n{body}\n</body></html>\n'
    )


def _mark(line: str) -> tuple[str, str]:
    if not line:
        return "blank", ""
    if line.startswith("## "):
        return "heading", line[3:]
    if line == "|" or line.startswith("| "):
        return "box", line[2:]
    if line.startswith("- "):
        return "list", line[2:]
    return "text", line


# --------------------------------------------------------------------------- bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """A notice as the bytes that leave."""

    message_id: str
    mime: bytes
    sha256: str


def seal(
    rendered: Rendered,
    *,
    reader: Reader,
    sender: str,
    sender_name: str,
    reply_to: str,
    message_id: str,
    references: Sequence[str],
    in_reply_to: str | None,
    now: datetime,
) -> Sealed:
    """Freeze a notice for one reader. ``references`` hold the notices of one case together."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = HeaderAddress(one_line(sender_name, 60), addr_spec=sender)
    mail["To"] = HeaderAddress("", addr_spec=reader.address)
    mail["Reply-To"] = HeaderAddress(one_line(sender_name, 60), addr_spec=reply_to)
    mail["Subject"] = one_line(rendered.subject, 200)
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = message_id
    if in_reply_to:
        mail["In-Reply-To"] = in_reply_to
    if references:
        mail["References"] = " ".join(references)
    mail["Auto-Submitted"] = f'auto-notified; owner-email="{sender}"'
    mail["X-Auto-Response-Suppress"] = "All"
    mail["X-Postsale-Notice"] = "1"
    mail.set_content(rendered.text, subtype="plain", charset="utf-8", cte="base64")
    mail.add_alternative(rendered.html, subtype="html", charset="utf-8", cte="base64")
    mail.set_boundary(f"=_{hashlib.sha256(message_id.encode()).hexdigest()[:32]}")
    mime = mail.as_bytes()
    return Sealed(message_id, mime, hashlib.sha256(mime).hexdigest())
