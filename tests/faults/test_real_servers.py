"""kill -9 at random between a real Dovecot and a real Postfix: the judge is what lies in the buyers' mailboxes."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from daemon.store.cases import release
from daemon.store.db import Database
from daemon.store.tables import cases, outbox
from tests.faults.harness import Child, Zygote
from tests.servers import MailServers, User

pytestmark = [pytest.mark.mailservers, pytest.mark.timeout(300)]
KILLS = 25


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


def at_rest(database: Database, offered: int) -> bool:
    def look(c: Any) -> bool:
        states = Counter(c.execute(select(cases.c.state)).scalars())
        under_way = Counter(c.execute(select(outbox.c.state)).scalars())
        waiting = ("received", "deferred", "queued", "sending")
        going = ("queued", "claimed", "transmitting", "uncertain")
        return states.total() == offered and not any(states[s] for s in waiting) and not any(under_way[s] for s in going)

    return database.read_now(look)


def test_every_buyer_gets_one_answer_or_staff_are_asked(
    mail_servers: MailServers, database_url: str, zygote: Zygote, tmp_path: Path
) -> None:
    rng = random.Random(5)
    shop = mail_servers.add_user()
    order = {
        "database": database_url,
        "imap": mail_servers.imaps_port,
        "smtp": mail_servers.submission_port,
        "ca_file": str(mail_servers.ca_file),
        "shop": shop.address,
        "log": str(tmp_path / "log"),
        "timeout": 5.0,
        "final": 5.0,
    }
    (tmp_path / "log").touch()
    database = Database(database_url)
    buyers: dict[str, User] = {}
    child = Child(zygote, order)
    _until(lambda: bool(database.read_now(lambda c: c.exec_driver_sql("SELECT 1 FROM folders").first())), child, tmp_path)
    for number in range(KILLS):
        buyer = mail_servers.add_user()
        buyers[buyer.address] = buyer
        mail_servers.deliver(shop, _mail(number, buyer), sender=buyer.address)
        time.sleep(rng.uniform(0, 0.4))
        child.kill()
        assert child.killed, (tmp_path / "log").read_text()[-2000:]
        child = Child(zygote, order)
    _until(lambda: at_rest(database, KILLS), child, tmp_path)
    _release_what_was_set_aside(database)
    _until(lambda: at_rest(database, KILLS), child, tmp_path)
    child.stop()
    asked = _asked(database)
    got = {address: len(mail_servers.mails(buyer)) for address, buyer in buyers.items()}
    assert max(got.values()) <= 1, "answered twice"
    assert {address for address, count in got.items() if count == 0} <= asked, "lost"
    assert len(mail_servers.mails(shop)) == KILLS, "the shop's mailbox is as it was"
    assert sum(got.values()) >= KILLS / 2
    database.close()


def _release_what_was_set_aside(database: Database) -> None:
    """As staff would: a message whose reader was killed three times waits for them."""
    broken = database.read_now(lambda c: c.execute(select(cases.c.id).where(cases.c.state == "broken")).scalars().all())
    for case_id in broken:
        database.write_now(partial(release, case_id=case_id, actor="cli:test", now=datetime.now(UTC)))


def _asked(database: Database) -> set[str]:
    """Buyers whose reply is of unknown fate, so that staff were asked."""
    query = select(cases.c.sender).where(cases.c.state.in_(["uncertain", "human"]))
    return set(database.read_now(lambda c: c.execute(query).scalars().all()))


def _until(done: Any, child: Child, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert child.alive(), (folder / "log").read_text()[-2000:]
        assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
        time.sleep(0.05)


def _mail(number: int, buyer: User) -> bytes:
    return (
        f"From: Anna Berg <{buyer.address}>\r\nTo: shop@example.test\r\nSubject: My parcel {number}\r\n"
        f"Message-ID: <real{number}.{buyer.name}@buyers.test>\r\n"
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S +0000', time.gmtime())}\r\nMIME-Version: 1.0\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\n\r\nHello, where is my parcel number {number}?\r\n"
    ).encode()
