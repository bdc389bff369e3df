"""Builds the frozen revisions of replies: from a machine's draft, or from what a person wrote."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from sqlalchemy import Connection

from daemon import record
from daemon.clock import Clock
from daemon.edges.workers import WorkerFailure
from daemon.errors import NeedsHuman
from daemon.loops.profiles import MailboxProfile
from daemon.loops.recheck import OrderRows, order_state
from daemon.loops.staff import Revision
from daemon.mind import ReadTask
from daemon.steps import draft as drafting
from daemon.steps import enrich, guard, language
from daemon.store import cases, drafts
from daemon.store.db import Database
from daemon.store.drafts import NewDraft
from daemon.vocab import DeliveryKind, Draft, Finding, OrderFacts, OrderId, Reading


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
    facts: OrderFacts | None,
    author: Author,
    clock: Clock,
) -> NewDraft:
    """One revision as the very bytes that would leave. Raises NeedsHuman when there is no safe address to answer."""
    envelope, mail = reading.envelope, reading.mail
    if envelope.reply_to is None:
        raise NeedsHuman("no_safe_address")
    frozen = drafting.freeze(
        draft,
        sender=profile.sender,
        recipient=envelope.reply_to,
        message_id=drafting.message_id(
            key,
            mailbox=profile.name,
            case_id=case_id,
            kind=DeliveryKind.BUYER_REPLY,
            revision=revision,
            domain=profile.message_id_domain,
        ),
        in_reply_to=mail.message_id,
        references=mail.references or mail.in_reply_to,
        now=clock.now(),
        automatic=author.automatic,
        quote=drafting.quotable(reading.writing.text),
    )
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
        order_state=order_state(facts),
    )


class Reviser:
    """Makes the next revision of a case's reply from a person's text: guarded and frozen."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        thinker: Callable[[], Thinker],
        profiles: Mapping[str, MailboxProfile],
        lookup: Callable[[Sequence[OrderId]], Awaitable[OrderRows]],
        stale_after: timedelta,
        key: bytes,
    ) -> None:
        self._db = database
        self._clock = clock
        self._thinker = thinker
        self._profiles = profiles
        self._lookup = lookup
        self._stale_after = stale_after
        self._key = key

    async def __call__(self, case_id: int, text: str, *, author: str) -> Revision:
        """The revision and what the guard found in it; NeedsHuman when no reply can be made."""

        def load(connection: Connection) -> tuple[str, bytes | None, int, Any]:
            return (
                cases.mailbox(connection, case_id),
                cases.load_raw(connection, case_id),
                cases.revision(connection, case_id),
                drafts.load(connection, case_id),
            )

        mailbox, raw, revision, earlier = await self._db.read(load)
        if raw is None:
            raise NeedsHuman("raw_mail_gone")
        profile = self._profiles[mailbox]
        [reading] = await self._thinker().map([ReadTask(raw, profile.identity)])
        if isinstance(reading, WorkerFailure):
            raise NeedsHuman("revision_failed", str(reading))
        facts = await self._facts(reading)
        draft, findings = self._guarded(reading, facts, text, earlier)
        try:
            frozen = frozen_reply(
                self._key,
                profile,
                case_id=case_id,
                revision=revision + 1,
                reading=reading,
                draft=draft,
                findings=findings,
                facts=facts,
                author=Author(author, earlier.policy if earlier else None),
                clock=self._clock,
            )
        except ValueError as error:
            raise NeedsHuman("revision_failed", str(error)) from error
        return Revision(frozen, findings)

    async def _facts(self, reading: Reading) -> OrderFacts | None:
        rows = await self._lookup(reading.envelope.order_ids)
        for order in reading.envelope.order_ids:
            facts = enrich.merge(rows.get(order, ()), self._clock.now(), self._stale_after)
            if facts is not None:
                return facts
        return None

    def _guarded(
        self, reading: Reading, facts: OrderFacts | None, text: str, earlier: Any
    ) -> tuple[Draft, tuple[Finding, ...]]:
        envelope = reading.envelope
        order_id = next((o.value for o in envelope.order_ids if o.place == "wrapper"), None)
        spoken = language.detect(text) or (earlier.language if earlier else None) or reading.language or "en"
        draft = Draft(drafting.reply_subject(reading.mail.subject, order_id), text, spoken, "")
        told = facts if facts and enrich.bind(envelope, reading.mail, facts).discloses else None
        recipient = envelope.reply_to.addr if envelope.reply_to else None
        return guard.inspect(
            draft,
            guard.GuardContext(
                marketplace=envelope.marketplace,
                language=reading.language,
                facts=told,
                order_ids=tuple(o.value for o in envelope.order_ids),
                recipient=recipient,
                thread_recipient=recipient,
                staff=True,
            ),
            detect=language.detect,
        )
