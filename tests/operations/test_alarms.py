"""Each alarm of docs/operating.md by its real condition: the whole service, and what goes wrong around it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from daemon import config_example
from daemon.app import App
from daemon.clock import Clock, FixedClock
from daemon.commands import queue, setup
from daemon.config import load
from daemon.edges import credentials
from daemon.errors import NeedsHuman
from daemon.loops.loop import Pace
from daemon.store import cases, folders, labelling
from tests.fakes.faults import Fault, Kind
from tests.fakes.imap import FakeImap
from tests.fakes.smtp import FakeSmtp
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
ADDRESS = "service@shop.example"
OPERATOR = "operator@staff.example"
PASSWORD = "correct horse"


@dataclass
class Shop:
    """A shop's folder and its servers; ``running`` is the service on them."""

    folder: Path
    imap: FakeImap
    smtp: FakeSmtp

    @asynccontextmanager
    async def running(self, clock: Clock | None = None, **values: Any) -> AsyncIterator[App]:
        settings = {
            **config_example.SAMPLE,
            "service.workers": 1,
            "mailboxes.address": ADDRESS,
            "mailboxes.imap.host": "127.0.0.1",
            "mailboxes.imap.port": self.imap.port,
            "mailboxes.imap.tls": "none",
            "mailboxes.imap.poll_seconds": 1,
            "mailboxes.smtp.host": "127.0.0.1",
            "mailboxes.smtp.port": self.smtp.port,
            "mailboxes.smtp.tls": "none",
            "orders.defer_minutes": 0,
            "alarms.disk_free_mb": 0,
            "alarms.addresses": [OPERATOR],
            **{key.replace("__", "."): value for key, value in values.items()},
        }
        settings = {key: value for key, value in settings.items() if value is not None}
        file = self.folder / "config.toml"
        file.write_text(config_example.text(settings))
        async with App(load(file), clock=clock) as app:
            work = asyncio.ensure_future(app.run())
            yield app
            app.stop.set()
            await asyncio.wait_for(work, 60)

    def told(self) -> list[str]:
        """Subjects of the mails that reached the operator, oldest first."""
        taken = [message_from_bytes(t.data, policy=default) for t in self.smtp.taken if OPERATOR in t.recipients]
        return [str(mail["Subject"]) for mail in taken]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    setup.init(tmp_path / "shop", address="", approver="", provider="generic", imap="", smtp="", system=False, as_json=False, quiet=True)  # fmt: skip
    (tmp_path / "shop/secrets/shop.password").write_text(PASSWORD + "\n")
    made = Shop(tmp_path / "shop", FakeImap(password=PASSWORD), FakeSmtp(password=PASSWORD))
    yield made
    made.imap.close()
    made.smtp.close()


async def _alarm(app: App, name: str, seconds: float = 60) -> tuple[str, str]:
    """(subject, detail) of the alarm once it is seen, which is asked for as upkeep does each minute."""
    end = time.monotonic() + seconds
    while True:
        seen = await app.care.look(app.clock.now())
        for found, subject, detail in seen:
            if found == name:
                return subject, detail
        assert time.monotonic() < end, f"{name} did not come: {seen}"
        await asyncio.sleep(0.05)


async def _over(app: App, name: str, seconds: float = 60) -> None:
    """Wait until the alarm is no longer seen."""
    end = time.monotonic() + seconds
    while any(found == name for found, _, _ in await app.care.look(app.clock.now())):
        assert time.monotonic() < end, f"{name} is still on"
        await asyncio.sleep(0.05)


def _mail(words: str = "Where is my parcel? Order 20418 has not arrived.", number: int = 1) -> bytes:
    return (
        f"From: Oliver <oliver{number}@postbox.example>\r\nTo: {ADDRESS}\r\nSubject: Order\r\n"
        f"Message-ID: <m{number}@postbox.example>\r\n\r\n{words}\r\n"
    ).encode()


async def test_no_poll(shop: Shop) -> None:
    async with shop.running(mailboxes__imap__port=free_port(), alarms__no_poll_minutes=0.001) as app:
        subject, detail = await _alarm(app, "no_poll")
        assert subject == "shop"
        assert "not read for" in detail
        await app.care.watch(app.clock.now())
        await _until(lambda: bool(shop.told()))


