"""IMAP: what servers and libraries do to a client, and that the next call is sound again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from imapclient import IMAPClient

from daemon.config import TlsMode
from daemon.edges.errors import AccountTrouble, SignInRefused, TlsTrouble
from daemon.edges.imap import FolderMissing, Imap, MessageRefused
from daemon.errors import Transient
from tests.edges.accounts import Login, imap_at, real_imap, server_context
from tests.fakes.faults import Fault, Kind
from tests.fakes.imap import KINDS, STEPS, FakeImap
from tests.servers import MailServers, User, make_certificates

MAIL = b"From: Anna <anna@buyers.test>\r\nTo: shop\r\nSubject: hello\r\nMessage-ID: <1@buyers.test>\r\n\r\nwhere is it?\r\n"
TODAY = datetime.now(UTC).date()


@pytest.fixture
def server() -> Iterator[FakeImap]:
    server = FakeImap()
    yield server
    server.close()


@pytest.fixture
async def imap(server: FakeImap) -> AsyncIterator[Imap]:
    imap = imap_at(server.port)
    yield imap
    await imap.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


async def everything(imap: Imap) -> dict[int, bytes]:
    """One round of watching."""
    opened = await imap.open()
    uids = await imap.uids_after(0)
    uids = sorted({*uids, *await imap.uids_since(1, max([opened.newest_uid, *uids]), TODAY - timedelta(days=2))})
    listed = await imap.sizes(uids)
    return await imap.fetch([m.uid for m in listed], size=sum(m.size for m in listed)) if listed else {}


def flags(client: IMAPClient) -> dict[int, set[bytes]]:
    """Flags of every message, without the one that the server sets by itself."""
    return {uid: set(found) - {b"\\Recent"} for uid, found in client.get_flags(client.search("ALL")).items()}


# --------------------------------------------------------------------------- against Dovecot


@pytest.mark.mailservers
async def test_dovecot_from_login_to_bytes(mail_servers: MailServers, mail_user: User) -> None:
    for _ in range(3):
        mail_servers.deliver(mail_user, MAIL)
    mail_servers.wait_for_mails(mail_user, 3)
    imap = real_imap(mail_servers, mail_user)
    assert "INBOX is open (read-only)" in await imap.ping()
    found = await everything(imap)
    assert sorted(found) == [1, 2, 3]
    assert all(raw.endswith(b"where is it?\r\n") for raw in found.values())
    (listed, *_) = await imap.sizes([1])
    assert listed.size == len(found[1])
    assert listed.internal_date is not None
    assert listed.internal_date.tzinfo is not None
    assert await imap.uids_after(3) == [], "n:* must not return the last message again"
    with mail_servers.imap(mail_user) as client:
        client.select_folder("INBOX")
        assert flags(client) == {1: set(), 2: set(), 3: set()}, "nothing was marked read"
        client.delete_messages([2])
        client.expunge()
    assert sorted(await imap.fetch([1, 2, 3], size=1)) == [1, 3]
    assert [m.uid for m in await imap.sizes([1, 2, 3])] == [1, 3]
    assert (await imap.fetch_head([1]))[1] == found[1]
    await imap.close()


@pytest.mark.mailservers
async def test_a_line_break_in_an_argument_does_nothing_on_dovecot(mail_servers: MailServers, mail_user: User) -> None:
    mail_servers.deliver(mail_user, MAIL)
    mail_servers.wait_for_mails(mail_user, 1)
    payloads = [
        "x\r\nX1 UID STORE 1:* +FLAGS ($Pwned)\r\nX2 DELETE Drafts",
        "<a@b>\r\nX1 UID STORE 1:* +FLAGS (\\Deleted)\r\nX2 EXPUNGE",
        "<a@b>\n",
        "<a\0@b>",
        "<a@b> OR ALL",
        '<"@b>\r\n',
    ]
    imap = real_imap(mail_servers, mail_user, handled_keyword="$Done")
    await imap.open()
    for payload in payloads:
        assert not await imap.find_in_sent(payload, since=TODAY)
    await imap.open()
    with pytest.raises(Transient, match="line break"):
        await imap.mark([1], payloads[0])
    for name in ("INBOX\r\nX1 DELETE Drafts", "INBOX\0"):
        broken = real_imap(mail_servers, mail_user, folder=name)
        with pytest.raises(Transient, match="line break"):
            await broken.open()
        await broken.close()
    evil = real_imap(mail_servers, User("x", "a\r\nX1 NOOP", "p"))
    with pytest.raises(SignInRefused, match="line break"):
        await evil.open()
    await evil.close()
    await imap.close()
    with mail_servers.imap(mail_user) as client:
        client.select_folder("INBOX")
        assert flags(client) == {1: set()}
        assert "Drafts" in {name for _, _, name in client.list_folders()}


@pytest.mark.mailservers
async def test_idle_on_dovecot_ends_with_mail_or_when_woken(mail_servers: MailServers, mail_user: User) -> None:
    imap = real_imap(mail_servers, mail_user)
    await imap.open()
    waiting = asyncio.create_task(imap.idle(30))
    await asyncio.sleep(0.3)
    mail_servers.deliver(mail_user, MAIL)
    assert await asyncio.wait_for(waiting, 10)
    assert await imap.uids_after(0) == [1]
    waiting = asyncio.create_task(imap.idle(30))
    await asyncio.sleep(0.1)
    imap.wake()
    assert await asyncio.wait_for(waiting, 5)
    await imap.close()


@pytest.mark.mailservers
async def test_the_sent_folder_of_dovecot(mail_servers: MailServers, mail_user: User) -> None:
    imap = real_imap(mail_servers, mail_user)
    sent = MAIL.replace(b"<1@buyers.test>", b"<r.abc@bot.test>")
    assert not await imap.find_in_sent("<r.abc@bot.test>", since=TODAY)
    assert await imap.append_to_sent(sent)
    assert await imap.find_in_sent("<r.abc@bot.test>", since=TODAY)
    assert not await imap.find_in_sent("<r.ab@bot.test>", since=TODAY), "a part of a Message-ID is another Message-ID"
    rewritten = sent.replace(b"<r.abc@bot.test>", b"<made-by-exchange@x>").replace(
        b"Subject", b"X-Postsale-Outbox:\r\n <r.own@bot.test>\r\nSubject"
    )
    assert await imap.append_to_sent(rewritten)
    assert await imap.find_in_sent("<r.own@bot.test>", since=TODAY)
    with mail_servers.imap(mail_user) as client:
        client.select_folder("Sent")
        assert flags(client) == {1: {b"\\Seen"}, 2: {b"\\Seen"}}
    await imap.close()


@pytest.mark.mailservers
async def test_keyword_where_it_may_be_set(mail_servers: MailServers, mail_user: User) -> None:
    mail_servers.deliver(mail_user, MAIL)
    mail_servers.wait_for_mails(mail_user, 1)
    imap = real_imap(mail_servers, mail_user, handled_keyword="$Postsale")
    assert not (await imap.open()).read_only
    assert await imap.mark([1], "$Postsale")
    await imap.close()
    with mail_servers.imap(mail_user) as client:
        client.select_folder("INBOX")
        assert b"$Postsale" in client.get_flags([1])[1]


@pytest.mark.mailservers
@pytest.mark.parametrize("tls", [TlsMode.IMPLICIT, TlsMode.STARTTLS])
async def test_tls_is_verified(mail_servers: MailServers, mail_user: User, tls: TlsMode) -> None:
    port = mail_servers.imaps_port if tls is TlsMode.IMPLICIT else mail_servers.imap_port
    good = real_imap(mail_servers, mail_user, tls=tls, port=port)
    await good.open()
    await good.close()
    unknown = real_imap(mail_servers, mail_user, tls=tls, port=port, ca_file=None)
    with pytest.raises(TlsTrouble, match="certificate is not trusted"):
        await unknown.open()
    await unknown.close()


@pytest.mark.mailservers
async def test_wrong_password_and_missing_folder_are_one_line(mail_servers: MailServers, mail_user: User) -> None:
    wrong = real_imap(mail_servers, User(mail_user.name, mail_user.address, "wrong horse"))
    with pytest.raises(SignInRefused, match="refused") as refused:
        await wrong.open()
    assert "wrong horse" not in str(refused.value)
    assert "\n" not in str(refused.value)
    await wrong.close()
    missing = real_imap(mail_servers, mail_user, folder="Nowhere")
    with pytest.raises(FolderMissing, match="Nowhere"):
        await missing.open()
    await missing.close()


# --------------------------------------------------------------------------- every fault at every step

READING = [s for s in STEPS if s not in {"tls", "store", "list", "append", "idle", "done", "logout"}]


@pytest.mark.parametrize("step", READING)
@pytest.mark.parametrize("kind", KINDS)
async def test_after_any_fault_the_next_round_is_sound(server: FakeImap, step: str, kind: Kind) -> None:
    for _ in range(3):
        server.add(MAIL)
    imap = imap_at(server.port, timeout_seconds=0.4)
    server.fault = Fault(step, kind)
    asyncio.get_running_loop().call_later(0.5, server.fault.ended.set)
    began = time.monotonic()
    problem: Transient | None = None
    try:
        assert await everything(imap) == dict.fromkeys((1, 2, 3), MAIL)
    except Transient as error:
        problem = error
    if problem is not None:
        assert "\n" not in str(problem)
        assert isinstance(problem, MessageRefused) or not imap.connected, "a client that raised is thrown away"
    assert time.monotonic() - began < 5
    server.fault.ended.set()
    server.fault = None
    assert await everything(imap) == dict.fromkeys((1, 2, 3), MAIL)
    await imap.close()


@pytest.mark.parametrize("step", ["list", "append"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k is not Kind.SLOW])
async def test_faults_around_the_sent_folder(server: FakeImap, step: str, kind: Kind) -> None:
    imap = imap_at(server.port, timeout_seconds=0.3)
    server.fault = Fault(step, kind)
    try:
        assert await imap.append_to_sent(MAIL)
    except Transient:
        assert not imap.connected
    server.fault.ended.set()
    server.fault = None
    if not await imap.find_in_sent("<1@buyers.test>", since=TODAY):
        assert await imap.append_to_sent(MAIL)
    assert await imap.find_in_sent("<1@buyers.test>", since=TODAY)
    await imap.close()


async def test_a_trickle_cannot_stretch_a_call_beyond_its_deadline(server: FakeImap) -> None:
    server.add(b"x" * 2000)
    imap = imap_at(server.port, timeout_seconds=0.2)
    await imap.open()
    server.fault = Fault("fetch_body", Kind.SLOW)
    for wire in list(server._live):
        wire.fault = server.fault
    began = time.monotonic()
    with pytest.raises(Transient):
        await imap.fetch([1], size=2000)
    assert time.monotonic() - began < 3
    server.fault.ended.set()
    await imap.close()


# --------------------------------------------------------------------------- IDLE's traps


async def test_idle_says_so_when_the_server_has_gone(server: FakeImap) -> None:
    imap = imap_at(server.port)
    await imap.open()
    waiting = asyncio.create_task(imap.idle(30))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    for wire in list(server._live):
        wire.close()
    with pytest.raises(Transient):
        await waiting
    assert time.monotonic() - began < 3
    assert not imap.connected
    await imap.close()


async def test_mail_announced_in_the_same_segment_is_found_by_the_search_after(server: FakeImap, imap: Imap) -> None:
    await imap.open()
    server.after_idle_plus = b"* 1 EXISTS\r\n"
    server.add(MAIL)
    assert await asyncio.wait_for(imap.idle(300), 30), "and it ends the wait"
    assert await imap.uids_after(0) == [1]


async def test_a_line_before_the_plus_is_a_reconnect(server: FakeImap, imap: Imap) -> None:
    await imap.open()
    server.before_idle_plus = b"* 1 EXISTS\r\n"
    with pytest.raises(Transient):
        await imap.idle(0.2)
    server.before_idle_plus = b""
    await imap.open()
    assert await imap.idle(0.05)


@pytest.mark.parametrize("step", ["idle", "done"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in {Kind.SLOW, Kind.LONG_LINE}])
async def test_faults_in_idle(server: FakeImap, step: str, kind: Kind) -> None:
    imap = imap_at(server.port, timeout_seconds=0.3)
    server.fault = Fault(step, kind)
    await imap.open()
    server.add(MAIL)
    try:
        await imap.idle(0.2)
    except Transient:
        assert not imap.connected
    server.fault.ended.set()
    server.fault = None
    await imap.open()
    assert await imap.uids_after(0) == [1]
    await imap.close()


async def test_no_idle_no_wait() -> None:
    server = FakeImap(capabilities="IMAP4rev1 AUTH=PLAIN")
    imap = imap_at(server.port)
    await imap.open()
    assert not await imap.idle(30)
    await imap.close()
    server.close()


async def test_abort_ends_a_hanging_call_at_once(server: FakeImap) -> None:
    imap = imap_at(server.port, timeout_seconds=60)
    await imap.open()
    server.fault = Fault("search", Kind.STALL)
    for wire in list(server._live):
        wire.fault = server.fault
    hanging = asyncio.create_task(imap.uids_after(0))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    imap.abort()
    with pytest.raises(Transient):
        await hanging
    await imap.close()
    assert time.monotonic() - began < 1
    server.fault.ended.set()


async def test_a_socket_that_is_being_closed_is_nobody_elses_to_shut(server: FakeImap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor may be another connection's by then."""
    imap = imap_at(server.port)
    await imap.open()
    closing: list[socket.socket] = []
    shut_too_late: list[socket.socket] = []
    close, shutdown = socket.socket.close, socket.socket.shutdown

    def close_amid_an_abort(sock: socket.socket) -> None:
        if threading.current_thread().name.startswith("postsale-imap"):
            closing.append(sock)
            imap.abort()
        close(sock)

    def shutdown_seen(sock: socket.socket, how: int) -> None:
        if sock in closing and sock.fileno() >= 0:
            shut_too_late.append(sock)
        shutdown(sock, how)

    monkeypatch.setattr(socket.socket, "close", close_amid_an_abort)
    monkeypatch.setattr(socket.socket, "shutdown", shutdown_seen)
    await imap.close()
    assert closing
    assert not shut_too_late


