"""Plans H and I: accounts that are turned away, and connections that are not safe.

The whole application runs, in time that runs faster, between servers that
refuse it: Dovecot and Postfix where they can be made to, scripted ones where not.
Each case breaks something, watches for the service's own hour or so, mends
it, and waits until every mail has been answered. What went over the wire in the clear is read by a
tap between the service and its servers.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import ssl
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from daemon.store.db import Database
from daemon.store.tables import cases, drafts, outbox, raw_mail
from tests.edges.accounts import server_context
from tests.fakes.faults import Fault, Kind
from tests.fakes.imap import FakeImap
from tests.fakes.smtp import FakeSmtp, Taken
from tests.fakes.web import AlarmBell, TokenServer
from tests.faults.harness import Child, Inbound, Tally, Zygote, compose, new_sqlite
from tests.servers import PASSWORD, MailServers, User, make_certificates

#: The service's seconds in one of ours.
PACE = 30.0
HOUR = 3600.0 / PACE
MINUTE = HOUR / 60
#: Most sign-ins that one server may see in an hour in which it refuses them.
MOST_TRIES = 4
#: The service's seconds in which somebody has to hear of it.
ALERT_WITHIN = 300.0
#: The same where the service sees no more than a server that cannot be reached (no_poll_minutes, and the next look).
NO_POLL = 17 * 60.0
#: Cases that run at once: each mostly waits.
AT_ONCE = 7
WRONG = "wrong horse"
SHOP = "shop@example.test"


class Tap:
    """A line between the service and a server, on a port of its own; keeps what the service said."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.said = bytearray()
        self._live: set[socket.socket] = set()
        # a socket leaves the set before it is closed, so that nobody cuts the connection that gets its descriptor next
        self._changing = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        """Break every connection."""
        with self._changing:
            for sock in self._live:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(10)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            with self._changing:
                self._live |= {client, server}
            back = threading.Thread(target=self._pass, args=(server, client, None), daemon=True)
            back.start()
            self._pass(client, server, self.said)
            back.join()
            with self._changing:
                self._live -= {client, server}

    def _pass(self, source: socket.socket, target: socket.socket, keep: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if keep is not None:
                    keep += data
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@dataclass
class Shop:
    """One mailbox and its servers, and the lives of the service on it."""

    zygote: Zygote
    folder: Path
    way: str = "password"  # or oauth
    tls: str = "none"  # of the scripted servers: none, starttls
    real: MailServers | None = None
    own_smtp_password: bool = False
    alert_within: float = ALERT_WITHIN
    pace: float = PACE
    own_mind: bool = True  # reading and judging in the service's process, every buyer answered; else as shipped, in workers
    tally: Tally = field(default_factory=Tally)
    inbound: list[Inbound] = field(default_factory=list)
    buyers: dict[str, User] = field(default_factory=dict)
    child: Child | None = None

    def __post_init__(self) -> None:
        self.bell = AlarmBell()
        self.tokens = TokenServer()
        self.log = self.folder / "log"
        self.log.touch()
        self.epoch = time.time()
        self.broke_at: float | None = None
        self.user = self.real.add_user() if self.real is not None else User("shop", SHOP)
        self.imap, self.smtp = self._scripted()
        if self.real is not None:
            self.lines = (Tap(self.real.imaps_port), Tap(self.real.submission_port))
        else:
            self.lines = (Tap(self.imap.port), Tap(self.smtp.port))
        self.write_password(PASSWORD)
        (self.folder / "smtp.password").write_text(PASSWORD + "\n")
        self.database = Database(new_sqlite(self.folder))

    def _scripted(self) -> tuple[FakeImap, FakeSmtp]:
        context, tls = None, None
        if self.tls != "none":
            make_certificates(self.folder)
            context, tls = server_context(self.folder), self.tls
        words = {"password": "AUTH=PLAIN", "oauth": "AUTH=XOAUTH2"}[self.way]
        imap = FakeImap(context=context, tls=tls, capabilities=f"IMAP4rev1 IDLE ID SPECIAL-USE STARTTLS {words}")
        smtp = FakeSmtp(context=context, tls=tls, password=PASSWORD)
        smtp.on_taken = self._keep_copy
        return imap, smtp

    def _keep_copy(self, taken: Taken) -> None:
        self.imap.add(taken.data, folder="Sent")

    # ------------------------------------------------------------------ the service

    def config(self) -> dict[str, Any]:
        """As an operator would write it; what is not named is as shipped."""
        secure = self.real is not None or self.tls != "none"
        place: dict[str, Any] = {"host": "localhost" if secure else "127.0.0.1", "timeout_seconds": 600}
        if secure:
            place["ca_file"] = str(self.real.ca_file if self.real is not None else self.folder / "ca.pem")
        ways = ("implicit", "starttls") if self.real is not None else (self.tls, self.tls)
        sign_in: dict[str, Any] = {"password_file": str(self.folder / "password")}
        if self.way == "oauth":
            sign_in = {"oauth": "microsoft", "oauth_client_id": "client", "oauth_token_url": f"{self.tokens.url}/token"}
        mailbox: dict[str, Any] = {
            "name": "shop",
            "address": self.user.address,
            "imap": {**place, "port": self.lines[0].port, "tls": ways[0], "poll_seconds": 5},
            "smtp": {**place, "port": self.lines[1].port, "tls": ways[1]},
            "sign_in": sign_in,
            "approval": {"undo_seconds": 120},
        }
        if self.own_smtp_password:
            mailbox["smtp_sign_in"] = {"password_file": str(self.folder / "smtp.password")}
        return {
            "service": {
                "data_dir": str(self.folder / "data"),
                "database": str(self.database.url),
                "mode": "live",
                "log_level": "warning",
            },
            "mailboxes": [mailbox],
            "alarms": {"webhook_url": f"{self.bell.url}/alarm", "disk_free_mb": 0},
        }

    def start(self) -> None:
        order: dict[str, Any] = {"config": self.config(), "pace": self.pace, "epoch": self.epoch, "log": str(self.log)}
        order["own_mind"] = self.own_mind
        self.child = Child(self.zygote, order)

    def cut(self) -> None:
        """End every connection, so that the service has to sign in again."""
        for line in self.lines:
            line.cut()

    def write_password(self, password: str) -> None:
        (self.folder / "password").write_text(password + "\n" if password else "")

    def write_tokens(self, token: str, *, seconds: float = 100 * HOUR * PACE) -> None:
        """As `postsale login` leaves them; ``seconds`` are the service's."""
        file = self.folder / "data" / "tokens" / "shop.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        now = self.epoch + (time.time() - self.epoch) * PACE
        tokens = {"access_token": token, "refresh_token": "r", "expires_at": now + seconds, "renew_at": now + 0.8 * seconds}
        file.with_name("new").write_text(json.dumps(tokens))
        file.with_name("new").replace(file)

    def accept_token(self, token: str) -> None:
        """Both servers take this access token and no other."""
        self.imap.token = self.smtp.token = token

    # ------------------------------------------------------------------ mail

    def offer(self) -> Inbound:
        """A buyer writes."""
        number = len(self.inbound) + 1
        mail = compose(number, "buyer")
        if self.real is None:
            self.imap.add(mail.raw)
        else:
            buyer = self.real.add_user()
            mail.raw, mail.sender = mail.raw.replace(mail.sender.encode(), buyer.address.encode()), buyer.address
            self.buyers[buyer.address] = buyer
            self.real.deliver(self.user, mail.raw, sender=buyer.address)
        self.inbound.append(mail)
        self.tally.offered += 1
        return mail

    def replies(self, mail: Inbound) -> list[bytes]:
        """The answers that a buyer has got, as they arrived."""
        if self.real is not None:
            return self.real.mails(self.buyers[mail.sender])
        return [taken.data for taken in list(self.smtp.taken) if mail.sender in taken.recipients]

    def opened(self) -> bool:
        """Whether the service has had the mailbox open."""
        return bool(self.database.read_now(lambda c: c.exec_driver_sql("SELECT count(*) FROM folders").scalar()))

    def queued(self) -> bool:
        """Whether a reply waits to leave."""
        return "queued" in self.database.read_now(lambda c: c.execute(select(outbox.c.state)).scalars().all())

    # ------------------------------------------------------------------ watching

    def until(self, done: Callable[[], object], minutes: float, what: str) -> bool:
        """Wait some of the service's minutes; False, and a violation, when it did not come about."""
        deadline = time.monotonic() + minutes * 60 / self.pace
        while not done():
            if self.child is None or not self.child.alive():
                return False
            if time.monotonic() > deadline:
                self.tally.stuck += 1
                self.tally.violations.append(f"I8: {what} within {minutes:.0f} minutes: {self.log.read_text()[-600:]}")
                return False
            time.sleep(0.05)
        return True

    def noticed(self) -> bool:
        """Whether the service has said that something is wrong."""
        return "unreachable" in self.log.read_text(encoding="utf-8", errors="replace")

    def watch(self, minutes: float) -> None:
        """Look on for some of the service's minutes, and count the sign-ins that are refused, and the alarm's delay."""
        began = time.monotonic()
        real_before = self.real.refused_sign_ins(self.user) if self.real is not None else (0, 0)
        before = self.imap.refused, self.smtp.refused
        told: float | None = None
        noticed: float | None = None
        while time.monotonic() - began < minutes * MINUTE and self.child is not None and self.child.alive():
            if noticed is None and self.noticed():
                noticed = time.monotonic()
            told = told or next((at for at, _ in self.bell.raised if at >= began), None)
            time.sleep(0.05)
        self.tally.tries += [self.imap.refused - before[0], self.smtp.refused - before[1]]
        if self.real is not None:
            self.tally.tries += [n - m for n, m in zip(self.real.refused_sign_ins(self.user), real_before, strict=True)]
        if max(self.tally.tries) > MOST_TRIES:
            self.tally.other += 1
            self.tally.violations.append(f"{max(self.tally.tries)} sign-ins in an hour of refusals")
        if noticed is None:
            self.tally.other += 1
            self.tally.violations.append("what was broken went unnoticed")
            return
        delay = (told - noticed) * PACE if told is not None else float("inf")
        self.tally.alerts.append(max(delay, 0.0))
        if delay > self.alert_within:
            self.tally.other += 1
            self.tally.violations.append(f"nobody heard of it within {self.alert_within:.0f} s, but after {delay:.0f} s")

    def come_right(self, minutes: float = 45) -> None:
        """What was broken is mended: everything has to be answered."""
        began = time.monotonic()
        self.until(self.opened, minutes, "the mailbox was not opened")
        self.offer()
        if self.until(lambda: all(self.replies(mail) for mail in self.inbound), minutes, "not everybody was answered"):
            self.tally.resumed.append((time.monotonic() - began) * PACE)

    # ------------------------------------------------------------------ judging

    def judge(self) -> Tally:
        tally, child = self.tally, self.child
        if child is not None and not child.alive():
            tally.crashes += 1
            tally.violations.append("the service ended: " + self.log.read_text()[-1500:])
        elif child is not None:
            tally.stops.append(child.stop())
        tally.judged = len(self.inbound)
        stored = self.database.read_now(lambda c: list(c.execute(select(raw_mail.c.body).join(cases)).scalars()))
        approved = self.database.read_now(
            lambda c: list(c.execute(select(drafts.c.mime).where(drafts.c.state == "approved")).scalars())
        )
        buyers = {mail.sender for mail in self.inbound}
        for taken in self.smtp.taken:
            if len(taken.recipients) != 1 or taken.recipients[0] not in buyers:
                tally.wrong_recipient += 1
                tally.violations.append(f"I5: a mail left for {len(taken.recipients)} recipients")
        for mail in self.inbound:
            got = self.replies(mail)
            tally.answered += bool(got)
            if len(got) > 1:
                tally.duplicates += len(got) - 1
                tally.violations.append(f"I1: {len(got)} replies to message {mail.number}")
            # a server that delivers puts lines of its own before the mail
            if any(not any(one.endswith(mime) for mime in approved) or mail.message_id.encode() not in one for one in got):
                tally.unapproved += 1
                tally.violations.append(f"I3: message {mail.number} was answered with other bytes than were approved")
            copies = sum(mail.message_id.encode() in body for body in stored)
            if copies != 1:
                tally.lost += 1
                tally.violations.append(f"I2: message {mail.number} is stored {copies} times")
        if self.real is not None or self.tls != "none":
            tally.wires += 1
            for secret in _forms_of(self.user.address, PASSWORD):
                if any(secret in line.said for line in self.lines):
                    tally.in_clear += 1
                    tally.violations.append("a password crossed the wire in the clear")
        return tally

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
        for line in self.lines:
            line.close()
        for server in (self.imap, self.smtp, self.bell, self.tokens):
            server.close()
        self.database.close()


def _forms_of(name: str, password: str) -> Iterator[bytes]:
    """A password as it would look on the wire: as it is, and in AUTH PLAIN and AUTH LOGIN."""
    yield password.encode()
    yield base64.b64encode(password.encode())
    yield base64.b64encode(f"\0{name}\0{password}".encode())


# --------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong; ``run`` breaks it, watches, and mends it."""

    name: str
    run: Callable[[Shop], None]
    real: bool = False
    how: tuple[tuple[str, Any], ...] = ()

    def do(self, zygote: Zygote) -> Tally:
        folder = Path(tempfile.mkdtemp(prefix="postsale-faults-"))
        real = None
        try:
            if self.real:
                real = MailServers()
                real.start()
            shop = Shop(zygote, folder, real=real, **dict(self.how))
            try:
                self.run(shop)
                tally = shop.judge()
            finally:
                shop.close()
        finally:
            if real is not None:
                real.stop()
            shutil.rmtree(folder, ignore_errors=True)
        tally.account_faults += 1
        tally.violations = [f"{self.name}: {violation}" for violation in tally.violations]
        return tally


def well(shop: Shop) -> bool:
    """Start the service, and see it answer; afterwards one more reply waits in its undo window."""
    shop.start()
    if not shop.until(shop.opened, 30, "the mailbox was not opened"):
        return False
    shop.offer()
    if not shop.until(lambda: shop.replies(shop.inbound[0]), 30, "the first mail was not answered"):
        return False
    shop.offer()
    return shop.until(shop.queued, 10, "the second mail was not read")


def _an_hour_of(
    break_: Callable[[Shop], None], mend: Callable[[Shop], None], *, minutes: float = 59, at_start: bool = False
) -> Callable[[Shop], None]:
    def run(shop: Shop) -> None:
        if at_start:
            break_(shop)
            shop.start()
        elif well(shop):
            break_(shop)
            shop.cut()
            shop.offer()
        else:
            return
        shop.watch(minutes)
        mend(shop)
        shop.come_right()

    return run


def _set(name: str, attribute: str, value: Any) -> Callable[[Shop], None]:
    """Set a switch of one of the scripted servers."""
    return lambda shop: setattr(getattr(shop, name), attribute, value)


def _real_password(password: str) -> Callable[[Shop], None]:
    def change(shop: Shop) -> None:
        assert shop.real is not None
        shop.real.set_password(shop.user, password)

    return change


def _smtp_password(password: str) -> Callable[[Shop], None]:
    def change(shop: Shop) -> None:
        (shop.folder / "smtp.password").write_text(password + "\n")

    return change


def _good_tokens(shop: Shop) -> None:
    shop.write_tokens("access-1")
    shop.accept_token("access-1")
    shop.tokens.always = (200, {"access_token": "access-2", "refresh_token": "r2", "expires_in": 100 * HOUR * PACE})


def _token_ends(how: Callable[[Shop], None]) -> Callable[[Shop], None]:
    """A token that the provider ends before its time: the next one is asked for, and nobody has to do anything."""

    def run(shop: Shop) -> None:
        _good_tokens(shop)
        if not well(shop):
            return
        how(shop)
        shop.watch(20)
        shop.come_right()

    return run


def _in_idle(shop: Shop) -> None:
    shop.accept_token("access-2")
    shop.imap.end_sessions(b"Session invalidated - AccessTokenExpired")


def _in_fetch(shop: Shop) -> None:
    def end(verb: str) -> None:
        if verb == "UID FETCH":
            shop.imap.on_command = None
            shop.accept_token("access-2")
            for wire in list(shop.imap._live):
                wire.fault = Fault("fetch_size", Kind.HALF)

    shop.imap.on_command = end
    shop.offer()


def _refresh(answer: tuple[int, dict[str, Any] | str], *, for_good: bool = False) -> Callable[[Shop], None]:
    """An hour in which the token server fails; ``for_good`` needs a new sign-in by the operator."""

    def run(shop: Shop) -> None:
        _good_tokens(shop)
        if not well(shop):
            return
        good, shop.tokens.always = shop.tokens.always, answer
        shop.write_tokens("access-1", seconds=60)  # it ends in a minute
        shop.accept_token("access-2")
        shop.cut()
        shop.offer()
        shop.watch(59)
        shop.tokens.always = good
        if for_good:
            shop.write_tokens("access-2")
        shop.come_right()

    return run


ACCOUNT_CASES: Sequence[Case] = (
    Case(
        "password wrong from the start", _an_hour_of(_real_password(WRONG), _real_password(PASSWORD), at_start=True), real=True
    ),
    Case("password changed at the server", _an_hour_of(_real_password(WRONG), _real_password(PASSWORD)), real=True),
    Case(
        "sending alone refused",
        _an_hour_of(_smtp_password(WRONG), _smtp_password(PASSWORD)),
        real=True,
        how=(("own_smtp_password", True),),
    ),
    Case("token ended in IDLE", _token_ends(_in_idle), how=(("way", "oauth"),)),
    Case("token ended in FETCH", _token_ends(_in_fetch), how=(("way", "oauth"),)),
    Case("refresh answers 400", _refresh((400, {"error": "invalid_grant"}), for_good=True), how=(("way", "oauth"),)),
    Case("refresh answers 500", _refresh((500, {})), how=(("way", "oauth"),)),
    Case("refresh answers a web page", _refresh((200, "<html>sign in</html>")), how=(("way", "oauth"),)),
    Case(
        "[ALERT] too many connections",
        _an_hour_of(
            _set("imap", "login_answer", b"NO [ALERT] Too many simultaneous connections. (Failure)"),
            _set("imap", "login_answer", None),
        ),
    ),
    Case(
        "[UNAVAILABLE]",
        _an_hour_of(
            _set("imap", "login_answer", b"NO [UNAVAILABLE] Temporary authentication failure."),
            _set("imap", "login_answer", None),
        ),
    ),
    Case("lock-out after five tries", lambda shop: _lock_out(shop)),
    Case(
        "sending put off (454)",
        _an_hour_of(
            _set("smtp", "auth_answer", b"454 4.7.0 Temporary authentication failure\r\n"), _set("smtp", "auth_answer", None)
        ),
    ),
    Case("sending refuses the token", lambda shop: _token_without_scope(shop), how=(("way", "oauth"),)),
    Case(
        "password file empty for a while",
        _an_hour_of(lambda shop: shop.write_password(""), lambda shop: shop.write_password(PASSWORD)),
    ),
)


def _lock_out(shop: Shop) -> None:
    shop.imap.locks_after = 5
    _an_hour_of(_set("imap", "password", "another"), _set("imap", "password", PASSWORD))(shop)


def _token_without_scope(shop: Shop) -> None:
    _good_tokens(shop)
    shop.tokens.always = (200, {"access_token": "access-1", "refresh_token": "r2", "expires_in": 100 * HOUR * PACE})
    _an_hour_of(_set("smtp", "token", "another"), _set("smtp", "token", "access-1"))(shop)


def _certificate(bad: str, good: str = "server", *, at_start: bool = True) -> Callable[[Shop], None]:
    """Dovecot and Postfix show a certificate that does not hold."""

    def show(name: str) -> Callable[[Shop], None]:
        def change(shop: Shop) -> None:
            assert shop.real is not None
            shop.real.use_certificate(name)

        return change

    return _an_hour_of(show(bad), show(good), minutes=20, at_start=at_start)


def _renewed_certificate(shop: Shop) -> None:
    """The provider's certificate is replaced by another good one, as happens every few weeks."""
    assert shop.real is not None
    if not well(shop):
        return
    shop.real.use_certificate("again")
    shop.come_right()
    if shop.bell.raised:
        shop.tally.other += 1
        shop.tally.violations.append(f"a renewed certificate raised {shop.bell.raised}")


def _old_tls(shop: Shop) -> None:
    """A server that speaks TLS 1.1 at most."""
    context = server_context(shop.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    shop.imap._context = shop.smtp._context = context


def _new_tls(shop: Shop) -> None:
    shop.imap._context = shop.smtp._context = server_context(shop.folder)


def _injected(name: str, lines: bytes) -> Callable[[Shop], None]:
    """Somebody on the line puts answers behind the one to STARTTLS: they must not count."""

    def run(shop: Shop) -> None:
        getattr(shop, name).after_starttls = lines
        shop.start()
        shop.until(shop.opened, 30, "the mailbox was not opened")
        shop.offer()
        shop.until(lambda: shop.replies(shop.inbound[0]) or shop.noticed(), 30, "neither answered nor refused")
        getattr(shop, name).after_starttls = b""
        shop.come_right()

    return run


_STARTTLS = (("tls", "starttls"),)
TLS_CASES: Sequence[Case] = (
    Case("certificate expired", _certificate("expired"), real=True),
    Case("certificate signed by itself", _certificate("own"), real=True),
    Case("certificate of another host", _certificate("other"), real=True),
    Case("certificate of another authority, in the middle", _certificate("foreign", at_start=False), real=True),
    Case("certificate renewed", _renewed_certificate, real=True),
    Case("TLS 1.1", _an_hour_of(_old_tls, _new_tls, minutes=20), how=_STARTTLS),
    Case(
        "STARTTLS stripped from IMAP",
        _an_hour_of(_set("imap", "offer_starttls", False), _set("imap", "offer_starttls", True), minutes=20),
        how=_STARTTLS,
    ),
    Case(
        "STARTTLS stripped from SMTP",
        _an_hour_of(_set("smtp", "offer_starttls", False), _set("smtp", "offer_starttls", True), minutes=20),
        how=_STARTTLS,
    ),
    Case("answers injected after 220", _injected("smtp", b"250-fake\r\n250 AUTH PLAIN LOGIN\r\n"), how=_STARTTLS),
    Case("answers injected after OK", _injected("imap", b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n* OK go on\r\n"), how=_STARTTLS),
    Case(
        "PREAUTH instead of a greeting",
        _an_hour_of(
            _set("imap", "greeting", b"* PREAUTH signed in already\r\n"),
            _set("imap", "greeting", b"* OK fake ready\r\n"),
            minutes=20,
        ),
        how=_STARTTLS,
    ),
    Case("plain text where TLS is due", lambda shop: _plain_text(shop), how=(("tls", "implicit"), ("alert_within", NO_POLL))),
)


def _plain_text(shop: Shop) -> None:
    """A server that speaks without TLS on the port that is for TLS alone."""

    def speak(tls: str | None) -> Callable[[Shop], None]:
        def change(shop: Shop) -> None:
            shop.imap._tls = shop.smtp._tls = tls

        return change

    _an_hour_of(speak(None), speak("implicit"), minutes=20)(shop)


#: What the short form tries of each plan.
SHORT_ACCOUNT_CASES = (
    "password changed at the server",
    "token ended in IDLE",
    "refresh answers 400",
    "lock-out after five tries",
)
SHORT_TLS_CASES = ("certificate expired", "TLS 1.1", "STARTTLS stripped from SMTP", "answers injected after 220")


def chosen(every: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases of these names; all when there are none."""
    return [case for case in every if not names or case.name in names]


def run_cases(zygote: Zygote, chosen: Sequence[Case]) -> Tally:
    """Each case on servers of its own, several at once."""
    total = Tally()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for tally in pool.map(lambda case: case.do(zygote), chosen):
            total.add(tally)
    return total
