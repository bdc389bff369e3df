"""Requests and replies through real Postfix and Dovecot, staff proved by real DKIM signatures."""

from __future__ import annotations

import base64
import email
import smtplib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import compat32, default
from pathlib import Path

import dkim
import pytest
from sqlalchemy import select

from daemon.clock import FixedClock
from daemon.config import ApprovalConfig, ApproverConfig, Config, MailboxConfig, StaffAuth
from daemon.store.db import Database
from daemon.store.tables import outbox
from daemon.vocab import CaseState
from tests.approval import clients, seeds
from tests.approval.office import AUTHSERV, Office, reply, staff_reply_to
from tests.servers import MailServers

SIGNED = [b"from", b"to", b"subject", b"date", b"message-id", b"in-reply-to", b"references"]


@dataclass(frozen=True)
class Signer:
    """A domain with a DKIM key."""

    domain: str
    private: bytes
    public: str

    def __call__(self, raw: bytes, *, length: bool = False) -> bytes:
        line: bytes = dkim.sign(
            raw,
            b"s1",
            self.domain.encode(),
            self.private,
            include_headers=SIGNED,
            length=length,
            canonicalize=(b"relaxed", b"relaxed"),
        )
        return line + raw


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Signer]:
    folder: Path = tmp_path_factory.mktemp("dkim")

    def make(domain: str) -> Signer:
        key = folder / f"{domain}.pem"
        if not key.exists():
            subprocess.run(["openssl", "genrsa", "-traditional", "-out", str(key), "2048"], check=True, capture_output=True)
        public = subprocess.run(
            ["openssl", "rsa", "-in", str(key), "-pubout", "-outform", "DER"], check=True, capture_output=True
        ).stdout
        return Signer(domain, key.read_bytes(), base64.b64encode(public).decode())

    return make


def seven_bit(raw: bytes) -> bytes:
    """The same mail with its texts in base64, as signing servers send it on: no server on the way may touch it."""
    mail = email.message_from_bytes(raw)
    for part in mail.walk():
        if not part.is_multipart():
            text = part.get_payload(decode=True)
            assert isinstance(text, bytes)
            del part["Content-Transfer-Encoding"]
            part["Content-Transfer-Encoding"] = "base64"
            part.set_payload(base64.encodebytes(text).decode())
    return mail.as_bytes(policy=compat32.clone(linesep="\r\n", max_line_length=None))


class World:
    """An office whose mail goes through the real servers."""

    def __init__(self, servers: MailServers, database: Database, clock: FixedClock, sign: Callable[[str], Signer]) -> None:
        self.servers = servers
        self.shop, self.anna = servers.add_user(), servers.add_user()
        self.own, self.foreign = sign("example.test"), sign("evil.example")
        approval = ApprovalConfig(approvers=("anna",), staff_auth=(StaffAuth.DKIM, StaffAuth.DMARC), authserv_id=AUTHSERV)
        config = Config(
            mailboxes=(MailboxConfig(name=seeds.MAILBOX, address=self.shop.address, shop_name="Vasenhaus", approval=approval),),
            approvers=(ApproverConfig(name="anna", address=self.anna.address),),
        )
        keys = {s.domain: f"v=DKIM1; k=rsa; p={s.public}".encode() for s in (self.own, self.foreign)}
        self.office = Office(
            database, clock, config, dkim_lookup=lambda name: keys.get(name.decode().split("._domainkey.")[1].rstrip("."))
        )
        self._sent = 0
        self._posted = 0

    def post(self, raw: bytes, to: str, sender: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.servers.smtp_port) as smtp:
            smtp.sendmail(sender, [to], raw)

    async def ask(self) -> tuple[int, EmailMessage]:
        """A draft, and the request about it as it lies in the approver's mailbox."""
        case_id = await self.office.draft_waits()
        await self.office.upkeep.ask(self.office.clock.now())
        query = select(outbox.c.mime, outbox.c.recipient, outbox.c.envelope_from).where(outbox.c.case_id == case_id)
        for row in await self.office.database.read(lambda c: c.execute(query).all()):
            self.post(row.mime, row.recipient, row.envelope_from)
            self._posted += 1
        arrived = self.servers.wait_for_mails(self.anna, self._posted)[-1]
        notice = email.message_from_bytes(arrived, policy=default)
        assert isinstance(notice, EmailMessage)
        return case_id, notice

    async def answer(self, raw: bytes, notice: EmailMessage, *, sender: str = "") -> None:
        """The reply travels to the shop's mailbox, is fetched there and carried out."""
        self.post(raw, staff_reply_to(notice), sender or self.anna.address)
        self._sent += 1
        fetched = self.servers.wait_for_mails(self.shop, self._sent)[-1]
        await self.office.arrive(fetched)

    def write(
        self, notice: EmailMessage, body: str, *, content: str = clients.PLAIN, sender: str = "", **values: object
    ) -> bytes:
        raw = reply(notice, body, sender=sender or f"Anna <{self.anna.address}>", trusted=None, content=content, **values)  # type: ignore[arg-type]
        return raw.partition(b"\r\n")[2]  # no Return-Path: Dovecot writes it


