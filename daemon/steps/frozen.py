"""The last look at a frozen mail: do its bytes say what its row says?

A pure step: bytes in, problems out. The mail was built elsewhere and approved
by its digest; this looks at the very bytes that are about to leave, so that a
mistake anywhere before cannot put a second recipient or another text into them.

A head of the plain shape that replies are frozen in is read here; whatever
has any other shape is parsed in full, which takes many times longer.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from email import message_from_bytes, policy
from email.errors import HeaderParseError
from email.message import EmailMessage

#: Fields that stand exactly once.
_ONCE = ("From", "To", "Subject", "Date", "Message-ID", "MIME-Version")
#: Fields that could carry a mail to somebody else.
_NEVER = ("Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc", "Disposition-Notification-To", "Return-Receipt-To")

_CONTROLS = re.compile(rb"[^\t\r\n -~]")
_FIELD = re.compile(r"([!-9;-~]+): ?(.*)")
#: Nothing but one address, with or without words before it: no comment, group, list, route or escape.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LOCAL_PART = rf"{_ATOM}(?:\.{_ATOM})*"
_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
_WORDS = r"(?:[A-Za-z0-9&'*+/_-]+(?: [A-Za-z0-9&'*+/_-]+)*|\"[A-Za-z0-9 .,&'+-]*[A-Za-z0-9.]\")"
_ONE_ADDRESS = re.compile(rf"(?:{_WORDS} <({_LOCAL_PART}@{_DOMAIN})>|({_LOCAL_PART}@{_DOMAIN}))")


def problems(mime: bytes, *, recipient: str, message_id: str, sha256: str) -> tuple[str, ...]:
    """What keeps these bytes from leaving, as codes; empty when they are as the row says."""
    if hashlib.sha256(mime).hexdigest() != sha256:
        return ("other_bytes",)
    if plainly_right(mime, recipient, message_id):
        return ()
    return parsed_problems(mime, recipient, message_id)


def plainly_right(mime: bytes, recipient: str, message_id: str) -> bool:
    """Whether the head has the plain shape and says what the row says; False is no verdict."""
    head, found, _ = mime.partition(b"\r\n\r\n")
    # a bare CR or LF, or another control character, is a line's end to some readers
    if not found or _CONTROLS.search(head) or not head.count(b"\r\n") == head.count(b"\r") == head.count(b"\n"):
        return False
    values: dict[str, str] = {}
    names: Counter[str] = Counter()
    name = ""
    for line in head.decode("ascii").split("\r\n"):
        if line[:1] in (" ", "\t"):
            if name in _LOOKED_INTO or not line.strip():
                return False
            continue
        field = _FIELD.fullmatch(line)
        if field is None:
            return False
        name = field[1].lower()
        names[name] += 1
        values[name] = field[2]
    if any(names[once] != 1 for once in _ONCE_LOWER) or any(never in names for never in _NEVER_LOWER):
        return False
    to, sender = _ONE_ADDRESS.fullmatch(values["to"]), _ONE_ADDRESS.fullmatch(values["from"])
    return (
        to is not None
        and (to[1] or to[2]).lower() == recipient.lower()
        and sender is not None
        and values["message-id"] == message_id
    )


_ONCE_LOWER = tuple(name.lower() for name in _ONCE)
_NEVER_LOWER = tuple(name.lower() for name in _NEVER)
_LOOKED_INTO = ("", "to", "from", "message-id")


def parsed_problems(mime: bytes, recipient: str, message_id: str) -> tuple[str, ...]:
    """The same by a full parse, whatever shape the head has."""
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