async def test_no_mail(shop: Shop) -> None:
    """Four mails a day, then none; told once, again after a day, and over with the next mail."""
    clock = FixedClock(datetime.now(UTC) - timedelta(days=7))
    watched = {"alarms__no_mail_hours": 24, "alarms__no_poll_minutes": 1e6}
    async with shop.running(clock, **watched) as app:
        await _ready(app)
        for number in range(8):
            clock.jump(timedelta(hours=6))
            shop.imap.add(_mail(number=number))
            await _until(lambda n=number: _stored(app) == n + 1)  # type: ignore[misc]
        clock.jump(timedelta(hours=23))
        app.upkeep.wake()
        assert [name for name, _, _ in await app.care.look(clock.now())] == []
        clock.jump(timedelta(hours=2))
        app.upkeep.wake()
        assert await _alarm(app, "no_mail") == ("shop", "no mail for 25 hours, where 4 are usual")
        await _until(lambda: bool(shop.told()))
        await app.care.watch(clock.now())
        clock.jump(timedelta(days=1))
        app.upkeep.wake()
        await _until(lambda: len(shop.told()) == 2)
        shop.imap.add(_mail(number=9))
        await _over(app, "no_mail")
        clock.jump(timedelta(minutes=1))
        app.upkeep.wake()
        await _until(lambda: len(shop.told()) == 3)
    assert shop.told() == [f"[Postsale] {words}" for words in ("ALARM: no_mail shop", "Still on: no_mail shop", "All clear")]


async def test_model_drift(shop: Shop) -> None:
    """Staff correct ten labels of thirty, many more than the shipped model promised; then they confirm thirty more."""
    file = shop.folder / "config.toml"
    async with shop.running(service__mode="live", mailboxes__approval__undo_seconds=0) as app:
        await _ready(app)
        for number in range(60):
            shop.imap.add(_mail(f"Hello, before I buy lamp number {number}: can I return it if it does not fit?", number))
        await _until(lambda: _cases(app) == {"awaiting_approval": 60})
        for number in range(1, 11):
            await asyncio.to_thread(queue.label, number, "return_request/unwanted", config=file)
        await asyncio.to_thread(queue.approve, list(range(11, 30)), config=file)
        assert app.database.read_now(lambda c: labelling.labelling(c, now=app.clock.now())).decided == 29  # too few to judge
        assert [name for name, _, _ in await app.care.look(app.clock.now())] == []
        await asyncio.to_thread(queue.approve, [30], config=file)
        subject, detail = await _alarm(app, "model_drift")
        assert (subject, detail) == (
            app.judge.versions[0],
            f"staff corrected 33% of 30 labels, {1 - app.judge.facts.expected:.0%} were to be expected; run: postsale train",
        )
        await app.care.watch(app.clock.now())
        await _until(lambda: bool(shop.told()))
        await app.care.watch(app.clock.now())
        await asyncio.to_thread(queue.approve, list(range(31, 61)), config=file)
        await _over(app, "model_drift")
        await app.care.watch(app.clock.now())
        await _until(lambda: len(shop.told()) == 2)
    assert shop.told() == [f"[Postsale] ALARM: model_drift {subject}", "[Postsale] All clear"]


@pytest.mark.parametrize("side", ["imap", "smtp"])
async def test_breaker_open(shop: Shop, side: str) -> None:
    if side == "imap":
        shop.imap.password = "another"
    else:
        shop.smtp.password = "another"
    async with shop.running(alarms__disk_free_mb=10**9) as app:  # one alarm mail has to leave
        subject, detail = await _alarm(app, "breaker_open")
        assert (subject, "refused" in detail or "535" in detail) == ("shop", True)
        assert PASSWORD not in detail


async def test_orders_down(shop: Shop) -> None:
    source = {"kind": "http", "url": f"http://127.0.0.1:{free_port()}/{{order_id}}"}
    async with shop.running(orders__sources=[source]) as app:
        await _until(lambda: bool(shop.imap.logins))
        await _ready(app)
        shop.imap.add(_mail("Where is my parcel? My order number is #20418."))
        assert "cannot be reached" in (await _alarm(app, "orders_down"))[1]


class TokenServer:
    """Answers every form alike."""

    def __init__(self) -> None:
        outer = self
        self.answer: tuple[int, dict[str, Any]] = (503, {})

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, content = outer.answer
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def token_server() -> Iterator[TokenServer]:
    server = TokenServer()
    yield server
    server.close()


def _oauth(shop: Shop, token_server: TokenServer) -> dict[str, Any]:
    shop.imap.token = shop.smtp.token = "access-1"
    shop.imap.capabilities = "IMAP4rev1 IDLE AUTH=XOAUTH2"
    return {
        "mailboxes__sign_in__oauth": "microsoft",
        "mailboxes__sign_in__oauth_client_id": "client-1",
        "mailboxes__sign_in__oauth_token_url": token_server.url,
        "mailboxes__sign_in__password_file": None,
    }


def _tokens(shop: Shop, **values: Any) -> None:
    now = time.time()
    tokens = {"access_token": "access-1", "refresh_token": "r", "expires_at": now + 900, "renew_at": now + 800, **values}
    credentials.write_private(shop.folder / "data/tokens/shop.json", json.dumps(tokens))


