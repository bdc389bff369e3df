"""The database: one writer thread, a few readers, and units of work that cannot be split.

A unit of work is a plain function of a Connection. Units sent by many tasks
are gathered into one transaction and committed together, so that a durable
write costs a share of one fdatasync. When one of them raises, all are taken
back and run once more, each in a savepoint: the one that raises fails alone.
A caller
that is cancelled while waiting leaves its unit whole: it is either committed
or it never began (reliability: a cancelled aiosqlite task commits half of it).

SQLite runs in WAL with synchronous=FULL and BEGIN IMMEDIATE. Every writing
process holds a lock file for the length of its transaction and checkpoint,
because SQLite before 3.51.3 can corrupt a database when one connection resets
the WAL while another writes (sqlite.org/wal.html#walresetbug).

A failure is Transient when the database or the way to it failed: disk full, a
lock held too long, a link that died. A link that dies during COMMIT leaves it
open whether the group was committed; callers look their keys up before they
repeat anything, which every function of the store does by itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, RootTransaction, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, QueuePool

from daemon.errors import Transient
from daemon.store import direct
from daemon.vocab import JsonText

T = TypeVar("T")

#: Units that one commit may gather.
GROUP_LIMIT = 256
#: Seconds that a writer waits for another process's transaction.
BUSY_SECONDS = 30


class DatabaseClosed(Transient):
    """The database was closed before the unit of work began."""


@dataclass(slots=True)
class _Unit:
    """A unit of work and who waits for it: a plain thread, or a task of the loop."""

    work: Callable[[Connection], Any]
    done: Future[Any] | asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop | None = None


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
        if self.is_sqlite:
            _make_private(Path(str(self.url.database)))
        self.engine = _engine(self.url, connections=1)
        self._read_engine = _engine(self.url, connections=readers, read_only=True) if self.is_sqlite else self.engine
        self._queue: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._start_guard = threading.Lock()
        self._closed = False
        self._busy_since: float | None = None
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="postsale-read")

    # ------------------------------------------------------------------ asking

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run a unit of work durably; returns after its commit.

        Cancelling the caller does not cancel the unit.
        """
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[T] = loop.create_future()  # a caller that is cancelled takes this along, and not the unit
        self._submit(_Unit(work, asked, loop))
        return await asked

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run a function that only reads, in a reader thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.read_now, work)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """As write, for a plain thread. Not for the event loop."""
        done: Future[T] = Future()
        self._submit(_Unit(work, done))
        return done.result()

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """As read, for a plain thread. Not for the event loop."""
        with _translated(), self._read_engine.connect() as connection:
            return work(connection)

    def session(self) -> Connection:
        """A connection outside every pool, in autocommit, for what lasts as long as a session does: a lock on PostgreSQL."""
        with _translated():
            return _postgres_engine(self.url, None).connect().execution_options(isolation_level="AUTOCOMMIT")

    def busy_seconds(self) -> float:
        """How long the transaction that is being written has been running; 0 when none is."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

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
        with suppress(Transient), self._process_lock():  # the last connection to close moves the WAL into the database
            self._read_engine.dispose()
            self.engine.dispose()

    # ------------------------------------------------------------------ the writer

    def _submit(self, unit: _Unit) -> None:
        with self._start_guard:
            if self._closed:
                raise DatabaseClosed("the database is closed")
            if self._writer is None:
                self._writer = threading.Thread(target=self._run_writer, name="postsale-write", daemon=True)
                self._writer.start()
            self._queue.put(unit)

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
            if group:
                self._busy_since = time.monotonic()
                connection = self._commit(connection, group)
                self._busy_since = None
        if connection is not None:
            connection.close()

    def _commit(self, connection: Connection | None, group: list[_Unit]) -> Connection | None:
        """Run a group in one transaction; returns the connection if it is still good.

        A unit that raises is rolled back and fails alone. A
        failed commit fails the whole group. A link that had died before this
        group began is replaced once.
        """
        reused = connection is not None
        try:
            with _translated(), self._process_lock():
                try:
                    connection, outcomes = self._run(connection, group)
                except _LostBeforeCommit as lost:
                    if not (reused and lost.cause.connection_invalidated):
                        raise lost.cause from lost
                    connection, outcomes = self._run(None, group)
        except _LostBeforeCommit as lost:
            failed: BaseException = _as_transient(lost.cause)
        except BaseException as error:  # noqa: BLE001 - whatever it was, every waiting caller hears of it
            failed = error
        else:
            _tell(outcomes)
            return connection
        _tell([(unit, None, failed) for unit in group])
        return None

    def _run(self, connection: Connection | None, group: list[_Unit]) -> tuple[Connection, list[_Outcome]]:
        if connection is None:
            connection = self.engine.connect()
        try:
            try:
                transaction = connection.begin()
                if len(group) == 1:  # the transaction is its savepoint
                    outcomes = [_run_within(transaction, connection, group[0])]
                elif (together := _run_together(connection, group)) is not None:
                    outcomes = together
                else:
                    transaction.rollback()
                    transaction = connection.begin()
                    outcomes = [_run_within(_Savepoint(connection), connection, unit) for unit in group]
            except DBAPIError as error:
                raise _LostBeforeCommit(error) from error
            if transaction.is_active:
                transaction.commit()
        except BaseException:
            with suppress(Exception):
                connection.invalidate()
                connection.close()
            raise
        return connection, outcomes

    @contextmanager
    def _process_lock(self) -> Iterator[None]:
        if self._lock_path is None:
            yield
            return
        handle = _open_lock(self._lock_path)
        try:
            _flock(handle)
            yield
        finally:
            os.close(handle)


_Outcome = tuple[_Unit, Any, BaseException | None]


class _LostBeforeCommit(Exception):
    """The transaction failed as a whole before its commit was asked for, so that nothing of it holds."""

    def __init__(self, cause: DBAPIError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Savepoint:
    """Where one unit of a group began. As Connection.begin_nested, at a fifth of its cost."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        direct.say(connection, "SAVEPOINT unit")

    def commit(self) -> None:
        direct.say(self._connection, "RELEASE SAVEPOINT unit")

    def rollback(self) -> None:
        direct.say(self._connection, "ROLLBACK TO SAVEPOINT unit")
        self.commit()


