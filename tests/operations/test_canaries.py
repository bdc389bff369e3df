"""Twenty planted secrets, and the real service at its most talkative: none turns up where it must not."""

from __future__ import annotations

import json
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from email import message_from_bytes
from pathlib import Path

import pytest

from daemon import config_example
from daemon.demo.servers import HOST, Sandbox
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
ADDRESS, SENDER, STAFF = "service@lumen-loom.example", "outgoing@lumen-loom.example", "staff@lumen-loom.example"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS"),
    pytest.mark.filterwarnings("ignore:Session.login_data is deprecated"),
]
#: Secrets of the operator: never in a log, a mail or the database.
SECRETS = (
    "imap-password", "smtp-password", "order-header", "sql-password", "client-secret", "access-token", "refresh-token", "signing-key",
    "service-key",
)  # fmt: skip
#: What a buyer may write: stored and shown to staff, but never in a log.
PRIVATE = (
    "4111111111111111", "DE89370400440532013000", "+353861234567", "Rosenweg-17", "buyer.canary@postbox.example", "Siobhan",
    "insulin", "LMN-canary-subject", "canary-attachment.pdf", "canary-order-note", "canary-from-html",
)  # fmt: skip
MAIL = f"""\
Return-Path: <{PRIVATE[4]}>
Authentication-Results: mx.lumen-loom.example; dmarc=pass header.from=postbox.example
From: {PRIVATE[5]} Byrne <{PRIVATE[4]}>
To: {ADDRESS}
Subject: Where is it? {PRIVATE[7]}
Message-ID: <canary-one@mail.postbox.example>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="b"

--b
Content-Type: text/plain; charset=utf-8

Where is my parcel #20418? {PRIVATE[9]}. My card is {PRIVATE[0]}, IBAN {PRIVATE[1]}, phone {PRIVATE[2]}, I live at {PRIVATE[3]} and
the parcel holds {PRIVATE[6]}.
--b
Content-Type: text/html; charset=utf-8

<p>{PRIVATE[10]}</p>
--b
Content-Type: application/pdf; name="{PRIVATE[8]}"
Content-Disposition: attachment; filename="{PRIVATE[8]}"

x
--b--
""".replace("\n", "\r\n").encode()
BROKEN = b"From: <<" + PRIVATE[4].encode() + b">>\r\nDate: \xff\xfe\r\n\r\n\x00" + PRIVATE[0].encode() + b"\r\n"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str, str, str]:
    """(secrets, log, mails, database dump) after the service has worked."""
    folder = tmp_path_factory.mktemp("canary")
    hidden = {name: f"canary-{name}-{secrets.token_hex(6)}" for name in SECRETS}
    hidden["service-key"] = secrets.token_hex(32)
    mails: list[bytes] = []
    sandbox = Sandbox(
        {ADDRESS: hidden["imap-password"], SENDER: hidden["smtp-password"], STAFF: "x"},
        "mx.lumen-loom.example",
        on_delivery=lambda address, raw: mails.append(raw) if address == STAFF else None,
    )
    sandbox.start()
    config = _write(folder, sandbox, hidden)
    log = folder / "service.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "daemon", "run", "--config", str(config)]
        service = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        try:
            _until(lambda: b"service.ready" in log.read_bytes() and _count(folder, "folders") == 1)
            for raw in (
                MAIL,
                BROKEN,
                MAIL.replace(b"canary-one", b"canary-two").replace(b"Where is my", b"I want to return my"),
            ):
                sandbox.deliver(ADDRESS, raw)
            _until(lambda: _count(folder, "cases", "state NOT IN ('received')") == 3 and len(mails) >= 1)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(timeout=30)
    text = "\n".join(_readable(raw) for raw in [*mails, *(d.raw for d in sandbox.departed)])
    with closing(sqlite3.connect(folder / "data" / "postsale.db")) as database:
        blobs = [
            row[0]
            for table in ("body FROM raw_mail", "mime FROM drafts", "mime FROM outbox")
            for row in database.execute(f"SELECT {table}")
        ]
        dump = "\n".join([*database.iterdump(), *(_readable(blob) for blob in blobs if blob)])
    sandbox.stop()
    return hidden, log.read_text(encoding="utf-8", errors="replace"), text, dump


