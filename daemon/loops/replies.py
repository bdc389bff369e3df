"""Makes one revision of a reply, whether a machine drafted it or a person wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from daemon.loops.profiles import MailboxProfile
from daemon.store.drafts import NewDraft
from daemon.tasks import ReplyPlan
from daemon.vocab import Draft, Frozen


class Thinker(Protocol):
    """The workers, as the loops see them."""

    async def map(self, items: Sequence[Any]) -> list[Any]: ...


def reply_plan(key: bytes, profile: MailboxProfile, *, case_id: int, revision: int) -> ReplyPlan:
    """How one revision of a case's reply is frozen."""
    return ReplyPlan(key, profile.name, profile.sender, profile.message_id_domain, case_id, revision)


def new_draft(
    plan: ReplyPlan,
    draft: Draft,
    frozen: Frozen,
    *,
    recipient: str,
    author: str,
    policy: str | None,
    template: str | None,
    findings: Sequence[Mapping[str, Any]],
    order_state: Mapping[str, Any] | None,
) -> NewDraft:
    """A revision as the store keeps it. ``author`` is ``postsale`` or an approver's name."""
    return NewDraft(
        case_id=plan.case_id,
        revision=plan.revision,
        subject=draft.subject,
        body=draft.body,
        language=draft.language,
        template=template,
        policy=policy,
        author=author,
        recipient=recipient,
        message_id=frozen.message_id,
        mime=frozen.mime,
        sha256=frozen.sha256,
        findings=findings,
        order_state=order_state,
    )
