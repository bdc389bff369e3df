"""A person's own text becomes the next revision of a reply: addressed, guarded, frozen like any other draft."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.clock import Clock
from daemon.config import Config
from daemon.errors import NeedsHuman
from daemon.loops import views
from daemon.loops.profiles import profile
from daemon.loops.replies import new_draft, reply_plan
from daemon.loops.staff import Revision
from daemon.pipeline import frozen_reply
from daemon.record import finding_record
from daemon.steps import draft as drafting
from daemon.steps import guard
from daemon.steps.enrich import facts_from_dict
from daemon.steps.language import detect
from daemon.store import cases, drafts
from daemon.store.db import Database
from daemon.vocab import Draft, OrderFacts, Reading

#: Reads a stored message again in a worker: mailbox name and raw bytes in, Reading out.
Reread = Callable[[str, bytes], Awaitable[Reading]]

_TOKEN = re.compile(r"\bok-[a-z2-7]{26}\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Revise:
    """Makes revisions. ``key`` makes their Message-IDs, as it does for drafts of the playbook."""

    database: Database
    config: Config
    key: bytes
    clock: Clock
    reread: Reread

    async def __call__(self, case_id: int, text: str, *, author: str) -> Revision:
        """The next revision of a case's reply with ``text`` as its body.

        Raises NeedsHuman: ``raw_mail_gone`` when retention has removed the
        message, ``no_safe_address`` when there is nobody to answer to,
        ``token_in_text`` or ``not_freezable`` when the text cannot leave.
        """
        row, record, outcome = await self.database.read(lambda c: views.load(c, case_id))
        raw = await self.database.read(lambda c: cases.load_raw(c, case_id))
        newest = await self.database.read(lambda c: drafts.load(c, case_id))
        if raw is None:
            raise NeedsHuman("raw_mail_gone")
        if _TOKEN.search(text):
            raise NeedsHuman("token_in_text")
        reading = await self.reread(row.mailbox, raw)
        recipient = reading.envelope.reply_to
        if recipient is None or (newest is not None and newest.recipient != recipient.addr):
            raise NeedsHuman("no_safe_address")
        facts = _facts(outcome)
        order_id = facts.order_id if facts is not None else row.order_id
        written = Draft(
            subject=newest.subject if newest is not None else drafting.reply_subject(reading.mail.subject, order_id),
            body=drafting.tidy(text),
            language=detect(text) or reading.language or row.language or "en",
            template="",
        )
        context = guard.GuardContext(
            marketplace=reading.envelope.marketplace,
            language=reading.language,
            facts=facts,
            order_ids=tuple(record.get("order_ids") or ()),
            recipient=recipient.addr,
            thread_recipient=recipient.addr,
        )
        mended, findings = guard.inspect(written, context, detect)
        sender = profile(self.config, self.config.mailbox(row.mailbox))
        plan = reply_plan(self.key, sender, case_id=case_id, revision=row.revision + 1)
        revision = new_draft(
            plan,
            mended,
            frozen_reply(plan, reading, mended, automatic=False, now=self.clock.now()),
            recipient=recipient.addr,
            author=author,
            policy=None,
            template=None,
            findings=[finding_record(f) for f in findings],
            order_state=newest.order_state if newest is not None else None,
        )
        return Revision(revision, findings)


def _facts(outcome: Mapping[str, Any]) -> OrderFacts | None:
    kept = outcome.get("facts")
    return facts_from_dict(kept) if kept else None
