"""Short ways to put things into the store for tests."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from sqlalchemy import Connection

from daemon.store import cases, folders, outbox
from daemon.vocab import CaseState, DeliveryKind, Kind, Outgoing, RawMail

WORKER = "here:1"
LEASE = timedelta(minutes=5)


def raw_mail(number: int, *, body: str = "where is my parcel?", message_id: str | None = None) -> bytes:
    return (
        f"From: Anna <anna@buyers.test>\r\nTo: shop@example.test\r\nSubject: order {number}\r\n"
        f"Message-ID: {message_id or f'<m{number}@buyers.test>'}\r\n\r\n{body}\r\n"
    ).encode()


def mail(uid: int, *, uidvalidity: int = 1, raw: bytes | None = None, mailbox: str = "shop") -> RawMail:
    return RawMail(mailbox, "INBOX", uidvalidity, uid, raw if raw is not None else raw_mail(uid))


def open_inbox(connection: Connection, now: datetime, *, newest_uid: int = 0, uidvalidity: int = 1) -> folders.Folder:
    return folders.open_folder(connection, "shop", "INBOX", uidvalidity=uidvalidity, newest_uid=newest_uid, now=now)


def store_case(connection: Connection, uid: int, now: datetime) -> int:
    """A case in state received; its folder is opened when need be."""
    open_inbox(connection, now)
    (case_id,) = cases.receive(connection, [mail(uid)], now=now).case_ids
    return case_id


def read_case(
    connection: Connection,
    case_id: int,
    now: datetime,
    *,
    sender: str = "anna@buyers.test",
    content_key: str | None = None,
    answers: tuple[str, ...] = (),
    message_id: str | None = None,
    kind: Kind = Kind.BUYER,
    thread_keys: tuple[str, ...] = (),
    vouched: bool = False,
) -> cases.Context:
    """Claim and understand; the case stays claimed."""
    claimed = cases.claim(connection, worker=WORKER, limit=100, lease=LEASE, max_attempts=3, now=now)
    assert case_id in [c.case_id for c in claimed]
    what = cases.Understood(
        content_key=content_key or hashlib.sha256(str(case_id).encode()).hexdigest(),
        message_id=message_id or f"<m{case_id}@buyers.test>",
        sender=sender,
        kind=kind,
        thread_keys=thread_keys,
        vouched=vouched,
        answers=answers,
    )
    return cases.understand(connection, case_id, what, worker=WORKER, response_hours=24, now=now)


def outgoing(
    case_id: int | None,
    *,
    recipient: str = "anna@buyers.test",
    revision: int = 1,
    not_before: datetime | None = None,
    kind: DeliveryKind = DeliveryKind.BUYER_REPLY,
    name: str = "",
) -> Outgoing:
    message_id = f"<r.{kind.value}.{case_id}.{revision}{name}@bot.example.test>"
    mime = (
        f"From: Shop <shop@example.test>\r\nTo: {recipient}\r\nSubject: Re: order\r\nMessage-ID: {message_id}\r\n"
        "Date: Mon, 02 Nov 2026 10:00:00 +0000\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nIt is on its way.\r\n"
    ).encode()
    return Outgoing(
        kind=kind,
        mailbox="shop",
        recipient=recipient,
        envelope_from="shop@example.test",
        message_id=message_id,
        mime=mime,
        sha256=hashlib.sha256(mime).hexdigest(),
        dedupe_key=f"{case_id}:{revision}{name}",
        case_id=case_id,
        revision=revision if kind is DeliveryKind.BUYER_REPLY else None,
        not_before=not_before,
    )


def queue_reply(connection: Connection, uid: int, now: datetime, **how: object) -> tuple[int, int]:
    """A case whose reply is queued; returns (case id, delivery id)."""
    case_id = store_case(connection, uid, now)
    read_case(connection, case_id, now)
    what = cases.Settlement(case_id, CaseState.RECEIVED, CaseState.QUEUED, "approved")
    cases.settle(connection, what, worker=WORKER, now=now)
    return case_id, outbox.enqueue(connection, outgoing(case_id, **how), now=now)  # type: ignore[arg-type]