# --------------------------------------------------------------------------- odd servers


async def test_expunged_messages_are_gone_in_either_form(server: FakeImap, imap: Imap) -> None:
    for _ in range(3):
        server.add(MAIL)
    del server.folders["INBOX"].messages[2]
    await imap.open()
    assert sorted(await imap.fetch([1, 2, 3], size=1)) == [1, 3]
    server.expunged_as_none = {2}
    assert sorted(await imap.fetch([1, 2, 3], size=1)) == [1, 3]


async def test_a_message_that_the_server_refuses_leaves_the_connection_alone(server: FakeImap, imap: Imap) -> None:
    server.add(MAIL)
    server.refuse_fetch = {1}
    await imap.open()
    with pytest.raises(MessageRefused):
        await imap.fetch([1], size=1)
    assert imap.connected
    assert server.connections == 1


async def test_a_huge_folder_is_searched_in_windows(server: FakeImap, imap: Imap) -> None:
    await imap.open()
    await imap.uids_since(1, 120_000, TODAY)
    windows = [c.split(b"UID SEARCH ")[1].split(b" SINCE")[0] for c in server.commands if b"SINCE" in c]
    assert windows == [b"UID 1:50000", b"UID 50001:100000", b"UID 100001:120000"]


async def test_of_a_huge_sent_folder_only_the_end_is_listed(server: FakeImap, imap: Imap) -> None:
    server.folders["Sent"].next_uid = 120_001
    assert not await imap.find_in_sent("<1@buyers.test>", since=TODAY)
    assert await imap.answered_in_sent(["<1@buyers.test>"], since=TODAY) == set()
    lists = [c.split(b"UID SEARCH ")[1].split(b" SINCE")[0] for c in server.commands if b"SINCE" in c and b"HEADER" not in c]
    assert lists == [b"UID 115001:*"] * 2


