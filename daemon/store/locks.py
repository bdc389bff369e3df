"""One watcher per mailbox, wherever it runs.

SQLite: a lock file beside the database, which the kernel frees when the
process dies. PostgreSQL: an advisory lock on a connection of its own, which
the server frees when the connection ends; the holder asks from time to time
whether it still has it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from daemon.errors import Transient
from daemon.store.db import Database


class Lock:
    """A named lock that one process on all hosts can hold. Used from one thread at a time."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._key = int.from_bytes(hashlib.sha256(f"postsale:{name}".encode()).digest()[:8], "big", signed=True)
        self._handle: int | None = None  # of the lock file
        self._session: Connection | None = None  # kept between tries, since a session costs the server a process
        self._ours = False  # the session has the advisory lock

    @property
    def kept(self) -> bool:
        """Whether the lock is ours until it is released, so that nobody needs to be asked: on SQLite."""
        return self._handle is not None

    def acquire(self) -> bool:
        """Take the lock if nobody holds it; True when it is ours, also if it was already. Raises Transient."""
        if self.held():
            return True
        return self._flock() if self._database.is_sqlite else self._advise()

    def held(self) -> bool:
        """Whether the lock is still ours; on PostgreSQL the server is asked."""
        if self._handle is not None:
            return True
        if self._session is None or not self._ours:
            return False
        try:
            self._session.execute(text("SELECT 1"))
        except SQLAlchemyError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Let the lock go; without effect when it is not ours."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._session is not None:
            session, self._session = self._session, None
            ours, self._ours = self._ours, False
            with suppress(SQLAlchemyError):  # a dead session has no lock any more
                if ours:
                    session.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key})
            session.invalidate()  # ends the session, and with it the lock in any case
            session.close()

    def _flock(self) -> bool:
        path = Path(f"{self._database.url.database}.{self._name}.lock")
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Transient(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def _advise(self) -> bool:
        if self._session is None:
            self._session = self._database.session()
        try:
            self._ours = bool(self._session.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}).scalar_one())
        except DBAPIError as error:
            self.release()
            raise Transient(f"database: {error.orig}") from error
        return self._ours
