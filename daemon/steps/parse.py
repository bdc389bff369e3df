"""Raw bytes to ``ParsedMail``: never raises, never loses text that is there, bounded in work.

What cannot be read as its label says is read another way and noted in
``defects``; where one part fails, the others are still read.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from daemon.mime import limits
from daemon.mime.charset import clean, decode
from daemon.mime.headers import AddressList, Fields, address_list, decode_words, field_text, file_name, message_ids, parse_date
from daemon.mime.html import html_to_text
from daemon.mime.tree import Part, build, size_of, transfer_decode, walk
from daemon.vocab import Address, Attachment, ParsedMail

_TEXT_TYPES: Final = frozenset(
    {"text/plain", "text/html", "text/enriched", "text/richtext", "text/x-markdown", "text/markdown", "text", "text/x-amp-html"}
)
_STUB: Final = re.compile(
    r"(?i)html|e-?mail (?:client|program|reader)|does not support|doesn't support|unterstützt|ne (?:supporte|prend) pas|no (?:admite|soporta)|non supporta"
)
_STANDARD_PREAMBLE: Final = re.compile(
    rb"(?i)multi-?part message|mime[- ](?:format|encapsulated|version)|mime-aware|MIME message|mehrteilige nachricht"
)
_CALENDAR_METHOD: Final = re.compile(r"(?im)^METHOD:[ \t]*([A-Za-z-]{1,20})")
_MARKUP: Final = re.compile(r"(?is)<(?:html|body|div|p|br|table|span|font)\b[^<>]{0,2000}>")


def parse(raw: bytes) -> ParsedMail:
    """Read a message as fetched. Any bytes are a message; ``defects`` says what was wrong with them."""
    defects: set[str] = set()
    data = _normalised(raw, defects)
    root = build(data, defects)
    fields = root.fields
    senders = [address_list(value) for value in fields.every("from")]
    if len(senders) != 1:
        defects.add("from_missing" if not senders else "from_repeated")
    parts = list(walk(root))
    text, from_html, used = _readable(root, defects)
    sender = _first(fields, "sender")
    content_type = root.fields.first("content-type") or "text/plain"
    returned = _returned(root, parts)
    ids = message_ids(fields.first("message-id")) or message_ids(f"<{fields.first('message-id').strip('<> ')}>")
    return ParsedMail(
        raw_sha256=hashlib.sha256(raw).hexdigest(),
        content_key=_content_key(fields, root),
        size=len(raw),
        message_id=ids[0] if ids else None,
        in_reply_to=message_ids(fields.first("in-reply-to")),
        references=message_ids(" ".join(fields.every("references"))),
        from_=tuple(address for found in senders for address in found.addresses),
        from_fields=len(senders),
        from_defect=any(found.defect for found in senders),
        reply_to=_all(fields, "reply-to").addresses,
        sender=sender,
        return_path=_return_path(fields),
        to=_all(fields, "to").addresses,
        cc=_all(fields, "cc").addresses,
        subject=decode_words(fields.first("subject")),
        date=parse_date(fields.first("date")),
        headers=tuple((name, field_text(name, value)) for name, value in fields.items),
        content_type=content_type.partition(";")[0].strip().lower() if not root.declared else root.type,
        report_type=root.params.get("report-type", "").lower() or None if root.type == "multipart/report" else None,
        text=text,
        text_is_html=from_html,
        attachments=tuple(_attachment(part) for part in parts if _is_attachment(part, used)),
        part_types=tuple(part.type for part in parts),
        report_text=_report_text(parts),
        defects=tuple(sorted(defects)),
        returned_header=returned,
        calendar_method=_calendar_method(parts),
    )


# --------------------------------------------------------------------------- bytes and header


def _normalised(raw: bytes, defects: set[str]) -> bytes:
    if len(raw) > limits.RAW_BYTES:
        raw = raw[: limits.RAW_BYTES]
        defects.add("truncated")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raw = raw.decode("utf-16", "replace").encode("utf-8", "replace")
        defects.add("utf16_message")
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").lstrip(b"\n")


def _all(fields: Fields, name: str) -> AddressList:
    found = [address_list(value) for value in fields.every(name)[:10]]
    return AddressList(
        tuple(address for one in found for address in one.addresses)[: limits.ADDRESSES], any(one.defect for one in found)
    )


def _first(fields: Fields, name: str) -> Address | None:
    addresses = _all(fields, name).addresses
    return addresses[0] if addresses else None


def _return_path(fields: Fields) -> str | None:
    values = fields.every("return-path")
    if not values:
        return None
    value = values[0].strip()
    if value.strip("<> \"'") == "":
        return ""
    addresses = address_list(value).addresses
    if addresses:
        return addresses[0].addr
    return value.strip("<> ")[:250]


def _content_key(fields: Fields, root: Part) -> str:
    """Same key, same message: identity fields and the body, without anything that transport adds."""
    digest = hashlib.sha256()
    for name in ("message-id", "from", "date", "subject"):
        digest.update("\x1f".join(fields.every(name)).encode("utf-8", "replace") + b"\x1e")
    digest.update(root.fields.first("content-type").encode("utf-8", "replace") + b"\x1e")
    digest.update(root.body.rstrip())
    return digest.hexdigest()


# --------------------------------------------------------------------------- text


def _readable(root: Part, defects: set[str]) -> tuple[str, bool, set[int]]:
    """The text a reader would see, whether it was made from HTML, and the parts it was taken from."""
    used: set[int] = set()
    plain, html = _collected(root, used)
    text = _joined(plain)
    from_html = False
    if html and (not text.strip() or _is_stub(text, html)):
        converted = _joined([html_to_text(piece) for piece in html])
        if converted.strip():
            text, from_html = converted, True
    elif text.strip() and _looks_like_markup(text):
        converted = html_to_text(text)
        if converted.strip():
            text, from_html = converted, True
            defects.add("html_as_plain")
    if not text.strip():
        rescued, from_html = _rescued(root, used)
        if rescued.strip():
            text = rescued
            defects.add("text_rescued")
    if from_html and any(len(piece) > limits.HTML_BYTES for piece in html):
        defects.add("text_too_long")
    if len(text) > limits.TEXT_CHARS:
        text = text[: limits.TEXT_CHARS]
        defects.add("text_too_long")
    return text.strip("\n"), from_html, used


def _collected(root: Part, used: set[int]) -> tuple[list[str], list[str]]:
    """Plain and HTML texts in order. Of alternatives the plain one counts; HTML is kept beside for stubs."""
    plain: list[str] = []
    html: list[str] = []
    stack = [root]
    while stack:
        part = stack.pop()
        if part.type in ("message/rfc822", "message/global") and part.children:
            continue
        if part.children:
            stack.extend(reversed(part.children))
            continue
        if not _is_text(part):
            continue
        text = _part_text(part)
        used.add(id(part))
        if part.type in ("text/html", "text/x-amp-html"):
            if part.type == "text/html":
                html.append(text)
                if text.strip() and not _in_alternative(part) and plain:
                    plain.append(html_to_text(text))  # an HTML part after a plain one, both to be read
        elif part.type in ("text/enriched", "text/richtext"):
            plain.append(re.sub(r"</?[A-Za-z-]{1,30}>", "", text.replace("<<", "<")))
        else:
            plain.append(text)
    return plain, html


def _in_alternative(part: Part) -> bool:
    node = part.parent
    while node is not None:
        if node.type == "multipart/alternative":
            return True
        if node.type.startswith("message/"):
            return False
        node = node.parent
    return False


def _is_text(part: Part) -> bool:
    if part.type not in _TEXT_TYPES and part.declared:
        return False
    if not part.type.startswith("text") and part.declared:
        return False
    word, params = part.disposition
    if word == "attachment":
        return False
    name = params.get("filename") or part.params.get("name")
    return not (
        name
        and word != "inline"
        and part.parent is not None
        and part.parent.type == "multipart/mixed"
        and part is not part.parent.children[0]
    )


def _part_text(part: Part) -> str:
    data = part.content()
    if len(data) > 4 * limits.TEXT_CHARS:
        data = data[: 4 * limits.TEXT_CHARS]
    label = part.params.get("charset")
    if part.type == "text/html" and not label:
        label = _meta_charset(data)
    text = clean(decode(data, label))
    if part.params.get("format", "").lower() == "flowed":
        text = _unflowed(text, delsp=part.params.get("delsp", "").lower() == "yes")
    return text


_META: Final = re.compile(rb"(?i)<meta[^>]{0,200}charset=[\"']?([A-Za-z0-9_:-]{1,40})")


def _meta_charset(data: bytes) -> str | None:
    match = _META.search(data[:4096])
    return match.group(1).decode("ascii") if match is not None else None


def _unflowed(text: str, *, delsp: bool) -> str:
    """Undo format=flowed (RFC 3676): soft line breaks joined within one depth of quotation."""
    out: list[str] = []
    open_depth = -1
    for line in text.split("\n"):
        depth = len(line) - len(line.lstrip(">"))
        body = line[depth:]
        body = body.removeprefix(" ")
        soft = body.endswith(" ") and body != "-- "
        kept = body[:-1] if soft and delsp else body
        if open_depth == depth and out:
            out[-1] += kept
        else:
            out.append(f"{'>' * depth} {kept}" if depth else kept)
        open_depth = depth if soft else -1
    return "\n".join(out)


def _joined(pieces: list[str]) -> str:
    return "\n".join(piece.rstrip() for piece in pieces if piece.strip())


def _is_stub(text: str, html: list[str]) -> bool:
    """A plain part that only says that there is an HTML part."""
    return len(text) < 400 and _STUB.search(text) is not None and sum(map(len, html)) > 4 * len(text) and "\n>" not in text


def _looks_like_markup(text: str) -> bool:
    head = text[:3000].lstrip()
    return head[:1] == "<" and len(_MARKUP.findall(head)) >= 2


def _rescued(root: Part, used: set[int]) -> tuple[str, bool]:
    """Text from the places where it should not be, for a message that would otherwise say nothing."""
    for part in walk(root):
        for chunk in (part.preamble, part.epilogue):
            if chunk.strip() and not _STANDARD_PREAMBLE.search(chunk[:300]):
                text = clean(decode(chunk))
                if _says_something(text):
                    return text, False
    for part in walk(root):
        if part.children or part.type.startswith(("image/", "audio/", "video/", "font/")):
            continue
        # A multipart without children is one nested too deep: better its raw text than none.
        if part.type.startswith(("text/", "message/", "multipart/")) and part.type not in (
            "text/calendar",
            "text/vcard",
            "text/x-vcard",
            "text/css",
            "text/csv",
            "text/xml",
        ):
            text = _part_text(part)
            if part.type == "text/html" or _looks_like_markup(text):
                converted = html_to_text(text)
                if converted.strip():
                    used.add(id(part))
                    return converted, True
            if text.strip():
                if part.disposition[0] != "attachment":
                    used.add(id(part))
                return text, False
    opaque = _opaque(root)
    if opaque:
        return opaque, False
    raw = root.body.strip()
    if raw and not root.children and root.type.startswith(("text/", "multipart/", "message/")):
        return clean(decode(raw)), False
    return "", False


def _says_something(text: str) -> bool:
    return any(char.isalnum() for char in text)


def _opaque(root: Part) -> str:
    """Text inside the envelopes that carry a whole message: S/MIME opaque signatures and Outlook's winmail.dat."""
    for part in walk(root):
        name = (part.params.get("name") or part.disposition[1].get("filename") or "").lower()
        if part.type in ("application/pkcs7-mime", "application/x-pkcs7-mime") or name.endswith((".p7m", ".p7s")):
            data = part.content()
            start = data.lower().find(b"content-type:")
            if start >= 0:
                inner = build(data[start:].replace(b"\r\n", b"\n"), set())
                plain, html = _collected(inner, set())
                text = _joined(plain) or _joined([html_to_text(piece) for piece in html])
                if text.strip():
                    return text
        if part.type in ("application/ms-tnef", "application/vnd.ms-tnef") or name == "winmail.dat":
            text = _tnef(part.content())
            if text.strip():
                return text
    return ""


