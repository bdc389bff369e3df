"""Plays the morning: starts servers and the real service, delivers the mail, answers as the approver, shows what happened."""

from __future__ import annotations

import contextlib
import email
import email.policy
import logging
import os
import queue
import secrets
import signal
import smtplib
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from daemon import config_example
from daemon.commands.setup import init
from daemon.commands.shared import say_json
from daemon.config import Config, load
from daemon.demo.morning import Morning, amazon_report, parcel_report
from daemon.demo.morning import load as load_morning
from daemon.demo.servers import HOST, Sandbox
from daemon.errors import PostsaleError, Transient
from daemon.store import reports
from daemon.store.db import Database
from daemon.store.reports import CaseView
from daemon.vocab import CaseState

#: Longest the whole play may take.
PLAY_SECONDS = 100.0
#: The stage is quiet when nothing has changed for so long.
QUIET_SECONDS = 2.0
_MOVING = {CaseState.RECEIVED, CaseState.QUEUED, CaseState.SENDING}
#: A terminal has its own width; a file gets room for the whole table.
_CONSOLE = Console(highlight=False, width=None if sys.stdout.isatty() else 130)


def show(*, keep: Path | None, serve: bool, as_json: bool) -> int:
    """Run the demonstration; 0 when every message of the morning came to an outcome."""
    # The sandbox speaks without encryption, on loopback: its own library need not warn of that.
    warnings.filterwarnings("ignore", message="Requiring AUTH while not requiring TLS")
    logging.getLogger("mail").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            if any(keep.iterdir()):
                raise PostsaleError(f"{keep} is not empty; name a folder that is empty or not there yet")
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postsale-demo-")))
        play = _Play(folder.resolve(), load_morning(datetime.now(UTC)), quiet=as_json)
        done = play.run(stack)
        views = play.views()
        if as_json:
            for view in views:
                say_json(play.row(view))
        else:
            play.table(views)
            play.where_next(kept=keep is not None, serve=serve)
        if serve:
            play.wait_for_the_end()
    return 0 if done else 1


