"""Commands of the operator, as the operator types them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from daemon.edges.credentials import write_private
from daemon.errors import PostsaleError
from daemon.store import backup, folders, ramps
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]


def _run(*words: str, folder: Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon", *words]
    return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    assert _run("init", str(folder), folder=tmp_path).returncode == 0
    (folder / "secrets" / "shop.password").write_text("secret\n")
    return folder


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, typer.testing, daemon.cli as c; r = typer.testing.CliRunner().invoke(c.app, ['--help']); assert r.exit_code == 0;"
        "heavy = {'sqlalchemy', 'pydantic', 'structlog', 'jinja2', 'numpy', 'sklearn', 'imapclient', 'alembic', 'py3langid'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_wrong_word_is_usage_and_a_bad_file_is_configuration(tmp_path: Path) -> None:
    assert _run("statsu", folder=tmp_path).returncode == 2
    assert _run("status", "--frobnicate", folder=tmp_path).returncode == 2
    bad = tmp_path / "config.toml"
    bad.write_text('[service]\nmodee = "live"\nworkers = 0\n')
    done = _run("status", "--config", str(bad), folder=tmp_path)
    assert done.returncode == 78
    assert f"postsale: {bad}: service.modee: is no setting of Postsale (did you mean mode?)" in done.stderr
    assert "service.workers" in done.stderr
    missing = _run("status", "--config", str(tmp_path / "none.toml"), folder=tmp_path)
    assert (missing.returncode, "postsale init DIR" in missing.stderr) == (78, True)


def test_init_writes_all_that_the_configuration_names_and_overwrites_nothing(shop: Path, tmp_path: Path) -> None:
    for name in ("config.toml", "templates/playbook.toml", "models", "orders", "secrets/shop.password"):
        assert (shop / name).exists(), name
    assert (shop / "secrets").stat().st_mode & 0o777 == 0o700
    again = _run("init", str(shop), folder=tmp_path)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


def test_pause_holds_until_resume_over_restarts(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    assert "is stopped" in _run("pause", *config, folder=tmp_path).stdout
    assert "stopped already" in _run("pause", *config, folder=tmp_path).stdout
    status = json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)
    assert set(status["paused"]) == {"shop"}
    assert "PAUSED" in _run("status", *config, folder=tmp_path).stdout
    assert "goes on" in _run("resume", *config, folder=tmp_path).stdout
    assert json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"] == {}
    assert _run("pause", "--mailbox", "nope", *config, folder=tmp_path).returncode == 1


def test_status_tells_what_each_group_may_send_by_itself_today(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    database = Database(f"sqlite:///{shop / 'data' / 'postsale.db'}")
    upgrade(database)
    database.write_now(lambda c: ramps.take(c, "shop", "logistics_question", lambda _days: 20, now=datetime.now(UTC)))
    database.close()
    [told] = json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["ramps"]
    assert (told["group"], told["days"], told["replies"], told["limit"], told["ramp_days"]) == (
        "logistics_question",
        0,
        1,
        20,
        14,
    )
    line = "alone       shop/logistics_question: 1 of 20 replies without a person today, day 1 of 14 growing"
    assert line in _run("status", *config, folder=tmp_path).stdout


def test_status_tells_the_ages_of_a_sign_in(shop: Path, tmp_path: Path) -> None:
    now, day = time.time(), 86400
    password, oauth = 'password_file = "secrets/shop.password"', 'oauth = "microsoft"\noauth_client_id = "c"'
    text = (shop / "config.toml").read_text().replace(password, oauth, 1)
    (shop / "config.toml").write_text(text)
    config = ("--config", str(shop / "config.toml"))
    assert "token       shop: none; run `postsale login shop`" in _run("status", *config, folder=tmp_path).stdout
    tokens = {
        "access_token": "a",
        "refresh_token": "r",
        "expires_at": now + 1200,
        "renew_at": now + 60,
        "signed_in_at": now - 9 * day,
    }
    write_private(
        shop / "data/tokens/shop.json",
        json.dumps({**tokens, "renewed_at": now - 1800, "failing_since": now - 300, "problem": "503"}),
    )
    told = _run("status", *config, folder=tmp_path).stdout
    assert "shop: signed in 9 days ago, renewed 30 min ago, ends in 19 min, to be signed in again in 89 days" in told
    assert "TROUBLE not renewed, first 5 min ago: 503" in told
    assert json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["tokens"]["shop"]["problem"] == "503"


def test_a_backup_made_while_another_process_writes_can_be_restored(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    _run("pause", *config, folder=tmp_path)
    database, archive = shop / "data" / "postsale.db", tmp_path / "backup.tar.gz"
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("BEGIN IMMEDIATE")  # a write in progress neither blocks the copy nor gets into it
        writer.execute("DELETE FROM settings")
        begun = time.monotonic()
        done = _run("backup", str(archive), *config, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - begun < 60
        writer.execute("COMMIT")
    assert archive.stat().st_mode & 0o777 == 0o600
    assert json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"] == {}
    assert _run("restore", str(archive), *config, folder=tmp_path).returncode == 1
    assert _run("restore", str(archive), "--force", *config, folder=tmp_path).returncode == 0
    assert set(json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"]) == {"shop"}


def test_a_damaged_or_foreign_archive_is_refused_and_changes_nothing(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    _run("pause", *config, folder=tmp_path)
    _run("backup", str(tmp_path / "b.tar.gz"), *config, folder=tmp_path)
    (tmp_path / "short.tar.gz").write_bytes((tmp_path / "b.tar.gz").read_bytes()[:-200])
    with tarfile.open(tmp_path / "foreign.tar.gz", "w:gz") as tar:
        tar.add(ROOT / "LICENSE", arcname="LICENSE")
    for name in ("short.tar.gz", "foreign.tar.gz", "b.tar.gz.nowhere"):
        done = _run("restore", str(tmp_path / name), "--force", *config, folder=tmp_path)
        assert done.returncode == 1, name
        assert done.stderr.startswith("postsale: ")
        assert "Traceback" not in done.stderr
    assert set(json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"]) == {"shop"}


def test_a_restore_beside_the_running_service_is_refused(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    assert _run("backup", str(tmp_path / "b.tar.gz"), *config, folder=tmp_path).returncode == 0
    with (shop / "data" / "postsale.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = _run("restore", str(tmp_path / "b.tar.gz"), "--force", *config, folder=tmp_path)
    assert (done.returncode, "stop it first" in done.stderr) == (1, True)
    assert json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"] == {}
    done = _run("restore", str(tmp_path / "b.tar.gz"), "--force", *config, folder=tmp_path)
    assert (done.returncode, "sending is paused" in done.stdout) == (0, True)
    assert set(json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"]) == {"shop"}


@pytest.mark.parametrize("evil", ["../outside", "/tmp/postsale-outside", "tokens/link"])
def test_an_archive_that_reaches_elsewhere_is_refused(shop: Path, tmp_path: Path, evil: str) -> None:
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo(evil)
        if evil.endswith("link"):
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    done = _run("restore", str(tmp_path / "evil.tar.gz"), "--force", "--config", str(shop / "config.toml"), folder=tmp_path)
    assert (done.returncode, "was not written by postsale backup" in done.stderr) == (1, True)
    assert not (tmp_path / "outside").exists()


def test_what_is_stored_can_be_read_by_its_owner_only(shop: Path, tmp_path: Path) -> None:
    """Whatever the umask of the shell is in which the first command was typed."""
    command = ["sh", "-c", f"umask 022; exec {sys.executable} -m daemon status --config {shop / 'config.toml'}"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert {path.name: path.stat().st_mode & 0o077 for path in (shop / "data").iterdir() if path.stat().st_mode & 0o077} == {}


@pytest.fixture
def postgres_shop(shop: Path, postgres_server: PostgresServer) -> Iterator[tuple[Path, PostgresServer, str]]:
    """A shop on a PostgreSQL that asks for a password."""
    name = postgres_server.create_database()
    postgres_server.execute("DROP ROLE IF EXISTS keeper")
    postgres_server.execute("CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'pa:ss\\word canary'")
    postgres_server.require_password("keeper")
    _point(shop, f"postgresql+psycopg://keeper@127.0.0.1:{postgres_server.port}/{name}")
    (shop / "secrets" / "database.password").write_text("pa:ss\\word canary\n")
    (shop / "secrets" / "database.password").chmod(0o600)
    yield shop, postgres_server, name
    postgres_server.drop_database(name)
    postgres_server.execute("DROP ROLE keeper")


def _point(shop: Path, url: str) -> None:
    text = (shop / "config.toml").read_text()
    text = re.sub(r"(?m)^#?database(_password_file)? = .*\n", "", text)
    setting = f'[service]\ndatabase = "{url}"\ndatabase_password_file = "secrets/database.password"\n'
    (shop / "config.toml").write_text(text.replace("[service]\n", setting, 1))


@pytest.mark.postgresql
def test_postgresql_is_backed_up_and_restored_by_its_own_programs(
    postgres_shop: tuple[Path, PostgresServer, str], tmp_path: Path
) -> None:
    shop, server, name = postgres_shop
    config, archive = ("--config", str(shop / "config.toml")), tmp_path / "backup.tar.gz"
    assert _run("pause", *config, folder=tmp_path).returncode == 0
    with psycopg.connect(server.url(name).replace("+psycopg", "")) as writer:
        writer.execute("DELETE FROM settings")  # in progress: neither blocks the copy nor gets into it
        done = _run("backup", str(archive), *config, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    assert archive.stat().st_mode & 0o777 == 0o600
    assert json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"] == {}
    refused = _run("restore", str(archive), *config, folder=tmp_path)
    assert (refused.returncode, "is not empty; --force" in refused.stderr) == (1, True)
    done = _run("restore", str(archive), "--force", *config, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"]) == {"shop"}
    fresh = server.create_database()
    _point(shop, f"postgresql+psycopg://keeper@127.0.0.1:{server.port}/{fresh}")
    assert _run("restore", str(archive), *config, folder=tmp_path).returncode == 0  # into an empty one without --force
    assert set(json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"]) == {"shop"}
    server.drop_database(fresh)


@pytest.mark.postgresql
def test_a_database_in_use_or_of_the_other_kind_is_not_touched(
    postgres_shop: tuple[Path, PostgresServer, str], tmp_path: Path
) -> None:
    shop, server, name = postgres_shop
    config, archive = ("--config", str(shop / "config.toml")), tmp_path / "backup.tar.gz"
    assert _run("pause", *config, folder=tmp_path).returncode == 0
    assert _run("backup", str(archive), *config, folder=tmp_path).returncode == 0
    _run("resume", *config, folder=tmp_path)
    with psycopg.connect(server.url(name).replace("+psycopg", "")):
        done = _run("restore", str(archive), "--force", *config, folder=tmp_path)
    assert (done.returncode, "stop Postsale on every host" in done.stderr) == (1, True)
    assert json.loads(_run("status", "--json", *config, folder=tmp_path).stdout)["paused"] == {}
    (shop / "config.toml").write_text((shop / "config.toml").read_text().replace("\ndatabase", "\n#database"))
    other = _run("restore", str(archive), "--force", *config, folder=tmp_path)
    assert (other.returncode, "of a PostgreSQL database" in other.stderr) == (1, True)


@pytest.mark.postgresql
def test_without_postgresqls_programs_a_backup_says_what_to_install(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres_server.create_database()
    database = Database(postgres_server.url(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PostsaleError, match="pg_dump is not installed; on Debian: apt-get install postgresql-client"):
        backup.copy_database(database, tmp_path / "copy")
    database.close()
    postgres_server.drop_database(name)


def test_the_password_of_the_database_is_on_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "pg_dump"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/arguments; printf "%s" "$PGPASSWORD" >{tmp_path}/secret\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    database = Database("postgresql+psycopg://keeper@db.example/postsale?sslmode=verify-full", password="canary word")
    backup.copy_database(database, tmp_path / "copy")
    database.close()
    arguments = (tmp_path / "arguments").read_text()
    assert "canary" not in arguments
    assert "host=db.example" in arguments
    assert "sslmode=verify-full" in arguments
    assert (tmp_path / "secret").read_text() == "canary word"


def test_erase_asks_first(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    assert _run("erase", "a@b.example", *config, folder=tmp_path, given="no\n").returncode == 1
    done = _run("erase", "a@b.example", "--json", *config, folder=tmp_path, given="yes\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.partition(": ")[2])["cases"] == []


def test_a_slip_is_told_in_words_that_help(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    assert "someone is no mail address" in _run("erase", "someone", "--yes", *config, folder=tmp_path).stderr
    nobody = _run("erase", "a@b.example", "--yes", *config, folder=tmp_path)
    assert nobody.stdout.startswith("Nothing is stored about a@b.example; was it written with another address?")
    assert "there is no file none.tar.gz" in _run("restore", "none.tar.gz", "--force", *config, folder=tmp_path).stderr
    assert "no model was trained in" in _run("models", "rollback", *config, folder=tmp_path).stderr


def test_status_doubts_a_mailbox_that_was_not_read_for_long(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    database = Database(f"sqlite:///{shop / 'data' / 'postsale.db'}")
    upgrade(database)
    for minutes, doubted in ((14, False), (16, True)):
        read_at = datetime.now(UTC) - timedelta(minutes=minutes)
        database.write_now(lambda c, at=read_at: folders.open_folder(c, "shop", "INBOX", uidvalidity=1, newest_uid=1, now=at))  # type: ignore[misc]
        database.write_now(lambda c, at=read_at: folders.succeeded(c, "shop", "INBOX", now=at))  # type: ignore[misc]
        assert ("does the service run?" in _run("status", *config, folder=tmp_path).stdout) is doubted
    database.close()


def test_check_tells_how_old_the_newest_order_report_is(shop: Path, tmp_path: Path) -> None:
    report = shop / "orders" / "shipped.txt"
    report.write_text("order-id\tship-date\ttracking-number\n302-1234567-1234567\t2026-11-02\tJJD000390007881254\n")
    os.utime(report, (1_790_000_000, 1_790_000_000))
    told = _run("check", "--offline", "--config", str(shop / "config.toml"), folder=tmp_path).stdout
    assert "orders 1                 1 reports, the newest of 2026-09-21 14:13 UTC" in told
