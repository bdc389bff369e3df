"""IMAP: one connection, one thread, and a client that is thrown away after any doubt.

:class:`Imap` is the asynchronous face; every call runs in a thread of its own
object, under a deadline that shuts the socket. imapclient is not safe to use
after an exception (its stream may be out of step, its socket half dead), so
any failure drops it; the next call connects anew.

What goes into a command is checked for line breaks first: imapclient writes
search criteria and folder names as they are, and a Message-ID from a mail
with a line break in it would be a command of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import imaplib
import io
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from imapclient import IMAPClient, SocketTimeout, exceptions, imap_utf7
from imapclient.imap4 import IMAP4WithTimeout
from imapclient.imapclient import SENT
from imapclient.tls import IMAP4_TLS

from daemon.config import ImapConfig, TlsMode
from daemon.edges.errors import AccountTrouble, SignInRefused, TlsTrouble, is_tls_trouble, tls_problem
from daemon.errors import Transient
from daemon.vocab import DELIVERY_HEADER

if TYPE_CHECKING:
    from daemon.edges.credentials import SignIn

T = TypeVar("T")

#: Of a message that is larger than the limit, this much is fetched: headers and the first text part.
HEAD_BYTES = 262_144
#: UIDs that one SEARCH may return; a response line of a million bytes ends the connection.
SEARCH_WINDOW = 50_000
#: UIDs at the end of the Sent folder among which the newest mails are looked for, whatever gaps deleted ones have left.
NEWEST_WINDOW = 5_000
#: Slowest server that is waited for, bytes a second.
SLOWEST = 10_000
CLIENT_NAME = {"name": "Postsale", "vendor": "Postsale"}

_MESSAGE_ID = re.compile(r"^<[\x21-\x3b\x3d\x3f-\x7e]{1,250}>\Z")
_MESSAGE_ID_FIELDS = ("Message-ID", DELIVERY_HEADER, "X-Microsoft-Original-Message-ID")
_SENT_NAMES = (
    "Sent",
    "Sent Items",
    "Sent Messages",
    "Sent Mail",
    "INBOX.Sent",
    "INBOX/Sent",
    "[Gmail]/Sent Mail",
    "Gesendet",
    "Gesendete Elemente",
    "已发送",
    "送信済み",
)
_BUSY = re.compile(
    r"\[(?:ALERT|LIMIT|INUSE|UNAVAILABLE|SERVERBUG|THROTTLED)\]|too many|simultaneous|try again|temporar", re.IGNORECASE
)


class FolderMissing(AccountTrouble):
    """The watched folder cannot be opened."""


class MessageRefused(Transient):
    """The server will not or cannot give out these messages, though the connection stands."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The watched folder as the server shows it. ``newest_uid`` is the highest UID given out so far."""

    uidvalidity: int
    newest_uid: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A message before its bytes are fetched. ``size`` is in bytes as the server counts them."""

    uid: int
    size: int
    internal_date: datetime | None


class Imap:
    """One mailbox's connection for watching one folder, or for looking into the Sent folder.

    Every method may raise Transient; AccountTrouble and its kinds when
    waiting for minutes is wiser than trying again soon.
    """

    def __init__(self, server: ImapConfig, sign_in: SignIn, *, writable: bool | None = None) -> None:
        self._server = server
        self._sign_in = sign_in
        self._writable = server.handled_keyword is not None if writable is None else writable
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="postsale-imap")
        self._client: _Client | None = None
        self._sockets = _Sockets()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._closed = False
        self._renew_at: float | None = None

    @property
    def connected(self) -> bool:
        """Whether a client is there; it may be dead without knowing."""
        return self._client is not None

    # ------------------------------------------------------------------ watching

    async def open(self) -> Opened:
        """Connect if need be and select the watched folder."""
        return await self._call(self._open)

    async def uids_after(self, uid: int) -> list[int]:
        """UIDs above ``uid``, ascending."""

        def look(client: _Client) -> list[int]:
            client.noop()  # SEARCH alone answers from what the session has seen so far
            # n:* names the last message even when its UID is below n
            return sorted(u for u in client.search(["UID", f"{uid + 1}:*"]) if u > uid)

        return await self._call(look)

    async def uids_with(self, keyword: str) -> list[int]:
        """UIDs of the messages that carry an IMAP keyword; of all messages when it is empty."""
        criteria = ["KEYWORD", _safe(keyword)] if keyword else ["ALL"]
        return await self._call(lambda c: sorted(c.search(criteria)))

    async def uids_since(self, lowest: int, newest: int, day: date) -> list[int]:
        """UIDs from ``lowest`` up to ``newest`` of mail that arrived on ``day`` or later, asked for in windows."""

        def look(client: _Client) -> list[int]:
            found: list[int] = []
            for start in range(lowest, newest + 1, SEARCH_WINDOW):
                window = f"{start}:{min(start + SEARCH_WINDOW - 1, newest)}"
                found += client.search(["UID", window, "SINCE", day])
            return sorted(u for u in set(found) if lowest <= u <= newest)

        return await self._call(look)

    async def sizes(self, uids: Sequence[int]) -> list[Listed]:
        """Size and arrival of messages; those that are gone meanwhile are left out."""

        def look(client: _Client) -> list[Listed]:
            found = client.fetch(uids, ["RFC822.SIZE", "INTERNALDATE"])
            wanted = set(uids)
            return [
                Listed(uid, int(items[b"RFC822.SIZE"]), items.get(b"INTERNALDATE"))
                for uid, items in sorted(found.items())
                if uid in wanted and items.get(b"RFC822.SIZE") is not None
            ]

        return await self._call(look) if uids else []

    async def fetch(self, uids: Sequence[int], *, size: int) -> dict[int, bytes]:
        """The whole messages by UID, without marking them read; those that are gone are left out.

        ``size`` is what they come to in all and sets the deadline. Raises
        MessageRefused when the server answers NO.
        """
        return await self._call(lambda c: self._bodies(c, uids, "BODY.PEEK[]", b"BODY[]"), size=size)

    async def fetch_head(self, uids: Sequence[int]) -> dict[int, bytes]:
        """The first :data:`HEAD_BYTES` of messages that are too large."""
        part = f"BODY.PEEK[]<0.{HEAD_BYTES}>"
        return await self._call(lambda c: self._bodies(c, uids, part, b"BODY[]<0>"), size=len(uids) * HEAD_BYTES)

    async def mark(self, uids: Sequence[int], keyword: str) -> bool:
        """Set a keyword, for people who look; False where the folder or its server does not allow it."""

        def work(client: _Client) -> bool:
            try:
                client.add_flags(uids, [_safe(keyword)], silent=True)
            except (exceptions.IMAPClientAbortError, exceptions.IMAPClientReadOnlyError):
                raise
            except exceptions.IMAPClientError:
                return False
            return True

        return await self._call(work)

    async def idle(self, seconds: float) -> bool:
        """Wait until the server says anything, :meth:`wake` is called, or the time is up.

        Whatever it says is a hint only: the caller looks for mail in any case.
        False when the server knows no IDLE; nothing was waited for then.
        """
        return await self._call(lambda c: self._idle(c, seconds), seconds=seconds)

    def wake(self) -> None:
        """End an idle() that is under way; safe from any thread."""
        with contextlib.suppress(OSError):
            self._wake_write.send(b"!")

    @property
    def due_for_renewal(self) -> bool:
        """Whether the sign-in that this connection rests on is about to end."""
        return self._renew_at is not None and asyncio.get_running_loop().time() >= self._renew_at

    # ------------------------------------------------------------------ the Sent folder

    async def find_in_sent(self, message_id: str, *, since: date) -> bool:
        """Whether the Sent folder holds a mail under this Message-ID, kept in the header that Postsale or Exchange keeps it in.

        SEARCH finds substrings and, on some servers, nothing in headers of
        our own: each hit, and else the newest mails, are compared exactly.
        """
        if not _MESSAGE_ID.match(message_id):
            return False
        return await self._call(lambda c: self._find(c, message_id, since))

    async def answered_in_sent(self, message_ids: Sequence[str], *, since: date) -> set[str]:
        """Which of these messages were answered by a mail in the Sent folder that Postsale did not write.

        Looks at the newest mails since that day and compares In-Reply-To exactly.
        """
        wanted = {m for m in message_ids if _MESSAGE_ID.match(m)}
        return await self._call(lambda c: self._answered(c, wanted, since)) if wanted else set()

    async def append_to_sent(self, mime: bytes) -> bool:
        """Put a copy into the Sent folder, as read; False when there is no such folder."""

        def work(client: _Client) -> bool:
            folder = self._sent_folder(client)
            if folder is None:
                return False
            client.append(folder, mime, flags=[b"\\Seen"])
            return True

        return await self._call(work, size=len(mime))

    # ------------------------------------------------------------------ life

    async def ping(self) -> str:
        """Sign in, open the folder and say so; for `postsale check`."""
        opened = await self.open()
        return f"{self._server.folder} is open{' (read-only)' if opened.read_only else ''}"

    async def close(self) -> None:
        """Say goodbye to the server and end the thread."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        goodbye = loop.call_later(2, self._sockets.shut)
        with contextlib.suppress(Exception):
            await loop.run_in_executor(self._thread, self._logout)
        goodbye.cancel()
        self._thread.shutdown(wait=False)
        self._wake_read.close()
        self._wake_write.close()

    def abort(self) -> None:
        """Shut the socket under whatever call is under way: it fails at once. For a service that has to stop."""
        self._sockets.shut()
        self.wake()

    async def drop(self) -> None:
        """Forget the connection; the next call makes a new one."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._drop)

    # ------------------------------------------------------------------ inside the thread

    async def _call(self, work: Callable[[_Client], T], *, seconds: float = 0, size: int = 0) -> T:
        """Run in the thread, under a deadline that no trickle of bytes can stretch."""
        if self._closed:
            raise Transient("imap: the connection was closed")
        loop = asyncio.get_running_loop()
        deadline = 4 * self._server.timeout_seconds + seconds + size / SLOWEST
        timer = loop.call_later(deadline, self._sockets.shut)
        try:
            return await loop.run_in_executor(self._thread, self._guarded, work)
        finally:
            timer.cancel()
            if self._client is None:
                self._renew_at = None
            elif self._renew_at is None and (lasts := self._sign_in.session_seconds()) is not None:
                self._renew_at = loop.time() + lasts

    def _guarded(self, work: Callable[[_Client], T]) -> T:
        try:
            with self._translated():
                if self._client is None:
                    self._client = self._connect()
                return work(self._client)
        except BaseException as error:
            if not isinstance(error, MessageRefused):
                self._drop()
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        where = f"imap {self._server.host}"
        try:
            yield
        except (exceptions.IMAPClientError, OSError, ValueError, UnicodeError, LookupError) as error:
            # ValueError and its like: the server's answer could not be read
            if isinstance(error, ssl.SSLError) and is_tls_trouble(error):
                raise TlsTrouble(f"{where}: {tls_problem(error)}") from error
            raise Transient(f"{where}: {_one_line(error)}") from error

    def _drop(self) -> None:
        client, self._client = self._client, None
        self._sockets.shut()
        if client is not None:
            with contextlib.suppress(Exception):
                client.shutdown()

    def _logout(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.logout()
        self._drop()

    def _connect(self) -> _Client:
        secret = self._sign_in.secret()
        context = _context(self._server) if self._server.tls is not TlsMode.NONE else None
        client = _Client(self._server, context, self._sockets)
        try:
            client.normalise_times = False  # aware times, not the machine's local ones
            client.folder_encode = False  # names as the server writes them; some are no valid UTF-7
            client._imap.debug = 0  # imapclient sets 5, which builds the repr of every body
            if self._server.tls is TlsMode.STARTTLS:
                self._start_tls(client, context)
            self._log_in(client, secret)
            if client.has_capability("ID"):
                with contextlib.suppress(exceptions.CapabilityError, exceptions.ProtocolError):
                    client.id_(CLIENT_NAME)
        except BaseException:
            with contextlib.suppress(Exception):
                client.shutdown()
            raise
        return client

    def _start_tls(self, client: _Client, context: ssl.SSLContext | None) -> None:
        if client._imap.state != "NONAUTH":  # PREAUTH in the clear would have everything go on in the clear
            raise TlsTrouble(f"imap {self._server.host}: greets as if signed in before TLS; nothing was sent in the clear")
        if not client.has_capability("STARTTLS"):
            raise TlsTrouble(f"imap {self._server.host}: STARTTLS is not offered; nothing was sent in the clear")
        client.starttls(context)
        self._sockets.add(client.socket())

    def _log_in(self, client: _Client, secret: str) -> None:
        name = self._sign_in.username
        if re.search(r"[\x00\r\n]", name + secret):
            raise SignInRefused(f"imap {self._server.host}: login name or password holds a line break")
        try:
            if self._sign_in.oauth:
                client.sasl_login("XOAUTH2", _xoauth2(name, secret))
            elif client.has_capability("AUTH=PLAIN"):
                client.plain_login(name, secret)
            else:
                client.login(name, secret)
        except exceptions.LoginError as error:
            text = _one_line(error).replace(secret, "…")
            if isinstance(error.__context__, exceptions.IMAPClientAbortError):
                raise Transient(f"imap {self._server.host}: connection lost at login: {text}") from None
            if _BUSY.search(text):
                raise AccountTrouble(f"imap {self._server.host}: the account is busy: {text}") from None
            self._sign_in.refused()
            raise SignInRefused(f"imap {self._server.host}: login as {name} refused: {text}") from None

    def _open(self, client: _Client) -> Opened:
        folder = imap_utf7.encode(_safe(self._server.folder))
        writable = self._writable
        try:
            try:
                answer = client.select_folder(folder, readonly=not writable)
            except exceptions.IMAPClientReadOnlyError:
                writable = False
                answer = client.select_folder(folder, readonly=True)
        except exceptions.IMAPClientAbortError:
            raise
        except exceptions.IMAPClientError as error:
            raise FolderMissing(
                f"imap {self._server.host}: folder {self._server.folder} cannot be opened: {_one_line(error)}"
            ) from error
        uidvalidity = answer.get(b"UIDVALIDITY")
        if not uidvalidity:
            raise FolderMissing(
                f"imap {self._server.host}: {self._server.folder} has no UIDVALIDITY; mail could be taken twice"
            )
        newest = answer[b"UIDNEXT"] - 1 if answer.get(b"UIDNEXT") else max(client.search(["UID", "*"]), default=0)
        return Opened(int(uidvalidity), int(newest), not writable)

    def _bodies(self, client: _Client, uids: Sequence[int], item: str, key: bytes) -> dict[int, bytes]:
        try:
            found = client.fetch(uids, [item])
        except exceptions.IMAPClientAbortError:
            raise
        except exceptions.IMAPClientError as error:
            if not str(error).lower().startswith("fetch failed"):  # any other than a plain NO leaves the stream in doubt
                raise
            raise MessageRefused(f"imap {self._server.host}: {_one_line(error)}") from error
        wanted = set(uids)
        # an expunged message is missing on some servers and has an empty body (None) on others
        return {uid: items[key] for uid, items in found.items() if uid in wanted and items.get(key) is not None}

    def _idle(self, client: _Client, seconds: float) -> bool:
        if not client.has_capability("IDLE"):
            return False
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        client.idle()
        sock = client.socket()
        if not client.heard():
            poller = select.poll()
            poller.register(sock.fileno(), select.POLLIN | select.POLLHUP)
            poller.register(self._wake_read.fileno(), select.POLLIN)
            poller.poll(max(0.0, seconds) * 1000)
        client.idle_done()  # raises when the server has gone, which a poll cannot tell from news
        return True

    def _sent_folder(self, client: _Client) -> bytes | None:
        if self._server.sent_folder is not None:
            return bytes(imap_utf7.encode(_safe(self._server.sent_folder)))
        folders = client.list_folders()
        for flags, _, name in folders:
            if SENT in flags:
                return bytes(name)
        names = {bytes(name) for _, _, name in folders}
        return next((n for n in map(imap_utf7.encode, _SENT_NAMES) if n in names), None)

    def _find(self, client: _Client, message_id: str, since: date) -> bool:
        folder = self._sent_folder(client)
        if folder is None:
            return False
        opened = client.select_folder(folder, readonly=True)
        day = since - timedelta(days=1)  # the server may count days in another zone
        for field in _MESSAGE_ID_FIELDS:
            hits = client.search(["SINCE", day, "HEADER", field, _safe(message_id)])
            if self._among(client, hits[-50:], message_id):
                return True
        return self._among(client, _newest(client, opened, day)[-500:], message_id)

    def _answered(self, client: _Client, wanted: set[str], since: date) -> set[str]:
        folder = self._sent_folder(client)
        if folder is None:
            return set()
        opened = client.select_folder(folder, readonly=True)
        uids = _newest(client, opened, since - timedelta(days=1))[-1000:]
        if not uids:
            return set()
        found: set[str] = set()
        for items in client.fetch(uids, ["BODY.PEEK[HEADER.FIELDS (IN-REPLY-TO X-POSTSALE-OUTBOX)]"]).values():
            for key, value in items.items():
                if key.startswith(b"BODY[") and value and b"x-postsale-outbox" not in value.lower():
                    found.update(m for m in wanted if _holds(value, m))
        return found

    def _among(self, client: _Client, uids: Sequence[int], message_id: str) -> bool:
        if not uids:
            return False
        item = f"BODY.PEEK[HEADER.FIELDS ({' '.join(_MESSAGE_ID_FIELDS).upper()})]"
        for items in client.fetch(uids, [item]).values():
            for key, value in items.items():
                if key.startswith(b"BODY[") and value and _holds(value, message_id):
                    return True
        return False


def _newest(client: _Client, opened: Mapping[bytes, Any], day: date) -> list[int]:
    """UIDs of the newest mails of the selected folder, of that day or later, ascending.

    Only the end of the list is asked for: all that a busy shop sends in a day would be the largest thing in memory.
    """
    beyond = opened.get(b"UIDNEXT")
    last = ["UID", f"{max(1, beyond - NEWEST_WINDOW)}:*"] if beyond else []
    return sorted(client.search([*last, "SINCE", day]))


def _holds(header: bytes, message_id: str) -> bool:
    text = re.sub(rb"\r?\n[ \t]+", b" ", header).decode("ascii", "replace")
    return any(line.partition(":")[2].strip() == message_id for line in text.splitlines())


def _safe(argument: str) -> str:
    if re.search(r"[\x00\r\n]", argument):
        raise ValueError("an IMAP argument holds a line break")
    return argument


def _one_line(error: BaseException) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", str(error) or type(error).__name__)[:300]


def _xoauth2(name: str, token: str) -> Callable[[bytes], bytes]:
    answers: list[bytes] = [f"user={name}\1auth=Bearer {token}\1\1".encode()]

    def answer(_challenge: bytes) -> bytes:
        # the second challenge is the error, to be answered with an empty line
        return answers.pop() if answers else b""

    return answer


def _context(server: ImapConfig) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if server.ca_file is not None:
        context.load_verify_locations(cafile=str(server.ca_file))
    return context


class _Sockets:
    """The sockets of one Imap, so that another thread can end a call that hangs, even while it connects."""

    def __init__(self) -> None:
        self._live: list[socket.socket] = []
        self._changing = threading.Lock()

    def add(self, sock: socket.socket) -> socket.socket:
        with self._changing:
            self._live = [sock]
        return sock

    def forget(self) -> None:
        """Before the socket is closed: its descriptor may become that of some other connection at once."""
        with self._changing:
            self._live = []

    def shut(self) -> None:
        with self._changing:
            for sock in self._live:
                with contextlib.suppress(OSError):
                    # the descriptor itself: an SSLSocket's own shutdown would touch its TLS state from this thread
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
            self._live = []


class _Client(IMAPClient):  # type: ignore[misc] # the library carries no types
    """imapclient with timeouts everywhere and its raw socket within reach."""

    def __init__(self, server: ImapConfig, context: ssl.SSLContext | None, sockets: _Sockets) -> None:
        self._sockets = sockets
        seconds = server.timeout_seconds
        super().__init__(
            server.host,
            port=server.port or (993 if server.tls is TlsMode.IMPLICIT else 143),
            ssl=server.tls is TlsMode.IMPLICIT,
            ssl_context=context,
            timeout=SocketTimeout(connect=seconds, read=seconds),
        )

    def heard(self) -> bool:
        """Whether something of the server's can be read at once.

        That a line came in one segment with its "+ idling" shows in no poll of the socket: our buffers, or TLS's, have it already.
        """
        return _buffered(self.socket(), self._imap.file)

    def _create_IMAP4(self) -> imaplib.IMAP4:  # noqa: N802 - the name is the library's
        seconds = self._timeout.connect
        if self.ssl:
            return _TlsConnection(self._sockets, self.host, self.port, self.ssl_context, seconds)
        return _PlainConnection(self._sockets, self.host, self.port, seconds)


def _buffered(sock: socket.socket, stream: io.BufferedReader) -> bool:
    seconds = sock.gettimeout()
    sock.settimeout(0)
    try:
        return bool(stream.peek())
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    finally:
        sock.settimeout(seconds)


def _dial(host: str, port: int, seconds: float) -> socket.socket:
    sock = socket.create_connection((host, port), seconds)
    # a command goes out in several writes; each would wait for the server's delayed acknowledgement
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class _PlainConnection(IMAP4WithTimeout):  # type: ignore[misc] # as above
    def __init__(self, sockets: _Sockets, host: str, port: int, seconds: float) -> None:
        self._sockets = sockets
        super().__init__(host, port, seconds)

    def _create_socket(self, timeout: float | None = None) -> socket.socket:
        return self._sockets.add(_dial(self.host, self.port, timeout or self._timeout))

    def shutdown(self) -> None:
        self._sockets.forget()
        super().shutdown()


class _TlsConnection(IMAP4_TLS):  # type: ignore[misc] # as above
    def __init__(self, sockets: _Sockets, host: str, port: int, context: ssl.SSLContext, seconds: float) -> None:
        self._sockets = sockets
        super().__init__(host, port, context, seconds)

    def _create_socket(self, timeout: float | None = None) -> socket.socket:
        plain = _dial(self.host, self.port, timeout or self._timeout)
        secured: ssl.SSLSocket = self.ssl_context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self._sockets.add(secured)
        secured.do_handshake()
        return secured

    def shutdown(self) -> None:
        self._sockets.forget()
        super().shutdown()
