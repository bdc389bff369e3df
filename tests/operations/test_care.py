"""Alarms by their real conditions, retention as a task, and the reports that come by mail."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Connection, insert, select, update

from daemon.clock import FixedClock
from daemon.config import AlarmConfig, Config, RunMode
from daemon.edges.credentials import TokenState
from daemon.edges.errors import SignInRefused
from daemon.loops.account import Account
from daemon.loops.care import Care
from daemon.store import alarms, drafts, folders
from daemon.store.db import Database
from daemon.store.tables import cases, feedback, outbox, raw_mail
from daemon.vocab import CaseState, DraftState
from tests.approval import seeds
from tests.approval.office import Office, config
from tests.conftest import NOW

OPERATOR = "operator@staff.example"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@dataclass
class Ward:
    """The care of an office, with what it cannot see by itself replaced by fields."""

    office: Office
    troubles: dict[str, str] = field(default_factory=dict)
    stalled: list[str] = field(default_factory=list)
    lost: str | None = None
    expected: float = 0.0
    tokens: dict[str, TokenState] = field(default_factory=dict)
    posted: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.care = Care(
            self.office.desk,
            started_at=self.office.clock.now(),
            troubles=lambda: self.troubles,
            orders=lambda: self.lost,
            stalled=lambda: self.stalled,
            tokens=lambda: self.tokens,
            post=lambda url, content: self.posted.append((url, content)),
            on_notice=lambda: None,
            expected=lambda: self.expected,
        )

    async def names(self) -> list[tuple[str, str]]:
        return [(name, subject) for name, subject, _ in await self.care.look(self.office.clock.now())]

    async def watch(self) -> list[str]:
        """One look; the subjects of the mails it wrote."""
        before = len(await self.office.notices())
        await self.care.watch(self.office.clock.now())
        return [str(mail["Subject"]) for mail in (await self.office.notices())[before:]]

    async def read(self, *, mail: bool = False) -> None:
        """The mailbox is read, perhaps with new mail in it."""
        now = self.office.clock.now()

        def look(connection: Connection) -> None:
            folders.open_folder(connection, seeds.MAILBOX, "INBOX", uidvalidity=1, newest_uid=0, now=now)
            folders.succeeded(connection, seeds.MAILBOX, "INBOX", now=now)
            if mail:
                connection.execute(update(folders.folders).values(last_mail_at=now))

        await self.office.database.write(look)


def _config(tmp_path: Any, **values: Any) -> Config:
    shop = config()
    service = shop.service.model_copy(update={"data_dir": tmp_path, "mode": RunMode.LIVE, **values})
    told = AlarmConfig(addresses=(OPERATOR,), webhook_url="http://127.0.0.1:1/hook", disk_free_mb=0)
    return shop.model_copy(update={"service": service, "alarms": told})


@pytest.fixture
def ward(database: Database, clock: FixedClock, tmp_path: Any) -> Ward:
    return Ward(Office(database, clock, config=_config(tmp_path)))


async def test_a_mailbox_that_is_not_read_is_an_alarm_and_its_return_the_all_clear(ward: Ward) -> None:
    assert await ward.names() == []
    ward.office.clock.advance(timedelta(minutes=16))
    assert await ward.names() == [("no_poll", "shop")]
    assert await ward.watch() == ["[Postsale] ALARM: no_poll shop"]
    assert await ward.watch() == []  # once
    ward.office.clock.advance(timedelta(hours=25))
    assert await ward.watch() == ["[Postsale] Still on: no_poll shop"]
    await ward.read()
    assert await ward.watch() == ["[Postsale] All clear"]
    assert await ward.watch() == []
    assert [sorted(k for k, v in content.items() if v) for _, content in ward.posted] == [["at", "raised"], ["at", "cleared"]]


async def test_an_alarm_that_ends_as_another_comes_is_told_in_the_same_mail(ward: Ward) -> None:
    ward.office.clock.advance(timedelta(minutes=16))
    await ward.watch()
    ward.office.clock.advance(timedelta(minutes=1))
    await ward.read()
    ward.stalled.append("advance")
    assert await ward.watch() == ["[Postsale] ALARM: loop_stalled advance"]
    assert "- no_poll shop, it was on since" in _text((await ward.office.notices())[-1]).partition("## Over")[2]


async def test_silence_does_not_end_its_own_alarm_by_lasting(ward: Ward) -> None:
    await ward.read(mail=True)
    await ward.office.database.write(lambda c: _many(c, NOW, per_day=6))
    for days in (2, 14, 60):
        ward.office.clock.jump(timedelta(days=days))
        await ward.read()
        assert await ward.names() == [("no_mail", "shop")]


async def test_silence_is_an_alarm_only_where_mail_is_usual(ward: Ward) -> None:
    await ward.read(mail=True)
    await ward.office.database.write(lambda c: _many(c, ward.office.clock.now(), per_day=0.5))
    ward.office.clock.advance(timedelta(hours=25))
    await ward.read()
    assert await ward.names() == []
    await ward.office.database.write(lambda c: _many(c, NOW, per_day=6))
    assert await ward.names() == [("no_mail", "shop")]


async def test_what_people_must_decide_is_an_alarm(ward: Ward) -> None:
    await ward.read()
    broken = await ward.office.draft_waits(state=CaseState.BROKEN)
    doubtful = await ward.office.draft_waits(state=CaseState.UNCERTAIN)
    await ward.office.database.write(
        lambda c: c.execute(
            insert(outbox).values(
                kind="buyer_reply", mailbox="shop", case_id=doubtful, revision=1, recipient="b@x.example", message_id="<m@x>",
                envelope_from="s@x.example", dedupe_key="k", mime_sha256="0" * 64, state="needs_human", not_before=NOW,
                created_at=NOW, updated_at=NOW,
            )
        )
    )  # fmt: skip
    found = await ward.names()
    assert ("poison", str(broken)) in found
    assert ("uncertain", str(doubtful)) in found


async def test_a_near_deadline_is_an_alarm_while_live(ward: Ward, database: Database, clock: FixedClock, tmp_path: Any) -> None:
    await ward.read()
    case_id = await ward.office.draft_waits()
    deadline = NOW + timedelta(hours=5)
    await database.write(lambda c: c.execute(update(cases).where(cases.c.id == case_id).values(deadline_at=deadline)))
    assert await ward.names() == []
    clock.advance(timedelta(hours=1, minutes=1))
    await ward.read()
    assert await ward.names() == [("deadline", "shop")]
    shadow = Ward(Office(database, clock, config=_config(tmp_path, mode=RunMode.SHADOW)))
    assert await shadow.names() == []


async def test_an_account_the_orders_a_loop_and_the_disk_are_watched(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    await ward.read()
    ward.troubles["shop"] = "535 refused"
    ward.stalled.append("advance")
    ward.lost = "orders database: connection refused"
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9, 0))
    ward.office.config.alarms.__dict__["disk_free_mb"] = 500
    assert await ward.names() == [
        ("loop_stalled", "advance"),
        ("breaker_open", "shop"),
        ("orders_down", ""),
        ("disk_low", ""),
    ]


async def test_an_account_that_cannot_be_read_is_told_at_the_next_look(ward: Ward) -> None:
    account = Account(ward.office.database, "shop", pause=timedelta(minutes=15))
    await account.refused(SignInRefused("login as shop refused"), ward.office.clock.now())
    ward.troubles["shop"] = "535 no"
    assert await ward.care.look(ward.office.clock.now()) == [("breaker_open", "shop", "login as shop refused; 535 no")]
    ward.troubles.clear()
    await account.accepted()
    assert await ward.names() == []


async def test_more_corrections_than_the_model_promised_are_an_alarm(ward: Ward) -> None:
    await ward.read()
    ward.expected = 0.95

    def decisions(connection: Connection, wrong: int, first_uid: int) -> None:
        for number in range(40):
            case_id = seeds.add_case(connection, now=NOW, uid=first_uid + number)
            judged = {"kind": "buyer", "label": "complaint", "model_version": "m1", "received_at": NOW, "state": "closed"}
            connection.execute(update(cases).where(cases.c.id == case_id).values(**judged))
            final = "complaint/late" if number >= wrong else "return_request"
            connection.execute(insert(feedback).values(case_id=case_id, at=NOW, by="li", predicted="complaint", final=final))

    await ward.office.database.write(lambda c: decisions(c, 3, 7_000_000))
    assert await ward.names() == []
    await ward.office.database.write(lambda c: decisions(c, 10, 8_000_000))
    assert await ward.names() == [("model_drift", "m1")]


HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("state", "alarm", "words"),
    [
        (TokenState(), "token_expired", "nobody has signed in; run: postsale login shop"),
        (TokenState(access_ends=NOW + HOUR), None, ""),
        (TokenState(access_ends=NOW - HOUR), None, ""),  # the service was off, and has not asked for another yet
        (TokenState(access_ends=NOW - HOUR, failing_since=NOW, problem="token server answers 503"), "token_expired", "503"),
        (TokenState(access_ends=NOW + HOUR, failing_since=NOW), None, ""),  # one hiccup
        (
            TokenState(access_ends=NOW + HOUR, failing_since=NOW - timedelta(minutes=2), problem="token server answers 503"),
            "token_expiring",
            "ends at 2026-11-02 11:00 UTC and cannot be renewed: token server answers 503",
        ),
        (TokenState(access_ends=NOW + HOUR, failing_since=NOW, withdrawn=True), "token_expired", "run: postsale login shop"),
        (TokenState(access_ends=NOW + HOUR, sign_in_ends=NOW + 4 * DAY), None, ""),
        (TokenState(access_ends=NOW + HOUR, sign_in_ends=NOW + 2 * DAY), "token_expiring", "ends at 2026-11-04 10:00 UTC"),
        (TokenState(access_ends=NOW + HOUR, sign_in_ends=NOW), "token_expired", "run: postsale login shop"),
    ],
)
async def test_a_sign_in_that_ends_is_told_before_it_does(ward: Ward, state: TokenState, alarm: str | None, words: str) -> None:
    await ward.read()
    ward.tokens["shop"] = state
    seen = await ward.care.look(NOW)
    assert [(name, subject) for name, subject, _ in seen] == ([(alarm, "shop")] if alarm else [])
    assert all(words in detail for _, _, detail in seen)


async def test_a_deaf_webhook_does_not_stop_the_service(ward: Ward) -> None:
    def deaf(url: str, content: Mapping[str, Any]) -> None:
        raise OSError("connection refused")

    ward.care._post = deaf
    ward.office.clock.advance(timedelta(minutes=16))
    assert await ward.watch() == ["[Postsale] ALARM: no_poll shop"]
    assert len(await ward.office.database.read(alarms.active)) == 1


async def test_retention_empties_ended_cases_in_batches(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.store.forgetting.BATCH", 2)
    old = [await ward.office.draft_waits(state=CaseState.SENT) for _ in range(5)]
    waiting = await ward.office.draft_waits()
    ward.office.clock.advance(timedelta(days=31))
    await ward.care.retention(ward.office.clock.now())
    left = await ward.office.database.read(lambda c: c.execute(select(raw_mail.c.case_id)).scalars().all())
    assert set(left).isdisjoint(old)
    assert waiting in left


@pytest.mark.parametrize(("hour", "expected"), [(7, 0), (9, 2)])
async def test_shadow_mode_gives_an_account_each_morning(ward: Ward, hour: int, expected: int) -> None:
    async def shadow() -> None:
        case_id = await ward.office.draft_waits(state=CaseState.SHADOWED, label="return_request", sublabel="damaged")
        values = {"mode": "ask", "policy": "return-damaged", "confidence": 0.9}
        await ward.office.database.write(lambda c: c.execute(update(cases).where(cases.c.id == case_id).values(**values)))
        await ward.office.database.write(lambda c: drafts.decide(c, case_id, 1, DraftState.SHADOW, actor="postsale", now=NOW))

    await shadow()
    ward.office.clock.jump(timedelta(hours=hour) - timedelta(hours=NOW.hour) + timedelta(days=1))
    await ward.care.accounts(ward.office.clock.now())
    mails = await ward.office.notices()
    assert len(mails) == expected  # one for each approver who is asked first
    await ward.care.accounts(ward.office.clock.now())
    assert len(await ward.office.notices()) == expected
    if mails:
        text = _text(mails[0])
        assert "1 replies would have waited for your OK" in text
        assert "about 90 in 100" in text
        assert "return-damaged: 1" in text
        assert mails[0]["Auto-Submitted"]
        assert any("影子模式" in str(m["Subject"]) for m in mails)


async def test_nothing_is_reported_where_nothing_was_shadowed(ward: Ward) -> None:
    ward.office.clock.jump(timedelta(days=1))
    await ward.care.accounts(ward.office.clock.now())
    assert await ward.office.notices(to="anna") == []


def _text(mail: Any) -> str:
    body = mail.get_body(("plain",))
    return str(body.get_content())


def _many(connection: Connection, now: datetime, *, per_day: float, days: int = 10) -> None:
    """That many mails a day, up to now."""
    count = int(per_day * days)
    times: Sequence[datetime] = [now - timedelta(days=days * (n + 0.5) / count) for n in range(count)]
    for number, at in enumerate(times):
        case_id = seeds.add_case(connection, now=at, uid=5_000_000 + number + int(per_day * 1000))
        connection.execute(update(cases).where(cases.c.id == case_id).values(state=CaseState.CLOSED.value, received_at=at))
