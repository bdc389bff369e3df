"""May this message be answered? One ordered table of pure rules (RFC 3834 and its practice).

The first rule that matches decides; ``hits`` names them all. ``ignore`` means
that nobody expects an answer, ``human`` that only a person may decide.
Official requests and claims that a marketplace mails are ``human``: they are
dealt with in the marketplace's console, not by mail. Mail that speaks for an
approver is ``ignore`` with the reason ``approval`` (it is an order, not
something to answer) unless a rule above shows that a robot wrote it.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from daemon.mime.bounce import returned_report_words
from daemon.mime.quotation import QUOTE, marked
from daemon.phrases import Phrases
from daemon.vocab import Caps, Envelope, GateVerdict, History, Identity, Kind, Notice, ParsedMail, Verdict


@dataclass(frozen=True, slots=True)
class _Robots:
    no_reply: re.Pattern[str]
    system: re.Pattern[str]
    headers: frozenset[str]
    lists: frozenset[str]
    subjects: Phrases
    receipts: re.Pattern[str]
    acknowledgements: Phrases
    bodies: Phrases
    spam: tuple[tuple[str, re.Pattern[str]], ...]


@cache
def _robots() -> _Robots:
    data = tomllib.loads((files("daemon.steps") / "data" / "gate.toml").read_text("utf-8"))
    return _Robots(
        no_reply=_any(data["no_reply"]),
        system=_any(data["system"]),
        headers=frozenset(data["headers"]),
        lists=frozenset(data["lists"]),
        subjects=Phrases(data["subjects"]),
        receipts=_any(data["receipts"]),
        acknowledgements=Phrases(data["acknowledgements"]),
        bodies=Phrases(data["bodies"]),
        spam=tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in data["spam"]),
    )


def _any(patterns: list[str]) -> re.Pattern[str]:
    """One pattern for lower-case text: without IGNORECASE the engine skips alternatives by their first letter."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


@dataclass(frozen=True, slots=True)
class _Seen:
    """One message with what several rules look at."""

    mail: ParsedMail
    envelope: Envelope
    identity: Identity
    names: frozenset[str]
    subject: str  # NFKC, lower case
    local: str  # of the one From address, lower case
    form: bool  # a person behind a contact form: From is a machine, Reply-To the person


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table. ``sentence`` is what an operator reads."""

    code: str
    verdict: GateVerdict
    sentence: str
    matches: Callable[[_Seen], bool]


# --------------------------------------------------------------------------- predicates

_COMMENT: Final = re.compile(r"\([^()]*\)")


def _keyword(value: str) -> str:
    """The keyword of an Auto-Submitted field without its comments and parameters (RFC 3834 section 5.1)."""
    for _ in range(3):
        value = _COMMENT.sub(" ", value)
    return value.partition(";")[0].strip().strip('"').lower()


def _auto_submitted(seen: _Seen) -> bool:
    return any(_keyword(value) not in ("no", "") for value in seen.mail.header_all("auto-submitted"))


def _precedence(seen: _Seen) -> bool:
    words = (*seen.mail.header_all("precedence"), *seen.mail.header_all("x-precedence"))
    return any(
        re.split(r"[\s;,]", value.strip().strip('"').lower())[0] in ("bulk", "junk", "list", "auto_reply", "auto-reply")
        for value in words
    )


def _suppressed(seen: _Seen) -> bool:
    asked = {word.strip().lower() for value in seen.mail.header_all("x-auto-response-suppress") for word in value.split(",")}
    return not asked.isdisjoint({"all", "oof", "autoreply"})


def _listed(seen: _Seen) -> bool:
    return not seen.names.isdisjoint(_robots().lists)


# Whatever the vendor: X-Foo-Auto-Reply, X-Holidayreply, X-Machinegenerated.
_MACHINE_NAME: Final = re.compile(
    r"auto[-_]?(?:response(?!-suppress)|respond|repl(?:y|ied)|generated|answer)|holidayreply|vacation|machinegenerated|out-?of-?office"
)


def _machine_header(seen: _Seen) -> bool:
    if any("autoresponder" in value.lower() for value in seen.mail.header_all("delivered-to")):
        return True
    telling = {name for name in seen.names if name != "x-auto-response-suppress" and _MACHINE_NAME.search(name)}
    for name in telling | (seen.names & _robots().headers):
        if any(
            _COMMENT.sub("", value).strip().lower() not in ("no", "false", "0", "none", "")
            for value in seen.mail.header_all(name)
        ):
            return True
    return False


def _own_loop(seen: _Seen) -> bool:
    return "x-postsale-outbox" in seen.names


# The shape of every Message-ID that Postsale makes: a letter for what it is, and 26 characters of base32.
_OWN_ID: Final = re.compile(r"<[a-z]\.[a-z2-7]{26}@([^<>@\s]+)>")


def _own_message(seen: _Seen) -> bool:
    match = _OWN_ID.fullmatch(seen.mail.message_id or "")
    return match is not None and match.group(1).lower() == seen.identity.message_id_domain.lower()


def _foreign_under_own_id(seen: _Seen) -> bool:
    """Our domain may be a provider's, so its Message-IDs are ours for certain only in our own shape."""
    domain = seen.identity.message_id_domain.lower()
    if not domain or seen.envelope.relay or seen.form or not (seen.mail.message_id or "").lower().endswith(f"@{domain}>"):
        return False
    return seen.mail.from_addr is not None and not f".{seen.mail.from_addr.domain}".endswith(f".{domain}")


