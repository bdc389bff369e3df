"""What a trusted server proved about the sender: Authentication-Results by RFC 8601."""

from __future__ import annotations

from daemon.mime.authentication import authentication_of
from daemon.vocab import Authentication, Identity, ParsedMail


def authenticate(mail: ParsedMail, identity: Identity) -> Authentication:
    """Read the results our own server wrote; anything else in the message proves nothing.

    Unknown methods and results are ignored (section 5.3, 2.7.6), as are fields
    inside attached messages (section 4.1), whose header is never looked at.
    """
    return authentication_of(mail, identity)
