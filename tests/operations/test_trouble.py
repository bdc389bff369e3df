"""Bad surroundings: each gives one clear line, the service stays or ends as it must, and nothing is lost."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon import config_example
from daemon.demo.servers import HOST, Sandbox
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
ADDRESS = "service@shop.example"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS"),
    pytest.mark.filterwarnings("ignore:Session.login_data is deprecated"),
]


class Service:
    """One real process on a folder of its own."""

    def __init__(self, folder: Path, sandbox: Sandbox, **values: Any) -> None:
        self.folder = folder
        self.log = folder / "service.log"
        if not (folder / "config.toml").exists():
            subprocess.run([sys.executable, "-m", "daemon", "init", str(folder)], cwd=ROOT, check=True, capture_output=True)
        (folder / "secrets" / "shop.password").write_text("secret\n")
        settings = {
            **config_example.SAMPLE,
            "service.workers": 1,
            "mailboxes.address": ADDRESS,
            "mailboxes.imap.host": HOST,
            "mailboxes.imap.port": sandbox.imap_port,
            "mailboxes.imap.tls": "none",
            "mailboxes.imap.poll_seconds": 1,
            "mailboxes.smtp.host": HOST,
            "mailboxes.smtp.port": sandbox.smtp_port,
            "mailboxes.smtp.tls": "none",
            **values,
        }
        (folder / "config.toml").write_text(config_example.text(settings))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "daemon", "run", "--config", str(self.folder / "config.toml")]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def until(self, done: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == event]

    def stop(self) -> float:
        """Seconds that an orderly end took."""
        if self.process is None or self.process.poll() is not None:
            return 0.0
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0
        return time.monotonic() - begun

    def stored(self) -> int:
        path = self.folder / "data" / "postsale.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            return int(database.execute("SELECT count(*) FROM cases").fetchone()[0])


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    servers = Sandbox({ADDRESS: "secret"}, "mx.shop.example")
    servers.start()
    yield servers
    servers.stop()


@pytest.fixture
def service(tmp_path: Path, sandbox: Sandbox) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(**values: Any) -> Service:
        made.append(Service(tmp_path, sandbox, **values))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def _mail(number: int) -> bytes:
    return (
        f"From: Oliver <oliver@postbox.example>\r\nTo: {ADDRESS}\r\nSubject: Order\r\nMessage-ID: <m{number}@postbox.example>\r\n"
        f"Date: Mon, 02 Nov 2026 09:00:00 +0000\r\n\r\nWhere is parcel number {number}? {'Please tell me. ' * 400}\r\n"
    ).encode()


def _only_problem(service: Service) -> str:
    """The text of the trouble, which every line tells the same."""
    service.until(lambda: service.said("mailbox.unreachable"))
    time.sleep(0.3)
    problems = {line["problem"] for line in service.said("mailbox.unreachable")}
    assert len(problems) == 1
    return str(problems.pop())


def test_a_server_that_is_down_at_the_start_is_tried_again(service: Callable[..., Service]) -> None:
    running = service(**{"mailboxes.imap.port": free_port()})
    running.start()
    assert "Connection refused" in _only_problem(running)
    assert running.said("service.ready")
    assert running.stop() < 10


def test_a_wrong_password_leaves_the_account_alone(service: Callable[..., Service]) -> None:
    running = service()
    (running.folder / "secrets" / "shop.password").write_text("wrong-password\n")
    running.start()
    assert "refused" in _only_problem(running)
    assert running.said("mailbox.unreachable")[0]["retry_seconds"] >= 600
    assert "wrong-password" not in running.log.read_text()


def test_a_password_file_that_is_gone_is_said(service: Callable[..., Service]) -> None:
    running = service()
    running.start()
    running.until(lambda: running.said("service.ready"))
    running.stop()
    (running.folder / "secrets" / "shop.password").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "run", "--config", str(running.folder / "config.toml")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "mailboxes.shop.sign_in.password_file: there is no file" in done.stderr


def test_a_certificate_of_another_host_gets_no_password(
    tmp_path: Path, service: Callable[..., Service], sandbox: Sandbox
) -> None:
    if shutil.which("openssl") is None:
        pytest.fail("openssl is needed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=imap.other.example",
         "-addext", "subjectAltName=DNS:imap.other.example", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with closing(_TlsListener(context)) as listener:
        running = service(
            **{
                "mailboxes.imap.host": "localhost",
                "mailboxes.imap.port": listener.port,
                "mailboxes.imap.tls": "implicit",
                "mailboxes.imap.ca_file": str(certificate),
            }
        )
        running.start()
        problem = _only_problem(running)
    assert "certificate" in problem.lower()
    assert listener.heard == b""


def test_a_folder_that_is_missing_is_named(service: Callable[..., Service]) -> None:
    running = service(**{"mailboxes.imap.folder": "Kundenpost"})
    running.start()
    assert "Kundenpost" in _only_problem(running)


def test_a_full_disk_loses_nothing_and_is_got_over(service: Callable[..., Service], sandbox: Sandbox) -> None:
    """The process may write no file beyond a size, as on a full disk; then it may again."""
    running = service()
    running.start()
    running.until(lambda: running.said("folder.baseline"))
    assert running.process is not None
    room = max(p.stat().st_size for p in (running.folder / "data").glob("postsale.db*"))
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (room + 20_000, resource.RLIM_INFINITY))
    for number in range(40):
        sandbox.deliver(ADDRESS, _mail(number))
    running.until(lambda: any("disk" in str(line.get("problem", "")).lower() for line in running.lines()))
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    running.until(lambda: running.stored() == 40, seconds=90)
    with closing(sqlite3.connect(running.folder / "data" / "postsale.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert database.execute("SELECT count(DISTINCT message_id) FROM cases").fetchone()[0] == 40


class _TlsListener:
    """Shakes hands with a certificate, and keeps what it hears after that."""

    def __init__(self, context: ssl.SSLContext) -> None:
        import socket
        import threading

        self._socket = socket.create_server((HOST, 0))
        self._context = context
        self.port: int = self._socket.getsockname()[1]
        self.heard = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(line, server_side=True) as secured:
                    secured.sendall(b"* OK ready\r\n")
                    self.heard += secured.recv(1000)
            except OSError:
                continue

    def close(self) -> None:
        self._socket.close()
