"""The whole service as its own process, against real Dovecot and Postfix, over verified TLS.

A buyer's mail comes in by LMTP; the request reaches the approver's mailbox; the approver's OK comes back through
plus-addressing; the reply leaves through Postfix for the marketplace's relay, once.
"""

from __future__ import annotations

import email
import os
import re
import signal
import smtplib
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.servers import MailServers, User

pytestmark = pytest.mark.mailservers

RELAY = "k7j2m9x4q1w8+5f1e2a@marketplace.amazon.co.uk"
ORDER = "204-4820193-7756102"
ROOT = Path(__file__).parents[2]


class Marketplace:
    """The marketplace's relay host: keeps what it was given."""

    def __init__(self) -> None:
        self.got: list[tuple[list[str], EmailMessage]] = []
        self._arrived = threading.Condition()

    async def handle_DATA(  # noqa: N802 - the name is the library's
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        with self._arrived:
            self.got.append((envelope.rcpt_tos, email.message_from_bytes(content, policy=default)))
            self._arrived.notify_all()
        return "250 kept"

    def wait_for(self, count: int, seconds: float = 90) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.got) >= count, seconds), f"{len(self.got)} of {count} replies came"


@pytest.fixture
def marketplace(mail_servers: MailServers) -> Iterator[Marketplace]:
    kept = Marketplace()
    controller = Controller(kept, hostname="127.0.0.1", port=mail_servers.outside_port)
    controller.start()
    yield kept
    controller.stop()


class Service:
    """`postsale run` as a process, with its log."""

    def __init__(self, config: Path) -> None:
        self.log_file = config.parent / "log"
        self._log = self.log_file.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run", "--config", str(config)],
            cwd=ROOT,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self._log.close()
        return code


ServiceMaker = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path, mail_servers: MailServers) -> Iterator[ServiceMaker]:
    started: list[Service] = []

    def make(shop: User, boss: User) -> Service:
        config = tmp_path / "config.toml"
        config.write_text(configure(tmp_path, mail_servers, shop, boss))
        started.append(Service(config))
        return started[-1]

    yield make
    for service in started:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def configure(folder: Path, servers: MailServers, shop: User, boss: User) -> str:
    """A configuration for these two mailboxes, with the files that it names."""
    (folder / "password").write_text(shop.password + "\n")
    (folder / "password").chmod(0o600)
    reports = folder / "reports"
    reports.mkdir(exist_ok=True)
    (reports / "fba.txt").write_text(
        "amazon-order-id\tshipment-id\tpurchase-date\tshipment-date\tsku\tproduct-name\tquantity-shipped\tcurrency\titem-price\t"
        "carrier\ttracking-number\testimated-arrival-date\tfulfillment-channel\tsales-channel\n"
        f"{ORDER}\tS1\t2026-10-20T10:00:00+00:00\t2026-10-29T10:00:00+00:00\tLAMP-1\tGarden lamp\t1\tGBP\t24.90\t"
        "Royal Mail\tRM123456789GB\t2026-11-05T10:00:00+00:00\tMFN\tamazon.co.uk\n"
    )
    old = (reports / "fba.txt").stat().st_mtime - 120
    os.utime(reports / "fba.txt", (old, old))
    return f"""
[service]
mode = "live"
data_dir = "data"
workers = 1
log_format = "console"

[[mailboxes]]
name = "lamps"
address = "{shop.address}"
display_name = "Lamp Shop"
[mailboxes.imap]
host = "localhost"
port = {servers.imaps_port}
ca_file = "{servers.ca_file}"
poll_seconds = 2
[mailboxes.smtp]
host = "localhost"
port = {servers.smtps_port}
ca_file = "{servers.ca_file}"
[mailboxes.sign_in]
password_file = "password"
[mailboxes.approval]
approvers = ["boss"]
staff_auth = ["dmarc"]
authserv_id = "mx.example.test"
undo_seconds = 1

[[approvers]]
name = "boss"
address = "{boss.address}"
language = "en"
work_days = [1, 2, 3, 4, 5, 6, 7]

[orders]
defer_minutes = 1
stale_after_hours = 1000000
[[orders.sources]]
kind = "folder"
path = "reports"
"""


