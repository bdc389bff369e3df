"""What is known about mail providers: hosts, ports and quirks.

A preset only fills in what the operator left unset. Hosts and ports are those
in the providers' own set-up pages; a quirk is noted beside the value that it
decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: provider → values beneath a [[mailboxes]] table.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gmail": {
        "imap": {"host": "imap.gmail.com", "port": 993, "tls": "implicit"},
        # Gmail files what was submitted under Sent by itself.
        "smtp": {"host": "smtp.gmail.com", "port": 465, "tls": "implicit", "append_to_sent": False},
        "approval": {"authserv_id": "mx.google.com"},
    },
    "outlook": {
        "imap": {"host": "outlook.office365.com", "port": 993, "tls": "implicit"},
        "smtp": {"host": "smtp-mail.outlook.com", "port": 587, "tls": "starttls", "append_to_sent": False},
        # Exchange Online writes Authentication-Results without an authserv-id.
        "approval": {"staff_auth": ["m365"]},
    },
    "exchange": {
        "imap": {"host": "outlook.office365.com", "port": 993, "tls": "implicit"},
        "smtp": {"host": "smtp.office365.com", "port": 587, "tls": "starttls", "append_to_sent": False},
        "approval": {"staff_auth": ["m365"]},
    },
    "163": {
        # NetEase refuses SELECT ("Unsafe Login") before the client has said who it is (RFC 2971).
        "imap": {"host": "imap.163.com", "port": 993, "tls": "implicit", "send_id": True},
        "smtp": {"host": "smtp.163.com", "port": 465, "tls": "implicit"},
        # It writes no Authentication-Results and knows no plus-addresses.
        "approval": {"staff_auth": ["dkim"], "plus_addressing": False},
    },
    "qq": {
        "imap": {"host": "imap.qq.com", "port": 993, "tls": "implicit", "send_id": True},
        "smtp": {"host": "smtp.qq.com", "port": 465, "tls": "implicit"},
        "approval": {"staff_auth": ["dkim"], "plus_addressing": False},
    },
    "zoho": {
        "imap": {"host": "imap.zoho.com", "port": 993, "tls": "implicit"},
        "smtp": {"host": "smtp.zoho.com", "port": 465, "tls": "implicit", "append_to_sent": False},
        "approval": {"authserv_id": "mx.zohomail.com"},
    },
    "generic": {},
}

#: Domains of one provider that have servers of their own.
_OWN_HOSTS: Mapping[str, tuple[str, str]] = {
    "126.com": ("imap.126.com", "smtp.126.com"),
    "yeah.net": ("imap.yeah.net", "smtp.yeah.net"),
}


def fill(provider: str, address: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a mailbox with the preset's values beneath what was given.

    ``given`` is the raw table; a part of it that is no table is left for the
    validation to complain about.
    """
    filled = dict(given)
    imap_host, smtp_host = _OWN_HOSTS.get(address.rpartition("@")[2].lower(), ("", ""))
    for part, preset in PRESETS.get(provider, {}).items():
        values = dict(preset)
        if provider == "163" and imap_host and part in {"imap", "smtp"}:
            values["host"] = imap_host if part == "imap" else smtp_host
        own = given.get(part, {})
        if isinstance(own, Mapping):
            filled[part] = {**values, **own}
    return filled
