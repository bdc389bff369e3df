"""The one table of allowed moves, and the one function that makes a move.

A state change is a guarded write (``WHERE id = ? AND state = ?``) plus an
event row in the same transaction. The diagram in docs/architecture.md is
compared with these tables by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table, Update, bindparam, insert, update

from daemon.errors import PostsaleError
from daemon.store.direct import change
from daemon.store.tables import cases, events, outbox
from daemon.vocab import CaseState as C
from daemon.vocab import DeliveryState as D

CASE_MOVES: Mapping[C, frozenset[C]] = {
    C.RECEIVED: frozenset(
        {C.DEFERRED, C.AWAITING_APPROVAL, C.QUEUED, C.HUMAN, C.IGNORED, C.SHADOWED, C.BROKEN, C.WITHDRAWN, C.APPLIED}
    ),
    C.DEFERRED: frozenset(
        {
            C.AWAITING_APPROVAL,
            C.QUEUED,
            C.HUMAN,
            C.IGNORED,
            C.SHADOWED,
            C.BROKEN,
            C.WITHDRAWN,
            C.RECEIVED,
            C.APPLIED,
            C.CLOSED,
        }
    ),
    C.AWAITING_APPROVAL: frozenset({C.QUEUED, C.DECLINED, C.WITHDRAWN, C.HUMAN, C.RECEIVED, C.CLOSED}),
    C.QUEUED: frozenset({C.SENDING, C.SENT, C.UNCERTAIN, C.WITHDRAWN, C.AWAITING_APPROVAL, C.DECLINED, C.HUMAN, C.RECEIVED}),
    C.SENDING: frozenset({C.SENT, C.UNCERTAIN, C.QUEUED, C.HUMAN}),
    C.UNCERTAIN: frozenset({C.SENT, C.QUEUED, C.HUMAN}),
    C.SENT: frozenset({C.HUMAN}),
    C.HUMAN: frozenset({C.CLOSED, C.RECEIVED, C.QUEUED, C.AWAITING_APPROVAL, C.WITHDRAWN}),
    C.BROKEN: frozenset({C.RECEIVED, C.HUMAN, C.CLOSED}),
    C.SHADOWED: frozenset({C.RECEIVED}),
    C.IGNORED: frozenset({C.RECEIVED}),
    C.DECLINED: frozenset({C.RECEIVED, C.CLOSED}),
    C.WITHDRAWN: frozenset({C.RECEIVED}),
    C.APPLIED: frozenset(),
    C.CLOSED: frozenset({C.RECEIVED}),
}

DELIVERY_MOVES: Mapping[D, frozenset[D]] = {
    D.QUEUED: frozenset({D.CLAIMED, D.CANCELLED, D.SENT, D.NEEDS_HUMAN, D.BOUNCED}),
    D.CLAIMED: frozenset({D.QUEUED, D.TRANSMITTING, D.FAILED}),
    D.TRANSMITTING: frozenset({D.SENT, D.QUEUED, D.FAILED, D.UNCERTAIN, D.BOUNCED}),
    D.UNCERTAIN: frozenset({D.SENT, D.BOUNCED, D.NEEDS_HUMAN, D.QUEUED, D.FAILED}),
    D.NEEDS_HUMAN: frozenset({D.QUEUED, D.SENT, D.BOUNCED}),
    D.SENT: frozenset({D.BOUNCED}),
    D.FAILED: frozenset(),
    D.BOUNCED: frozenset(),
    D.CANCELLED: frozenset(),
}


class IllegalMove(PostsaleError):
    """The table knows no such arrow: a bug in the caller."""


class StaleMove(PostsaleError):
    """The case or delivery is no longer as the caller saw it; somebody else moved it."""


def move_case(
    connection: Connection,
    case_id: int,
    from_: C,
    to: C,
    *,
    reason: str,
    actor: str,
    now: datetime,
    values: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Move one case along an arrow of the table, with its event row.

    ``values`` sets further columns of the case in the same write. Raises
    IllegalMove for an arrow that does not exist and StaleMove when the case
    is no longer in ``from_``; neither leaves anything behind.
    """
    if to not in CASE_MOVES[from_]:
        raise IllegalMove(f"no case goes from {from_} to {to}")
    fresh = {"state": to.value, "reason": reason, "updated_at": now, "claimed_by": None, "lease_until": None, **(values or {})}
    if not _move(connection, cases, fresh, {"id": case_id, "state": from_.value}):
        raise StaleMove(f"case {case_id} is no longer {from_}")
    event = {"at": now, "from_state": from_.value, "to_state": to.value, "reason": reason, "actor": actor, "detail": detail}
    change(connection, _EVENT, {"case_id": case_id, **event})


def move_delivery(
    connection: Connection,
    delivery_id: int,
    from_: D,
    to: D,
    *,
    now: datetime,
    seen: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Move one outbox row along an arrow of the table; its attempts are its events.

    What else was ``seen`` of the row must still be so: who holds it, say. Raises IllegalMove and StaleMove as move_case does.
    """
    if to not in DELIVERY_MOVES[from_]:
        raise IllegalMove(f"no delivery goes from {from_} to {to}")
    before = {"id": delivery_id, "state": from_.value, **(seen or {})}
    if not _move(connection, outbox, {"state": to.value, "updated_at": now, **(values or {})}, before):
        raise StaleMove(f"delivery {delivery_id} is no longer {from_}, or no longer as it was seen")


_EVENT = insert(events)


def _move(connection: Connection, table: Table, fresh: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """Write ``fresh`` plain values into the one row that is still as it was ``seen``; False when it is not."""
    values = {
        **{f"new_{name}": value for name, value in fresh.items()},
        **{f"old_{name}": value for name, value in seen.items()},
    }
    return change(connection, _guarded_update(table, tuple(fresh), tuple(seen)), values) == 1


@cache
def _guarded_update(table: Table, fresh: tuple[str, ...], seen: tuple[str, ...]) -> Update:
    # made once for each set of columns: putting it together costs more than running it
    return (
        update(table)
        .where(*(table.c[name] == bindparam(f"old_{name}", type_=table.c[name].type) for name in seen))
        .values({name: bindparam(f"new_{name}", type_=table.c[name].type) for name in fresh})
    )