def _own_address(seen: _Seen) -> bool:
    if seen.form:
        return False
    addresses = [*seen.mail.from_, *([seen.mail.sender] if seen.mail.sender is not None else [])]
    return any(_ours(address.addr, seen.identity) for address in addresses)


def _ours(addr: str, identity: Identity) -> bool:
    local, _, domain = addr.lower().partition("@")
    return addr.lower() in identity.own_addresses or f"{local.partition('+')[0]}@{domain}" in identity.own_addresses


def _own_return_path(seen: _Seen) -> bool:
    path = seen.mail.return_path
    return not seen.form and path is not None and path != "" and _ours(path, seen.identity)


def _no_reply(seen: _Seen) -> bool:
    if seen.form:
        return False
    path = (seen.mail.return_path or "").partition("@")[0].lower()
    answer = [address.addr.partition("@")[0].lower() for address in seen.mail.reply_to]
    return any(_robots().no_reply.fullmatch(local) for local in (seen.local, path, *answer) if local and len(local) < 100)


def _system_sender(seen: _Seen) -> bool:
    if seen.form or seen.envelope.relay:
        return False
    locals_ = [seen.local]
    if seen.mail.sender is not None:
        locals_.append(seen.mail.sender.addr.partition("@")[0].lower())
    path = (seen.mail.return_path or "").partition("@")[0]
    if re.fullmatch(r"(?i)mailer-daemon|post_?master|owner-.{1,80}|.{1,80}-(?:owner|request)", path):
        return True
    return any(local and len(local) < 100 and _robots().system.fullmatch(local) for local in locals_)


def _report(seen: _Seen) -> bool:
    mail = seen.mail
    return mail.content_type == "multipart/report" or bool(
        {"message/disposition-notification", "message/delivery-status", "message/feedback-report"} & set(mail.part_types[:30])
    )


def _calendar(seen: _Seen) -> bool:
    return seen.mail.calendar_method not in (None, "PUBLISH")


def _robot_body(seen: _Seen) -> bool:
    lines, marks = marked(seen.envelope.inner)
    own = "\n".join(line for line, mark in zip(lines[:40], marks[:40], strict=True) if mark != QUOTE)
    return _robots().bodies.found_in(unicodedata.normalize("NFKC", own[:700]).lower())


# A person answers a robot's notice under its subject.
_ANSWER: Final = re.compile(r"(?:re|aw|antw|sv|vs|odp|rép|rif|res|r|ynt|回复|答复|回覆|答覆)\s?(?:\[\d+\])?\s?[:：]")


def _acknowledgement(seen: _Seen) -> bool:
    return _ANSWER.match(seen.subject) is None and _robots().acknowledgements.found_in(seen.subject)


def _spam(seen: _Seen) -> bool:
    return any(
        pattern.search(value) for name, pattern in _robots().spam if name in seen.names for value in seen.mail.header_all(name)
    )


