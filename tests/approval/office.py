"""A small office for tests: a store, two or more approvers, and replies that arrive as raw mail."""

from __future__ import annotations

import email
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from daemon.clock import FixedClock
from daemon.config import ApprovalConfig, ApproverConfig, Config, MailboxConfig, StaffAuth
from daemon.edges.dkim import Signature, signatures
from daemon.loops import commands
from daemon.loops.staff import Desk, Revision
from daemon.loops.upkeep import Approvals
from daemon.steps import authentication, marketplace, parse
from daemon.steps.approval import StaffRenderer
from daemon.store import cases
from daemon.store.db import Database
from daemon.store.tables import cases as cases_table
from daemon.store.tables import outbox as outbox_table
from daemon.store.tables import raw_mail
from daemon.vocab import CaseState, Finding, GateVerdict, Identity, Kind, Reading, Verdict, Writing
from tests.approval import seeds

WORKER = "test:1"
LABELS = frozenset({"return_request", "return_request/damaged", "complaint", "complaint/product", "logistics_question"})
TEMPLATES = Path(__file__).parents[2] / "templates" / "staff"
AUTHSERV = "mx.shop.example"


def staff_files() -> dict[str, str]:
    """The shipped staff templates as the renderer takes them."""
    return {str(p.relative_to(TEMPLATES)): p.read_text(encoding="utf-8") for p in TEMPLATES.rglob("*") if p.is_file()}


RENDERER = StaffRenderer(staff_files())

APPROVERS = (
    ApproverConfig(name="anna", address="anna.schmidt@staff.example", language="en", timezone="Europe/Berlin"),
    ApproverConfig(name="liwei", address="li.wei@staff.example", language="zh-CN", timezone="Asia/Shanghai", holidays="CN"),
    ApproverConfig(name="chen", address="chen@staff.example", language="zh-TW", timezone="Asia/Taipei"),
)
DISPLAY = {"anna": "Anna Schmidt", "liwei": "李伟", "chen": "陳美玲"}


def config(**approval: Any) -> Config:
    given: dict[str, Any] = {
        "approvers": ("anna", "liwei"),
        "next_approvers": ("chen",),
        "authserv_id": AUTHSERV,
        "staff_auth": (StaffAuth.DMARC,),
        **approval,
    }
    mailbox = MailboxConfig(name=seeds.MAILBOX, address=seeds.ADDRESS, shop_name="Vasenhaus", approval=ApprovalConfig(**given))
    return Config(mailboxes=(mailbox,), approvers=APPROVERS)


@dataclass
class Office:
    """The approving side of the service, with the outside world replaced by method calls."""

    database: Database
    clock: FixedClock
    config: Config = field(default_factory=config)
    findings: tuple[Finding, ...] = ()
    dkim_lookup: Callable[[bytes], bytes | None] = lambda name: None
    _uids: Any = field(default_factory=lambda: itertools.count(1_000_000))

    def __post_init__(self) -> None:
        self.desk = Desk(
            database=self.database,
            config=self.config,
            key=seeds.KEY,
            staff=RENDERER,
            revise=self._revise,
            labels=lambda: LABELS,
            action_text=lambda code, language: code,
        )
        self.upkeep = Approvals(self.desk, on_notice=lambda: None)

    async def _revise(self, case_id: int, text: str, *, author: str) -> Revision:
        newest = await self.database.read(
            lambda c: c.execute(select(cases_table.c.revision).where(cases_table.c.id == case_id)).scalar_one()
        )
        return Revision(seeds.new_draft(case_id, newest + 1, text, author=author), self.findings)

    # ------------------------------------------------------------------ what the shop does

    async def draft_waits(self, **values: Any) -> int:
        """A buyer's mail with a pending draft; returns its case id."""

        def seed(connection: Connection) -> int:
            case_id = seeds.add_case(connection, now=self.clock.now(), uid=next(self._uids), **values)
            seeds.add_draft(connection, case_id, now=self.clock.now())
            return case_id

        return await self.database.write(seed)

    async def run_upkeep(self) -> int:
        done = 0
        for task in self.upkeep.tasks():
            done += await task.run(self.clock.now())
        return done

    async def notices(self, case_id: int | None = None, *, to: str | None = None) -> list[EmailMessage]:
        """Staff notices in the outbox, oldest first."""
        query = select(outbox_table.c.mime, outbox_table.c.recipient).where(outbox_table.c.kind == "staff_notice")
        if case_id is not None:
            query = query.where(outbox_table.c.case_id == case_id)
        rows = await self.database.read(lambda c: c.execute(query.order_by(outbox_table.c.id)).all())
        wanted = None if to is None else next(a.address for a in APPROVERS if a.name == to)
        found = [email.message_from_bytes(r.mime, policy=default) for r in rows if wanted in {None, r.recipient}]
        return [m for m in found if isinstance(m, EmailMessage)]

    async def notice(self, case_id: int, to: str = "anna") -> EmailMessage:
        """The newest notice about a case to an approver."""
        return (await self.notices(case_id, to=to))[-1]

    async def buyer_replies(self, case_id: int | None = None) -> list[Any]:
        query = select(outbox_table).where(outbox_table.c.kind == "buyer_reply").order_by(outbox_table.c.id)
        if case_id is not None:
            query = query.where(outbox_table.c.case_id == case_id)
        return list(await self.database.read(lambda c: c.execute(query).all()))

    async def case(self, case_id: int) -> Any:
        return await self.database.read(lambda c: c.execute(select(cases_table).where(cases_table.c.id == case_id)).one())

    # ------------------------------------------------------------------ what arrives

    def identity(self) -> Identity:
        addresses = [m.address for m in self.config.mailboxes]
        return Identity(
            own_addresses=frozenset(addresses),
            approver_addresses=frozenset(a.address for a in self.config.approvers),
            message_id_domain=addresses[0].rpartition("@")[2],
            authserv_ids=(AUTHSERV,),
        )

    def read(self, raw: bytes) -> Reading:
        mail = parse.parse(raw)
        identity = self.identity()
        return Reading(
            mail=mail,
            envelope=marketplace.unwrap(mail, identity),
            writing=Writing(mail.text),
            language=None,
            flags=frozenset(),
            flag_terms=(),
            authentication=authentication.authenticate(mail, identity),
            verdict=Verdict(GateVerdict.IGNORE, "approval"),
            prediction=None,
        )

    async def arrive(self, raw: bytes) -> Any:
        """A mail reaches the mailbox and is taken forward as far as approval goes; returns its case row."""
        now, uid = self.clock.now(), next(self._uids)

        def store(connection: Connection) -> int:
            row = {
                "mailbox": seeds.MAILBOX,
                "folder": "INBOX",
                "uidvalidity": 1,
                "uid": uid,
                "raw_sha256": hashlib.sha256(raw).hexdigest(),
                "size": len(raw),
                "truncated": False,
                "review": False,
                "received_at": now,
                "state": CaseState.RECEIVED.value,
                "updated_at": now,
            }
            case_id: int = connection.execute(insert(cases_table).values(**row).returning(cases_table.c.id)).scalar_one()
            connection.execute(insert(raw_mail).values(case_id=case_id, body=raw))
            return case_id

        return await self.take_forward(await self.database.write(store))

    async def take_forward(self, case_id: int) -> Any:
        """Claim an arrived mail and carry it out, as far as approval goes."""
        now = self.clock.now()
        claimed = await self.database.write(
            lambda c: cases.claim(c, worker=WORKER, limit=100, lease=timedelta(minutes=5), max_attempts=3, now=now)
        )
        (case,) = [c for c in claimed if c.case_id == case_id]
        others = [c.case_id for c in claimed if c.case_id != case_id]
        await self.database.write(lambda c: cases.give_back(c, others, worker=WORKER))
        reading = self.read(case.raw)
        if reading.envelope.kind is Kind.APPROVAL:
            await commands.carry_out(
                self.desk,
                case,
                reading,
                worker=WORKER,
                clock=self.clock,
                dkim=self._dkim,
                overridable=lambda f: f.rule not in {"O15", "O16"},
            )
        return await self.case(case_id)

    async def _dkim(self, raw: bytes) -> Sequence[Signature]:
        return await signatures(raw, lookup=self.dkim_lookup)


