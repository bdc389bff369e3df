"""The short way to the driver says, finds and raises what SQLAlchemy's own does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError, StatementError

from daemon.errors import Transient
from daemon.store import direct
from daemon.store.db import Database
from daemon.store.tables import settings

MOMENTS = (
    datetime(2026, 11, 2, 10, tzinfo=UTC),
    datetime(2026, 11, 2, 10, 0, 0, 5, tzinfo=UTC),
    datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2))),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2261, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
)
_PUT = insert(settings)
_ALL = select(settings.c.key, settings.c.value, settings.c.updated_at, settings.c.updated_by).order_by(settings.c.key)
_SOME = (
    select(settings.c.key, settings.c.updated_at)
    .where(
        settings.c.key.in_(bindparam("keys", expanding=True)),
        settings.c.updated_by.in_(["a", "b"]),
        settings.c.updated_at >= bindparam("since"),
    )
    .order_by(settings.c.key)
    .limit(bindparam("most"))
)
_COUNTED = select(func.count(), func.max(settings.c.updated_at).label("newest"), func.min(settings.c.key))
_TOUCH = update(settings).where(settings.c.key == bindparam("of")).values(updated_by=bindparam("by"))
_RETURNED = _TOUCH.returning(settings.c.key, settings.c.updated_at)


def _rows(now: datetime) -> list[dict[str, Any]]:
    values: list[Any] = [None, {"a": [1, "ü"]}, "text", False, 3.5]
    return [
        {"key": f"k{n}", "value": value, "updated_at": moment, "updated_by": "ab"[n % 2]}
        for n, (value, moment) in enumerate(zip(values, MOMENTS, strict=True))
    ]


def _plain(rows: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in rows]


def test_what_either_way_writes_and_reads_is_the_same(database: Database, now: datetime) -> None:
    def by_sqlalchemy(c: Connection) -> None:
        c.execute(_PUT, _rows(now))

    def directly(c: Connection) -> None:
        assert direct.change_all(c, _PUT, _rows(now)[:3]) in {3, -1}
        assert direct.change(c, _PUT, _rows(now)[3]) in {1, -1}
        assert direct.change_all(c, _PUT, _rows(now)[4:]) in {1, -1}
        assert direct.change_all(c, _PUT, []) == 0

    found = []
    for write in (by_sqlalchemy, directly):
        database.write_now(write)
        found.append(database.read_now(lambda c: _plain(c.execute(_ALL))))
        found.append(database.read_now(lambda c: _plain(direct.fetch(c, _ALL, {}))))
        if database.is_sqlite:  # to the letter
            found.append(database.read_now(lambda c: _plain(c.exec_driver_sql("SELECT * FROM settings ORDER BY key"))))
        database.write_now(lambda c: c.execute(settings.delete()))
    half = len(found) // 2
    assert found[:half] == found[half:]
    assert found[0] == found[1] == [(r["key"], r["value"], r["updated_at"], r["updated_by"]) for r in _rows(now)]


def test_lists_constants_and_limits_find_the_same(database: Database, now: datetime) -> None:
    database.write_now(lambda c: direct.change_all(c, _PUT, _rows(now)))
    for keys in (["k0"], ["k0", "k2", "k4"], ["k4", "k1"], [], [f"k{n}" for n in range(40)]):
        for most in (1, 10):
            asked = {"keys": keys, "since": MOMENTS[2], "most": most}

            def both(c: Connection, asked: dict[str, Any] = asked) -> tuple[Any, Any]:
                return _plain(c.execute(_SOME, asked)), _plain(direct.fetch(c, _SOME, asked))

            expected, got = database.read_now(both)
            assert got == expected
    counted = database.read_now(lambda c: (_plain(c.execute(_COUNTED)), _plain(direct.fetch(c, _COUNTED, {}))))
    assert counted[0] == counted[1] == [(5, MOMENTS[4], "k0")]


def test_changes_are_counted_and_returned(database: Database, now: datetime) -> None:
    def work(c: Connection) -> None:
        direct.change_all(c, _PUT, _rows(now))
        assert direct.change(c, _TOUCH, {"of": "k1", "by": "z"}) == 1
        assert direct.change(c, _TOUCH, {"of": "nothing", "by": "z"}) == 0
        assert direct.change_all(c, _TOUCH, [{"of": f"k{n}", "by": "y"} for n in (0, 2, 9)]) in {2, -1}
        [row] = direct.fetch(c, _RETURNED, {"of": "k3", "by": "x"})
        assert (row.key, row.updated_at) == ("k3", MOMENTS[3])
        assert direct.fetch_one(c, _RETURNED, {"of": "nothing", "by": "x"}) is None

    database.write_now(work)
    assert [row.updated_by for row in database.read_now(lambda c: direct.fetch(c, _ALL, {}))] == ["y", "z", "y", "x", "a"]


def test_errors_are_sqlalchemys_and_name_no_values(database: Database, now: datetime) -> None:
    database.write_now(lambda c: direct.change(c, _PUT, _rows(now)[0]))
    with pytest.raises(IntegrityError) as caught:
        database.write_now(lambda c: direct.change(c, _PUT, _rows(now)[0]))
    assert caught.value.orig is not None
    with pytest.raises((ValueError, StatementError), match="aware"):
        database.write_now(lambda c: direct.fetch(c, _SOME, {"keys": ["k0"], "since": now.replace(tzinfo=None), "most": 1}))
    assert len(database.read_now(lambda c: direct.fetch(c, _ALL, {}))) == 1


def test_an_error_of_sqlite_shows_no_values(sqlite_database: Database, now: datetime) -> None:
    secret = {**_rows(now)[0], "updated_by": "petra lindner"}
    sqlite_database.write_now(lambda c: direct.change(c, _PUT, secret))
    with pytest.raises(IntegrityError) as caught:
        sqlite_database.write_now(lambda c: direct.change(c, _PUT, secret))
    assert "petra" not in str(caught.value)
    with pytest.raises(Transient, match="incomplete"):
        sqlite_database.read_now(lambda c: direct.say(c, "SAVEPOINT"))


def test_several_looks_see_one_state(sqlite_database: Database, now: datetime) -> None:
    def looks(c: Connection) -> tuple[int, int]:
        before = len(direct.fetch(c, _ALL, {}))
        sqlite_database.write_now(lambda w: direct.change(w, _PUT, _rows(now)[0]))
        return before, len(direct.fetch(c, _ALL, {}))

    assert sqlite_database.read_now(looks) == (0, 0)
    assert len(sqlite_database.read_now(lambda c: direct.fetch(c, _ALL, {}))) == 1


def test_a_statement_is_compiled_once_for_each_length_of_a_list(sqlite_database: Database, now: datetime) -> None:
    def kept(c: Connection) -> tuple[int, int]:
        for keys in (["a"], ["b"], ["a", "b"], ["c", "d"]):
            direct.fetch(c, _SOME, {"keys": keys, "since": now, "most": 1})
        first = len(c.info[direct._KEPT])
        for keys in (["a"], ["b"], ["a", "b"], ["c", "d"]):
            direct.fetch(c, _SOME, {"keys": keys, "since": now, "most": 1})
        return first, len(c.info[direct._KEPT])

    first, again = sqlite_database.read_now(kept)
    assert first == again == 3  # two lengths, and the one that tells of them


def test_a_value_that_is_missing_is_an_error(sqlite_database: Database) -> None:
    with pytest.raises(Exception, match="since"):
        sqlite_database.read_now(lambda c: direct.fetch(c, _SOME, {"keys": ["a"], "most": 1}))
