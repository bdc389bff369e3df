"""The few places where SQLite and PostgreSQL want different words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Insert, Select, Table, func, literal_column
from sqlalchemy import text as sql
from sqlalchemy.dialects import postgresql, sqlite

from daemon.store import direct

T = TypeVar("T")

#: What PostgreSQL or UTF-8 will not take: NUL, and halves of characters that some decoders leave behind.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str, length: int | None = None) -> str:
    """Text of the outside world as every database can keep it, cut to ``length``."""
    return _UNSTORABLE.sub("\ufffd", text)[:length]


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, leaving out those that a unique key already knows."""
    direct.change_all(connection, _insert_new(connection.dialect.name, table), rows)


def padded(values: Collection[T]) -> list[T]:
    """The values for an IN list, the last one repeated up to a power of two.

    A list of every length is a statement of its own, which the driver keeps prepared.
    """
    listed = list(values)
    return listed + listed[-1:] * ((1 << (len(listed) - 1).bit_length()) - len(listed)) if listed else []


def unindexed(column: Column[str]) -> ColumnElement[str]:
    """The column as nothing that an index serves.

    SQLite keeps no statistics here, and would go by a mailbox, a state or a kind through everything that was ever in it.
    """
    return func.coalesce(column, literal_column("''"))


def insert_one_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> int | None:
    """Insert one row and return its id, or None when a unique key already knows it."""
    made = insert_many_new(connection, table, [row], table.c.id)
    return int(made[0].id) if made else None


def insert_many_new(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *columns: Column[Any]
) -> Sequence[Any]:
    """Insert rows in their order and return ``columns`` of those that no unique key knew already."""
    if not rows:
        return []
    statement = _insert_new(connection.dialect.name, table, columns)
    if len(rows) == 1:
        return direct.fetch(connection, statement, rows[0])
    return connection.execute(statement, [dict(row) for row in rows]).all()


def upsert(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Insert a row under ``key``, or set ``values`` on the one that is there."""
    direct.change(connection, _upsert(connection.dialect.name, table, tuple(key), tuple(values)), {**key, **values})


def upsert_many(connection: Connection, table: Table, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns, or set these columns where the key is known already."""
    if rows:
        fresh = tuple(name for name in rows[0] if name != key)
        direct.change_all(connection, _upsert(connection.dialect.name, table, (key,), fresh), rows)


def locked(connection: Connection, query: Select[Any]) -> Select[Any]:
    """The query with its rows locked for the transaction, passing over those that another one holds.

    SQLite needs nothing: a writing transaction is alone.
    """
    return _locked(query) if connection.dialect.name == "postgresql" else query


def serialise(connection: Connection, number: int) -> None:
    """Let one transaction at a time past this point, on every host; ``number`` names the point."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


# Made once for each table and set of columns: putting a statement together costs more than running it.


@cache
def _locked(query: Select[Any]) -> Select[Any]:
    return query.with_for_update(skip_locked=True)


@cache
def _insert_new(dialect: str, table: Table, columns: tuple[Column[Any], ...] = ()) -> Insert:
    statement = _insert(dialect, table).on_conflict_do_nothing()
    return statement.returning(*columns) if columns else statement


@cache
def _upsert(dialect: str, table: Table, key: tuple[str, ...], fresh: tuple[str, ...]) -> Insert:
    statement = _insert(dialect, table)
    return statement.on_conflict_do_update(index_elements=key, set_={name: statement.excluded[name] for name in fresh})


def _insert(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
