"""What the loops need to know of a mailbox, taken out of the configuration once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from daemon.config import Config, MailboxConfig, StaffAuth
from daemon.vocab import Address, Caps, Identity


@dataclass(frozen=True, slots=True)
class MailboxProfile:
    """One mailbox: who it is, how its replies are signed, and its limits."""

    name: str
    sender: Address
    shop_name: str
    identity: Identity
    caps: Caps
    response_hours: float
    max_age: timedelta
    undo: timedelta
    message_id_domain: str


def profiles(config: Config) -> dict[str, MailboxProfile]:
    """The profile of every mailbox, by its name."""
    return {mailbox.name: profile(config, mailbox) for mailbox in config.mailboxes}


def profile(config: Config, mailbox: MailboxConfig) -> MailboxProfile:
    """The profile of one mailbox."""
    approval, domain = mailbox.approval, mailbox.address.rpartition("@")[2]
    own = {mailbox.address, *mailbox.own_addresses, *(m.address for m in config.mailboxes)}
    if approval.address:
        own.add(approval.address)
    return MailboxProfile(
        name=mailbox.name,
        sender=Address(mailbox.display_name or mailbox.shop_name, mailbox.address),
        shop_name=mailbox.shop_name or mailbox.display_name,
        identity=Identity(
            own_addresses=frozenset(own),
            approver_addresses=frozenset(a.address for a in config.approvers),
            message_id_domain=domain,
            authserv_ids=(approval.authserv_id,) if approval.authserv_id else (),
            authserv_less=StaffAuth.M365 in approval.staff_auth,
            shop_domains=frozenset(mailbox.shop_domains),
        ),
        caps=Caps(**mailbox.caps.model_dump()),
        response_hours=mailbox.response_hours,
        max_age=timedelta(hours=mailbox.max_age_hours),
        undo=timedelta(seconds=approval.undo_seconds),
        message_id_domain=domain,
    )