async def test_no_uidvalidity_stops_with_a_reason(server: FakeImap, imap: Imap) -> None:
    server.forget_uidvalidity = True
    with pytest.raises(FolderMissing, match="UIDVALIDITY"):
        await imap.open()


async def test_a_read_only_folder_takes_no_keyword(server: FakeImap) -> None:
    server.add(MAIL)
    server.read_only = True
    imap = imap_at(server.port, handled_keyword="$Done")
    assert (await imap.open()).read_only
    await imap.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"NO [ALERT] Too many simultaneous connections", AccountTrouble),
        (b"NO [UNAVAILABLE] try again later", AccountTrouble),
        (b"NO [AUTHENTICATIONFAILED] Invalid credentials", SignInRefused),
        (b"BAD invalid", SignInRefused),
    ],
)
async def test_a_busy_account_is_no_wrong_password(server: FakeImap, imap: Imap, answer: bytes, kind: type[Exception]) -> None:
    server.login_answer = answer
    with pytest.raises(AccountTrouble) as trouble:
        await imap.open()
    assert type(trouble.value) is kind


async def test_passwords_of_any_kind(server: FakeImap) -> None:
    for password in ('quo"te\\ {3}', "pässwörd 密码", "{12}"):
        server.password = password
        imap = imap_at(server.port, login=Login(password=password))
        await imap.open()
        await imap.close()


