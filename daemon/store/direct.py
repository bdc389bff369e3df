"""Statements that run for every mail, on the shortest way to the driver.

What a statement means and how values are written stays SQLAlchemy's: it compiles each once for a connection. Executing it
there costs ten times what SQLite takes for a row, so on SQLite the compiled text goes to the driver's own cursor.
PostgreSQL is asked as ever: the way to it is longer than that.

Only statements that are made once belong here, since what is compiled is kept.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Update, exc

Statement = Select[*tuple[Any, ...]] | Insert | Update | Delete
Values = Mapping[str, Any]

#: Columns without a name have none of the row's either.
_row_of: Callable[[str, Sequence[str]], Any] = partial(namedtuple, rename=True)

#: Where a connection keeps what was compiled for it.
_KEPT = "postsale.compiled"


def fetch(connection: Connection, statement: Statement, values: Values) -> Sequence[Any]:
    """The rows that a statement finds or returns. Raises what Connection.execute raises."""
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, values).all()
    compiled = _compiled(connection, statement, values)
    rows, _ = _ask(connection, compiled.text, compiled.parameters(values))
    return compiled.rows(rows)


def fetch_one(connection: Connection, statement: Statement, values: Values) -> Any:
    """The first row, None when there is none. Errors as in fetch."""
    rows = fetch(connection, statement, values)
    return rows[0] if rows else None


def change(connection: Connection, statement: Statement, values: Values) -> int:
    """Execute a statement that returns no rows; how many it changed. Errors as in fetch.

    -1 where the driver does not count, as PostgreSQL's does not for what is inserted.
    """
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, values).rowcount
    compiled = _compiled(connection, statement, values)
    return _ask(connection, compiled.text, compiled.parameters(values))[1]


def change_all(connection: Connection, statement: Statement, rows: Sequence[Values]) -> int:
    """As change, for each of some sets of values that have the same names."""
    if len(rows) == 1:
        return change(connection, statement, rows[0])
    if not rows:
        return 0
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, rows).rowcount
    compiled = _compiled(connection, statement, rows[0])
    parameters = [compiled.parameters(row) for row in rows]
    return _ask(connection, compiled.text, parameters, many=True)[1]


def say(connection: Connection, words: str) -> None:
    """Say something that takes no values, as where a transaction begins or a part of it ends. Errors as in fetch."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(words)
    else:
        _tell(connection, words, ())


def _ask(
    connection: Connection, text: str, parameters: Sequence[Any], *, many: bool = False
) -> tuple[Sequence[Sequence[Any]], int]:
    """Rows, and how many were changed; in a transaction, so that several looks of one reader see one state."""
    if not connection.in_transaction():
        connection.begin()
    return _tell(connection, text, parameters, many=many)


def _tell(
    connection: Connection, text: str, parameters: Sequence[Any], *, many: bool = False
) -> tuple[Sequence[Sequence[Any]], int]:
    try:
        cursor = connection.connection.cursor()
        (cursor.executemany if many else cursor.execute)(text, parameters)
        return cursor.fetchall(), cursor.rowcount
    except sqlite3.Error as error:
        kind: type[exc.DBAPIError] = getattr(exc, type(error).__name__, exc.DBAPIError)
        raise kind(text, None, error, hide_parameters=True) from error


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement as the driver takes it, and what makes rows of the answer."""

    text: str
    #: Where each value comes from: a name of those given (None: the constant), the place in it where it is a list, how the
    #: driver wants it, and a constant of the statement.
    values: Sequence[tuple[str | None, int | None, Callable[[Any], Any] | None, Any]]
    row: Callable[[Sequence[Any]], Any]
    reads: Sequence[tuple[int, Callable[[Any], Any]]]
    lists: Sequence[str]  # names of values that are lists, whose lengths are in the text

    def parameters(self, given: Values) -> tuple[Any, ...]:
        made = []
        for name, place, write, constant in self.values:
            if name is None:
                made.append(constant)
                continue
            value = given[name] if place is None else given[name][place]
            made.append(value if write is None else write(value))
        return tuple(made)

    def rows(self, fetched: Sequence[Sequence[Any]]) -> Sequence[Any]:
        if not self.reads:
            return [self.row(values) for values in fetched]
        made = []
        for values in map(list, fetched):
            for place, read in self.reads:
                values[place] = read(values[place])
            made.append(self.row(values))
        return made


def _compiled(connection: Connection, statement: Statement, values: Values) -> _Compiled:
    kept: dict[Any, _Compiled] = connection.info.setdefault(_KEPT, {})
    key: tuple[Any, ...] = (statement, *values)
    found = kept.get(key)
    if found is not None and found.lists:
        key = (*key, *(len(values[name]) for name in found.lists))
        found = kept.get(key)
    if found is None:
        found = _compile(connection.dialect, statement, values)
        kept[(statement, *values)] = found
        kept[(statement, *values, *(len(values[name]) for name in found.lists))] = found
    return found


def _compile(dialect: Dialect, statement: Statement, values: Values) -> _Compiled:
    compiled = statement.compile(dialect=dialect, column_keys=list(values))
    expanded = compiled.construct_expanded_state(values)
    lists = expanded.parameter_expansion
    places = {name: (of, place) for of, names in lists.items() for place, name in enumerate(names)}
    sources: list[tuple[str | None, int | None, Callable[[Any], Any] | None, Any]] = []
    for name in expanded.positiontup or ():
        of, place = places.get(name, (name, None))
        write = compiled.binds[of].type.dialect_impl(dialect).bind_processor(dialect)
        if of in values:
            sources.append((of, place, write, None))
        else:
            constant = expanded.parameters[name]
            sources.append((None, None, None, constant if write is None else write(constant)))
    columns = list(statement.exported_columns)
    reads = [
        (place, read)
        for place, column in enumerate(columns)
        if (read := column.type.dialect_impl(dialect).result_processor(dialect, None)) is not None
    ]
    row = _row_of("row", [column.key or "" for column in columns])
    return _Compiled(expanded.statement, sources, row._make, reads, [name for name in lists if name in values])
