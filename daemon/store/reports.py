"""Read-only views of the store: how the service is doing, and what buyers wrote about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, func, select

from daemon.store.tables import alarms, cases, drafts, folders, outbox
from daemon.vocab import CaseState, DeliveryKind, DeliveryState

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
    cases: Mapping[str, int]  # by state
    deliveries: Mapping[str, int]  # not yet ended, by state
    oldest: WaitingCase | None
    next_deadline: WaitingCase | None
    uncertain: Sequence[int]  # cases
    broken: Sequence[int]
    needing_decision: Sequence[int]  # cases whose delivery a person has to judge
    alarms: Sequence[tuple[str, str, datetime]]
    model_version: str | None  # of the newest case that was judged
    playbook_version: str | None


def overview(connection: Connection) -> Overview:
    """The state of the service as the store knows it."""
    open_case = cases.c.state.in_([s.value for s in OPEN_STATES])
    newest = connection.execute(
        select(cases.c.model_version, cases.c.playbook_version)
        .where(cases.c.model_version.is_not(None))
        .order_by(cases.c.id.desc())
        .limit(1)
    ).first()
    ended = [DeliveryState.SENT.value, DeliveryState.CANCELLED.value, DeliveryState.FAILED.value, DeliveryState.BOUNCED.value]
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
        cases=_counts(connection, cases.c.state),
        deliveries=_counts(connection, outbox.c.state, outbox.c.state.not_in(ended)),
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