async def test_xoauth2_answers_the_error_challenge_with_an_empty_line() -> None:
    server = FakeImap(capabilities="IMAP4rev1 AUTH=XOAUTH2")
    server.token = "good"
    fine = imap_at(server.port, login=Login(password="good", oauth=True, lasts=0.0))
    await fine.open()
    assert fine.due_for_renewal
    await fine.close()
    stale = imap_at(server.port, login=Login(password="stale", oauth=True))
    with pytest.raises(SignInRefused):
        await stale.open()
    await stale.close()
    server.close()


async def test_we_say_who_we_are(server: FakeImap, imap: Imap) -> None:
    await imap.open()
    assert any(b' ID ("name" "Postsale"' in c for c in server.commands)


async def test_a_greeting_as_if_signed_in_sends_no_password(certificates: Path) -> None:
    """PREAUTH forbids STARTTLS: whoever is on the line could keep the whole session readable."""
    server = FakeImap(context=server_context(certificates), tls="starttls", capabilities="IMAP4rev1 STARTTLS AUTH=PLAIN")
    server.greeting = b"* PREAUTH welcome\r\n"
    imap = imap_at(server.port, host="localhost", tls=TlsMode.STARTTLS, ca_file=certificates / "ca.pem")
    with pytest.raises(TlsTrouble, match="as if signed in"):
        await imap.open()
    assert server.logins == []
    await imap.close()
    server.close()


