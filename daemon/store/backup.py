"""A consistent copy of the database while the service runs, and the way back.

SQLite is copied in this process. PostgreSQL is left to its own programs,
``pg_dump`` and ``pg_restore``; the password reaches them in their environment,
never on a command line that every user of the machine can read.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, select, text, update

from daemon.errors import PostsaleError
from daemon.store import outbox, settings
from daemon.store.db import Database
from daemon.store.tables import approvals
from daemon.store.tables import outbox as outbox_table
from daemon.vocab import CaseState, DeliveryKind, DeliveryState

#: Name of the setting that says when the database was put back.
RESTORED_AT = "restored_at"

_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend'"
)


def copy_database(database: Database, to: Path) -> None:
    """Write a consistent copy of the database to a new file, readable by its owner only.

    An SQLite database becomes another one, PostgreSQL becomes an archive in
    ``pg_dump``'s custom format. Raises PostsaleError when that cannot be done.
    """
    if not database.is_sqlite:
        to.touch(mode=0o600)
        _run(database, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={to}")
        return
    with closing(sqlite3.connect(f"file:{database.url.database}?mode=ro", uri=True, timeout=30)) as source:
        source.execute("VACUUM INTO ?", (str(to),))
    to.chmod(0o600)
    check_database(to)


def is_empty(database: Database) -> bool:
    """Whether a PostgreSQL database holds no table yet."""
    return database.read_now(lambda c: not inspect(c).get_table_names())


def load_dump(database: Database, dump: Path) -> None:
    """Replace what a PostgreSQL database holds by what ``copy_database`` wrote, in one transaction.

    Raises PostsaleError, and nothing has changed, when the dump is damaged or
    somebody else is connected: ``pg_restore`` would wait for them without end.
    """
    others = database.read_now(lambda c: c.execute(text(_OTHERS)).scalar_one())
    if others:
        raise PostsaleError(f"others are connected to the database ({others}); stop Postsale on every host first")
    replace = ("--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
    _run(database, "pg_restore", *replace, str(dump))


def distrust(connection: Connection, *, actor: str, now: datetime) -> int:
    """After a restore: let nothing leave that may have left since the backup; returns how many replies were stopped.

    Sending is paused, queued replies go to a person, open approval requests
    are void, and mail that arrived before now is for a person (``restored_at``).
    """
    settings.pause(connection, actor=actor, now=now)
    settings.put(connection, RESTORED_AT, now.isoformat(), actor=actor, now=now)
    open_request = approvals.c.used_at.is_(None) & approvals.c.revoked_at.is_(None)
    connection.execute(update(approvals).where(open_request).values(revoked_at=now))
    queued = connection.execute(
        select(outbox_table.c.id).where(
            outbox_table.c.kind == DeliveryKind.BUYER_REPLY.value, outbox_table.c.state == DeliveryState.QUEUED.value
        )
    ).scalars()
    stopped = list(queued)
    for delivery_id in stopped:
        outbox.withdraw(connection, delivery_id, to=CaseState.HUMAN, reason="restored", now=now)
    return len(stopped)


def restored_at(connection: Connection) -> datetime | None:
    """When the database was last put back from a backup."""
    value = settings.get(connection, RESTORED_AT)
    return None if value is None else datetime.fromisoformat(value)


def _run(database: Database, program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs on the database; raises PostsaleError with its own words when it fails."""
    from psycopg.conninfo import make_conninfo  # here, since the service itself only looks whether it was restored

    path = shutil.which(program)
    if path is None:
        raise PostsaleError(f"{program} is not installed; on Debian: apt-get install postgresql-client")
    how: dict[str, Any] = database.url.translate_connect_args(username="user", database="dbname")
    how |= {key: value if isinstance(value, str) else ",".join(value) for key, value in database.url.query.items()}
    secret = how.pop("password", None)
    environment = dict(os.environ)
    if secret:
        environment["PGPASSWORD"] = str(secret)
    command = [path, "--no-password", f"--dbname={make_conninfo(**how)}", *arguments]
    done = subprocess.run(  # noqa: S603 - the operator's own database, and no shell
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise PostsaleError(f"{program} failed: {done.stderr.strip()[-500:] or f'status {done.returncode}'}")


def check_database(path: Path) -> None:
    """Raise PostsaleError unless the file is a whole SQLite database."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as copy:
            verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise PostsaleError(f"{path} is no whole database: {error}") from error
    if verdict != "ok":
        raise PostsaleError(f"{path} is damaged: {verdict}")