def _tell(outcomes: Sequence[_Outcome]) -> None:
    """Let everybody hear how their unit ended; tasks of a loop all at once, since each call into it costs a wake-up."""
    of_loops: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        if outcome[0].loop is None:
            _settle(outcome)
        else:
            of_loops.setdefault(outcome[0].loop, []).append(outcome)
    for loop, heard in of_loops.items():
        with suppress(RuntimeError):  # a loop that is closed has nobody left who waits
            loop.call_soon_threadsafe(_settle_all, heard)


def _settle_all(outcomes: Sequence[_Outcome]) -> None:
    for outcome in outcomes:
        _settle(outcome)


def _settle(outcome: _Outcome) -> None:
    unit, value, failure = outcome
    if unit.done.done():  # its caller was cancelled
        return
    if failure is not None:
        unit.done.set_exception(failure)
    else:
        unit.done.set_result(value)


def _make_private(path: Path) -> None:
    """Create the file before SQLite does, whose files anyone may read where the process's umask lets them."""
    with suppress(OSError):  # where it cannot be made, the first connection fails and says why
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Transient(f"database: cannot open {path}: {error.strerror}") from error


def _flock(handle: int) -> None:
    """Wait for the lock, but not for ever: another process may hang while it holds it."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise Transient("database: another process has held the writer's lock for too long") from error
            time.sleep(0.005)
        else:
            return


def _run_together(connection: Connection, group: Sequence[_Unit]) -> list[_Outcome] | None:
    """Run units that all succeed, as nearly all do, without the cost of savepoints; None when one raised."""
    outcomes: list[_Outcome] = []
    for unit in group:
        try:
            outcomes.append((unit, unit.work(connection), None))
        except Exception as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise
            return None  # its savepoint will say whose failure it is
    return outcomes


def _run_within(point: RootTransaction | _Savepoint, connection: Connection, unit: _Unit) -> _Outcome:
    """Run a unit; what it wrote is taken back to ``point`` when it raises."""
    try:
        value = unit.work(connection)
        if isinstance(point, _Savepoint):
            point.commit()
    except Exception as error:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        if isinstance(point, RootTransaction) and isinstance(error, OperationalError):
            raise _LostBeforeCommit(error) from error  # the database itself is in trouble: the next one connects anew
        try:
            point.rollback()
        except DBAPIError as gone:  # a full disk has SQLite roll back everything, earlier units included
            raise _LostBeforeCommit(error if isinstance(error, DBAPIError) else gone) from error
        return unit, None, _as_transient(error) if isinstance(error, DBAPIError) else error
    return unit, value, None


def _as_transient(error: DBAPIError) -> Exception:
    """An error of the database's own (not of a statement) as Transient; the store keeps trying."""
    if isinstance(error, OperationalError | InterfaceError):
        return Transient(f"database: {error.orig}")
    return error


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _as_transient(error) from error
    except PoolTimeout as error:
        raise Transient("database: every connection is in use") from error


def _json(value: Any) -> str:
    return value if isinstance(value, JsonText) else json.dumps(value)


def _engine(url: URL, *, connections: int, read_only: bool = False) -> Engine:
    if url.get_backend_name() != "sqlite":
        return _postgres_engine(url, connections)
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=1,
        json_serializer=_json,
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
    event.listen(engine, "begin", lambda connection: direct.say(connection, begin))
    return engine


def _postgres_engine(url: URL, connections: int | None) -> Engine:
    # a link that was cut without a word must not hold the writer for hours
    link = {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    if connections is None:
        engine = create_engine(url, poolclass=NullPool, json_serializer=_json, connect_args=link)
    else:
        engine = create_engine(
            url, pool_size=connections + 2, max_overflow=2, pool_pre_ping=True, json_serializer=_json, connect_args=link
        )

    def prepare(raw: Any, _record: Any) -> None:
        with raw.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {BUSY_SECONDS * 1000}")
            cursor.execute("SHOW synchronous_commit")
            if cursor.fetchone()[0] == "off":  # a commit that can be forgotten would be a promise broken
                cursor.execute("SET synchronous_commit = on")
        raw.commit()

    event.listen(engine, "connect", prepare)
    return engine
