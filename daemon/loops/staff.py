"""The desk at which mail to staff is written: who is asked, in which words, with which token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from daemon.config import ApproverConfig, Config, MailboxConfig
from daemon.loops import views
from daemon.steps.approval import CaseView, Reader, Rendered, StaffRenderer, seal
from daemon.store import drafts, outbox, requests, tokens
from daemon.store.db import Database
from daemon.store.drafts import NewDraft
from daemon.vocab import CaseState, DeliveryKind, Finding, Outgoing, Severity, Verb
from daemon.worktime import Calendar

#: Commands that fit a case, by what it waits for.
VERBS: Mapping[CaseState, tuple[Verb, ...]] = {
    CaseState.AWAITING_APPROVAL: (Verb.APPROVE, Verb.REJECT, Verb.EDIT, Verb.LABEL, Verb.HOLD, Verb.TAKE),
    CaseState.QUEUED: (Verb.REJECT,),
    CaseState.HUMAN: (Verb.EDIT, Verb.LABEL, Verb.TAKE, Verb.DONE),
    CaseState.UNCERTAIN: (Verb.RESEND, Verb.DONE),
}


@dataclass(frozen=True, slots=True)
class Revision:
    """A person's text made into a reply: the frozen revision, and what the guard found in it."""

    draft: NewDraft
    findings: tuple[Finding, ...]


class Reviser(Protocol):
    """Makes the next revision of a case's reply from a person's text, guarded and frozen.

    Raises NeedsHuman when no reply can be made of it (no safe address, text
    that cannot be frozen).
    """

    async def __call__(self, case_id: int, text: str, *, author: str) -> Revision: ...


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything that talking with staff needs. ``key`` makes tokens and Message-IDs unforgeable."""

    database: Database
    config: Config
    key: bytes
    staff: StaffRenderer
    revise: Reviser
    labels: Callable[[], Collection[str]]  # what LABEL may name
    action_text: views.ActionText

    def mailbox(self, name: str) -> MailboxConfig:
        return self.config.mailbox(name)

    def approver(self, name: str) -> ApproverConfig | None:
        """The approver of that name, None when the configuration no longer lists one."""
        return next((a for a in self.config.approvers if a.name == name), None)

    def first(self, mailbox: str) -> tuple[ApproverConfig, ...]:
        """Who is asked at once."""
        return self.named(self.mailbox(mailbox).approval.approvers)

    def all(self, mailbox: str) -> tuple[ApproverConfig, ...]:
        """Everybody whose word counts for a mailbox."""
        approval = self.mailbox(mailbox).approval
        return self.named(tuple(dict.fromkeys((*approval.approvers, *approval.next_approvers))))

    def named(self, names: Iterable[str]) -> tuple[ApproverConfig, ...]:
        """The approvers of these names, in their order."""
        by_name = {a.name: a for a in self.config.approvers}
        return tuple(by_name[n] for n in names)

    def zone(self, approver: ApproverConfig) -> str:
        return approver.timezone or self.config.service.timezone

    def calendar(self, approver: ApproverConfig) -> Calendar:
        return Calendar(self.zone(approver), approver.work_days, approver.work_start, approver.work_end, approver.holidays)

    def reader(self, approver: ApproverConfig) -> Reader:
        return Reader(approver.name, approver.address, approver.language, ZoneInfo(self.zone(approver)))


def approval_address(mailbox: MailboxConfig) -> str:
    """Where approvers' replies arrive."""
    return mailbox.approval.address or mailbox.address


def id_domain(mailbox: MailboxConfig) -> str:
    """The domain of the Message-IDs of a mailbox's mail, by which answers to it are recognised."""
    return mailbox.address.rpartition("@")[2]


def verbs_for(state: CaseState) -> tuple[str, ...]:
    """The commands that fit a case in that state, as a notice lists them."""
    return tuple(v.value for v in VERBS.get(state, ()))


