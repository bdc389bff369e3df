"""Authentication-Results of our own server, read by the rules of RFC 8601."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from daemon.vocab import Authentication, Identity, ParsedMail

_NOTHING: Final = Authentication()
_NO_ID: Final = "(no id)"
_TOO_LONG: Final = 8 * 1024
_RESULTS: Final = 60
# Registrable domains under two-label public suffixes that mail from shops and marketplaces uses. Relaxed alignment
# (RFC 7489 section 3.1.1) without a public suffix list stays on the careful side: an unknown suffix aligns by subdomain only.


def authentication_of(mail: ParsedMail, identity: Identity) -> Authentication:
    """What the topmost trusted field proves about the From domain; nothing when there is none.

    A field counts only when its authserv-id is configured (section 4.1), and
    only the topmost of those: fields below came with the message. With
    ``authserv_less`` (Exchange Online writes no id) only the very first field
    counts. More than one From address proves nothing.
    """
    if not (identity.authserv_ids or identity.authserv_less):
        return _NOTHING
    sender = mail.from_addr
    if sender is None or mail.from_fields != 1 or mail.from_defect:
        return _NOTHING
    trusted = {value.lower() for value in identity.authserv_ids}
    position = 0
    for name, value in mail.headers:
        if name != "authentication-results":
            continue
        position += 1
        serv_id = _authserv_id(value)
        if serv_id is not None and serv_id.lower() in trusted:
            return _read(value, sender.domain, serv_id)
        if identity.authserv_less and position == 1 and serv_id is None:
            return _read(f"{_PLACEHOLDER}; {value}", sender.domain, _NO_ID)
        if position == 1 and identity.authserv_less:
            break
        if position > 20:
            break
    return _NOTHING


_PLACEHOLDER: Final = "id.invalid"
_METHOD_FIRST: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9-]*\s*(?:/\s*\d+\s*)?=")


def _authserv_id(value: str) -> str | None:
    """The id that a field begins with; None when it begins with a result, as Exchange Online writes it."""
    if _METHOD_FIRST.match(value):
        return None
    head = re.sub(r"\([^()]{0,200}\)", " ", value.partition(";")[0]).strip()
    word = head.split()[0] if head.split() else ""
    return word.strip('"')[:255] or None


@lru_cache(maxsize=16)  # the envelope and the authentication step ask about the same field
def _read(value: str, from_domain: str, source: str) -> Authentication:
    if len(value) > _TOO_LONG:
        return _NOTHING
    # The RFC's own grammar decides: quoted values and comments cannot pose as results.
    from authres import AuthenticationResultsHeader
    from authres.core import AuthResError

    try:
        header = AuthenticationResultsHeader.parse(f"Authentication-Results: {value}")
    except (AuthResError, ValueError, IndexError, AttributeError, TypeError, RecursionError):
        return Authentication(source=source)
    dmarc = "none"
    dkim = spf = False
    user: str | None = None
    for result in header.results[:_RESULTS]:
        method = (result.method or "").lower()
        verdict = (result.result or "").lower()
        properties = {(item.type or "", item.name or ""): str(item.value or "") for item in result.properties}
        if method == "dmarc":
            named = properties.get(("header", "from"), from_domain).strip("<>").lower()
            named = named.rpartition("@")[2]
            if named == from_domain or from_domain.endswith("." + named):
                dmarc = _worse(dmarc, verdict)
        elif method == "dkim" and verdict == "pass":
            domain = properties.get(("header", "d"), "") or properties.get(("header", "i"), "").rpartition("@")[2]
            dkim = dkim or aligned(domain, from_domain)
        elif method == "spf" and verdict == "pass":
            mail_from = properties.get(("smtp", "mailfrom"), "") or properties.get(("smtp", "mfrom"), "")
            spf = spf or aligned(mail_from.strip("<>").rpartition("@")[2], from_domain)
        elif method == "auth" and verdict == "pass":
            user = properties.get(("smtp", "auth")) or properties.get(("smtp", "mailfrom")) or user
    return Authentication(dmarc=dmarc, dkim_aligned=dkim, spf_aligned=spf, auth_user=user, source=source)


def _worse(one: str, other: str) -> str:
    if one == "none":
        return other
    return one if one == "fail" else other if other == "fail" else one


def aligned(domain: str, from_domain: str) -> bool:
    """Relaxed alignment: the same domain, or one a subdomain of the other with at least two labels left."""
    one, two = domain.lower().strip("."), from_domain.lower().strip(".")
    if not one or not two or one.count(".") < 1 or two.count(".") < 1:
        return False
    if one == two:
        return True
    shorter, longer = sorted((one, two), key=len)
    if not longer.endswith("." + shorter):
        return False
    return shorter.count(".") >= 2 or shorter.partition(".")[0] not in _SECOND_LEVEL


_SECOND_LEVEL: Final = frozenset(
    {"co", "com", "net", "org", "gov", "ac", "edu", "ne", "or", "go", "gob", "nom", "ltd", "plc", "me"}
)
