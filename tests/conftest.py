"""Fixtures that every room shares: real mail servers, databases of both kinds, a clock that stands still.

A server that is not installed leaves its tests out, and says so; with CI=true that is a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.clock import FixedClock
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from tests.servers import MailServers, NotInstalled, PostgresServer, User

#: The moment at which tests happen unless they say otherwise: a Monday.
NOW = datetime(2026, 11, 2, 10, 0, tzinfo=UTC)


def left_out(error: NotInstalled) -> None:
    """Leave a test out for want of a server, loudly; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{error}; CI leaves no test out")
    pytest.skip(f"{error}; this test needs it")


@pytest.fixture(scope="session")
def mail_servers() -> Iterator[MailServers]:
    """Dovecot and Postfix, started once per session."""
    try:
        servers = MailServers()
    except NotInstalled as error:
        left_out(error)
        raise
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def mail_user(mail_servers: MailServers) -> User:
    """A mailbox of this test's own."""
    return mail_servers.add_user()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL cluster, started once per session; the database ``ready`` holds the schema."""
    try:
        server = PostgresServer()
    except NotInstalled as error:
        left_out(error)
        raise
    try:
        server.start()
        server.execute("CREATE DATABASE ready")
        database = Database(server.url("ready"))
        upgrade(database)
        database.close()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.close()
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the schema and nothing in it; the test runs once on each kind."""
    if request.param == "sqlite":
        path = tmp_path / "postsale.db"
        shutil.copyfile(request.getfixturevalue("_sqlite_template"), path)
        yield f"sqlite:///{path}"
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        name = server.create_database(template="ready")
        yield server.url(name)
        server.drop_database(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open Database on database_url."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def sqlite_database(tmp_path: Path, _sqlite_template: Path) -> Iterator[Database]:
    """An open Database on SQLite alone, for tests that are not about the store."""
    path = tmp_path / "postsale.db"
    shutil.copyfile(_sqlite_template, path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def now() -> datetime:
    """NOW, as a fixture."""
    return NOW


@pytest.fixture
def clock() -> FixedClock:
    """A clock that stands at NOW until the test moves it."""
    return FixedClock(NOW)


@pytest.fixture
def connect(database_url: str) -> Iterator[Callable[[], Database]]:
    """Open further Databases on the same store, as other processes would."""
    opened: list[Database] = []

    def another() -> Database:
        opened.append(Database(database_url))
        return opened[-1]

    yield another
    for one in opened:
        one.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """CI leaves no test out: a skipped one is told, and makes the run fail."""
    if os.environ.get("CI") == "true" and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("CI leaves no test out, but some were skipped", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