async def test_starttls_that_is_not_offered_sends_no_password(certificates: Path) -> None:
    server = FakeImap(context=server_context(certificates), tls="starttls")
    imap = imap_at(server.port, host="localhost", tls=TlsMode.STARTTLS, ca_file=certificates / "ca.pem")
    with pytest.raises(TlsTrouble, match="nothing was sent in the clear"):
        await imap.open()
    assert server.logins == []
    await imap.close()
    server.close()


@pytest.mark.parametrize("kind", [Kind.RST, Kind.FIN, Kind.STALL, Kind.GARBAGE])
async def test_faults_in_the_handshake(certificates: Path, kind: Kind) -> None:
    server = FakeImap(context=server_context(certificates), tls="implicit")
    server.add(MAIL)
    server.fault = Fault("tls", kind)
    imap = imap_at(server.port, host="localhost", tls=TlsMode.IMPLICIT, ca_file=certificates / "ca.pem", timeout_seconds=0.5)
    with pytest.raises(Transient) as error:
        await imap.open()
    assert not isinstance(error.value, TlsTrouble), "the line was cut; the certificate is fine"
    server.fault.ended.set()
    server.fault = None
    assert await everything(imap) == {1: MAIL}
    await imap.close()
    server.close()


async def test_a_certificate_of_another_host(certificates: Path) -> None:
    server = FakeImap(context=server_context(certificates, "other"), tls="implicit")
    imap = imap_at(server.port, host="localhost", tls=TlsMode.IMPLICIT, ca_file=certificates / "ca.pem")
    with pytest.raises(TlsTrouble, match="certificate is not trusted"):
        await imap.open()
    assert server.logins == []
    await imap.close()
    server.close()


async def test_sent_folders_by_name_and_by_setting() -> None:
    server = FakeImap(special_sent=False)
    server.add(MAIL, folder="Sent")
    by_name = imap_at(server.port)
    assert await by_name.find_in_sent("<1@buyers.test>", since=TODAY)
    await by_name.close()
    server.folders["Außen"] = server.folders.pop("Sent")
    by_name = imap_at(server.port)
    assert not await by_name.find_in_sent("<1@buyers.test>", since=TODAY)
    assert not await by_name.append_to_sent(MAIL)
    await by_name.close()
    server.folders["Au&AN8-en"] = server.folders.pop("Außen")
    by_setting = imap_at(server.port, sent_folder="Außen")
    assert await by_setting.find_in_sent("<1@buyers.test>", since=date.today())  # noqa: DTZ011
    await by_setting.close()
    server.close()


@pytest.mark.mailservers
async def test_replies_that_staff_wrote_themselves_are_seen(mail_servers: MailServers, mail_user: User) -> None:
    imap = real_imap(mail_servers, mail_user)
    asked = ["<1@buyers.test>", "<2@buyers.test>", "<3@buyers.test>", "not a message id"]
    assert await imap.answered_in_sent(asked, since=TODAY) == set()
    by_hand = MAIL.replace(b"<1@buyers.test>", b"<a@staff.test>").replace(
        b"Subject", b"In-Reply-To:\r\n <1@buyers.test>\r\nSubject"
    )
    ours = MAIL.replace(b"<1@buyers.test>", b"<b@staff.test>").replace(
        b"Subject", b"In-Reply-To: <2@buyers.test>\r\nX-Postsale-Outbox: <b@staff.test>\r\nSubject"
    )
    assert await imap.append_to_sent(by_hand)
    assert await imap.append_to_sent(ours)
    assert await imap.answered_in_sent(asked, since=TODAY) == {"<1@buyers.test>"}
    await imap.close()