@pytest.fixture
def world(mail_servers: MailServers, sqlite_database: Database, clock: FixedClock, signer: Callable[[str], Signer]) -> World:
    return World(mail_servers, sqlite_database, clock, signer)


@pytest.mark.mailservers
async def test_signed_replies_of_real_shapes_decide(world: World) -> None:
    shapes = (clients.gmail_web, clients.outlook_desktop, clients.apple_mail, clients.iphone_zh, clients.qq_web, clients.netease_163,
              clients.foxmail, clients.thunderbird_bottom, clients.outlook_html_only, clients.samsung)  # fmt: skip
    for number, shape in enumerate(shapes):
        case_id, notice = await world.ask()
        body, content = shape("同意" if number % 2 else "OK", notice)
        await world.answer(world.own(seven_bit(world.write(notice, body, content=content))), notice)
        assert (await world.office.case(case_id)).state == CaseState.QUEUED.value, shape.__name__


@pytest.mark.mailservers
async def test_nothing_else_does(world: World) -> None:
    forged = f"Authentication-Results: {AUTHSERV.upper()}.evil; dmarc=pass header.from=example.test"
    other_case, other = await world.ask()

    def attacks(notice: EmailMessage) -> dict[str, tuple[bytes, str]]:
        honest = world.write(notice, "OK")
        elsewhere = f"To: {staff_reply_to(other)}".encode()
        return {
            "unsigned": (honest, ""),
            "signed by another domain": (world.foreign(honest), ""),
            "forged results": (world.write(notice, "OK", headers=(forged,)), ""),
            "text appended to a signed length": (world.own(world.write(notice, "EDIT"), length=True) + b"\r\nOK\r\n", ""),
            "body changed after signing": (world.own(world.write(notice, "NO wait")).replace(b"NO wait", b"OK"), ""),
            "recipient changed after signing": (
                world.own(honest).replace(f"To: {staff_reply_to(notice)}".encode(), elsewhere),
                "",
            ),
            "second From above": (b"From: boss@evil.example\r\n" + world.own(honest), ""),
            "out of office": (world.own(world.write(notice, "OK", headers=("Auto-Submitted: auto-replied",))), ""),
            "null return path": (world.own(honest), "<>"),
            "with a condition": (world.own(world.write(notice, "OK but wait for the photo")), ""),
            "only quoted": (world.own(world.write(notice, "> OK")), ""),
            "the buyer": (world.write(notice, "OK", sender="Keller <keller@buyers.test>"), "keller@buyers.test"),
        }

    for name in attacks(other):
        case_id, notice = await world.ask()
        raw, sender = attacks(notice)[name]
        await world.answer(raw, notice, sender=sender)
        assert (await world.office.case(case_id)).state == CaseState.AWAITING_APPROVAL.value, name
    assert await world.office.buyer_replies() == []
    assert (await world.office.case(other_case)).state == CaseState.AWAITING_APPROVAL.value


@pytest.mark.mailservers
async def test_a_replay_is_carried_out_once(world: World) -> None:
    case_id, notice = await world.ask()
    raw = world.own(world.write(notice, "OK"))
    for _ in range(3):
        await world.answer(raw, notice)
    assert len(await world.office.buyer_replies(case_id)) == 1
