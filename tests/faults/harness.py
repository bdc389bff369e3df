"""The world that the faults happen in, and the judge of what came of them.

The judge believes the servers, not the database: what the SMTP server took on
itself and what lies in the IMAP folders. The database is asked only whether
it agrees.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text

from daemon.errors import Transient
from daemon.store.cases import release
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.store.tables import cases, drafts, outbox, raw_mail
from tests.edges.accounts import server_context
from tests.fakes.faults import Fault
from tests.fakes.imap import FakeImap
from tests.fakes.smtp import FakeSmtp, Taken
from tests.faults.child import TEMPORARY
from tests.servers import PASSWORD, make_certificates

ROOT = Path(__file__).parents[2]
#: Seconds in which the service must have got something done once every fault has ended.
REST_SECONDS = 20.0

#: States in which something is still due.
OPEN_CASES = ("received", "deferred", "queued", "sending")
OPEN_DELIVERIES = ("queued", "claimed", "transmitting", "uncertain")

#: Invariants by number, as docs/reliability.md lists them.
INVARIANTS = {
    "I1": "at most one accepted reply per inbound message",
    "I2": "every message on the server is stored exactly once, with its bytes",
    "I3": "what was accepted is what was approved, byte for byte",
    "I5": "exactly one recipient, and it is the writer",
    "I6": "nothing is sent to robots, lists, bounces or duplicates",
    "I7": "sent means accepted, accepted means sent, uncertain or asked",
    "I8": "nothing is stuck",
    "I11": "the database is sound",
    "I13": "nothing in the mailbox was deleted, moved or marked",
}


@dataclass
class Inbound:
    """One mail that the harness put into the mailbox."""

    number: int
    kind: str  # buyer, copy, robot, list, bounce
    raw: bytes
    sender: str
    message_id: str
    uid: int = 0

    @property
    def expects_reply(self) -> bool:
        return self.kind == "buyer"


def compose(number: int, kind: str, *, original: Inbound | None = None) -> Inbound:
    """A mail of an invented person, or of a machine."""
    if kind == "copy" and original is not None:
        raw = b"Received: from elsewhere by here; Mon, 23 Nov 2026 10:00:00 +0000\r\n" + original.raw
        return Inbound(number, kind, raw, original.sender, original.message_id)
    sender = f"anna.berg{number}@buyers.test"
    message_id = f"<m{number}.{random.randrange(1 << 30)}@buyers.test>"
    head = {
        "buyer": f"Return-Path: <{sender}>\r\n",
        "robot": f"Return-Path: <{sender}>\r\nAuto-Submitted: auto-replied\r\n",
        "list": f"Return-Path: <{sender}>\r\nList-Id: <news.buyers.test>\r\nPrecedence: bulk\r\n",
        "bounce": "Return-Path: <>\r\n",
    }[kind]
    raw = (
        f"{head}From: Anna Berg <{sender}>\r\nTo: shop@example.test\r\nSubject: My parcel {number}\r\n"
        f"Message-ID: {message_id}\r\nDate: {time.strftime('%a, %d %b %Y %H:%M:%S +0000', time.gmtime())}\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
        f"Hello, where is my parcel number {number}? It has not arrived yet.\r\n"
    ).encode()
    return Inbound(number, kind, raw, sender, message_id)


class Zygote:
    """The process that children are forked from."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.child"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the zygote died")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        with self._guard:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return self._answer()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Child:
    """One life of the service."""

    def __init__(self, zygote: Zygote, order: dict[str, Any]) -> None:
        self._zygote = zygote
        self.pid: int = zygote.ask(order)["pid"]
        self._gone: int | None = None

    def alive(self) -> bool:
        if self._gone is None:
            answer = self._zygote.ask({"wait": self.pid})
            if answer["gone"]:
                self._gone = answer["status"]
        return self._gone is None

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.join(5)

    def stop(self, seconds: float = 10) -> float:
        """SIGTERM; returns how long it took to be gone."""
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        self.join(seconds)
        return time.monotonic() - began

    def join(self, seconds: float) -> bool:
        """Wait for its end; False when it is still there."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.003)
        return True

    @property
    def killed(self) -> bool:
        """Whether it died of SIGKILL, and not of an error of its own."""
        return self._gone is not None and os.WIFSIGNALED(self._gone) and os.WTERMSIG(self._gone) == signal.SIGKILL

    @property
    def crashed(self) -> bool:
        """Whether it ended by an error of its own."""
        return self._gone is not None and not os.WIFSIGNALED(self._gone) and os.WEXITSTATUS(self._gone) not in (0, TEMPORARY)


@dataclass
class Tally:
    """What was done to the service and what it did wrong."""

    kills: int = 0
    imap_faults: int = 0
    smtp_faults: int = 0
    offered: int = 0
    judged: int = 0  # of these, the ones whose fate was looked at one by one
    answered: int = 0
    asked: int = 0
    duplicates: int = 0
    lost: int = 0
    unapproved: int = 0
    wrong_recipient: int = 0
    stuck: int = 0
    crashes: int = 0
    other: int = 0
    set_aside: int = 0
    bot_replies: int = 0
    flood_replies: int = 0
    clock_jumps: int = 0
    database_faults: int = 0
    account_faults: int = 0
    spoilt_mails: int = 0  # mails made or damaged to break their reader
    set_aside_mails: int = 0  # of these, what no worker could read within its limits
    in_clear: int = 0  # secrets seen on the wire in the clear
    tries: list[int] = field(default_factory=list)  # sign-ins at one server in an hour of refusals
    resumed: list[float] = field(default_factory=list)  # the service's seconds from a mend until everybody was answered
    alerts: list[float] = field(default_factory=list)  # the service's seconds until somebody heard of a trouble
    soaked: int = 0
    growth: list[tuple[int, int]] = field(default_factory=list)  # (resident kB, file descriptors) along a soak
    database_bytes: list[tuple[int, int, int]] = field(default_factory=list)  # (mails, database, write-ahead log) along a soak
    wires: int = 0  # cases in which what went over the wire was read
    stops: list[float] = field(default_factory=list)
    heaps: list[tuple[int, float]] = field(default_factory=list)  # (mails that lay there at once, seconds until done)
    recoveries: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def sampled(self, world: World) -> None:
        """Read memory, descriptors and database once more."""
        assert world.child is not None
        with contextlib.suppress(OSError):  # it has just died, which the next look will see
            self.growth.append(footprint(world.child.pid))
        file = Path(str(world.database.url.database))
        log = file.with_name(file.name + "-wal")
        self.database_bytes.append((len(world.inbound), file.stat().st_size, log.stat().st_size if log.exists() else 0))

    @property
    def clean(self) -> bool:
        return not self.violations

    def count(self, server: FakeImap | FakeSmtp) -> None:
        """One more fault at this server."""
        if isinstance(server, FakeImap):
            self.imap_faults += 1
        else:
            self.smtp_faults += 1


class World:
    """Servers, a database, and children that live on them one after the other."""

    def __init__(
        self, zygote: Zygote, database_url: str, *, saves_sent: bool = True, bug: str | None = None, seed: int = 0, **order: Any
    ) -> None:
        self.random = random.Random(seed)
        self.rest_seconds = REST_SECONDS if bug is None else 4.0
        self.zygote = zygote
        self.url = database_url
        self._folder = Path(tempfile.mkdtemp(prefix="postsale-faults-"))
        if order.pop("tls", False):
            make_certificates(self._folder)
            context = server_context(self._folder)
            self.imap = FakeImap(context=context, tls="implicit")
            self.smtp = FakeSmtp(context=context, tls="starttls", password=PASSWORD)
            order["ca_file"] = str(self._folder / "ca.pem")
        else:
            self.imap = FakeImap()
            self.smtp = FakeSmtp()
        if order.pop("jumping_clock", False):
            order["clock_file"] = str(self._folder / "clock")
            self.set_clock(0.0)
        self.bug = bug
        self.order = order
        self.tally = Tally()
        self.inbound: list[Inbound] = []
        self._buyers: list[Inbound] = []
        self.child: Child | None = None
        self._log = self._folder / "log"
        self._log.touch()
        self.database = Database(database_url)
        self.baseline = 0
        if saves_sent:
            self.smtp.on_taken = self._keep_copy
        self.start()
        self._wait_for_first_contact()

    def set_clock(self, offset: float) -> None:
        """Let the service's wall clock be this many seconds off."""
        new = self._folder / "clock.new"
        new.write_text(str(offset))
        new.replace(self._folder / "clock")

    def _keep_copy(self, taken: Taken) -> None:
        self.imap.add(taken.data, folder="Sent")

    # ------------------------------------------------------------------ lives

    def start(self, **order: Any) -> Child:
        full = {
            "database": self.url,
            "imap": self.imap.port,
            "smtp": self.smtp.port,
            "log": str(self._log),
            "bug": self.bug,
            **self.order,
            **order,
        }
        self.child = Child(self.zygote, full)
        return self.child

    def kill(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            if child.crashed:
                self._crashed()
            self.tally.kills += 1

    def _crashed(self) -> None:
        self.tally.crashes += 1
        self.tally.violations.append("the service ended by an error of its own: " + self._log.read_text()[-1500:])

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
        self.imap.close()
        self.smtp.close()
        self.database.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------------ mail

    def offer(self, kind: str = "buyer") -> Inbound:
        """Put a mail into the mailbox."""
        original = None
        if kind == "copy":
            if not self._buyers:
                kind = "buyer"
            else:
                original = self.random.choice(self._buyers)
        mail = compose(len(self.inbound) + 1, kind, original=original)
        mail.uid = self.imap.add(mail.raw)
        if kind == "buyer":
            self._buyers.append(mail)
        self.inbound.append(mail)
        self.tally.offered += 1
        return mail

    def offer_any(self) -> Inbound:
        kinds = ("buyer", "copy", "robot", "list", "bounce")
        return self.offer(self.random.choices(kinds, (70, 10, 8, 6, 6))[0])

    # ------------------------------------------------------------------ waiting

    def _wait_for_first_contact(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                row = self.database.read_now(lambda c: c.execute(text("SELECT baseline_uid FROM folders")).first())
                if row is not None:
                    self.baseline = row[0]
                    return
            time.sleep(0.02)
        raise RuntimeError("the service never opened the mailbox: " + self._log.read_text()[-1500:])

    def unsettled(self) -> Counter[str]:
        """Messages not stored and rows not at rest, by state."""

        def look(connection: Any) -> Counter[str]:
            found: Counter[str] = Counter()
            # in this order, since PostgreSQL shows each statement what came meanwhile: what is stored now has its state below
            place = self.imap.folders["INBOX"]
            due = {uid for uid in list(place.messages) if uid > self.baseline}
            inside = cases.c.uid.between(self.baseline + 1, max(due, default=0))
            epoch = cases.c.uidvalidity == place.uidvalidity
            if connection.execute(select(func.count()).where(inside, epoch)).scalar() != len(due):
                found["not stored"] = len(due.difference(connection.execute(select(cases.c.uid).where(epoch)).scalars()))
            for what, table, states in (("case", cases, OPEN_CASES), ("delivery", outbox, OPEN_DELIVERIES)):
                query = select(table.c.state, func.count()).where(table.c.state.in_(states)).group_by(table.c.state)
                found.update({f"{what} {state}": count for state, count in connection.execute(query)})
            return found

        return +self.database.read_now(look)  # without what there is none of

    def undone(self) -> int:
        """How many mails lie there that are not yet at rest."""
        stored, waiting = self.database.read_now(
            lambda c: (
                c.execute(select(func.max(cases.c.uid))).scalar() or 0,
                c.execute(select(func.count()).where(cases.c.state.in_(OPEN_CASES))).scalar() or 0,
            )
        )
        return self.imap.folders["INBOX"].next_uid - 1 - stored + waiting

    def rest(self, seconds: float | None = None) -> float | None:
        """Wait until there is nothing left to do; the seconds it took, or None when it is stuck.

        It is stuck when for that many seconds there was no less to do than before: a slow machine is none.
        """
        began = better = time.monotonic()
        least: int | None = None
        while time.monotonic() - better < (seconds or self.rest_seconds):
            child = self.child  # a server's thread may kill it at any moment
            if child is None:
                self.start()
            elif not child.alive():
                if child.crashed:
                    self._crashed()
                    return None
                self.start()
            with contextlib.suppress(Transient):  # the database may be what is in trouble
                left = sum(self.unsettled().values())
                if not left:
                    return time.monotonic() - began
                if least is None or left < least:
                    least, better = left, time.monotonic()
            time.sleep(0.02)
        return None

    def recover(self, since: float | None = None, *, after: str = "") -> None:
        """Come to rest after a fault that ended ``since`` (monotonic), and count how long it took."""
        taken = self.rest()
        if taken is None:
            self.tally.stuck += 1
            self.tally.violations.append(f"I8: {dict(self.unsettled())} for {self.rest_seconds:.0f} s {after}")
        else:
            self.tally.recoveries.append(taken if since is None else time.monotonic() - since)

    def work_off(self) -> None:
        """Come to rest after much mail and no fault: what it takes is work, not recovery."""
        mails = sum(self.unsettled().values())
        taken = self.rest()
        if taken is None:
            self.tally.stuck += 1
            self.tally.violations.append(f"I8: {dict(self.unsettled())} for {self.rest_seconds:.0f} s after {mails} mails")
        else:
            self.tally.heaps.append((mails, taken))

    def strike(self, server: FakeImap | FakeSmtp, step: str, kind: Any, *, hold: float = 0.1) -> bool:
        """One wire fault while mail arrives; False when the conversation never came to that step."""
        fault = Fault(step, kind)
        server.fault = fault
        self.tally.count(server)
        for wire in list(server._live):
            wire.fault = fault
        self.offer()
        deadline = time.monotonic() + 1.5
        while not fault.struck and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(hold)
        fault.ended.set()
        server.fault = None
        ended = time.monotonic()
        self.recover(ended, after=f"after {kind} at {step} of {type(server).__name__}")
        return fault.struck > 0

    # ------------------------------------------------------------------ judging

    def judge(self) -> None:
        """Compare what the servers saw with what was due; violations go into the tally.

        What was set aside because its reader was killed too often is released
        first, as staff would do.
        """
        self.rest()
        broken = self.database.read_now(
            lambda c: c.execute(select(cases.c.id).where(cases.c.state == "broken")).scalars().all()
        )
        for case_id in broken:
            self.tally.set_aside += 1
            self.database.write_now(partial(release, case_id=case_id, actor="cli:harness", now=datetime.now(UTC)))
        if broken:
            self.rest()
        self.tally.judged = len(self.inbound)
        self.tally.violations += list(self._violations())

    def _violations(self) -> Iterator[str]:
        taken = list(self.smtp.taken)
        replies: dict[str, list[Taken]] = {}
        for one in taken:
            header = message_from_bytes(one.data, policy=policy.compat32)
            replies.setdefault(str(header["In-Reply-To"]).strip(), []).append(one)
        rows = self.database.read_now(_rows)
        yield from self._answers(replies, rows)
        yield from self._stored(rows)
        yield from self._bytes(taken, rows)
        yield from self._folders()
        yield from self._sound()

    def _answers(self, replies: dict[str, list[Taken]], rows: _Rows) -> Iterator[str]:
        for mail in self.inbound:
            if mail.kind == "copy":
                continue
            got = replies.get(mail.message_id, [])
            if len(got) > 1:
                self.tally.duplicates += len(got) - 1
                yield f"I1: {len(got)} replies to message {mail.number}"
            if mail.expects_reply:
                self.tally.answered += bool(got)
                states = rows.states_of(mail.message_id)
                if not got and not states & {"human", "uncertain"}:
                    self.tally.lost += 1
                    yield f"I2/I8: message {mail.number} was never answered, and nobody was asked: {states}"
                self.tally.asked += bool(states & {"human", "uncertain"})
            elif got:
                self.tally.other += 1
                yield f"I6: a {mail.kind} was answered"
            for one in got:
                if one.recipients != (mail.sender,):
                    self.tally.wrong_recipient += 1
                    yield f"I5: the reply to {mail.number} went to {len(one.recipients)} recipients"
        known = {m.message_id for m in self.inbound}
        for message_id in replies.keys() - known:
            self.tally.other += 1
            yield f"I5: a mail left that answers nothing: {message_id[:40]}"

    def _stored(self, rows: _Rows) -> Iterator[str]:
        epoch = self.imap.folders["INBOX"].uidvalidity
        for uid, message in self.imap.folders["INBOX"].messages.items():
            if uid <= self.baseline:
                continue
            found = rows.raws.get((epoch, uid), [])
            if len(found) != 1 or found[0] != message.raw:
                self.tally.lost += 1
                yield f"I2: message with UID {uid} is stored {len(found)} times"

    def _bytes(self, taken: list[Taken], rows: _Rows) -> Iterator[str]:
        accepted = Counter(t.message_id for t in taken)
        for one in taken:
            draft = rows.drafts.get(one.message_id)
            if draft is None or draft[0] != one.sha256 or draft[1] != "approved":
                self.tally.unapproved += 1
                yield "I3: what was accepted is not what was approved"
        for message_id, state, evidence in rows.deliveries:
            if state == "sent" and not accepted[message_id] and evidence != "person":
                self.tally.lost += 1
                yield "I7: a reply counts as sent that no server accepted"
            if accepted[message_id] and state not in {"sent", "uncertain", "needs_human", "bounced"}:
                self.tally.other += 1
                yield f"I7: an accepted reply counts as {state}"

    def _folders(self) -> Iterator[str]:
        messages = self.imap.folders["INBOX"].messages
        allowed = {self.order["keyword"]} if self.order.get("keyword") else set()
        if Counter(m.raw for m in messages.values()) != Counter(m.raw for m in self.inbound) or any(
            m.flags - allowed for m in messages.values()
        ):
            self.tally.other += 1
            yield "I13: the mailbox was changed"

    def _sound(self) -> Iterator[str]:
        if self.database.is_sqlite:
            found = self.database.read_now(lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar())
            if found != "ok":
                self.tally.other += 1
                yield f"I11: {found}"


@dataclass
class _Rows:
    raws: dict[tuple[int, int], list[bytes]]
    cases: dict[str, set[str]]
    drafts: dict[str, tuple[str, str]]
    deliveries: list[tuple[str, str, str | None]]

    def states_of(self, message_id: str) -> set[str]:
        return self.cases.get(message_id, set())


def _rows(connection: Any) -> _Rows:
    raws: dict[tuple[int, int], list[bytes]] = {}
    query = select(cases.c.uidvalidity, cases.c.uid, raw_mail.c.body).outerjoin(raw_mail)
    for uidvalidity, uid, body in connection.execute(query):
        raws.setdefault((uidvalidity, uid), []).append(body)
    states: dict[str, set[str]] = {}
    for message_id, state in connection.execute(select(cases.c.message_id, cases.c.state)):
        states.setdefault(message_id, set()).add(state)
    return _Rows(
        raws,
        states,
        {
            message_id: (sha256, state)
            for message_id, sha256, state in connection.execute(
                select(drafts.c.message_id, drafts.c.mime_sha256, drafts.c.state)
            )
        },
        [tuple(row) for row in connection.execute(select(outbox.c.message_id, outbox.c.state, outbox.c.evidence))],  # type: ignore[misc]
    )


def footprint(pid: int) -> tuple[int, int]:
    """Resident kilobytes and open file descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return resident, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def new_sqlite(folder: Path) -> str:
    """A fresh SQLite database with the schema."""
    url = f"sqlite:///{folder}/{time.monotonic_ns()}.db"
    database = Database(url)
    upgrade(database)
    database.close()
    return url
