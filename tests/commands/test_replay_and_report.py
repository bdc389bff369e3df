"""History told without touching it, and the figures for the business."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from imapclient import IMAPClient
from sqlalchemy import Connection, insert

from daemon import config_example
from daemon.demo import morning
from daemon.demo.servers import HOST, Sandbox
from daemon.store import reports
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.store.tables import drafts, outbox
from daemon.vocab import CaseState
from tests.approval import seeds
from tests.conftest import NOW

ROOT = Path(__file__).parents[2]
#: aiosmtpd warns of what the sandbox is: a server on loopback, without encryption.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS"),
    pytest.mark.filterwarnings("ignore:Session.login_data is deprecated"),
]
ADDRESS = "service@lumen-loom.example"


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    servers = Sandbox({ADDRESS: "secret"}, "mx.lumen-loom.example")
    servers.start()
    for letter in morning.load(datetime.now(UTC)).letters[:12]:
        servers.deliver(ADDRESS, letter.raw)
    yield servers
    servers.stop()


@pytest.fixture
def shop(tmp_path: Path, sandbox: Sandbox) -> Path:
    folder = tmp_path / "shop"
    assert _run("init", str(folder)).returncode == 0
    values = {
        **config_example.SAMPLE,
        "mailboxes.address": ADDRESS,
        "mailboxes.imap.host": HOST,
        "mailboxes.imap.port": sandbox.imap_port,
        "mailboxes.imap.tls": "none",
        "mailboxes.smtp.host": HOST,
        "mailboxes.smtp.port": sandbox.smtp_port,
        "mailboxes.smtp.tls": "none",
    }
    (folder / "config.toml").write_text(config_example.text(values))
    (folder / "secrets" / "shop.password").write_text("secret\n")
    return folder / "config.toml"


def _mailbox(sandbox: Sandbox) -> list[Any]:
    with IMAPClient(HOST, port=sandbox.imap_port, ssl=False) as client:
        client.login(ADDRESS, "secret")
        client.select_folder("INBOX", readonly=True)
        return sorted(client.fetch(client.search("ALL"), ["FLAGS", "RFC822.SIZE"]).items())


def test_check_pings_every_server_and_says_what_is_wrong(shop: Path, sandbox: Sandbox) -> None:
    done = _run("check", "--json", "--config", str(shop))
    lines = {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"shop imap", "shop smtp", "orders 1", "shop approval"} <= set(lines)
    (shop.parent / "secrets" / "shop.password").write_text("wrong\n")
    done = _run("check", "--json", "--config", str(shop))
    lines = {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert (lines["shop imap"]["ok"], lines["shop smtp"]["ok"], lines["database"]["ok"]) == (False, False, True)
    assert "wrong" not in done.stdout.replace("wrong password", "")


def test_history_is_told_and_not_touched(shop: Path, sandbox: Sandbox) -> None:
    before = _mailbox(sandbox)
    done = _run("replay", "--since", "2d", "--json", "--config", str(shop))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 12
    assert all(record["decision"]["mode"] in {"send", "ask", "human", "none"} for record in records)
    assert _mailbox(sandbox) == before
    assert sandbox.departed == []
    told = _run("replay", "--since", "2d", "--limit", "5", "--config", str(shop)).stdout
    assert "shop: 5 messages of the last 2 days" in told
    assert "by policy" in told
    assert "by label" in told
    assert not (shop.parent / "data" / "postsale.db").exists()


def test_a_span_that_is_none_is_refused(shop: Path) -> None:
    done = _run("replay", "--since", "soon", "--config", str(shop))
    assert (done.returncode, "write 30d or 12h" in done.stderr) == (1, True)


# --------------------------------------------------------------------------- the business


def _answered(
    connection: Connection, number: int, *, label: str, sku: str, hours: float, automatic: bool, author: str = "postsale"
) -> None:
    at = NOW - timedelta(days=1)
    outcome = {"facts": {"items": [{"sku": sku, "title": "x"}]}}
    case_id = seeds.add_case(
        connection, now=at, uid=number, label=label, sublabel=None, state=CaseState.SENT, outcome=outcome, revision=1
    )
    common: dict[str, Any] = {
        "case_id": case_id,
        "revision": 1,
        "recipient": "b@x.example",
        "mime": b"",
        "mime_sha256": "0" * 64,
    }
    connection.execute(
        insert(drafts).values(
            **common,
            state="approved",
            subject="",
            body="",
            language="en",
            author=author,
            message_id=f"<{number}@x>",
            created_at=at,
        )
    )
    connection.execute(
        insert(outbox).values(
            **common, kind="buyer_reply", mailbox="shop", envelope_from="s@x.example", message_id=f"<{number}@x>",
            dedupe_key=str(number), state="sent", not_before=at, created_at=at, automatic=automatic,
            updated_at=at + timedelta(hours=hours),
        )
    )  # fmt: skip


def _week(connection: Connection) -> None:
    for number in range(8):
        _answered(connection, number, label="return_request", sku="VAS-1", hours=2, automatic=number < 6)
    for number in range(8, 10):
        _answered(connection, number, label="complaint", sku="=cmd()", hours=30, automatic=False, author="li")


def test_figures_hide_small_groups(database: Database) -> None:
    database.write_now(_week)
    summary = database.read_now(lambda c: reports.business(c, since=NOW - timedelta(days=7), until=NOW))
    assert summary.messages == 10
    assert summary.reasons["VAS-1"] == {"return_request": 8}
    text = "\n".join(reports.business_lines(summary))
    assert "return_request: 8" in text
    assert "complaint: <5" in text
    assert "80% within 24 hours" in text
    assert summary.answered == {"automatic": 6, "approved": 2, "edited": 2}


def test_the_report_is_written_as_html_and_csv(tmp_path: Path, shop: Path) -> None:
    data = shop.parent / "data"
    data.mkdir(exist_ok=True)
    database = Database(f"sqlite:///{data / 'postsale.db'}")
    upgrade(database)
    database.write_now(_week)
    database.close()
    days = (datetime.now(UTC) - NOW).days + 10
    out = tmp_path / "report"
    done = _run("report", "--out", str(out), "--days", str(days), "--config", str(shop))
    assert done.returncode == 0, done.stderr
    rows = list(csv.reader((out / "report.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert ["VAS-1", "return_request", "8"] in [row[2:] for row in rows]
    assert ["'=cmd()", "complaint", "<5"] in [row[2:] for row in rows]  # no spreadsheet runs a SKU
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    shown = json.loads(_run("report", "--json", "--days", str(days), "--config", str(shop)).stdout)
    assert shown["reasons"]["VAS-1"] == {"return_request": "8"}