async def test_token_expired(shop: Shop, token_server: TokenServer) -> None:
    async with shop.running(**_oauth(shop, token_server)) as app:
        assert await _alarm(app, "token_expired") == ("shop", "nobody has signed in; run: postsale login shop")
        _tokens(shop)  # as postsale login does
        await _over(app, "token_expired")
        token_server.answer = (400, {"error": "invalid_grant"})
        _tokens(shop, renew_at=0)
        with pytest.raises(NeedsHuman, match="invalid_grant"):
            await asyncio.to_thread(app._sent["shop"]._sign_in.secret)
        assert "has ended; run: postsale login shop" in (await _alarm(app, "token_expired"))[1]


async def test_token_expiring(shop: Shop, token_server: TokenServer) -> None:
    _tokens(shop, renew_at=0, failing_since=time.time() - 300)
    async with shop.running(**_oauth(shop, token_server)) as app:
        await _until(lambda: bool(shop.imap.logins))  # the token still opens the mailbox
        subject, detail = await _alarm(app, "token_expiring")
        assert subject == "shop"
        assert "cannot be renewed: token server answers 503" in detail
        token_server.answer = (200, {"access_token": "access-1", "expires_in": 3600, "refresh_token_expires_in": 86400})
        _tokens(shop, renew_at=0)
        await asyncio.to_thread(app._sent["shop"]._sign_in.secret)
        assert "the OAuth2 sign-in ends at" in (await _alarm(app, "token_expiring"))[1]
        token_server.answer = (200, {"access_token": "access-1", "expires_in": 3600, "refresh_token_expires_in": 86400 * 9})
        _tokens(shop, renew_at=0)
        await asyncio.to_thread(app._sent["shop"]._sign_in.secret)
        await _over(app, "token_expiring")


async def test_deadline(shop: Shop) -> None:
    async with shop.running(service__mode="live", mailboxes__response_hours=1) as app:
        await _ready(app)
        shop.imap.add(_mail())
        assert (await _alarm(app, "deadline"))[0] == "shop"


async def test_poison(shop: Shop) -> None:
    async with shop.running(reading__wall_seconds=0.0001) as app:
        await _ready(app)
        shop.imap.add(_mail())
        assert (await _alarm(app, "poison"))[1].endswith("queue show")


async def test_uncertain(shop: Shop) -> None:
    """A person writes the reply, and the connection is cut where the server's word should come."""
    shop.smtp.fault = Fault("dot", Kind.RST, times=0)
    async with shop.running(service__mode="live", delivery__evidence_minutes=0, mailboxes__approval__undo_seconds=0) as app:
        await _ready(app)
        shop.imap.add(_mail())
        await _until(lambda: bool(shop.smtp.taken))  # the approver is told
        shop.smtp.fault.times = 1
        (shop.folder / "reply.txt").write_text("Hello Oliver,\n\nyour parcel is with the carrier and arrives this week.\n")
        write = {"case": 1, "file": shop.folder / "reply.txt", "config": shop.folder / "config.toml"}
        await asyncio.to_thread(queue.edit, **write)
        app.wake_senders()
        assert (await _alarm(app, "uncertain"))[0] == "1"


async def test_loop_stalled(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stands_still() -> Pace:
        await app.stop.wait()
        return Pace(0)

    async with shop.running() as app:
        await _ready(app)
        monkeypatch.setattr(app.advance, "step", stands_still)
        monkeypatch.setattr(app.advance, "bound_seconds", 0.1)
        monkeypatch.setattr(app.advance, "idle_seconds", 0.1)
        app.advance.wake()
        assert (await _alarm(app, "loop_stalled"))[0] == "advance"
        assert app._health()[0] is False


async def test_disk_low(shop: Shop) -> None:
    async with shop.running(alarms__disk_free_mb=10**9) as app:
        assert "MB are free" in (await _alarm(app, "disk_low"))[1]


def test_every_alarm_of_the_guide_has_its_test() -> None:
    guide = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8").partition("## Alarms")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", guide, re.MULTILINE))
    raised = set(
        re.findall(
            r'\(\s*"([a-z]+(?:_[a-z]+)?)", (?:name|str|case|mailbox|"")',
            (ROOT / "daemon/loops/care.py").read_text(encoding="utf-8"),
        )
    )
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert named == raised
    assert named <= here


async def _ready(app: App) -> None:
    """The folder's baseline is taken."""
    await _until(lambda: app.database.read_now(lambda c: folders.get(c, "shop", "INBOX")) is not None)


def _cases(app: App) -> dict[str, int]:
    """How many cases there are of each state."""
    return {state.value: number for state, number in app.database.read_now(cases.counts).items()}


def _stored(app: App) -> int:
    return sum(_cases(app).values())


async def _until(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
