"""Threads: which messages belong to one conversation.

A thread is joined by a key (a Message-ID that was answered, a relay alias, an
order id) *and* the same correspondent: the stored key is a digest of both, so
that a stranger who forges In-Reply-To finds nothing to join. Only keys that
the marketplace itself vouches for are also stored without a correspondent;
its own notices join by those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, select

from daemon.store.dialect import insert_many_new, insert_new, padded
from daemon.store.direct import fetch
from daemon.store.tables import thread_keys, threads

#: Stands in for the correspondent of a key that the marketplace vouches for.
_MARKETPLACE = "*"


def join(connection: Connection, mailbox: str, *, correspondent: str, keys: Sequence[str], vouched: bool, now: datetime) -> int:
    """The thread of a message, found by its keys (strongest first) or newly made; the keys lead to it from now on."""
    found = digests(correspondent, keys, vouched=vouched)
    leading = known(connection, mailbox, found)
    thread_id = next((leading[digest] for digest in found if digest in leading), None)
    if thread_id is None:
        [thread_id] = make(connection, mailbox, 1, now=now)
    _store(connection, mailbox, thread_id, found)
    return thread_id


def known(connection: Connection, mailbox: str, digests: Collection[str]) -> dict[str, int]:
    """The threads that keys of these digests lead to."""
    return {row.key: row.thread_id for row in fetch(connection, _KNOWN, {"of": mailbox, "keys": padded(digests)})}


_KNOWN = select(thread_keys.c.key, thread_keys.c.thread_id).where(
    thread_keys.c.mailbox == bindparam("of"), thread_keys.c.key.in_(bindparam("keys", expanding=True))
)


def make(connection: Connection, mailbox: str, count: int, *, now: datetime) -> Sequence[int]:
    """The ids of as many new threads."""
    made = insert_many_new(connection, threads, [{"mailbox": mailbox, "created_at": now}] * count, threads.c.id)
    return [row.id for row in made]


def add_keys(connection: Connection, mailbox: str, thread_id: int, *, correspondent: str, keys: Iterable[str]) -> None:
    """Let further keys of this correspondent lead to a thread, as our own Message-ID does once it leaves."""
    _store(connection, mailbox, thread_id, digests(correspondent, tuple(keys), vouched=False))


def add_many(connection: Connection, mailbox: str, keys: Iterable[tuple[int, str, str]]) -> None:
    """As add_keys for many threads: (thread, correspondent, key)."""
    rows = [
        {"mailbox": mailbox, "key": _digest(correspondent.lower(), key), "thread_id": thread_id}
        for thread_id, correspondent, key in keys
    ]
    insert_new(connection, thread_keys, rows)


def message_key(message_id: str) -> str:
    """The thread key of a Message-ID."""
    return f"mid:{message_id}"


def digests(correspondent: str, keys: Sequence[str], *, vouched: bool) -> list[str]:
    """What is stored of keys: digests with their correspondent, and without one where the marketplace vouches for them."""
    found: list[str] = []
    for key in keys:
        found.append(_digest(correspondent.lower(), key))
        if vouched:
            found.append(_digest(_MARKETPLACE, key))
    return found


def _digest(correspondent: str, key: str) -> str:
    return hashlib.sha256(f"{correspondent}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()


def _store(connection: Connection, mailbox: str, thread_id: int, found: Iterable[str]) -> None:
    insert_new(connection, thread_keys, [{"mailbox": mailbox, "key": d, "thread_id": thread_id} for d in dict.fromkeys(found)])
