"""The last look at a frozen mail: do its bytes say what its row says?

A pure step: bytes in, problems out. The mail was built elsewhere and approved
by its digest; this looks at the very bytes that are about to leave, so that a
mistake anywhere before cannot put a second recipient or another text into them.
"""

from __future__ import annotations

import hashlib
from email import message_from_bytes, policy
from email.errors import HeaderParseError
from email.message import EmailMessage

#: Fields that stand exactly once.
_ONCE = ("From", "To", "Subject", "Date", "Message-ID", "MIME-Version")
#: Fields that could carry a mail to somebody else.
_NEVER = ("Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc", "Disposition-Notification-To", "Return-Receipt-To")


def problems(mime: bytes, *, recipient: str, message_id: str, sha256: str) -> tuple[str, ...]:
    """What keeps these bytes from leaving, as codes; empty when they are as the row says."""
    if hashlib.sha256(mime).hexdigest() != sha256:
        return ("other_bytes",)
    try:
        mail = message_from_bytes(mime, policy=policy.default)
        return tuple(_differences(mail, recipient, message_id))
    except (ValueError, LookupError, AttributeError, HeaderParseError, RecursionError) as error:
        # the email package raises all of these on headers that nobody should have built
        return (f"unreadable:{type(error).__name__}",)


def _differences(mail: EmailMessage, recipient: str, message_id: str) -> list[str]:
    found = [f"not_once:{name}" for name in _ONCE if len(mail.get_all(name, [])) != 1]
    found += [f"forbidden:{name}" for name in _NEVER if name in mail]
    if found:
        return found
    to = mail["To"]
    if to.defects or [address.addr_spec.lower() for address in to.addresses] != [recipient.lower()]:
        found.append("other_recipient")
    if len(mail["From"].addresses) != 1 or mail["From"].defects:
        found.append("other_sender")
    if str(mail["Message-ID"]).strip() != message_id:
        found.append("other_message_id")
    return found