def view_for(desk: Desk, connection: Connection, case_id: int, approver: ApproverConfig) -> CaseView:
    return views.case_view(connection, case_id, language=approver.language, action_text=desk.action_text)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A fresh token with what follows from it for one notice."""

    token: str
    message_id: str
    reply_to: str


def ticket(desk: Desk, mailbox: MailboxConfig) -> Ticket:
    """A token for one notice, and where its reply has to come to."""
    token = tokens.new_token()
    address = approval_address(mailbox)
    reply_to = tokens.reply_address(address, token) if mailbox.approval.plus_addressing else address
    return Ticket(token, tokens.notice_message_id(desk.key, token, id_domain(mailbox)), reply_to)


def thread_id(desk: Desk, mailbox: MailboxConfig, case_id: int, approver: ApproverConfig) -> str:
    """The Message-ID that all notices about a case to one approver refer to."""
    return tokens.thread_message_id(desk.key, case_id, approver.name, id_domain(mailbox))


def expiry(mailbox: MailboxConfig, now: datetime) -> datetime:
    return now + timedelta(hours=mailbox.approval.token_hours)


def post(
    desk: Desk,
    connection: Connection,
    mailbox: MailboxConfig,
    approver: ApproverConfig,
    rendered: Rendered,
    *,
    to: Ticket,
    dedupe_key: str,
    now: datetime,
    case_id: int | None = None,
    references: Sequence[str] = (),
    in_reply_to: str | None = None,
) -> None:
    """Seal a notice and put it into the outbox."""
    address = approval_address(mailbox)
    name = mailbox.shop_name or mailbox.display_name or mailbox.name
    sealed = seal(
        rendered,
        reader=desk.reader(approver),
        sender=address,
        sender_name=f"Postsale · {name}",
        reply_to=to.reply_to,
        message_id=to.message_id,
        references=references,
        in_reply_to=in_reply_to,
        now=now,
    )
    outbox.enqueue(
        connection,
        Outgoing(
            kind=DeliveryKind.STAFF_NOTICE,
            mailbox=mailbox.name,
            recipient=approver.address,
            envelope_from=address,
            message_id=sealed.message_id,
            mime=sealed.mime,
            sha256=sealed.sha256,
            dedupe_key=dedupe_key,
            case_id=case_id,
        ),
        now=now,
    )


def ask(
    desk: Desk,
    connection: Connection,
    case_id: int,
    approvers: Iterable[ApproverConfig],
    *,
    kind: str,
    purpose: str,
    now: datetime,
    **values: Any,
) -> int:
    """Ask each of these approvers about a case, each with an own token; returns how many were asked.

    ``kind`` is the template (request, human, uncertain), ``purpose`` why the
    mail goes out now. Requests and notices are stored together.
    """
    asked = 0
    for approver in approvers:
        view = view_for(desk, connection, case_id, approver)
        mailbox = desk.mailbox(view.mailbox)
        to = ticket(desk, mailbox)
        state = {"request": CaseState.AWAITING_APPROVAL, "human": CaseState.HUMAN, "uncertain": CaseState.UNCERTAIN}[kind]
        given = {"by": None, "why": (), **values, "number": None, "verbs": verbs_for(state), "c": view, "purpose": purpose}
        rendered = desk.staff.render(kind, desk.reader(approver), now, **given)
        open_request(desk, connection, view, approver, to, purpose=purpose, now=now)
        post(
            desk,
            connection,
            mailbox,
            approver,
            rendered,
            to=to,
            dedupe_key=f"{purpose}:{to.message_id}",
            now=now,
            case_id=case_id,
            references=(thread_id(desk, mailbox, case_id, approver),),
        )
        asked += 1
    return asked


def open_request(
    desk: Desk,
    connection: Connection,
    view: CaseView,
    approver: ApproverConfig,
    to: Ticket,
    *,
    purpose: str,
    now: datetime,
    digest_id: int | None = None,
    digest_line: int | None = None,
) -> None:
    """Store the request that a notice carries."""
    requests.open_requests(
        connection,
        [
            requests.Request(
                token_hash=tokens.token_hash(desk.key, to.token, digest_line),
                case_id=view.number,
                revision=view.revision,
                approver=approver.name,
                approver_address=approver.address,
                notice_message_id=to.message_id,
                purpose=purpose,
                expires_at=expiry(desk.mailbox(view.mailbox), now),
                digest_id=digest_id,
                digest_line=digest_line,
            )
        ],
        now=now,
    )


def tell(
    desk: Desk,
    connection: Connection,
    case_id: int,
    approvers: Iterable[ApproverConfig],
    *,
    news: str,
    by: str | None,
    now: datetime,
) -> None:
    """Tell approvers something about a case that needs no answer."""
    for approver in approvers:
        view = view_for(desk, connection, case_id, approver)
        mailbox = desk.mailbox(view.mailbox)
        to = ticket(desk, mailbox)
        plain = Ticket(to.token, to.message_id, approval_address(mailbox))
        rendered = desk.staff.render("news", desk.reader(approver), now, c=view, news=news, by=by)
        post(
            desk,
            connection,
            mailbox,
            approver,
            rendered,
            to=plain,
            dedupe_key=f"news:{to.message_id}",
            now=now,
            case_id=case_id,
            references=(thread_id(desk, mailbox, case_id, approver),),
        )


def low_lines(desk: Desk, connection: Connection, waiting: Sequence[requests.Request]) -> list[int]:
    """Numbers of a digest that OK ALL LOW covers: within the operator's value and labels, no flag, no finding."""
    low: list[int] = []
    for number, request in enumerate(waiting, 1):
        row, reading, outcome = views.load(connection, request.case_id)
        approval = desk.mailbox(row.mailbox).approval
        value = views.order_value(outcome)
        draft = drafts.load(connection, request.case_id, request.revision)
        serious = [f for f in (draft.findings if draft is not None else None) or () if f.get("severity") != Severity.FIX.value]
        labels = {row.label, f"{row.label}/{row.sublabel}"}
        if (
            approval.ok_all_low_max_value > 0
            and value is not None
            and value <= approval.ok_all_low_max_value
            and labels & set(approval.ok_all_low_labels)
            and not reading.get("flags")
            and not serious
        ):
            low.append(number)
    return low
