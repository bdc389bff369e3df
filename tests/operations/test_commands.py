"""Commands of the operator, as the operator types them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path

import pytest

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
        "heavy = {'sqlalchemy', 'pydantic', 'structlog', 'jinja2', 'numpy', 'sklearn', 'imapclient', 'alembic', 'lingua'};"
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


def test_erase_asks_first(shop: Path, tmp_path: Path) -> None:
    config = ("--config", str(shop / "config.toml"))
    assert _run("erase", "a@b.example", *config, folder=tmp_path, given="no\n").returncode == 1
    done = _run("erase", "a@b.example", "--json", *config, folder=tmp_path, given="yes\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.partition(": ")[2])["cases"] == []
