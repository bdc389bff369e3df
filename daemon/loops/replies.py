"""Freezes one revision of a reply, whether a machine drafted it or a person wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from daemon import record
from daemon.errors import NeedsHuman
from daemon.loops.profiles import MailboxProfile
from daemon.steps import draft as drafting
from daemon.store.drafts import NewDraft
from daemon.vocab import DeliveryKind, Draft, Finding, Reading


class Thinker(Protocol):
    """The workers, as the loops see them."""

    async def map(self, items: Sequence[Any]) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes a revision: ``postsale`` or an approver's name, by which policy and template."""

    name: str
    policy: str | None = None
    template: str | None = None
    automatic: bool = False


def frozen_reply(
    key: bytes,
    profile: MailboxProfile,
    *,
    case_id: int,
    revision: int,
    reading: Reading,
    draft: Draft,
    findings: Sequence[Finding],
    order_state: Mapping[str, Any] | None,
    author: Author,
    now: datetime,
) -> NewDraft:
    """One revision as the very bytes that would leave.

    Raises NeedsHuman: ``no_safe_address`` when there is nobody to answer,
    ``not_freezable`` when the text does not survive being made into mail.
    """
    envelope, mail = reading.envelope, reading.mail
    if envelope.reply_to is None:
        raise NeedsHuman("no_safe_address")
    message_id = drafting.message_id(
        key,
        mailbox=profile.name,
        case_id=case_id,
        kind=DeliveryKind.BUYER_REPLY,
        revision=revision,
        domain=profile.message_id_domain,
    )
    try:
        frozen = drafting.freeze(
            draft,
            sender=profile.sender,
            recipient=envelope.reply_to,
            message_id=message_id,
            in_reply_to=mail.message_id,
            references=mail.references or mail.in_reply_to,
            now=now,
            automatic=author.automatic,
            quote=drafting.quotable(reading.writing.text),
        )
    except ValueError as error:
        raise NeedsHuman("not_freezable", str(error)) from error
    return NewDraft(
        case_id=case_id,
        revision=revision,
        subject=draft.subject,
        body=draft.body,
        language=draft.language,
        template=author.template,
        policy=author.policy,
        author=author.name,
        recipient=envelope.reply_to.addr,
        message_id=frozen.message_id,
        mime=frozen.mime,
        sha256=frozen.sha256,
        findings=[record.finding_record(f) for f in findings],
        order_state=order_state,
    )