def text_of(message: EmailMessage) -> str:
    """The plain part of a notice."""
    part = message.get_body(("plain",))
    assert part is not None
    return str(part.get_content())


def proof(address: str, verdict: str = "pass") -> str:
    """What the shop's own server writes on top of a mail whose From domain it has checked."""
    return f"Authentication-Results: {AUTHSERV}; dmarc={verdict} (p=reject) header.from={address.rpartition('@')[2]}"


def reply(
    notice: EmailMessage,
    body: str,
    *,
    who: str = "anna",
    sender: str | None = None,
    headers: tuple[str, ...] = (),
    trusted: str | None = "",
    to: str | None = None,
    subject: str | None = None,
    content: str = "text/plain; charset=utf-8",
    thread: bool = True,
) -> bytes:
    """A reply to a notice as raw bytes. ``trusted`` is the server's own verdict ("" a pass, None none at all)."""
    approver = next(a for a in APPROVERS if a.name == who)
    from_ = sender if sender is not None else f"{encoded(DISPLAY[who])} <{approver.address}>"
    lines = [f"Return-Path: <{approver.address}>"]
    if trusted is not None:
        lines.append(trusted or proof(approver.address))
    lines += [
        "Received: from mail.staff.example by mx.shop.example with ESMTPS; Mon, 2 Nov 2026 10:00:00 +0000",
        f"From: {from_}",
        f"To: {to or staff_reply_to(notice)}",
        f"Subject: {subject if subject is not None else 'Re: ' + encoded(str(notice['Subject']))}",
        "Date: Mon, 02 Nov 2026 11:00:00 +0100",
        f"Message-ID: <{hashlib.sha256(body.encode() + str(headers).encode()).hexdigest()[:20]}@staff.example>",
    ]
    if thread:
        lines += [f"In-Reply-To: {notice['Message-ID']}", f"References: {notice['References']} {notice['Message-ID']}"]
    lines += [*headers, "MIME-Version: 1.0", f"Content-Type: {content}", "Content-Transfer-Encoding: 8bit", ""]
    return "\r\n".join(lines).encode() + b"\r\n" + body.replace("\n", "\r\n").encode()


def staff_reply_to(notice: EmailMessage) -> str:
    return str(notice["Reply-To"].addresses[0].addr_spec)


def quoted(notice: EmailMessage, lead: str = "On Mon, 2 Nov 2026 at 10:00, Postsale <shop@shop.example> wrote:") -> str:
    """The notice as most clients quote it."""
    return lead + "\n\n" + "\n".join(f"> {line}".rstrip() for line in text_of(notice).splitlines()) + "\n"


def encoded(text: str) -> str:
    """Text as it stands in a header."""
    from email.header import Header

    return text if text.isascii() else Header(text, "utf-8", maxlinelen=1000).encode()
