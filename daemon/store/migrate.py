"""Bring a database's schema up to this program's, inside the process and in one transaction.

The revisions are Alembic's, under ``migrations/versions``. Alembic is imported
only when there is something to do, since every start comes through here.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from daemon.errors import PostsaleError
from daemon.store.db import Database

if TYPE_CHECKING:
    from alembic.config import Config

#: The newest revision; a test compares it with the files.
HEAD = "0007"

#: Alembic's context is one for the whole process.
_ONE_AT_A_TIME = threading.Lock()

#: Number of PostgreSQL's advisory lock for the length of a migration.
_LOCK = 0x706F7374


class SchemaTooNew(PostsaleError):
    """The database was written by a newer Postsale; running this one on it could lose what that one stored."""


def upgrade(database: Database) -> bool:
    """Create or upgrade every table; True when there was something to do.

    Raises SchemaTooNew when the database's revision is unknown here.
    """
    return database.write_now(upgrade_on)


def upgrade_on(connection: Connection) -> bool:
    """As upgrade, within the caller's transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    present = current(connection)
    if present == HEAD:
        return False
    from alembic import command  # here, since it costs a tenth of a second and is needed once per release
    from alembic.script import ScriptDirectory

    config = alembic_config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is not None and present not in known:
        raise SchemaTooNew(
            f"the database's schema is at revision {present}, which this version does not know; install the newer one"
        )
    config.attributes["connection"] = connection
    with _ONE_AT_A_TIME:
        command.upgrade(config, HEAD)
    return True


def current(connection: Connection) -> str | None:
    """The revision that the database is at, None when it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return found


def alembic_config() -> Config:
    """Where Alembic finds the revisions, whatever folder the program runs in."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
