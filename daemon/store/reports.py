"""Read-only views of the store: how the service is doing, and what buyers wrote about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, func, select

from daemon.store.dialect import unindexed
from daemon.store.tables import alarms, cases, drafts, folders, outbox, records
from daemon.vocab import CaseState, DeliveryKind, DeliveryState, Kind

#: States in which a case waits for somebody or something, and a buyer waits for an answer.
OPEN_STATES = (
    CaseState.RECEIVED,
    CaseState.DEFERRED,
    CaseState.AWAITING_APPROVAL,
    CaseState.QUEUED,
    CaseState.SENDING,
    CaseState.UNCERTAIN,
    CaseState.HUMAN,
    CaseState.BROKEN,
)


@dataclass(frozen=True, slots=True)
class FolderView:
    """One watched folder as the last look at it left it."""

    mailbox: str
    folder: str
    last_success_at: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    last_mail_at: datetime | None


@dataclass(frozen=True, slots=True)
class WaitingCase:
    """An open case; ``deadline_at`` is the marketplace's clock."""

    case_id: int
    mailbox: str
    state: str
    reason: str | None
    received_at: datetime
    deadline_at: datetime | None


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that ``postsale status`` shows from the store."""

    folders: Sequence[FolderView]
    cases: Mapping[str, int]  # that are open, by state
    last_day: Mapping[str, int]  # what became of the mails of the last 24 hours, by state
    deliveries: Mapping[str, int]  # not yet ended, by state
    oldest: WaitingCase | None
    next_deadline: WaitingCase | None
    uncertain: Sequence[int]  # cases
    broken: Sequence[int]
    needing_decision: Sequence[int]  # cases whose delivery a person has to judge
    alarms: Sequence[tuple[str, str, datetime]]
    model_version: str | None  # of the newest case that was judged
    playbook_version: str | None


def overview(connection: Connection, *, now: datetime) -> Overview:
    """The state of the service as the store knows it; costs the same however much there once was."""
    open_case = cases.c.state.in_([s.value for s in OPEN_STATES])
    newest = connection.execute(
        select(cases.c.model_version, cases.c.playbook_version)
        .where(cases.c.model_version.is_not(None))
        .order_by(cases.c.id.desc())
        .limit(1)
    ).first()
    ended = {DeliveryState.SENT, DeliveryState.CANCELLED, DeliveryState.FAILED, DeliveryState.BOUNCED}
    under_way = [state.value for state in DeliveryState if state not in ended]
    return Overview(
        folders=[
            FolderView(*row)
            for row in connection.execute(
                select(
                    folders.c.mailbox,
                    folders.c.folder,
                    folders.c.last_success_at,
                    folders.c.last_error,
                    folders.c.last_error_at,
                    folders.c.last_mail_at,
                ).order_by(folders.c.mailbox, folders.c.folder)
            )
        ],
        cases=_counts(connection, cases.c.state, open_case),
        last_day=_last_day(connection, now),
        deliveries=_counts(connection, outbox.c.state, outbox.c.state.in_(under_way)),
        oldest=_waiting(connection, open_case, cases.c.received_at),
        next_deadline=_waiting(connection, open_case & cases.c.deadline_at.is_not(None), cases.c.deadline_at),
        uncertain=_ids(connection, CaseState.UNCERTAIN),
        broken=_ids(connection, CaseState.BROKEN),
        needing_decision=list(
            connection.execute(
                select(outbox.c.case_id)
                .where(
                    outbox.c.state == DeliveryState.NEEDS_HUMAN.value,
                    outbox.c.kind == DeliveryKind.BUYER_REPLY.value,
                )
                .order_by(outbox.c.id)
                .limit(50)
            ).scalars()
        ),
        alarms=[
            (name, subject, raised_at)
            for name, subject, raised_at in connection.execute(
                select(alarms.c.name, alarms.c.subject, alarms.c.raised_at)
                .where(alarms.c.cleared_at.is_(None))
                .order_by(alarms.c.raised_at)
            )
        ],
        model_version=newest.model_version if newest else None,
        playbook_version=newest.playbook_version if newest else None,
    )


def _last_day(connection: Connection, now: datetime) -> dict[str, int]:
    state = unindexed(cases.c.state)
    rows = connection.execute(
        select(state, func.count()).where(cases.c.received_at > now - timedelta(hours=24)).group_by(state)
    )
    return {str(value): int(number) for value, number in rows}


def _counts(connection: Connection, column: Column[str], *where: ColumnElement[bool]) -> dict[str, int]:
    rows = connection.execute(select(column, func.count()).where(*where).group_by(column))
    return {str(value): int(number) for value, number in rows}


def _waiting(connection: Connection, where: ColumnElement[bool], order: Column[Any]) -> WaitingCase | None:
    row = connection.execute(
        select(cases.c.id, cases.c.mailbox, cases.c.state, cases.c.reason, cases.c.received_at, cases.c.deadline_at)
        .where(where)
        .order_by(order)
        .limit(1)
    ).first()
    return WaitingCase(*row) if row else None


def _ids(connection: Connection, state: CaseState) -> list[int]:
    return list(
        connection.execute(select(cases.c.id).where(cases.c.state == state.value).order_by(cases.c.id).limit(50)).scalars()
    )


@dataclass(frozen=True, slots=True)
class CaseView:
    """One case in one line."""

    case_id: int
    message_id: str | None
    kind: str | None
    language: str | None
    label: str | None
    sublabel: str | None
    policy: str | None
    state: str
    reason: str | None
    automatic: bool | None  # how its reply left; None: none did
    decided_by: str | None


def case_views(connection: Connection) -> list[CaseView]:
    """Every case, oldest first, with how its reply left and who decided."""
    reply = (outbox.c.case_id == cases.c.id) & (outbox.c.kind == DeliveryKind.BUYER_REPLY.value)
    newest = (drafts.c.case_id == cases.c.id) & (drafts.c.revision == cases.c.revision)
    query = (
        select(
            cases.c.id,
            cases.c.message_id,
            cases.c.kind,
            cases.c.language,
            cases.c.label,
            cases.c.sublabel,
            cases.c.policy,
            cases.c.state,
            cases.c.reason,
            outbox.c.automatic,
            drafts.c.decided_by,
        )
        .outerjoin(outbox, reply & (outbox.c.state == DeliveryState.SENT.value))
        .outerjoin(drafts, newest)
        .order_by(cases.c.id)
    )
    return [CaseView(*row) for row in connection.execute(query)]


# --------------------------------------------------------------------------- rates and accounts


def usual_rate(connection: Connection, mailbox: str, *, until: datetime, window: timedelta, days: int) -> float:
    """Mails that usually arrive in a window of that length, over the days before ``until``; 0 where that is not known yet."""
    ours = (cases.c.mailbox == mailbox) & (cases.c.received_at <= until)
    first = connection.execute(select(func.min(cases.c.received_at)).where(ours)).scalar_one()
    if first is None:
        return 0.0
    begin = max(first, until - timedelta(days=days))  # a mailbox that is watched since yesterday has no two weeks
    number = connection.execute(select(func.count()).where(ours, cases.c.received_at > begin)).scalar_one()
    span = until - begin
    return float(number * (window / span)) if span >= window else 0.0


@dataclass(frozen=True, slots=True)
class ShadowDraft:
    """One reply that would have been asked for or sent."""

    case_id: int
    mode: str
    label: str
    policy: str
    subject: str
    body: str
    language: str


@dataclass(frozen=True, slots=True)
class ShadowAccount:
    """What shadow mode would have done in a span of time."""

    cases: int
    modes: Mapping[str, int]  # send, ask, human
    policies: Sequence[tuple[str, int]]
    labels: Sequence[tuple[str, int]]
    confidence: float | None  # mean confidence of what would have been answered: the share expected to be right
    drafts: Sequence[ShadowDraft]


def shadowed(connection: Connection, mailbox: str, *, since: datetime, until: datetime) -> ShadowAccount:
    """The account of shadow mode for cases that ended in it within that time."""
    newest = (drafts.c.case_id == cases.c.id) & (drafts.c.revision == cases.c.revision)
    rows = connection.execute(
        select(
            cases.c.id,
            cases.c.mode,
            cases.c.label,
            cases.c.sublabel,
            cases.c.policy,
            cases.c.confidence,
            drafts.c.subject,
            drafts.c.body,
            drafts.c.language,
        )
        .outerjoin(drafts, newest)
        .where(
            cases.c.mailbox == mailbox,
            cases.c.state == CaseState.SHADOWED.value,
            cases.c.updated_at > since,
            cases.c.updated_at <= until,
        )
        .order_by(cases.c.id)
    ).all()
    answered = [row for row in rows if row.body]
    sure = [row.confidence for row in answered if row.confidence is not None]
    return ShadowAccount(
        cases=len(rows),
        modes=Counter(row.mode or "human" for row in rows),
        policies=Counter(row.policy or "-" for row in rows).most_common(),
        labels=Counter(_label(row.label, row.sublabel) for row in rows).most_common(),
        confidence=sum(sure) / len(sure) if sure else None,
        drafts=[
            ShadowDraft(
                row.id,
                row.mode or "human",
                _label(row.label, row.sublabel),
                row.policy or "-",
                row.subject,
                row.body,
                row.language,
            )
            for row in answered
        ],
    )


def _label(label: str | None, sublabel: str | None) -> str:
    return "/".join(part for part in (label, sublabel) if part) or "-"


# --------------------------------------------------------------------------- the business


#: Groups smaller than this are shown as "<5", so that a report says nothing about single buyers.
SMALL = 5


@dataclass(frozen=True, slots=True)
class Business:
    """What buyers wrote about, and how they were answered."""

    since: datetime
    until: datetime
    messages: int
    labels: Mapping[str, int]
    reasons: Mapping[str, Mapping[str, int]]  # product → label → messages
    response_hours: Sequence[float]  # from the message to its answer
    answered: Mapping[str, int]  # automatic, approved, edited


def business(connection: Connection, *, since: datetime, until: datetime) -> Business:
    """Figures over buyer messages that arrived in that time."""
    reply = (outbox.c.case_id == cases.c.id) & (outbox.c.kind == DeliveryKind.BUYER_REPLY.value)
    newest = (drafts.c.case_id == cases.c.id) & (drafts.c.revision == cases.c.revision)
    rows = connection.execute(
        select(
            cases.c.label,
            cases.c.sublabel,
            cases.c.received_at,
            records.c.outcome,
            outbox.c.automatic,
            outbox.c.updated_at.label("sent_at"),
            drafts.c.author,
        )
        .outerjoin(records, records.c.case_id == cases.c.id)
        .outerjoin(outbox, reply & (outbox.c.state == DeliveryState.SENT.value))
        .outerjoin(drafts, newest)
        .where(cases.c.kind == Kind.BUYER.value, cases.c.received_at > since, cases.c.received_at <= until)
        .where(cases.c.state != CaseState.IGNORED.value, cases.c.duplicate_of.is_(None))
    ).all()
    labels: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {}
    answered: Counter[str] = Counter()
    hours: list[float] = []
    for row in rows:
        label = _label(row.label, row.sublabel)
        labels[label] += 1
        for product in _products(row.outcome):
            reasons.setdefault(product, Counter())[label] += 1
        if row.sent_at is not None:
            hours.append((row.sent_at - row.received_at).total_seconds() / 3600)
            edited = row.author not in {None, "postsale"}
            answered["automatic" if row.automatic else "edited" if edited else "approved"] += 1
    by_product = {product: dict(counts) for product, counts in reasons.items()}
    return Business(since, until, len(rows), dict(labels), by_product, hours, dict(answered))


def _products(outcome: Mapping[str, Any] | None) -> list[str]:
    items = ((outcome or {}).get("facts") or {}).get("items") or []
    return list(
        dict.fromkeys(str(item.get("sku") or item.get("asin") or "") for item in items if item.get("sku") or item.get("asin"))
    )


def shown(number: int) -> str:
    """A count as a report shows it."""
    return str(number) if number >= SMALL or number == 0 else f"<{SMALL}"


def business_lines(summary: Business) -> list[str]:
    """The summary as light-marked text, for mail and terminal."""
    lines = [
        f"{summary.since:%Y-%m-%d} to {summary.until:%Y-%m-%d}: {summary.messages} messages of buyers",
        "",
        "## What about",
    ]
    lines += [f"- {label}: {shown(number)}" for label, number in Counter(summary.labels).most_common()]
    lines += ["", "## By product"]
    for product, counts in sorted(summary.reasons.items(), key=lambda kv: -sum(kv[1].values()))[:20]:
        parts = ", ".join(f"{label} {shown(number)}" for label, number in Counter(counts).most_common())
        lines.append(f"- {product}: {parts}")
    total = sum(summary.answered.values())
    lines += ["", "## Answers"]
    if summary.response_hours:
        ordered = sorted(summary.response_hours)
        within = sum(h <= 24 for h in ordered) / len(ordered)
        lines.append(f"- {within:.0%} within 24 hours; half of them within {_hours(ordered[len(ordered) // 2])}")
    lines += [f"- {how}: {shown(number)} of {total}" for how, number in Counter(summary.answered).most_common()]
    return lines


def _hours(hours: float) -> str:
    """A time to answer as a person says it."""
    if hours >= 2:
        return f"{hours:.1f} hours"
    minutes = round(hours * 60)
    return f"{minutes} minutes" if minutes > 1 else "a minute"
