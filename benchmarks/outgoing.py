"""Replies that wait in the outbox, for measurements: frozen as the service freezes them, with case, thread, draft and order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from benchmarks import corpus
from daemon.config import Config, load
from daemon.edges.orders.opening import open_orders
from daemon.steps import enrich
from daemon.steps.draft import freezing
from daemon.store import folders, tables
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.store.orders import OrderShelf
from daemon.vocab import Address, Draft, OrderId

_KEY = b"k" * 32


def queue(config_file: Path, count: int, *, domain: str) -> list[int]:
    """Make the database of a service and queue ``count`` replies to buyers at ``domain``; returns their sizes in bytes."""
    config = load(config_file)
    config.service.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(config.database_url)
    try:
        upgrade(database)
        assumed = asyncio.run(_assumed(config, database, count))
        rows = list(_rows(config, count, domain, assumed))
        database.write_now(lambda c: _insert(c, rows))
    finally:
        database.close()
    return [len(row["outbox"]["mime"]) for row in rows]


async def _assumed(config: Config, database: Database, count: int) -> list[dict[str, Any] | None]:
    """What a draft made now takes for granted about each order."""
    book, now, stale = open_orders(config.orders, OrderShelf(database)), datetime.now(UTC), timedelta(days=10_000)
    await book.refresh()
    orders = [OrderId(corpus.order_id(number), "amazon", "record") for number in range(count)]
    found = await book.lookup(orders, now)
    await book.close()
    return [enrich.order_state(enrich.merge(found[o], now, stale)) if found[o] else None for o in orders]


def _rows(config: Config, count: int, domain: str, assumed: list[dict[str, Any] | None]) -> Iterator[dict[str, dict[str, Any]]]:
    mailbox, texts, now = config.mailboxes[0], corpus.texts(), datetime.now(UTC)
    for number in range(count):
        recipient, order = f"buyer{number}@{domain}", corpus.order_id(number)
        language, asked = texts[number * 7 % len(texts)]
        body = (
            f"Hello,\n\nThank you for your message about order {order}. Your garden lamp left our warehouse and is on its way to"
            f" you with DHL under the number JJD{number:012d}. It should arrive within the next three working days. If it does"
            " not, please write again and we will look into it with the carrier at once.\n\nKind regards\nLamp Shop\n"
        )
        message_id = freezing.message_id(
            _KEY, mailbox=mailbox.name, case_id=number + 1, kind="buyer_reply", revision=1, domain="example.test"
        )
        frozen = freezing.freeze(
            Draft(subject=f"Re: Order {order}", body=body, language=language, template="logistics_question/tracking"),
            sender=Address("Lamp Shop", mailbox.address),
            recipient=Address("Petra Lindner", recipient),
            message_id=message_id,
            in_reply_to=f"<m{number}@{domain}>",
            references=(),
            now=now,
            automatic=False,
            quote=freezing.quotable(asked),
        )
        case = {"case_id": number + 1}
        yield {
            "threads": {"id": number + 1, "mailbox": mailbox.name, "created_at": now},
            "cases": {
                "id": number + 1, "mailbox": mailbox.name, "folder": "INBOX", "uidvalidity": 1, "uid": number + 1,
                "message_id": f"<m{number}@{domain}>", "raw_sha256": f"{number:064x}", "content_key": f"{number:064x}",
                "size": len(asked), "truncated": False, "review": False, "received_at": now, "state": "queued",
                "reason": "approved", "deadline_at": now + timedelta(hours=24), "thread_id": number + 1, "kind": "buyer",
                "sender": recipient, "order_id": order, "revision": 1, "updated_at": now,
            },
            "drafts": {
                **case, "revision": 1, "state": "approved", "subject": f"Re: Order {order}", "body": body, "language": language,
                "template": "logistics_question/tracking", "author": "postsale", "recipient": recipient,
                "message_id": message_id, "mime": frozen.mime, "mime_sha256": frozen.sha256, "order_state": assumed[number],
                "created_at": now, "decided_at": now, "decided_by": "boss",
            },
            "outbox": {
                **case, "kind": "buyer_reply", "mailbox": mailbox.name, "revision": 1, "recipient": recipient,
                "recipient_key": recipient, "envelope_from": mailbox.address, "message_id": message_id,
                "dedupe_key": f"{number + 1}:1", "mime": frozen.mime, "mime_sha256": frozen.sha256, "state": "queued",
                "not_before": now, "template": "logistics_question/tracking", "automatic": False, "created_at": now,
                "updated_at": now,
            },
        }  # fmt: skip


def _insert(connection: Connection, rows: list[dict[str, dict[str, Any]]]) -> None:
    now = datetime.now(UTC)
    mailbox = rows[0]["outbox"]["mailbox"]
    folders.open_folder(connection, mailbox, "INBOX", uidvalidity=1, newest_uid=len(rows), now=now)
    for name in ("threads", "cases", "drafts", "outbox"):
        connection.execute(insert(getattr(tables, name)), [row[name] for row in rows])
