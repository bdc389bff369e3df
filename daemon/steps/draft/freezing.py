"""A draft becomes the very bytes that leave: one recipient, threaded, plain text, read back before it is trusted."""

from __future__ import annotations

import base64
import email
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from email.headerregistry import Address as HeaderAddress
from email.message import EmailMessage
from email.policy import SMTP

from daemon.steps.draft.rendering import tidy
from daemon.steps.draft.values import CONTROLS, one_line
from daemon.vocab import Address, Draft, Frozen

#: Most lines and characters of the buyer's text that are quoted below a reply.
QUOTE_LINES, QUOTE_CHARACTERS = 30, 2000


def message_id(key: bytes, *, mailbox: str, case_id: int, kind: str, revision: int, domain: str) -> str:
    """The Message-ID of one revision: the same inputs always give the same id, and nobody can guess it."""
    digest = hmac.new(key, f"{mailbox}\0{case_id}\0{kind}\0{revision}".encode(), hashlib.sha256).digest()
    return f"<r.{base64.b32encode(digest).decode().lower()[:26]}@{domain}>"


def reply_subject(original: str, order_id: str | None) -> str:
    """``Re:`` and the original subject, with the order id kept or added; never marked [Important]."""
    bare = one_line(original, 200)
    bare = re.sub(r"^(?:(?:re|aw|sv|antw|rif|回复|回覆|返信)\s*(?:\[\d+\])?\s*[:：]\s*)+", "", bare, flags=re.IGNORECASE)
    bare = re.sub(r"\[\s*important\s*\]", "", bare, flags=re.IGNORECASE).strip()
    if order_id and order_id not in bare:
        bare = f"{bare} ({order_id})" if bare else order_id
    return f"Re: {bare}" if bare else "Re:"


def quotable(text: str) -> str:
    """The buyer's text as it may stand quoted below a reply: bounded, without addresses, links and numbers to call."""
    clean = CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    clean = re.sub(r"(?i)\b(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", "[…]", clean)
    clean = re.sub(
        r"(?<![\d-])\+?\d(?:[ ()./-]?\d){8,14}(?![\d-])", lambda m: m.group() if _is_order_id(m.group()) else "[…]", clean
    )
    lines = clean.split("\n")
    kept = "\n".join(lines[:QUOTE_LINES])[:QUOTE_CHARACTERS]
    cut = len(lines) > QUOTE_LINES or len("\n".join(lines[:QUOTE_LINES])) > QUOTE_CHARACTERS
    return kept + ("\n[…]" if cut else "") if kept else ""


def _is_order_id(text: str) -> bool:
    return re.fullmatch(r"\d{3}-\d{7}-\d{7}|\d{2}-\d{5}-\d{5}", text) is not None


def freeze(
    draft: Draft,
    *,
    sender: Address,
    recipient: Address,
    message_id: str,
    in_reply_to: str | None,
    references: Sequence[str],
    now: datetime,
    automatic: bool,
    quote: str = "",
) -> Frozen:
    """The mail for one draft: exactly one recipient, threaded, plain text.

    ``automatic`` marks it ``Auto-Submitted: auto-replied`` (RFC 3834 section 5);
    a reply that a person approved is that person's mail and is not marked.
    ``quote`` is put below the reply. The bytes are parsed again and compared
    with what was meant; ValueError when anything differs.
    """
    body = tidy(draft.body)
    if quote:
        body += "\n" + "\n".join(f"> {line}".rstrip() for line in quote.split("\n")) + "\n"
    mail = EmailMessage(policy=SMTP)
    mail["From"] = HeaderAddress(one_line(sender.name, 80), addr_spec=sender.addr)
    mail["To"] = HeaderAddress(one_line(recipient.name, 80), addr_spec=recipient.addr)
    mail["Subject"] = one_line(draft.subject, 250)
    mail["Date"] = now
    mail["Message-ID"] = message_id
    if in_reply_to and _is_message_id(in_reply_to):
        chain = [r for r in references if _is_message_id(r) and r != in_reply_to]
        kept = [*chain[:1], *chain[1:][-10:]]  # RFC 5322 section 3.6.4; the first and the newest matter
        mail["In-Reply-To"] = in_reply_to
        mail["References"] = " ".join([*kept, in_reply_to])
    mail["X-Postsale-Outbox"] = message_id
    mail["X-Auto-Response-Suppress"] = "OOF, AutoReply"
    if automatic:
        mail["Auto-Submitted"] = "auto-replied"
    mail.set_content(body, subtype="plain", charset="utf-8", cte="base64" if not body.isascii() else "quoted-printable")
    mime = mail.as_bytes()
    _read_back(mime, mail, body, recipient)
    return Frozen(mime, message_id, hashlib.sha256(mime).hexdigest())


def _read_back(mime: bytes, meant: EmailMessage, body: str, recipient: Address) -> None:
    read = email.message_from_bytes(mime, policy=SMTP)
    if not isinstance(read, EmailMessage):
        raise TypeError("the frozen reply does not read back as a message")
    for name in ("From", "To", "Subject", "Message-ID", "In-Reply-To", "References", "Auto-Submitted", "X-Postsale-Outbox"):
        given, got = meant.get_all(name, []), read.get_all(name, [])
        if [" ".join(str(v).split()) for v in given] != [" ".join(str(v).split()) for v in got]:
            raise ValueError(f"the frozen reply reads back with another {name}")
    addresses = [a.addr_spec for a in read["To"].addresses]
    if addresses != [recipient.addr] or read["Cc"] or read["Bcc"]:
        raise ValueError("the frozen reply has other recipients than the one it answers")
    if read.get_content_type() != "text/plain" or read.get_content().replace("\r\n", "\n") != body:
        raise ValueError("the frozen reply reads back with another text")


def _is_message_id(value: str) -> bool:
    return re.fullmatch(r"<[^<>\s\x00-\x1f\x7f]{1,400}>", value) is not None and value.isascii()
