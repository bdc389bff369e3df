"""The migrations and the tables build the same schema, on both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from daemon.store.db import Database
from daemon.store.migrate import HEAD, SchemaTooNew, alembic_config, current, upgrade
from daemon.store.tables import metadata
from tests.servers import PostgresServer


def described(connection: Connection) -> dict[str, Any]:
    """Everything of a schema that two ways of building it could differ in."""
    look = inspect(connection)
    return {
        table: {
            "columns": {
                c["name"]: (str(c["type"]), c["nullable"], str(c["default"]), c.get("autoincrement"))
                for c in look.get_columns(table)
            },
            "primary key": look.get_pk_constraint(table),
            "foreign keys": sorted(look.get_foreign_keys(table), key=repr),
            "unique": sorted(look.get_unique_constraints(table), key=repr),
            "indexes": sorted(((i["name"], tuple(i["column_names"]), i["unique"]) for i in look.get_indexes(table)), key=repr),
            "partial": sorted(f"{k}: {v}" for i in look.get_indexes(table) for k, v in i.get("dialect_options", {}).items()),
        }
        for table in look.get_table_names()
        if table != "alembic_version"
    }


@pytest.fixture(params=["sqlite", "postgresql"])
def two_empty(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Database, Database]:
    if request.param == "sqlite":
        return Database(f"sqlite:///{tmp_path}/a.db"), Database(f"sqlite:///{tmp_path}/b.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return Database(server.url(server.create_database())), Database(server.url(server.create_database()))


def test_migrations_build_what_the_tables_say(two_empty: tuple[Database, Database]) -> None:
    migrated, created = two_empty
    assert upgrade(migrated)
    created.write_now(lambda c: metadata.create_all(c))
    assert migrated.read_now(described) == created.read_now(described)
    assert migrated.read_now(lambda c: compare_metadata(MigrationContext.configure(c), metadata)) == []
    for database in two_empty:
        database.close()


def test_upgrading_twice_does_nothing(database: Database) -> None:
    assert not upgrade(database)
    assert database.read_now(current) == HEAD


def test_head_is_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_a_newer_database_is_refused(database: Database) -> None:
    database.write_now(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(SchemaTooNew, match="9999"):
        upgrade(database)
