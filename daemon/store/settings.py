"""Settings that change while the service runs, the pause switch above all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select

from daemon.store.dialect import upsert
from daemon.store.direct import fetch, fetch_one
from daemon.store.tables import settings

_PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Pause:
    """Who stopped all sending, and when. ``mailbox`` is None when it holds for every mailbox."""

    by: str
    at: datetime
    mailbox: str | None


def get(connection: Connection, key: str) -> Any:
    """The value of a setting, None when it was never set."""
    found = fetch_one(connection, _GET, {"of": key})
    return None if found is None else found.value


def put(connection: Connection, key: str, value: Any, *, actor: str, now: datetime) -> None:
    """Set a setting to a plain value."""
    upsert(connection, settings, {"key": key}, {"value": value, "updated_at": now, "updated_by": actor})


def remove(connection: Connection, key: str) -> bool:
    """Forget a setting; False when there was none."""
    return connection.execute(delete(settings).where(settings.c.key == key)).rowcount == 1


def pause(connection: Connection, *, actor: str, now: datetime, mailbox: str | None = None) -> bool:
    """Stop all sending to buyers, of one mailbox or of all; False when it was stopped already."""
    if paused(connection, mailbox) is not None:
        return False
    put(connection, _key(mailbox), True, actor=actor, now=now)
    return True


def resume(connection: Connection, *, mailbox: str | None = None) -> bool:
    """Let sending go on; False when it was not stopped. Ending the general pause leaves those of single mailboxes."""
    return remove(connection, _key(mailbox))


def paused(connection: Connection, mailbox: str | None = None) -> Pause | None:
    """The pause that holds for this mailbox, the general one first; None when mail may leave."""
    keys = [_PAUSED, _key(mailbox)]
    found = {row.key: row for row in fetch(connection, _SET_BY, {"first": keys[0], "second": keys[1]})}
    for key in keys:
        if key in found:
            return Pause(found[key].updated_by, found[key].updated_at, None if key == _PAUSED else mailbox)
    return None


_GET = select(settings.c.value).where(settings.c.key == bindparam("of"))
_SET_BY = select(settings.c.key, settings.c.updated_at, settings.c.updated_by).where(
    settings.c.key.in_([bindparam("first"), bindparam("second")])
)


def _key(mailbox: str | None) -> str:
    return _PAUSED if mailbox is None else f"{_PAUSED}:{mailbox}"