def buyer_mail(number: int, text: str) -> bytes:
    return (
        "Authentication-Results: mx.example.test; dkim=pass header.d=amazon.co.uk;\r\n"
        " dmarc=pass header.from=marketplace.amazon.co.uk\r\n"
        f"From: Petra Lindner - Amazon Marketplace <{RELAY}>\r\nTo: shop@example.test\r\n"
        f"Subject: Order delivery inquiry from Amazon customer Petra Lindner (Order: {ORDER})\r\n"
        f"Message-ID: <m{number}@email.amazon.co.uk>\r\nDate: {email.utils.formatdate(usegmt=True)}\r\n"
        "X-Space-Notification-Type: BBC_MESSAGE_SENT_TO_MERCHANT\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n\r\n"
        f"You have received a message.\r\n\r\n# {ORDER}:\r\n1 / Garden lamp [ASIN: B0ABCDEFGH]\r\n\r\n"
        f"------------- Message:  -------------\r\n{text}\r\n------------- End message -------------\r\n"
    ).encode()


def _read(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=default)
    assert isinstance(message, EmailMessage)
    return message


def _answer(servers: MailServers, boss: User, request: EmailMessage, text: str, *, proved: bool = True) -> None:
    """The approver's mail client answers a request, through the company's own server."""
    reply = EmailMessage()
    if proved:
        reply["Authentication-Results"] = "mx.example.test; dmarc=pass header.from=example.test"
    reply["From"], reply["To"] = boss.address, str(request["Reply-To"])
    reply["Subject"] = f"Re: {request['Subject']}"
    reply["Message-ID"] = f"<{os.urandom(8).hex()}@example.test>"
    reply["In-Reply-To"] = str(request["Message-ID"])
    reply["Date"] = email.utils.formatdate(usegmt=True)
    body = request.get_body(("plain",))
    assert body is not None
    reply.set_content(
        f"{text}\n\nOn Monday, Postsale wrote:\n" + "\n".join(f"> {line}" for line in body.get_content().splitlines())
    )
    context = ssl.create_default_context(cafile=str(servers.ca_file))
    with smtplib.SMTP_SSL("localhost", servers.smtps_port, context=context) as smtp:
        smtp.login(boss.address, boss.password)
        smtp.send_message(reply)


def wait_for_line(service: Service, words: str, seconds: float = 90) -> None:
    """Return once the log has a line with these words."""
    deadline = time.monotonic() + seconds
    while words not in service.log_file.read_text():
        assert service.process.poll() is None, service.log_file.read_text()
        assert time.monotonic() < deadline, service.log_file.read_text()
        threading.Event().wait(0.05)


def wait_for_first_contact(service: Service) -> None:
    """Mail that is there before the first look is never answered; wait until that look has been had."""
    wait_for_line(service, "folder.baseline")


