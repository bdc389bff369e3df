"""The database: one writer thread, a few readers, and units of work that cannot be split.

A unit of work is a plain function of a Connection. Units sent by many tasks
are gathered into one transaction (each in its own savepoint) and committed
together, so that a durable write costs a share of one fdatasync. A caller
that is cancelled while waiting leaves its unit whole: it is either committed
or it never began (reliability: a cancelled aiosqlite task commits half of it).

SQLite runs in WAL with synchronous=FULL and BEGIN IMMEDIATE. Every writing
process holds a lock file for the length of its transaction and checkpoint,
because SQLite before 3.51.3 can corrupt a database when one connection resets
the WAL while another writes (sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from daemon.errors import Transient

T = TypeVar("T")

#: Units that one commit may gather.
GROUP_LIMIT = 256
#: Seconds that a writer waits for another process's transaction.
BUSY_SECONDS = 30


class DatabaseClosed(Transient):
    """The database was closed before the unit of work began."""


@dataclass(slots=True)
class _Unit:
    work: Callable[[Connection], Any]
    done: Future[Any]


class Database:
    """Access to the store for one process.

    ``write`` and ``read`` serve the event loop; ``write_now`` and
    ``read_now`` serve plain threads and the command line.
    """

    def __init__(self, url: str, *, password: str | None = None, readers: int = 2) -> None:
        self.url = make_url(url)
        if password is not None:
            self.url = self.url.set(password=password)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._lock_path = Path(str(self.url.database) + ".writer") if self.is_sqlite else None
        self.engine = _engine(self.url, connections=1)
        self._read_engine = _engine(self.url, connections=readers, read_only=True) if self.is_sqlite else self.engine
        self._queue: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._start_guard = threading.Lock()
        self._closed = False
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="postsale-read")

    # ------------------------------------------------------------------ asking

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run a unit of work durably; returns after its commit.

        Cancelling the caller does not cancel the unit.
        """
        value: T = await asyncio.shield(asyncio.wrap_future(self._submit(work)))
        return value

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run a function that only reads, in a reader thread."""
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._readers, self.read_now, work))

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """As write, for a plain thread. Not for the event loop."""
        value: T = self._submit(work).result()
        return value

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """As read, for a plain thread. Not for the event loop."""
        with _translated(), self._read_engine.connect() as connection:
            return work(connection)

    def close(self) -> None:
        """Finish the units already sent, then close every connection."""
        with self._start_guard:
            if self._closed:
                return
            self._closed = True
            writer = self._writer
        if writer:
            self._queue.put(None)
            writer.join()
        self._readers.shutdown(wait=True)
        self.engine.dispose()
        self._read_engine.dispose()

    # ------------------------------------------------------------------ the writer

    def _submit(self, work: Callable[[Connection], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        with self._start_guard:
            if self._closed:
                raise DatabaseClosed("the database is closed")
            if self._writer is None:
                self._writer = threading.Thread(target=self._run_writer, name="postsale-write", daemon=True)
                self._writer.start()
            self._queue.put(_Unit(work, done))
        return done

    def _run_writer(self) -> None:
        connection: Connection | None = None
        stopping = False
        while not stopping:
            first = self._queue.get()
            group: list[_Unit] = []
            if first is None:
                stopping = True
            else:
                group.append(first)
                while len(group) < GROUP_LIMIT:
                    try:
                        unit = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if unit is None:
                        stopping = True
                        break
                    group.append(unit)
            group = [u for u in group if u.done.set_running_or_notify_cancel()]
            if group:
                connection = self._commit(connection, group)
        if connection is not None:
            connection.close()

    def _commit(self, connection: Connection | None, group: list[_Unit]) -> Connection | None:
        """Run a group in one transaction; returns the connection if it is still good.

        A unit that raises is rolled back to its savepoint and fails alone. A
        failed commit fails the whole group: its callers look their keys up
        again before they repeat anything.
        """
        outcomes: list[tuple[_Unit, Any, BaseException | None]] = []
        try:
            with _translated(), self._process_lock():
                if connection is None:
                    connection = self.engine.connect()
                with connection.begin():
                    outcomes.extend(_run_unit(connection, unit) for unit in group)
        except BaseException as error:  # noqa: BLE001 - whatever it was, every waiting caller hears of it
            if connection is not None:
                connection.invalidate()
                connection.close()
            for unit in group:
                unit.done.set_exception(error)
            return None
        for unit, value, failure in outcomes:
            if failure is not None:
                unit.done.set_exception(failure)
            else:
                unit.done.set_result(value)
        return connection

    @contextmanager
    def _process_lock(self) -> Iterator[None]:
        if self._lock_path is None:
            yield
            return
        handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _run_unit(connection: Connection, unit: _Unit) -> tuple[_Unit, Any, BaseException | None]:
    try:
        with connection.begin_nested():
            return unit, unit.work(connection), None
    except DBAPIError as error:
        if error.connection_invalidated or _is_fatal(error):
            raise
        return unit, None, error
    except Exception as error:  # noqa: BLE001 - it belongs to the unit's caller, not to the group
        return unit, None, error


def _is_fatal(error: DBAPIError) -> bool:
    """Whether the transaction as a whole is lost: disk full, I/O error, dead link."""
    message = str(error.orig).lower()
    return isinstance(error, OperationalError) and any(
        word in message for word in ("disk", "full", "i/o", "readonly", "locked", "closed", "server", "terminat")
    )


@contextmanager
def _translated() -> Iterator[None]:
    """Turn errors of the database's own into Transient; the store keeps trying."""
    try:
        yield
    except OperationalError as error:
        raise Transient(f"database: {error.orig}") from error


def _engine(url: URL, *, connections: int, read_only: bool = False) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_size=connections + 2, max_overflow=2, pool_pre_ping=True)
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=1,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )
    pragmas = ["journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"]
    # A deferred transaction that turns to writing fails at once when it is late: the writer takes the lock first.
    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
    if read_only:
        pragmas = ["query_only = ON"]

    def prepare(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # BEGIN is ours to say
        cursor = raw.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine
