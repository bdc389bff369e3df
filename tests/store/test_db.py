"""Units of work: whole or not at all, whoever is cancelled, full, locked or cut off."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, insert, select, text
from sqlalchemy.exc import IntegrityError

import daemon.store.db as db_module
from daemon.errors import Transient
from daemon.store import settings
from daemon.store.db import Database, DatabaseClosed
from daemon.store.locks import Lock
from daemon.store.tables import settings as table
from tests.servers import PostgresServer


def put(key: str, now: datetime) -> Callable[[Connection], None]:
    return lambda c: settings.put(c, key, 1, actor="t", now=now)


def keys(database: Database) -> set[str]:
    return set(database.read_now(lambda c: c.execute(select(table.c.key)).scalars().all()))


async def test_a_cancelled_caller_leaves_its_unit_whole(database: Database, now: datetime) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(c: Connection) -> None:
        settings.put(c, "a", 1, actor="t", now=now)
        began.set()
        assert go_on.wait(10)
        settings.put(c, "b", 1, actor="t", now=now)

    task = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(began.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await database.write(put("c", now))
    assert keys(database) == {"a", "b", "c"}


async def test_a_unit_that_fails_fails_alone_in_its_group(database: Database, now: datetime) -> None:
    hold = threading.Event()
    blocker = asyncio.create_task(database.write(lambda _: hold.wait(10)))
    await asyncio.sleep(0)

    def breaks(c: Connection) -> None:
        settings.put(c, "half", 1, actor="t", now=now)
        raise ValueError("mine alone")

    def breaks_a_rule(c: Connection) -> None:
        for _ in range(2):
            c.execute(insert(table).values(key="double", value=1, updated_at=now, updated_by="t"))

    units = [
        database.write(put("a", now)),
        database.write(breaks),
        database.write(breaks_a_rule),
        database.write(put("b", now)),
    ]
    gathered = asyncio.gather(*units, return_exceptions=True)
    await asyncio.sleep(0)
    hold.set()
    await blocker
    first, second, third, fourth = await gathered
    assert (first, fourth) == (None, None)
    assert isinstance(second, ValueError)
    assert isinstance(third, IntegrityError)
    assert keys(database) == {"a", "b"}


async def test_units_that_succeed_run_once_and_those_beside_one_that_fails_are_written_once(
    database: Database, now: datetime
) -> None:
    runs: list[str] = []

    def noted(key: str) -> Callable[[Connection], None]:
        def work(c: Connection) -> None:
            runs.append(key)
            c.execute(insert(table).values(key=key, value=1, updated_at=now, updated_by="t"))
            if key == "bad":
                raise ValueError(key)

        return work

    async def group(*wanted: str) -> list[Any]:
        hold = threading.Event()
        blocker = asyncio.create_task(database.write(lambda _: hold.wait(10)))
        await asyncio.sleep(0)
        gathered = asyncio.gather(*(database.write(noted(key)) for key in wanted), return_exceptions=True)
        await asyncio.sleep(0)
        hold.set()
        await blocker
        return await gathered

    assert await group("a", "b", "c") == [None, None, None]
    assert runs == ["a", "b", "c"]
    runs.clear()
    first, bad, last = await group("d", "bad", "e")
    assert (first, last) == (None, None)
    assert isinstance(bad, ValueError)
    assert runs == ["d", "bad", "d", "bad", "e"]
    assert keys(database) == {"a", "b", "c", "d", "e"}


async def test_a_group_costs_one_commit(database: Database, now: datetime) -> None:
    commits = 0

    def count(_: Connection) -> None:
        nonlocal commits
        commits += 1

    event.listen(database.engine, "commit", count)
    began, go_on = threading.Event(), threading.Event()
    blocker = asyncio.create_task(database.write(lambda _: (began.set(), go_on.wait(10))))
    await asyncio.to_thread(began.wait, 10)
    many = asyncio.gather(*(database.write(put(str(i), now)) for i in range(100)))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(blocker, many)
    assert commits == 2
    assert len(keys(database)) == 100


async def test_a_full_disk_fails_the_whole_group(sqlite_database: Database, now: datetime) -> None:
    def no_more_pages(c: Connection) -> None:
        c.exec_driver_sql(f"PRAGMA max_page_count = {c.exec_driver_sql('PRAGMA page_count').scalar()}")

    sqlite_database.write_now(no_more_pages)
    began, go_on = threading.Event(), threading.Event()
    blocker = asyncio.create_task(sqlite_database.write(lambda _: (began.set(), go_on.wait(10))))
    await asyncio.to_thread(began.wait, 10)
    big = "x" * 200_000
    group = asyncio.gather(
        sqlite_database.write(put("a", now)),
        sqlite_database.write(lambda c: settings.put(c, "big", big, actor="t", now=now)),
        sqlite_database.write(put("b", now)),
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    go_on.set()
    await blocker
    outcomes = await group
    stored = keys(sqlite_database)
    for key, outcome in zip(("a", "big", "b"), outcomes, strict=True):
        assert (outcome is None) == (key in stored), "what was reported is what is there"
    assert isinstance(outcomes[1], Transient)


def test_sqlite_is_durable_and_foreign_keys_hold(sqlite_database: Database) -> None:
    def pragmas(c: Connection) -> list[object]:
        return [c.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous", "foreign_keys")]

    assert sqlite_database.write_now(pragmas) == ["wal", 2, 1]


def test_a_reader_cannot_write(sqlite_database: Database, now: datetime) -> None:
    with pytest.raises(Transient, match="readonly"):
        sqlite_database.read_now(put("a", now))


def test_postgres_commits_are_durable(postgres_server: PostgresServer) -> None:
    name = postgres_server.create_database()
    postgres_server.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    database = Database(postgres_server.url(name))
    assert database.write_now(lambda c: c.execute(text("SHOW synchronous_commit")).scalar()) == "on"
    database.close()


def test_a_full_disk_is_transient_and_loses_nothing(sqlite_database: Database, now: datetime) -> None:
    sqlite_database.write_now(put("before", now))

    def no_more_pages(c: Connection) -> None:
        c.exec_driver_sql(f"PRAGMA max_page_count = {c.exec_driver_sql('PRAGMA page_count').scalar()}")

    sqlite_database.write_now(no_more_pages)
    big = "x" * 200_000
    with pytest.raises(Transient, match="full"):
        sqlite_database.write_now(lambda c: settings.put(c, "big", big, actor="t", now=now))
    assert keys(sqlite_database) == {"before"}
    # the connection that hit the wall was dropped, and with it the limit: space has come back
    sqlite_database.write_now(lambda c: settings.put(c, "big", big, actor="t", now=now))
    assert keys(sqlite_database) == {"before", "big"}
    assert sqlite_database.read_now(lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"


def test_a_lock_held_by_a_second_process_is_waited_for_then_transient(
    sqlite_database: Database, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db_module, "BUSY_SECONDS", 0.05)
    handle = os.open(f"{sqlite_database.url.database}.writer", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(Transient, match="lock"):
        sqlite_database.write_now(put("a", now))
    os.close(handle)
    sqlite_database.write_now(put("a", now))
    assert keys(sqlite_database) == {"a"}


def test_two_processes_write_one_sqlite_database(sqlite_database: Database, now: datetime) -> None:
    script = (
        "import sys\nfrom datetime import datetime, UTC\nfrom daemon.store.db import Database\nfrom daemon.store import settings\n"
        "d = Database(sys.argv[1])\n"
        "for i in range(50): d.write_now(lambda c: settings.put(c, f'p{sys.argv[2]}.{i}', 1, actor='t', now=datetime.now(UTC)))\n"
        "d.close()\n"
    )
    url = str(sqlite_database.url)
    both = [subprocess.Popen([sys.executable, "-c", script, url, str(n)], cwd=Path(__file__).parents[2]) for n in range(2)]
    for i in range(50):
        sqlite_database.write_now(put(f"own.{i}", now))
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(keys(sqlite_database)) == 150


def test_closing_finishes_what_was_sent_and_refuses_the_rest(database: Database, now: datetime) -> None:
    database.write_now(put("a", now))
    database.close()
    database.close()
    with pytest.raises(DatabaseClosed):
        database.write_now(put("b", now))


def test_a_restarted_postgres_is_not_noticed_by_the_next_unit(now: datetime, postgres_server: PostgresServer) -> None:
    name = postgres_server.create_database(template="ready")
    database = Database(postgres_server.url(name))
    database.write_now(put("a", now))
    postgres_server.stop()
    with pytest.raises(Transient):
        database.write_now(put("lost", now))
    postgres_server.start()
    database.write_now(put("b", now))
    postgres_server.stop(signal.SIGQUIT)
    postgres_server.start()
    database.write_now(put("c", now))
    assert keys(database) == {"a", "b", "c"}
    database.close()


class CuttingProxy(threading.Thread):
    """Passes bytes to PostgreSQL; once armed, cuts the link right after COMMIT was passed on."""

    def __init__(self, port: int, *, after_commit: bool) -> None:
        super().__init__(daemon=True)
        self._target = port
        self._after_commit = after_commit
        self.armed = False
        self._muted = False
        self._answered = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._muted = False
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, watch: bool) -> None:
        try:
            while data := source.recv(65536):
                if watch and self.armed and b"COMMIT" in data:
                    self.armed = False
                    self._muted = True
                    if self._after_commit:
                        target.sendall(data)
                        self._answered.wait(10)  # it is committed, and nobody will hear of it
                    for end in (source, target):
                        end.shutdown(socket.SHUT_RDWR)
                    return
                if self._muted and not watch:
                    self._answered.set()
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def stop(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("committed", [True, False])
def test_a_link_cut_in_commit_is_transient_and_the_key_tells(
    postgres_server: PostgresServer, now: datetime, committed: bool
) -> None:
    proxy = CuttingProxy(postgres_server.port, after_commit=committed)
    proxy.start()
    name = postgres_server.create_database(template="ready")
    database = Database(postgres_server.url(name).replace(str(postgres_server.port), str(proxy.port)))
    database.write_now(put("before", now))
    proxy.armed = True
    with pytest.raises(Transient):
        database.write_now(put("unsure", now))
    assert keys(database) == ({"before", "unsure"} if committed else {"before"})
    database.write_now(put("unsure", now))  # repeating by key is harmless either way
    count = database.read_now(lambda c: c.execute(select(func.count()).select_from(table)).scalar_one())
    assert count == 2
    database.close()
    proxy.stop()


def test_one_holder_of_a_named_lock(database: Database, connect: Callable[[], Database]) -> None:
    other = connect()
    mine, theirs, another = Lock(database, "shop"), Lock(other, "shop"), Lock(other, "second")
    assert mine.acquire()
    assert mine.acquire()
    assert not theirs.acquire()
    assert another.acquire()
    mine.release()
    assert theirs.acquire()
    assert theirs.held()
    assert not mine.acquire()
    theirs.release()
    another.release()


async def test_the_locks_of_many_mailboxes_leave_connections_for_the_work(database: Database, now: datetime) -> None:
    locks = [Lock(database, f"{what}.{number}") for number in range(10) for what in ("watch", "send")]
    assert all(lock.acquire() for lock in locks)
    await asyncio.gather(*(database.write(put(str(i), now)) for i in range(10)))
    await asyncio.gather(*(database.read(lambda c: c.execute(select(table.c.key)).all()) for _ in range(10)))
    for lock in locks:
        lock.release()


def test_a_lost_postgres_session_loses_its_lock(postgres_server: PostgresServer) -> None:
    name = postgres_server.create_database()
    database = Database(postgres_server.url(name))
    lock = Lock(database, "shop")
    assert lock.acquire()
    postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    assert not lock.held()
    assert lock.acquire()
    lock.release()
    database.close()