@dataclass(slots=True)
class _Play:
    folder: Path
    morning: Morning
    quiet: bool
    config: Config = field(init=False)
    sandbox: Sandbox = field(init=False)
    service: subprocess.Popen[bytes] = field(init=False)
    database: Database = field(init=False)
    requests: queue.SimpleQueue[bytes] = field(default_factory=queue.SimpleQueue)
    answered: dict[str, str] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)

    def run(self, stack: contextlib.ExitStack) -> bool:
        """Servers, service, mail, answers; True when everything came to an outcome in time."""
        begun = time.monotonic()
        self._say(f"[bold]{self.morning.shop}[/], a small shop for lamps and tableware, opens its mailbox.")
        self._start_servers(stack)
        self._write_files()
        self._start_service(stack)
        self._say(f"The service watches {self.morning.address}. {len(self.morning.letters)} messages arrive …")
        for letter in self.morning.letters:
            self.sandbox.deliver(self.morning.address, letter.raw)
        done = self._until_quiet(begun + PLAY_SECONDS)
        self._say(f"All quiet after {time.monotonic() - begun:.0f} seconds.\n")
        return done

    # ------------------------------------------------------------------ the stage

    def _start_servers(self, stack: contextlib.ExitStack) -> None:
        morning = self.morning
        self.passwords = {morning.address: secrets.token_hex(8), morning.approver: secrets.token_hex(8)}
        self.sandbox = Sandbox(self.passwords, f"mx.{morning.address.rpartition('@')[2]}", on_delivery=self._on_delivery)
        self.sandbox.start()
        stack.callback(self.sandbox.stop)

    def _write_files(self) -> None:
        """What `postsale init` writes, filled in for the sandbox."""
        morning, today = self.morning, datetime.now(UTC).date()
        domain = morning.address.rpartition("@")[2]
        init(
            self.folder, address=morning.address, approver=morning.approver, provider="generic", imap="", smtp="",
            system=False, as_json=False, quiet=True,
        )  # fmt: skip
        values = {
            **config_example.SAMPLE,
            "service.mode": "live",
            "service.timezone": "Europe/Berlin",
            "mailboxes.address": morning.address,
            "mailboxes.display_name": morning.shop,
            "mailboxes.shop_name": morning.shop,
            "mailboxes.shop_domains": [domain],
            "mailboxes.imap.host": HOST,
            "mailboxes.imap.port": self.sandbox.imap_port,
            "mailboxes.imap.tls": "none",
            "mailboxes.imap.sent_folder": "Sent",
            "mailboxes.imap.poll_seconds": 2,
            "mailboxes.smtp.host": HOST,
            "mailboxes.smtp.port": self.sandbox.smtp_port,
            "mailboxes.smtp.tls": "none",
            "mailboxes.approval.authserv_id": f"mx.{domain}",
            "mailboxes.approval.staff_auth": ["dmarc", "auth"],
            "mailboxes.approval.undo_seconds": 0,
            "mailboxes.approval.digest_above": 100,
            "mailboxes.approval.approvers": ["mei-lin"],
            "approvers.name": "mei-lin",
            "approvers.address": morning.approver,
            "approvers.language": "zh-CN",
            "orders.defer_minutes": 0,
            "orders.sources": _SOURCES,
        }
        (self.folder / "config.toml").write_text(config_example.text(values), encoding="utf-8")
        (self.folder / "secrets" / "shop.password").write_text(self.passwords[morning.address] + "\n")
        for name, text in (
            ("amazon/all-orders.txt", amazon_report(morning.orders, today)),
            ("amazon-parcels/parcels.csv", parcel_report(morning.orders, today, shop="amazon")),
            ("own/orders.csv", parcel_report(morning.orders, today, shop="own")),
        ):
            path = self.folder / "orders" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written = time.time() - 60  # a report that lies there since a while, not one that is being written
            os.utime(path, (written, written))
        self.config = load(self.folder / "config.toml")

    def _start_service(self, stack: contextlib.ExitStack) -> None:
        log = stack.enter_context((self.folder / "service.log").open("wb"))
        command = [sys.executable, "-m", "daemon", "run", "--config", str(self.folder / "config.toml")]
        self.service = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own program
        stack.callback(self._stop_service)
        self.database = Database(self.config.database_url)
        stack.callback(self.database.close)
        limit = time.monotonic() + 20
        while not self._watching():
            if self.service.poll() is not None or time.monotonic() > limit:
                raise PostsaleError(f"the service did not start: {self._last_words()}")
            time.sleep(0.1)

    def _watching(self) -> bool:
        """Whether the service has had its first contact with the mailbox."""
        if not (self.config.service.data_dir / "postsale.db").exists():
            return False
        try:
            return any(f.last_success_at for f in self._read().folders)
        except Transient:  # its tables are being made
            return False

    def _stop_service(self) -> None:
        self.service.send_signal(signal.SIGTERM)
        try:
            self.service.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.service.kill()

    def _last_words(self) -> str:
        lines = (self.folder / "service.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    # ------------------------------------------------------------------ the approver

    def _on_delivery(self, address: str, raw: bytes) -> None:
        if address == self.morning.approver:
            self.requests.put(raw)

    def _answer_requests(self) -> None:
        """Read what came to the approver, and answer what the script has an answer for."""
        while True:
            try:
                raw = self.requests.get_nowait()
            except queue.Empty:
                return
            request = email.message_from_bytes(raw, policy=email.policy.default)
            body = request.get_body(("plain",))
            text = body.get_content() if body else ""
            order = next((o for o in self.morning.answers if o in text and o not in self.answered), None)
            if order is None or "+" not in str(request["Reply-To"]):
                continue
            words = self.morning.answers[order]
            self.answered[order] = words.splitlines()[0]
            self._reply(request, words, text)
            self._say(
                f"  [cyan]{self.morning.approver.partition('@')[0]}[/] answers a request about {order}: {self.answered[order]}"
            )

    def _reply(self, request: Any, words: str, quoted: str) -> None:
        reply = EmailMessage(policy=email.policy.SMTP)
        reply["From"] = self.morning.approver
        reply["To"] = str(request["Reply-To"])
        reply["Subject"] = f"Re: {request['Subject']}"
        reply["In-Reply-To"] = str(request["Message-ID"])
        reply["References"] = str(request["Message-ID"])
        reply["Message-ID"] = f"<{secrets.token_hex(8)}@{self.morning.approver.rpartition('@')[2]}>"
        reply["Date"] = email.utils.localtime()
        quote = "\n".join(f"> {line}" for line in quoted.splitlines())
        reply.set_content(f"{words}\nOn {request['Date']}, {self.morning.address} wrote:\n{quote}\n")
        with smtplib.SMTP(HOST, self.sandbox.smtp_port, timeout=10) as line:
            line.login(self.morning.approver, self.passwords[self.morning.approver])
            line.send_message(reply)

    # ------------------------------------------------------------------ watching

    def _until_quiet(self, limit: float) -> bool:
        """Follow the cases until nothing moves any more; False when the time ran out."""
        before: tuple[Any, ...] = ()
        since = time.monotonic()
        while time.monotonic() < limit:
            if self.service.poll() is not None:
                raise PostsaleError(f"the service died: {self._last_words()}")
            self._answer_requests()
            view = self._read()
            now = tuple(sorted(view.last_day.items())), tuple(sorted(view.deliveries.items())), len(self.answered)
            if now != before:
                before, since = now, time.monotonic()
                self._progress(view.last_day)
            moving = any(view.last_day.get(state.value) for state in _MOVING)
            arrived = sum(view.last_day.values()) >= len(self.morning.letters) + len(self.answered)
            if arrived and not moving and time.monotonic() - since > QUIET_SECONDS:
                return True
            time.sleep(0.1)
        return False

    def _progress(self, counts: Any) -> None:
        self._say("  " + " · ".join(f"{n} {state.replace('_', ' ')}" for state, n in sorted(counts.items())))

    def _read(self) -> reports.Overview:
        view: reports.Overview = self.database.read_now(lambda c: reports.overview(c, now=datetime.now(UTC)))
        return view

    def views(self) -> list[CaseView]:
        """Every case of the morning, in the order in which the mail was written."""
        found: list[CaseView] = self.database.read_now(reports.case_views)
        place = {letter.message_id: n for n, letter in enumerate(self.morning.letters)}
        return sorted((v for v in found if v.message_id in place), key=lambda v: place[v.message_id or ""])

    # ------------------------------------------------------------------ telling

    def row(self, view: CaseView) -> dict[str, Any]:
        """One message and its outcome as plain values."""
        key = next(letter.key for letter in self.morning.letters if letter.message_id == view.message_id)
        return {
            "message": key,
            "case": view.case_id,
            "kind": view.kind,
            "language": view.language,
            "label": "/".join(p for p in (view.label, view.sublabel) if p) or None,
            "policy": view.policy,
            "state": view.state,
            "reason": view.reason,
            "automatic": view.automatic,
            "decided_by": view.decided_by,
        }

    def table(self, views: list[CaseView]) -> None:
        """What happened to each message, and why."""
        table = Table(title="What happened to each message", title_justify="left", header_style="bold")
        table.add_column("message", no_wrap=True)
        table.add_column("read as", no_wrap=True)
        table.add_column("outcome", no_wrap=True)
        table.add_column("why", overflow="fold")
        for view in views:
            row = self.row(view)
            said = (row["label"] or row["kind"] or "?") + (f" ({row['language']})" if row["language"] else "")
            why = ", ".join(part for part in (row["policy"], row["reason"]) if part)
            table.add_row(row["message"], said, _outcome(row), why or "-")
        _CONSOLE.print(table)
        _CONSOLE.print(
            f"{len(self.sandbox.departed)} replies left for buyers, {sum(bool(v.automatic) for v in views)} of them without asking."
        )

    def where_next(self, *, kept: bool, serve: bool) -> None:
        """Where a person looks next."""
        config = self.folder / "config.toml"
        if serve:
            _CONSOLE.print("\nServers and service go on until Ctrl-C. Connect a mail client, without encryption:")
            for address, password in self.passwords.items():
                _CONSOLE.print(
                    f"  {address}  password {password}  IMAP {HOST}:{self.sandbox.imap_port}  SMTP {HOST}:{self.sandbox.smtp_port}"
                )
        if kept or serve:
            _CONSOLE.print("\nLook further:")
            for command in ("status", "queue list", "queue show 1"):
                _CONSOLE.print(f"  postsale {command} --config {config}")
            _CONSOLE.print(f"  {self.folder / 'service.log'}, {self.folder / 'templates'}")
        else:
            _CONSOLE.print("\nLook further: postsale demo --keep DIR keeps configuration, database and log;")
            _CONSOLE.print("postsale demo --serve leaves everything running. Your own mailbox: postsale init DIR.")

    def wait_for_the_end(self) -> None:
        """With --serve: until Ctrl-C or the service's end."""
        with contextlib.suppress(KeyboardInterrupt):
            while self.service.poll() is None:
                self._answer_requests()
                time.sleep(0.5)

    def _say(self, text: str) -> None:
        if not self.quiet:
            _CONSOLE.print(text)


def _outcome(row: dict[str, Any]) -> str:
    if row["state"] == CaseState.SENT.value:
        return "answered by itself" if row["automatic"] else f"answered, OK by {row['decided_by'] or 'staff'}"
    state: str = row["state"]
    words: dict[str, str] = {
        CaseState.AWAITING_APPROVAL.value: "waits for an OK",
        CaseState.HUMAN.value: "a person answers",
        CaseState.IGNORED.value: "needs no answer",
        CaseState.BROKEN.value: "could not be read, set aside",
        CaseState.DECLINED.value: "declined by staff",
        CaseState.WITHDRAWN.value: "withdrawn",
    }
    return words.get(state, state)


#: Where the service looks orders up.
_COLUMNS = {
    "order_id": "Order",
    "state": "Status",
    "carrier": "Carrier",
    "tracking": "Tracking",
    "shipped_on": "Shipped",
    "eta": "Expected",
    "delivered_on": "Delivered",
    "purchased_on": "Ordered",
    "fulfilment": "Fulfilment",
    "title": "Article",
    "sku": "SKU",
    "price": "Price",
    "currency": "Currency",
    "buyer_addr": "Customer",
}
_SOURCES = (
    {"kind": "folder", "path": "orders/amazon"},
    {"kind": "folder", "path": "orders/amazon-parcels", "shop": "amazon", "columns": _COLUMNS},
    {"kind": "folder", "path": "orders/own", "shop": "own", "columns": _COLUMNS},
)