def _readable(raw: bytes) -> str:
    """A mail as its bytes stand, and every text part decoded."""
    parts = [part.get_payload(decode=True) for part in message_from_bytes(raw).walk() if not part.is_multipart()]
    return "\n".join(part.decode("utf-8", "replace") for part in [raw, *(p for p in parts if isinstance(p, bytes))])


def _write(folder: Path, sandbox: Sandbox, hidden: dict[str, str]) -> Path:
    subprocess.run([sys.executable, "-m", "daemon", "init", str(folder)], cwd=ROOT, check=True, capture_output=True)
    for name, value in hidden.items():
        path = folder / "secrets" / name
        path.write_text(("Authorization: Bearer " if name == "order-header" else "") + value + "\n")
        path.chmod(0o600)
    tokens = folder / "data" / "tokens"
    tokens.mkdir(parents=True)
    content = {
        "access_token": hidden["access-token"],
        "refresh_token": hidden["refresh-token"],
        "expires_at": 9e9,
        "renew_at": 9e9,
    }
    (tokens / "second.json").write_text(json.dumps(content))
    (folder / "data" / "service.key").write_text(hidden["service-key"] + "\n")
    dead = free_port()
    values = {
        **config_example.SAMPLE,
        "service.mode": "live",
        "service.log_level": "debug",
        "mailboxes.address": ADDRESS,
        "mailboxes.imap.host": HOST,
        "mailboxes.imap.port": sandbox.imap_port,
        "mailboxes.imap.tls": "none",
        "mailboxes.imap.poll_seconds": 1,
        "mailboxes.smtp.host": HOST,
        "mailboxes.smtp.port": sandbox.smtp_port,
        "mailboxes.smtp.tls": "none",
        "mailboxes.sign_in.password_file": "secrets/imap-password",
        "mailboxes.approval.authserv_id": "mx.lumen-loom.example",
        "approvers.address": STAFF,
        "orders.defer_minutes": 0,
        "orders.sources": [
            {"kind": "http", "url": f"http://127.0.0.1:{dead}/{{order_id}}", "header_file": "secrets/order-header"},
            {
                "kind": "sql",
                "url": f"postgresql+psycopg://reader@127.0.0.1:{dead}/shop",
                "query": "SELECT :order_id AS order_id",
                "password_file": "secrets/sql-password",
            },
        ],
        "classifier.signing_key_file": "secrets/signing-key",
    }
    text = config_example.text(values)
    text = text.replace(
        "#[mailboxes.smtp_sign_in]", f'[mailboxes.smtp_sign_in]\nusername = "{SENDER}"\npassword_file = "secrets/smtp-password"'
    )
    text += f"""
[[mailboxes]]
name = "second"
address = "second@lumen-loom.example"
[mailboxes.imap]
host = "127.0.0.1"
port = {dead}
tls = "none"
[mailboxes.smtp]
host = "127.0.0.1"
port = {dead}
tls = "none"
[mailboxes.sign_in]
oauth = "microsoft"
oauth_client_id = "client"
oauth_client_secret_file = "secrets/client-secret"
"""
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def _count(folder: Path, table: str, where: str = "1=1") -> int:
    path = folder / "data" / "postsale.db"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as database:
        try:
            return int(database.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def _until(done: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError("the service did not get there")
        time.sleep(0.05)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_in_no_log_no_mail_and_not_in_the_database(
    planted: tuple[dict[str, str], str, str, str], name: str
) -> None:
    hidden, log, mails, dump = planted
    assert hidden[name] not in log
    assert hidden[name] not in mails
    assert hidden[name] not in dump


@pytest.mark.parametrize("words", PRIVATE)
def test_what_a_buyer_wrote_is_in_no_log(planted: tuple[dict[str, str], str, str, str], words: str) -> None:
    assert words not in planted[1]


def test_the_search_finds_what_is_there(planted: tuple[dict[str, str], str, str, str]) -> None:
    """The control: what must be stored and shown is found by the same means."""
    _, log, mails, dump = planted
    assert "service.ready" in log
    assert "mailbox.unreachable" in log
    assert PRIVATE[5] in dump
    assert mails
