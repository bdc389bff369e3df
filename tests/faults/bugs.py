"""Ten ways to lose or double mail, planted into the child on purpose: the harness has to catch every one.

Each is a mistake that somebody could really make. ``plant`` patches the
running modules; nothing of this is in the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import update


@dataclass(frozen=True)
class Bug:
    """One planted mistake, and what of the harness should see it."""

    what: str
    plant: Callable[[], None]


def _no_commit_before_the_body() -> None:
    from daemon.store import outbox
    from daemon.store.tables import outbox as table

    real = outbox.accepted

    def begin(connection: Any, delivery_id: int, **how: Any) -> None:
        return None

    def accepted(connection: Any, delivery_id: int, **how: Any) -> None:
        connection.execute(update(table).where(table.c.id == delivery_id).values(state="transmitting"))
        real(connection, delivery_id, **how)

    outbox.begin_transmit = begin  # type: ignore[assignment]
    outbox.accepted = accepted  # type: ignore[assignment]


def _lost_is_tried_again() -> None:
    from daemon.store import outbox

    def lose(connection: Any, row: Any, now: Any) -> None:
        outbox._requeue(connection, row, now, now, None, "lost")

    outbox._lose = lose


def _a_lost_answer_counts_as_put_off() -> None:
    from daemon.edges import smtp
    from daemon.loops import deliver

    class Hidden(smtp.Deferred):
        def __init__(self, message: str) -> None:
            super().__init__(smtp.Phase.DATA, None, message)

    smtp.Lost = Hidden  # type: ignore[misc,assignment]
    deliver.Lost = Hidden  # type: ignore[misc,assignment]


def _restart_sends_again() -> None:
    from daemon.store import outbox
    from daemon.store.tables import outbox as table

    real = outbox.recover

    def recover(connection: Any, mailbox: str, **how: Any) -> Any:
        connection.execute(update(table).where(table.c.state == "transmitting").values(state="claimed"))
        return real(connection, mailbox, **how)

    outbox.recover = recover  # type: ignore[assignment]


def _cursor_before_store() -> None:
    from daemon.loops.ingest import Ingest
    from daemon.store import folders

    real = Ingest._fetch

    async def fetch(self: Any, place: Any, batch: Any) -> Any:
        uids, now = [m.uid for m in batch], self.clock.now()
        where = (self.mailbox, place.folder, place.uidvalidity)
        await self._database.write(lambda c: folders.mail_came(c, *where, uids, now=now))
        return await real(self, place, batch)

    async def nothing_old(self: Any, place: Any, newest: int) -> list[int]:
        return []

    Ingest._fetch = fetch  # type: ignore[method-assign]
    Ingest._recent = nothing_old  # type: ignore[method-assign]


def _no_epochs() -> None:
    from dataclasses import replace

    from daemon.edges.imap import Imap

    real = Imap.open

    async def opened(self: Any) -> Any:
        return replace(await real(self), uidvalidity=1)

    Imap.open = opened  # type: ignore[method-assign]


def _duplicates_are_not_looked_for() -> None:
    from daemon.store import cases

    cases._twin = lambda *_: None


def _settled_and_queued_in_two_steps() -> None:
    from daemon.loops.settling import Settling
    from daemon.store import outbox

    real_settle = Settling.settle
    real = {"enqueue": outbox.enqueue, "enqueue_first": outbox.enqueue_first}
    later: list[tuple[Any, Any, dict[str, Any]]] = []

    def remember(name: str) -> Any:
        def instead(_connection: Any, what: Any, **how: Any) -> int:
            later.append((real[name], what, how))
            return 0

        return instead

    async def settle(self: Any, *given: Any) -> Any:
        too_many = await real_settle(self, *given)
        while later:
            enqueue, what, how = later.pop()
            await self._db.write(lambda c, e=enqueue, w=what, h=how: e(c, w, **h))
        return too_many

    for name in real:
        setattr(outbox, name, remember(name))
    Settling.settle = settle  # type: ignore[method-assign]


def _any_answer_is_good() -> None:
    from daemon.edges import smtp

    real = smtp.Smtp._body

    async def body(self: Any, protocol: Any, mime: bytes) -> Any:
        try:
            return await real(self, protocol, mime)
        except (smtp.Deferred, smtp.Refused) as error:
            return smtp.Accepted(error.code or 250, error.reply)

    smtp.Smtp._body = body  # type: ignore[method-assign]


def _bytes_made_anew_at_sending() -> None:
    from daemon.edges import smtp

    real = smtp.Smtp.send

    async def send(self: Any, envelope_from: str, recipient: str, mime: bytes, **how: Any) -> Any:
        return await real(self, envelope_from, recipient, mime.replace(b"on its way", b"on the way"), **how)

    smtp.Smtp.send = send  # type: ignore[method-assign]


def _robots_are_answered() -> None:
    from daemon.steps import gate
    from daemon.vocab import GateVerdict, Verdict

    gate.apply_caps = lambda verdict, *_, **__: Verdict(GateVerdict.REPLY, "all")  # type: ignore[assignment]


def _raw_mail_in_a_second_transaction() -> None:
    from daemon.loops.ingest import Ingest
    from daemon.store import cases
    from daemon.store.tables import raw_mail

    real = cases.receive

    def receive(connection: Any, batch: Any, **how: Any) -> Any:
        received = real(connection, batch, **how)
        bodies = list(connection.execute(raw_mail.select().where(raw_mail.c.case_id.in_(received.case_ids))))
        connection.execute(raw_mail.delete().where(raw_mail.c.case_id.in_(received.case_ids)))
        waiting.extend(bodies)
        return received

    waiting: list[Any] = []

    async def mark(self: Any, uids: Any) -> None:
        rows = [dict(row._mapping) for row in waiting]
        waiting.clear()
        if rows:
            await self._database.write(lambda c: c.execute(raw_mail.insert(), rows))

    cases.receive = receive  # type: ignore[assignment]
    Ingest._mark = mark  # type: ignore[method-assign]


BUGS: dict[str, Bug] = {
    "no_commit_before_the_body": Bug("body bytes leave before the database knows", _no_commit_before_the_body),
    "lost_is_tried_again": Bug("a reply of unknown fate is sent again", _lost_is_tried_again),
    "a_lost_answer_counts_as_put_off": Bug("lost after the body looks like lost before it", _a_lost_answer_counts_as_put_off),
    "restart_sends_again": Bug("a restart sends again what was transmitting", _restart_sends_again),
    "cursor_before_store": Bug("the cursor moves before the mail is stored", _cursor_before_store),
    "no_epochs": Bug("a changed UIDVALIDITY goes unnoticed", _no_epochs),
    "duplicates_are_not_looked_for": Bug("the same message twice is two messages", _duplicates_are_not_looked_for),
    "settled_and_queued_in_two_steps": Bug(
        "a case is queued in one commit and its reply in the next", _settled_and_queued_in_two_steps
    ),
    "any_answer_is_good": Bug("a refusal of the message counts as acceptance", _any_answer_is_good),
    "bytes_made_anew_at_sending": Bug("what leaves is not what was approved", _bytes_made_anew_at_sending),
    "robots_are_answered": Bug("the gate lets everybody through", _robots_are_answered),
    "raw_mail_in_a_second_transaction": Bug("the record is stored before the bytes", _raw_mail_in_a_second_transaction),
}