def test_a_buyer_is_answered_after_the_approvers_ok(
    mail_servers: MailServers, marketplace: Marketplace, start: ServiceMaker
) -> None:
    shop, boss = mail_servers.add_user(), mail_servers.add_user()
    mail_servers.deliver(shop, buyer_mail(1, "Old mail from before Postsale: where is my parcel?"), sender=RELAY)
    service = start(shop, boss)
    wait_for_first_contact(service)

    mail_servers.deliver(shop, buyer_mail(2, "Hello, where is my parcel? The tracking has not moved for days."), sender=RELAY)
    [raw] = mail_servers.wait_for_mails(boss, 1, seconds=90)
    request = _read(raw)
    token = re.search(r"\+ok-([a-z2-7]{26})@", str(request["Reply-To"]))
    assert token
    assert token[1] not in str(request["Subject"])
    assert "RM123456789GB" in raw.decode("utf-8", "replace") or "RM123456789GB" in str(
        request.get_body(("plain",)).get_content()
    )
    assert marketplace.got == []

    _answer(mail_servers, boss, request, "OK")
    marketplace.wait_for(1, 90)
    recipients, reply = marketplace.got[0]
    assert recipients == [RELAY]
    assert reply["In-Reply-To"] == "<m2@email.amazon.co.uk>"
    assert reply["Auto-Submitted"] is None, "a person approved it"
    text = reply.get_content()
    assert "RM123456789GB" in text
    assert token[1] not in reply.as_string()

    _answer(mail_servers, boss, request, "OK")  # the same word again changes nothing
    answers = mail_servers.wait_for_mails(boss, 3, seconds=30)
    assert len(answers) >= 3
    assert service.stop() == 0
    assert len(marketplace.got) == 1
    log = service.log_file.read_text()
    assert "Petra" not in log
    assert RELAY not in log
    assert token[1] not in log


def test_an_unproved_ok_changes_nothing(mail_servers: MailServers, marketplace: Marketplace, start: ServiceMaker) -> None:
    shop, boss = mail_servers.add_user(), mail_servers.add_user()
    service = start(shop, boss)
    wait_for_first_contact(service)
    mail_servers.deliver(shop, buyer_mail(5, "Where is my parcel? Tracking shows nothing new since Friday."), sender=RELAY)
    request = _read(mail_servers.wait_for_mails(boss, 1, seconds=90)[0])
    _answer(mail_servers, boss, request, "OK", proved=False)
    _answer(mail_servers, boss, request, "NO already solved")
    answer = _read(mail_servers.wait_for_mails(boss, 2, seconds=90)[1])
    assert answer["Auto-Submitted"]
    assert service.stop() == 0
    assert marketplace.got == []


def test_kill_and_start_again_answers_once(mail_servers: MailServers, marketplace: Marketplace, start: ServiceMaker) -> None:
    shop, boss = mail_servers.add_user(), mail_servers.add_user()
    service = start(shop, boss)
    wait_for_first_contact(service)
    mail_servers.deliver(shop, buyer_mail(7, "Where is my parcel? I have been waiting for a week."), sender=RELAY)
    request = _read(mail_servers.wait_for_mails(boss, 1, seconds=90)[0])
    service.process.kill()
    service.process.wait()
    _answer(mail_servers, boss, request, "OK")
    second = start(shop, boss)
    marketplace.wait_for(1, 90)
    assert second.stop() == 0
    assert len(marketplace.got) == 1
    assert len(mail_servers.mails(boss)) == 2, "one request, one answer"


def test_a_second_service_on_the_same_folder_refuses(mail_servers: MailServers, start: ServiceMaker) -> None:
    shop, boss = mail_servers.add_user(), mail_servers.add_user()
    first = start(shop, boss)
    wait_for_first_contact(first)
    second = subprocess.run(
        [sys.executable, "-m", "daemon", "run", "--config", str(first.log_file.parent / "config.toml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert "another Postsale is running" in second.stderr
    assert first.stop() == 0


def test_mail_that_came_while_the_server_was_away_is_taken_in_afterwards(
    mail_servers: MailServers, start: ServiceMaker
) -> None:
    shop, boss = mail_servers.add_user(), mail_servers.add_user()
    service = start(shop, boss)
    wait_for_first_contact(service)
    mail_servers.stop_dovecot()
    try:
        wait_for_line(service, "mailbox.unreachable")
    finally:
        mail_servers.start_dovecot()
    mail_servers.deliver(shop, buyer_mail(31, "Where is my parcel? Nothing has moved for a week."))
    mail_servers.wait_for_mails(boss, 1, seconds=90)
    assert service.stop() == 0