def _tnef(data: bytes) -> str:
    """The body of a winmail.dat; an unreadable one has none."""
    if len(data) > limits.TNEF_BYTES:
        return ""
    from tnefparse import TNEF  # only mail from old Outlook set-ups needs it

    try:
        found = TNEF(data, do_checksum=False)
        body, html = found.body, found.htmlbody
    except Exception:  # noqa: BLE001 - the library raises whatever its indexing meets; there is then no text in it
        return ""
    if body:
        return clean(body if isinstance(body, str) else decode(body))
    if html:
        return html_to_text(html if isinstance(html, str) else decode(html))
    return ""


# --------------------------------------------------------------------------- other parts


def _is_attachment(part: Part, used: set[int]) -> bool:
    if id(part) in used or part.type.startswith("multipart/"):
        return False
    if part.parent is None:
        return part.type not in _TEXT_TYPES and part.declared and not part.type.startswith(("message/", "text/"))
    node: Part | None = part.parent
    while node is not None:
        if node.type in ("message/rfc822", "message/global"):
            return False  # belongs to the attached message
        node = node.parent
    return part.type not in ("message/delivery-status", "message/disposition-notification") and (
        part.type not in ("text/plain", "text/html")
        or part.disposition[0] == "attachment"
        or bool(part.params.get("name") or part.disposition[1].get("filename"))
    )