def _forwarded_report(seen: _Seen) -> bool:
    return returned_report_words(seen.mail)


def _notice(*wanted: Notice) -> Callable[[_Seen], bool]:
    return lambda seen: seen.envelope.kind is Kind.SYSTEM and seen.envelope.notice in wanted


def _hostile(seen: _Seen) -> bool:
    return not {"truncated", "nested_too_deep", "too_many_parts", "header_too_large", "text_too_long"}.isdisjoint(
        seen.mail.defects
    )


# --------------------------------------------------------------------------- the table

_IGNORE, _HUMAN, _REPLY = GateVerdict.IGNORE, GateVerdict.HUMAN, GateVerdict.REPLY

RULES: Final[tuple[Rule, ...]] = (
    Rule("own_loop", _IGNORE, "Postsale itself sent this message.", _own_loop),
    Rule("own_message", _IGNORE, "The Message-ID is one of ours, so the mail came back to us.", _own_message),
    Rule("own_address", _IGNORE, "The mail is from one of our own addresses.", _own_address),
    Rule("own_copy", _IGNORE, "The marketplace's copy of a reply that was typed in its own console.", _notice(Notice.OWN_COPY)),
    Rule("bounce", _IGNORE, "A delivery report about a mail of ours.", _notice(Notice.BOUNCE)),
    Rule("report", _IGNORE, "A delivery, read or abuse report.", _report),
    Rule("null_return_path", _IGNORE, "The envelope sender is empty, so nothing may be answered (RFC 3834 section 2).", lambda seen: seen.mail.return_path == ""),
    Rule("auto_submitted", _IGNORE, "A program sent this by itself (Auto-Submitted).", _auto_submitted),
    Rule("auto_reply_subject", _IGNORE, "The subject is that of an absence note or automatic reply.", lambda seen: _robots().subjects.found_in(seen.subject)),
    Rule("receipt_subject", _IGNORE, "A read receipt or the answer to an invitation.", lambda seen: _robots().receipts.search(seen.subject) is not None),
    Rule("machine_header", _IGNORE, "A header says that a machine wrote this.", _machine_header),
    Rule("precedence", _IGNORE, "Bulk, list or junk mail (Precedence).", _precedence),
    Rule("mailing_list", _IGNORE, "Mail of a mailing list or newsletter.", lambda seen: not seen.form and not seen.envelope.relay and _listed(seen)),
    Rule("calendar", _IGNORE, "An invitation or an answer to one.", _calendar),
    Rule("official_cancellation", _HUMAN, "An official cancellation request: cancel the order in the marketplace's console.", _notice(Notice.CANCELLATION_REQUEST)),
    Rule("official_return", _HUMAN, "An official return request: decide it in the marketplace's console.", _notice(Notice.RETURN_REQUEST)),
    Rule("marketplace_claim", _HUMAN, "A claim or dispute with a deadline: answer it in the marketplace's console.", _notice(Notice.CLAIM)),
    Rule("not_sent", _HUMAN, "The marketplace did not deliver a mail of ours to the buyer.", _notice(Notice.NOT_SENT)),
    Rule("marketplace_notice", _IGNORE, "A notice of the marketplace that wants no answer.", _notice(Notice.REFUND, Notice.OTHER)),
    Rule("no_reply_sender", _IGNORE, "Nobody reads answers to this address.", _no_reply),
    Rule("system_sender", _IGNORE, "A mail system, list or robot wrote this.", _system_sender),
    Rule("own_return_path", _IGNORE, "The envelope sender is one of our own addresses.", _own_return_path),
    Rule("approval", _IGNORE, "An answer of an approver, carried out and not answered as buyer mail.", lambda seen: seen.envelope.kind is Kind.APPROVAL),
    Rule("no_sender", _HUMAN, "No readable sender.", lambda seen: not seen.mail.from_),
    Rule("from_ambiguous", _HUMAN, "Several senders, or a sender that can be read in more than one way.", lambda seen: "from_ambiguous" in seen.envelope.suspicions),
    Rule("phishing", _HUMAN, "The sender looks like a marketplace and is not.", lambda seen: not {"lookalike_host", "display_name_spoof", "forged_router_header", "wrapper_without_relay"}.isdisjoint(seen.envelope.suspicions)),
    Rule("authentication_failed", _HUMAN, "Our own server saw the sender's authentication fail (DMARC).", lambda seen: "authentication_failed" in seen.envelope.suspicions),
    Rule("reply_to_elsewhere", _HUMAN, "A marketplace message asks for the answer at an address outside the marketplace.", lambda seen: "reply_to_elsewhere" in seen.envelope.suspicions),
    Rule("foreign_under_own_id", _HUMAN, "The Message-ID is of our domain and the sender is not, so it may be a mail of ours come back.", _foreign_under_own_id),
    Rule("forwarded_report", _HUMAN, "A person passes on a delivery report.", _forwarded_report),
    Rule("spam", _HUMAN, "A filter called this spam.", _spam),
    Rule("response_suppressed", _HUMAN, "The sender asks for no automatic answer (X-Auto-Response-Suppress).", _suppressed),
    Rule("auto_reply_text", _HUMAN, "The text reads like an absence note or automatic reply.", _robot_body),
    Rule("acknowledgement", _HUMAN, "The subject is that of a ticket system's receipt.", _acknowledgement),
    Rule("hostile_shape", _HUMAN, "The message exceeds the limits of size, depth or number of parts.", _hostile),
    Rule("no_answer_address", _HUMAN, "There is no safe address to answer to.", lambda seen: seen.envelope.kind is Kind.BUYER and seen.envelope.reply_to is None),
)  # fmt: skip

