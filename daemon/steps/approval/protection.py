"""What a mailbox's way of proving approvers protects against, in the operator's words, for `postsale check`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Protection:
    """One sentence about a setting. ``warning``: the operator should think about it."""

    warning: bool
    text: str


_METHODS = {
    "dmarc": "dmarc: a reply counts when {id} says that the From domain is proved. Forged senders fail, also with a leaked token.",
    "auth": "auth: a reply counts when {id} says that its writer signed in to your own submission server as the approver.",
    "dkim": "dkim: a reply counts when it carries a valid signature of the approver's own domain over sender, recipient, "
    "subject, date and Message-ID, checked here over DNS.",
    "m365": "m365: a reply counts when the topmost Authentication-Results of Exchange Online says dmarc=pass. Use it only "
    "where every mail to this mailbox comes through Exchange Online, which always writes that field.",
}


def protection(
    methods: Collection[str],
    *,
    authserv_id: str | None,
    plus_addressing: bool,
    address: str,
    approver_addresses: Collection[str],
) -> tuple[Protection, ...]:
    """What the settings of one mailbox do and do not protect against."""
    if not approver_addresses:
        return (Protection(False, "no approvers: decisions are made with `postsale queue` only."),)
    said = [
        Protection(False, text.format(id=authserv_id or "(no authserv_id)"))
        for name, text in _METHODS.items()
        if name in methods
    ]
    if {"dmarc", "auth"} & set(methods):
        if authserv_id:
            said.append(
                Protection(
                    False,
                    f"{authserv_id} must write its Authentication-Results on every mail and remove foreign ones under that "
                    "name (RFC 8601 section 5); send yourself a mail with a forged one to see that it does.",
                )
            )
        else:
            said.append(Protection(True, "authserv_id is not set: no reply can be proved by dmarc or auth."))
    if "token_only" in methods:
        said.append(
            Protection(
                True,
                "token_only: whoever holds a request mail (a forward, a shared mailbox, a stolen archive) can approve it by "
                "forging the approver's address. Nothing but the 128-bit token stands against that.",
            )
        )
    if not plus_addressing:
        said.append(
            Protection(
                False,
                "plus_addressing is off: the token travels in the Message-ID alone, so a mail program or server that "
                "replaces Message-IDs (Outlook.com does) makes replies unreadable.",
            )
        )
    domain = address.rpartition("@")[2].casefold()
    if address.casefold() in {a.casefold() for a in approver_addresses}:
        said.append(Protection(True, f"{address} is an approver and the mailbox itself: its own mail is never a decision."))
    elif any(a.rpartition("@")[2].casefold() == domain for a in approver_addresses) and "auth" not in methods:
        said.append(
            Protection(
                False,
                f"approvers share the domain {domain} with the mailbox: servers often give no verdict on mail within one "
                "domain. If their replies are not proved, add auth or dkim.",
            )
        )
    said.append(
        Protection(
            False,
            "in every mode: one token per approver and revision, used once, gone after its time; out-of-office answers, "
            "bounces, quoted text and buyers' mail never approve.",
        )
    )
    return tuple(said)