def _attachment(part: Part) -> Attachment:
    word, params = part.disposition
    name = file_name(params.get("filename") or part.params.get("name") or "")
    if not name and part.type.startswith("message/") and part.children:
        name = file_name(part.children[0].fields.first("subject")) + ".eml"
    inline = word == "inline" or (word != "attachment" and bool(part.fields.first("content-id")))
    return Attachment(name=name, type=part.type, size=size_of(part), inline=inline)


def _report_text(parts: list[Part]) -> str:
    found = [
        clean(decode(part.content()[: limits.REPORT_CHARS]))
        for part in parts
        if part.type
        in (
            "message/delivery-status",
            "message/disposition-notification",
            "message/global-delivery-status",
            "message/feedback-report",
        )
    ]
    return "\n".join(found)[: limits.REPORT_CHARS]


def _returned(root: Part, parts: list[Part]) -> str:
    for part in parts:
        if part.type in ("text/rfc822-headers", "message/global-headers", "text/rfc822-header"):
            return clean(decode(part.content()[: limits.REPORT_CHARS]))
        if part.type in ("message/rfc822", "message/global") and part is not root and part.children:
            inner = part.children[0].fields
            return "\n".join(f"{name}: {value}" for name, value in inner.items)[: limits.REPORT_CHARS]
    return ""


def _calendar_method(parts: list[Part]) -> str | None:
    for part in parts:
        if part.type == "text/calendar":
            method = part.params.get("method")
            if method:
                return method.upper()[:20]
            body = transfer_decode(part.body[: limits.REPORT_CHARS], part.fields.first("content-transfer-encoding"), text=True)
            match = _CALENDAR_METHOD.search(decode(body))
            return match.group(1).upper() if match is not None else "PUBLISH"
    return None
