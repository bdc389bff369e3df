"""Tokens that bind a reply to one approver, one case and one revision.

A token is 128 bits of randomness. It travels in the plus-address of a
request's Reply-To; the request's Message-ID is derived from it, so that a
reply that kept only In-Reply-To finds its request as well. The store keeps
keyed digests: who reads the database cannot make a valid reply from it.
"""

from __future__ import annotations

import base64
import binascii
import email
import email.errors
import email.header
import email.policy
import hashlib
import hmac
import re
import secrets

#: Bits of randomness in a token.
TOKEN_BITS = 128
#: What stands before the token in a plus-address: ``mailbox+ok-<token>@…``.
TAG_PREFIX = "ok-"

_WORD = re.compile(r"(?<![a-z2-7])[a-z2-7]{26}(?![a-z2-7])", re.IGNORECASE | re.ASCII)
_OWN_ID = re.compile(r"<r\.[a-z2-7]{26}@[^<>@\s]+>")
_TAG = re.compile(r"\+ok-([a-z2-7]{26})\Z", re.IGNORECASE | re.ASCII)


def new_token() -> str:
    """A fresh token: 26 characters of base32 in lower case, safe in an address."""
    return _base32(secrets.token_bytes(TOKEN_BITS // 8))


def token_hash(key: bytes, token: str, line: int | None = None) -> str:
    """The digest under which a token is stored; ``line`` is the number of a draft in a digest mail."""
    text = token if line is None else f"{token}/{line}"
    return hmac.new(key, b"approval-token\0" + text.encode("ascii"), hashlib.sha256).hexdigest()


def notice_message_id(key: bytes, token: str, domain: str) -> str:
    """The Message-ID of the request that carries ``token``; as hard to guess as the token itself."""
    digest = hmac.new(key, b"approval-notice\0" + token.encode("ascii"), hashlib.sha256).digest()
    return f"<p.{_base32(digest[:16])}@{domain}>"


def thread_message_id(key: bytes, case_id: int, approver: str, domain: str) -> str:
    """The Message-ID that holds one case's notices to one approver together; it proves nothing."""
    digest = hmac.new(key, f"approval-thread\0{case_id}\0{approver}".encode(), hashlib.sha256).digest()
    return f"<t.{_base32(digest[:16])}@{domain}>"


def token_of(address: str) -> str | None:
    """The token in a plus-address, None when there is none."""
    match = _TAG.search(address.partition("@")[0])
    return match[1].lower() if match else None


def words_like_tokens(mime: bytes) -> frozenset[str]:
    """Every word in a mail, decoded, that has the shape of a token; most are none.

    The mail's own Message-ID, which is made of such a word, is left out. Where no letter of a token can be written
    otherwise than as itself, as in the mail that this service builds, the bytes are looked through as they are, which may
    find a word more; whatever else is parsed, in ten times as long.
    """
    text = _with_letters_as_themselves(mime)
    if text is None:
        return parsed_words_like_tokens(mime)
    end = _HEAD_END.search(text)
    own = _MESSAGE_ID.search(text, 0, end.end() if end else 0)
    plain = text.replace(own[1], b"") if own else text
    words = plain.translate(_SEPARATED).split()
    if b"=" in plain:  # and as quoted-printable, where what is escaped is no letter of a token
        soft = _ESCAPE.sub(b" ", plain).replace(b"=\r\n", b"").replace(b"=\n", b"")
        words += soft.translate(_SEPARATED).split()
    return frozenset(word.decode("ascii").lower() for word in words if len(word) == _LENGTH)


def _with_letters_as_themselves(mime: bytes) -> bytes | None:
    """The mail with every letter of a token written as itself, but for soft line breaks; None when that takes a parse."""
    head, gap, body = mime.partition(b"\r\n\r\n")
    written = mime
    if (encoded := _ENCODED_BODY.search(head)) is not None:
        if _PARTS.search(head) or not _BASE64.fullmatch(body):
            return None
        written = head = head.replace(encoded[0], b"", 1)
        try:
            body = binascii.a2b_base64(body)
        except binascii.Error:
            return None
    lower = written.lower()
    if _ENCODED.search(written) or any(way in lower for way in _WAYS) or (encoded and _ANOTHER_WAY in lower):
        return None
    return head + gap + body


_ENCODED_BODY = re.compile(rb"\r\nContent-Transfer-Encoding: base64(?=\r\n|\Z)")
_PARTS = re.compile(rb"multipart/|message/", re.IGNORECASE)
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]+\r\n)*[A-Za-z0-9+/]*={0,2}(?:\r\n)?")
_ESCAPE = re.compile(rb"=[0-9A-Fa-f]{2}")
#: Where quoted-printable or an encoded word may write a letter of a token otherwise, or leave something out.
_ENCODED = re.compile(rb"=(?:3[2-7]|[46][1-9A-Fa-f]|[57][0-9Aa]|\?|\r[^\n])")
_WAYS = (b"base64", b"uue")
_ANOTHER_WAY = b"content-transfer-encoding"
_MESSAGE_ID = re.compile(rb"(?<![^\n])Message-ID: (<r\.[a-z2-7]{26}@[^<>@\s]+>)\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = 26
_BASE32 = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
_SEPARATED = bytes(byte if byte in _BASE32 else ord(" ") for byte in range(256))


def parsed_words_like_tokens(mime: bytes) -> frozenset[str]:
    """The same by a full parse, whatever encodings there are."""
    mail = email.message_from_bytes(mime, policy=email.policy.compat32)
    texts: list[str] = []
    own = mail["Message-ID"]
    for part in mail.walk():
        for value in map(str, part.values()):
            if value == own and _OWN_ID.fullmatch(value):
                continue
            texts.append(value)
            if "=?" in value:
                texts.append(_decoded(value))
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            texts.append(payload.decode("utf-8", "replace"))
    return frozenset(word.lower() for text in texts for word in _WORD.findall(text))


def _decoded(value: str) -> str:
    """A field with its encoded words decoded, as a mail program shows it."""
    try:
        return str(email.header.make_header(email.header.decode_header(value)))
    except (ValueError, LookupError, email.errors.HeaderParseError):  # no text under that name, so that nobody can read it
        return ""


def reply_address(address: str, token: str) -> str:
    """``address`` with the token in it."""
    local, _, domain = address.rpartition("@")
    return f"{local}+{TAG_PREFIX}{token}@{domain}"


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()
