"""A draft becomes the very bytes that leave: one recipient, threaded, plain text, read back before it is trusted."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from email.errors import HeaderParseError
from email.headerregistry import Address as HeaderAddress
from email.utils import format_datetime

from daemon.mime.charset import clean
from daemon.mime.headers import address_list, decode_words, split_fields
from daemon.mime.tree import transfer_decode
from daemon.steps.draft.rendering import tidy
from daemon.steps.draft.values import CONTROLS, one_line
from daemon.vocab import Address, Draft, Frozen

# RFC 5322 section 2.1.1: lines of at most 78 characters where they can be broken, of 998 in any case.
_LINE, _LONGEST_LINE = 78, 998
_WORD_BYTES = 42  # of UTF-8 in one encoded word: it fits behind the longest name of a field that carries prose
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+")
_DOT_ATOM_ADDRESS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
)
_VALUE = re.compile(r"[\x20-\x7e]*")

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
    if "\r" in body:
        raise ValueError("the text has a line end of another kind")
    subject = one_line(draft.subject, 250)
    fields = [
        ("From", _mailbox(sender)),
        ("To", _mailbox(recipient)),
        ("Subject", _prose(subject)),
        ("Date", [format_datetime(now)]),
        ("Message-ID", [message_id]),
    ]
    if in_reply_to and _is_message_id(in_reply_to):
        chain = [r for r in references if _is_message_id(r) and r != in_reply_to]
        kept = [*chain[:1], *chain[1:][-10:]]  # RFC 5322 section 3.6.4; the first and the newest matter
        fields += [("In-Reply-To", [in_reply_to]), ("References", [*kept, in_reply_to])]
    fields += [("X-Postsale-Outbox", [message_id]), ("X-Auto-Response-Suppress", ["OOF, AutoReply"])]
    if automatic:
        fields.append(("Auto-Submitted", ["auto-replied"]))
    encoding = "quoted-printable" if body.isascii() else "base64"
    fields += [
        ("Content-Type", ['text/plain; charset="utf-8"']),
        ("Content-Transfer-Encoding", [encoding]),
        ("MIME-Version", ["1.0"]),
    ]
    header = "".join(_field(name, words) for name, words in fields)
    mime = header.encode("ascii") + b"\r\n" + _transfer_encoded(body.replace("\n", "\r\n").encode(), encoding)
    _read_back(mime, fields, subject, body, recipient)
    return Frozen(mime, message_id, hashlib.sha256(mime).hexdigest())


# --------------------------------------------------------------------------- writing


def _field(name: str, words: Sequence[str]) -> str:
    """One field, folded between its words; the first stands beside the name, for some readers stumble over a bare one.

    A word is never broken, so a long Message-ID stays one: as an encoded word, which the standard library makes of
    it, no reader would find the thread. ValueError for a word that would not stay in its field.
    """
    lines = [f"{name}:"]
    for position, word in enumerate(words):
        if not _VALUE.fullmatch(word):
            raise ValueError(f"{name} would have another character than printable ASCII")
        if position and len(lines[-1]) + 1 + len(word) > _LINE:
            lines.append("")
        lines[-1] += f" {word}"
    if max(map(len, lines)) > _LONGEST_LINE:
        raise ValueError(f"{name} would have a line of more than {_LONGEST_LINE} characters")
    return "\r\n".join(lines) + "\r\n"


def _mailbox(address: Address) -> list[str]:
    """Display name and address of a From or To field."""
    name = one_line(address.name, 80)
    spec = address.addr
    if _DOT_ATOM_ADDRESS.fullmatch(spec) is None:  # a quoted local part and the like, or none at all
        try:
            spec = HeaderAddress(addr_spec=spec).addr_spec
        except (HeaderParseError, IndexError) as error:
            raise ValueError("an address of the reply is none") from error
    if not name:
        return [spec]
    words = _prose(name)
    if all(word.startswith("=?") or _ATOM.fullmatch(word) for word in words):
        return [*words, f"<{spec}>"]
    if not name.isascii() or "=?" in name or len(name) > _LINE - 18:
        return [*_encoded_words(name), f"<{spec}>"]
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return [f'"{escaped}"', f"<{spec}>"]


def _prose(text: str) -> list[str]:
    """The words of a field of free text, from the first to the last that is not plain as encoded words."""
    words = text.split(" ")
    odd = [n for n, word in enumerate(words) if not word.isascii() or "=?" in word or len(word) > _LINE - 12]
    if not odd:
        return words
    return [*words[: odd[0]], *_encoded_words(" ".join(words[odd[0] : odd[-1] + 1])), *words[odd[-1] + 1 :]]


def _encoded_words(text: str) -> list[str]:
    """Encoded words (RFC 2047), none of which parts a character, or a word where it can be helped.

    Readers drop the blanks between them, so a blank that counts stands within.
    """
    pieces = [b""]
    for word in re.findall(r" ?[^ ]+| ", text):
        data = word.encode()
        if pieces[-1] and len(pieces[-1]) + len(data) > _WORD_BYTES:
            pieces.append(b"")
        for character in word if len(data) > _WORD_BYTES else (word,):
            data = character.encode()
            if len(pieces[-1]) + len(data) > _WORD_BYTES:
                pieces.append(b"")
            pieces[-1] += data
    return [f"=?utf-8?b?{base64.b64encode(piece).decode('ascii')}?=" for piece in pieces]


def _transfer_encoded(data: bytes, encoding: str) -> bytes:
    if encoding == "quoted-printable":
        return binascii.b2a_qp(data)
    return b"".join(binascii.b2a_base64(data[at : at + 57], newline=False) + b"\r\n" for at in range(0, len(data), 57))


# --------------------------------------------------------------------------- reading back


def _read_back(mime: bytes, meant: Sequence[tuple[str, Sequence[str]]], subject: str, body: str, recipient: Address) -> None:
    """Compare what a reader finds in the bytes with what was meant: the fields and no others, one recipient, the text."""
    plain = mime.replace(b"\r\n", b"\n")
    if b"\r" in plain or not mime.isascii():
        raise ValueError("the frozen reply has a stray line end or a character beyond ASCII")
    read = split_fields(plain)
    if read.defects or [name for name, _ in read.items] != [name.lower() for name, _ in meant]:
        raise ValueError("the frozen reply reads back with other fields")
    for (name, words), (_, got) in zip(meant, read.items, strict=True):
        if got.split() != " ".join(words).split():
            raise ValueError(f"the frozen reply reads back with another {name}")
    if decode_words(read.first("subject")).split() != clean(subject).split():
        raise ValueError("the frozen reply reads back with another subject")
    to = address_list(read.first("to"))
    if to.defect or [address.addr for address in to.addresses] != [recipient.addr]:
        raise ValueError("the frozen reply has other recipients than the one it answers")
    text = transfer_decode(plain[read.body_start :], read.first("content-transfer-encoding"), text=True)
    if text.decode("utf-8").replace("\r\n", "\n") != body:
        raise ValueError("the frozen reply reads back with another text")


def _is_message_id(value: str) -> bool:
    return re.fullmatch(r"<[^<>\s\x00-\x1f\x7f]{1,400}>", value) is not None and value.isascii()
