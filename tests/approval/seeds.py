"""Cases, drafts and requests as the rest of Postsale would have stored them, for tests of approval."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, insert, select

from daemon.steps.enrich import facts_to_dict
from daemon.store import drafts, requests, tokens
from daemon.store.drafts import NewDraft
from daemon.store.tables import cases, raw_mail, records
from daemon.vocab import CaseState, DraftState, Fulfilment, OrderFacts, OrderItem, OrderState

KEY = b"k" * 32
MAILBOX = "shop"
ADDRESS = "shop@shop.example"
BUYER = "b7x2k9@marketplace.amazon.de"
FACTS = OrderFacts(
    order_id="302-1234567-1234567",
    shop="amazon",
    state=OrderState.DELIVERED,
    fulfilment=Fulfilment.FBM,
    as_of=datetime(2026, 11, 2, 8, tzinfo=UTC),
    source="orders.txt",
    value=Decimal("19.90"),
    currency="EUR",
    items=(OrderItem(title="Vase, blau"),),
)


def add_case(
    connection: Connection,
    *,
    now: datetime,
    state: CaseState = CaseState.AWAITING_APPROVAL,
    uid: int | None = None,
    reason: str = "policy:ask",
    label: str = "return_request",
    sublabel: str | None = "damaged",
    deadline: timedelta | None = timedelta(hours=20),
    reading: dict[str, Any] | None = None,
    outcome: dict[str, Any] | None = None,
    mailbox: str = MAILBOX,
    raw: bytes = b"Subject: Paket\r\n\r\nkaputt\r\n",
    **values: Any,
) -> int:
    """One buyer's message in that state; returns its case id."""
    if uid is None:
        uid = len(connection.execute(select(cases.c.id)).all()) + 1
    row = {
        "mailbox": mailbox,
        "folder": "INBOX",
        "uidvalidity": 1,
        "uid": uid,
        "message_id": f"<buyer-{uid}@amazon.example>",
        "raw_sha256": hashlib.sha256(raw).hexdigest(),
        "size": len(raw),
        "truncated": False,
        "review": False,
        "received_at": now,
        "state": state.value,
        "reason": reason,
        "deadline_at": now + deadline if deadline else None,
        "kind": "buyer",
        "marketplace": "amazon",
        "language": "de",
        "sender": BUYER,
        "order_id": "302-1234567-1234567",
        "label": label,
        "sublabel": sublabel,
        "confidence": 0.91,
        "updated_at": now,
        **values,
    }
    case_id: int = connection.execute(insert(cases).values(**row).returning(cases.c.id)).scalar_one()
    connection.execute(
        insert(records).values(
            case_id=case_id,
            reading=reading
            or {
                "subject": "Paket",
                "text": "Guten Tag, die Vase kam zerbrochen an. Ich möchte sie zurückgeben.",
                "attachments": [{"name": "vase.jpg", "type": "image/jpeg", "size": 81234}],
                "flags": ["photo_attached"],
                "prediction": {"label": label, "sublabel": sublabel, "confidence": 0.91, "terms": [["zerbrochen", 1.2]]},
            },
            outcome=outcome
            or {
                "facts": facts_to_dict(FACTS),
                "decision": {"reasons": ["policy:ask"], "actions": []},
                "guard": [],
            },
        )
    )
    connection.execute(insert(raw_mail).values(case_id=case_id, body=raw))
    return case_id


def new_draft(case_id: int, revision: int, body: str = "Guten Tag,\n\nes tut uns leid.\n", **values: Any) -> NewDraft:
    """A revision whose bytes name the case, so that no two are alike."""
    mime = f"To: {BUYER}\r\nSubject: Re: Paket\r\n\r\ncase {case_id} revision {revision}\r\n{body}".encode()
    given: dict[str, Any] = {
        "subject": "Re: Paket",
        "language": "de",
        "template": "return_request/damaged",
        "policy": "returns",
        "author": "postsale",
        "recipient": BUYER,
        "message_id": f"<r.{case_id}.{revision}@shop.example>",
    }
    return NewDraft(
        case_id=case_id, revision=revision, body=body, mime=mime, sha256=hashlib.sha256(mime).hexdigest(), **{**given, **values}
    )


def add_draft(connection: Connection, case_id: int, *, now: datetime, revision: int = 1, **values: Any) -> NewDraft:
    draft = new_draft(case_id, revision, **values)
    drafts.create(connection, draft, state=DraftState.PENDING, now=now)
    return draft


def add_request(
    connection: Connection,
    case_id: int,
    approver: str,
    *,
    now: datetime,
    revision: int = 1,
    hours: float = 72,
    purpose: str = "request",
) -> str:
    """A request to an approver; returns the digest of its token."""
    token = tokens.new_token()
    digest = tokens.token_hash(KEY, token)
    requests.open_requests(
        connection,
        [
            requests.Request(
                token_hash=digest,
                case_id=case_id,
                revision=revision,
                approver=approver,
                approver_address=f"{approver}@shop.example",
                notice_message_id=tokens.notice_message_id(KEY, token, "shop.example"),
                purpose=purpose,
                expires_at=now + timedelta(hours=hours),
            )
        ],
        now=now,
    )
    return digest