_CAP_SENTENCES: Final = {
    "cap_address": "This address has had its share of replies for 24 hours.",
    "cap_auto_address": "This address has had its share of automatic replies for 24 hours.",
    "cap_thread": "This thread has had its share of replies for 72 hours.",
    "cap_hour": "The mailbox has sent its share of replies this hour.",
    "cap_template": "This template has left its share of times this hour.",
    "cap_ramp": "The policy group has sent its share of the day without a person; the share grows day by day after it went live.",
    "cap_inbound": "This address writes more often than a person would.",
}

REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {rule.code: rule.sentence for rule in RULES} | _CAP_SENTENCES | {"answerable": "A person wrote this and may be answered."}
)


def judge(mail: ParsedMail, envelope: Envelope, identity: Identity) -> Verdict:
    """The gate's word before history is known."""
    sender = mail.from_addr
    seen = _Seen(
        mail=mail,
        envelope=envelope,
        identity=identity,
        names=frozenset(name for name, _ in mail.headers),
        subject=unicodedata.normalize("NFKC", mail.subject).strip()[:500].lower(),
        local=sender.addr.partition("@")[0].lower() if sender is not None else "",
        form=envelope.form,
    )
    matched = [rule for rule in RULES if rule.matches(seen)]
    if not matched:
        return Verdict(_REPLY, "answerable")
    return Verdict(matched[0].verdict, matched[0].code, tuple(rule.code for rule in matched))


def apply_caps(
    verdict: Verdict, history: History, caps: Caps, *, template: str | None = None, automatic: bool = False
) -> Verdict:
    """The verdict with the caps laid over it. A cap turns ``reply`` into ``human`` and never lifts anything.

    ``template`` is known once a policy has decided; ``automatic`` says that no
    person approves the reply.
    """
    hits: list[str] = []
    if history.replies_to_address_24h >= caps.per_address_day:
        hits.append("cap_address")
    if automatic and history.replies_to_address_24h >= caps.auto_per_address_day:
        hits.append("cap_auto_address")
    if history.replies_in_thread_72h >= caps.per_thread_72h:
        hits.append("cap_thread")
    if history.replies_last_hour >= caps.per_hour:
        hits.append("cap_hour")
    if template is not None and history.template_uses_last_hour.get(template, 0) >= caps.per_template_hour:
        hits.append("cap_template")
    if history.mails_from_address_24h > caps.mails_per_address_day:
        hits.append("cap_inbound")
    if not hits:
        return verdict
    if verdict.verdict is not _REPLY:
        return Verdict(verdict.verdict, verdict.reason, (*verdict.hits, *hits))
    return Verdict(_HUMAN, hits[0], tuple(hits))
