"""DKIM signatures verified here (RFC 6376), for mailboxes whose server proves nothing about staff mail.

Only strict signatures count: no ``l=`` (section 8.2 lets text be appended
then), no SHA-1, not expired, and the fields that give a reply its meaning
signed. Keys come over DNS; a resolver that gives no answer for now is a
Transient error, never a verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import dkim
import dns.exception
import dns.resolver

from daemon.errors import Transient

#: Looks up the TXT record of a name: its bytes, or None when there is none. Raises Transient.
Lookup = Callable[[bytes], bytes | None]

#: Signatures of one message that are looked at.
SIGNATURES = 5
#: Messages larger than this are not verified: an approver's word is short.
LIMIT_BYTES = 5_000_000
#: Seconds for one DNS answer.
DNS_SECONDS = 10.0
#: Least size of an RSA key in bits (RFC 8301 section 3.2).
MIN_KEY_BITS = 1024

_MUST_SIGN = frozenset({b"from", b"to", b"subject", b"date", b"message-id"})


@dataclass(frozen=True, slots=True)
class Signature:
    """A valid signature: who signed, and which header fields it covers (lower case)."""

    domain: str
    fields: frozenset[str]


def dns_lookup(name: bytes) -> bytes | None:
    """The TXT record of a name from the system's resolver."""
    try:
        answer = dns.resolver.resolve(name.decode("ascii"), "TXT", lifetime=DNS_SECONDS, raise_on_no_answer=False)
    except (dns.resolver.NXDOMAIN, UnicodeDecodeError, dns.exception.SyntaxError):
        return None
    except dns.exception.DNSException as error:
        raise Transient(f"DNS gave no answer: {type(error).__name__}") from error
    for record in answer.rrset or ():
        return b"".join(record.strings)
    return None


async def signatures(raw: bytes, *, lookup: Lookup = dns_lookup) -> tuple[Signature, ...]:
    """The valid signatures of a message, at most one per domain. Raises Transient when a key cannot be looked up now."""
    if len(raw) > LIMIT_BYTES:
        return ()
    return await asyncio.to_thread(_verify_all, raw, lookup)


def _verify_all(raw: bytes, lookup: Lookup) -> tuple[Signature, ...]:
    found: dict[str, Signature] = {}

    def ask(name: bytes | str, timeout: float = DNS_SECONDS) -> bytes | None:
        return lookup(name if isinstance(name, bytes) else name.encode("ascii", "ignore"))

    try:
        message = dkim.DKIM(raw, minkey=MIN_KEY_BITS)
        count = sum(1 for name, _ in message.headers if name.lower() == b"dkim-signature")
    except (dkim.DKIMException, ValueError, IndexError, AssertionError):
        return ()
    for index in range(min(count, SIGNATURES)):
        verifier = dkim.DKIM(raw, minkey=MIN_KEY_BITS)
        try:
            valid = verifier.verify(idx=index, dnsfunc=ask)
        except (dkim.DKIMException, ValueError, IndexError, KeyError, AssertionError):
            continue
        fields = verifier.signature_fields
        signed = {name.lower() for name in verifier.include_headers or ()}
        if not valid or b"l" in fields or fields.get(b"a") == b"rsa-sha1" or not signed >= _MUST_SIGN:
            continue
        domain = fields[b"d"].decode("ascii", "replace").lower()
        names = frozenset(name.decode("ascii", "replace") for name in signed)
        found.setdefault(domain, Signature(domain, names))
    return tuple(found.values())
