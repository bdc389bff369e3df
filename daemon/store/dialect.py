"""The few places where SQLite and PostgreSQL want different words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, Table
from sqlalchemy import text as sql
from sqlalchemy.dialects import postgresql, sqlite

#: What PostgreSQL or UTF-8 will not take: NUL, and halves of characters that some decoders leave behind.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str, length: int | None = None) -> str:
    """Text of the outside world as every database can keep it, cut to ``length``."""
    return _UNSTORABLE.sub("\ufffd", text)[:length]


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, leaving out those that a unique key already knows."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(), [dict(row) for row in rows])


def insert_one_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> int | None:
    """Insert one row and return its id, or None when a unique key already knows it."""
    made: int | None = connection.execute(
        _insert(connection, table).values(**row).on_conflict_do_nothing().returning(table.c.id)
    ).scalar_one_or_none()
    return made


def upsert(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Insert a row under ``key``, or set ``values`` on the one that is there."""
    statement = _insert(connection, table).values(**key, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))


def locked(connection: Connection, query: Select[Any]) -> Select[Any]:
    """The query with its rows locked for the transaction, passing over those that another one holds.

    SQLite needs nothing: a writing transaction is alone.
    """
    return query.with_for_update(skip_locked=True) if connection.dialect.name == "postgresql" else query


def serialise(connection: Connection, number: int) -> None:
    """Let one transaction at a time past this point, on every host; ``number`` names the point."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
