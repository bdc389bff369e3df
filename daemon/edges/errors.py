"""What mail servers may do to us, in our words; shared by the edges that speak to them."""

from __future__ import annotations

import ssl

from daemon.errors import Transient


class AccountTrouble(Transient):
    """The account or the way to it is in trouble, whatever message is at hand: one clear line for the operator.

    Trying again at once can make it worse (lock-outs), so that callers wait for minutes.
    """


class SignInRefused(AccountTrouble):
    """The server did not accept the login."""


class TlsTrouble(AccountTrouble):
    """No connection that is safe enough: certificate, host name, protocol, or STARTTLS not offered."""


def is_tls_trouble(error: ssl.SSLError) -> bool:
    """Whether the failure will be the same next time; a cut or garbled connection is none."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    return any(word in (error.reason or "") for word in ("UNSUPPORTED_PROTOCOL", "ALERT", "CIPHER"))


def tls_problem(error: ssl.SSLError) -> str:
    """A TLS failure in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return f"TLS failed: {error.reason or error}"
