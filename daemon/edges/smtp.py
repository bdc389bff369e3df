"""SMTP: one mail at a time, and no doubt about how far it came.

aiosmtplib raises the same error for a connection that was lost before DATA
and for one that was lost after the last byte. So the steps are driven here:
MAIL, RCPT and DATA as commands, at one go where the server offers that
(RFC 2920), then, once the caller has committed that body bytes may leave, the
body through the library's protocol object (its private parts: the version is
pinned and a contract test watches it). A connection is used again only after a
complete, unsurprising conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import aiosmtplib
from aiosmtplib.protocol import MAX_RESPONSE_LENGTH, PERIOD_REGEX, SMTPProtocol, normalize_message_line_endings

from daemon import log
from daemon.config import SmtpConfig, TlsMode
from daemon.edges.errors import AccountTrouble, SignInRefused, TlsTrouble, is_tls_trouble, tls_problem
from daemon.errors import Permanent, PostsaleError, Transient

if TYPE_CHECKING:
    from daemon.edges.credentials import SignIn

#: A kept connection that was not used for this long is closed; servers end idle ones after a minute or more.
KEEP_SECONDS = 30.0

_logger = log.get(__name__)

_ADDRESS = re.compile(r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+\Z")


class Phase(StrEnum):
    """How far a mail came."""

    CONNECT = "connect"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # asked for, not granted
    BODY = "body"  # granted: from here on bytes leave
    ACCEPTED = "accepted"


#: Answers that let a conversation go on; 250 at all other steps.
_WELCOME = {Phase.RCPT: (250, 251), Phase.DATA: (354,)}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server took the mail on itself."""

    code: int
    reply: str


class Deferred(Transient):
    """Not taken for now, and certainly not taken: a 4xx, or the connection failed before any body byte."""

    def __init__(self, phase: Phase, code: int | None, reply: str) -> None:
        super().__init__(f"smtp at {phase}: {code or ''} {reply}")
        self.phase = phase
        self.code = code
        self.reply = reply


class Refused(Permanent):
    """Refused for good (5xx), at a step that concerns this mail alone."""

    def __init__(self, phase: Phase, code: int, reply: str) -> None:
        super().__init__(f"smtp at {phase}: {code} {reply}")
        self.phase = phase
        self.code = code
        self.reply = reply


class Lost(PostsaleError):
    """Body bytes may have left and the server's word on them never came: nobody can know."""


class Smtp:
    """The sending side of one account, with up to ``max_connections`` kept connections."""

    def __init__(
        self,
        server: SmtpConfig,
        sign_in: SignIn | None,
        *,
        final_reply_seconds: float,
        local_hostname: str = "localhost",
    ) -> None:
        self._server = server
        self._sign_in = sign_in
        self._final_reply_seconds = final_reply_seconds
        self._local_hostname = local_hostname
        self._kept: list[tuple[aiosmtplib.SMTP, float]] = []
        self._room = asyncio.Semaphore(server.max_connections)
        self._signing_in = asyncio.Lock()
        self._refused: AccountTrouble | None = None  # the last sign-in's failure, for those who waited for it
        self._sign_ins = 0
        self._one_by_one = False  # of commands that went together only some were answered: not tried again

    async def send(
        self, envelope_from: str, recipient: str, mime: bytes, *, on_granted: Callable[[], Awaitable[None]]
    ) -> Accepted:
        """Hand one mail for one recipient to the server.

        ``on_granted`` is awaited after the server granted DATA and before the
        first body byte; what it raises is passed on, and then no byte has left. Raises
        Deferred, Refused, AccountTrouble, or Lost when the outcome is unknown,
        a cancellation included.
        """
        if not _ADDRESS.match(recipient) or (envelope_from and not _ADDRESS.match(envelope_from)):
            raise Refused(Phase.RCPT, 553, "no plain mail address")
        async with self._room, self._connection() as client:
            protocol = await self._envelope(client, envelope_from, recipient, mime)
            await on_granted()
            return await self._body(protocol, mime)

    async def ping(self) -> str:
        """Connect and sign in; for `postsale check`."""
        async with self._room, self._connection() as client:
            await self._commands(client, (Phase.CONNECT, b"NOOP"))
        return "signed in" if self._sign_in else "connected"

    async def close(self) -> None:
        """Say goodbye on every kept connection."""
        kept, self._kept = self._kept, []
        for client, _ in kept:
            await _quit(client)

    # ------------------------------------------------------------------ connections

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[aiosmtplib.SMTP]:
        """A connection for one conversation; it is kept only when that ended without any error."""
        client = await self._take()
        try:
            yield client
        except BaseException:
            client.close()
            raise
        if client.protocol is not None and not client.protocol._buffer:  # nothing said that nobody asked for
            self._kept.append((client, asyncio.get_running_loop().time()))
        else:
            client.close()

    async def _take(self) -> aiosmtplib.SMTP:
        now = asyncio.get_running_loop().time()
        while self._kept:
            client, since = self._kept.pop()
            if client.is_connected and now - since < KEEP_SECONDS:
                return client
            await _quit(client)
        before = self._sign_ins
        async with self._signing_in:  # one at a time: what one is refused, another need not ask for
            if self._sign_ins != before and self._refused is not None:
                raise type(self._refused)(str(self._refused))
            self._refused = None
            try:
                return await self._connect()
            except AccountTrouble as error:
                self._refused = error
                raise
            finally:
                self._sign_ins += 1

    async def _connect(self) -> aiosmtplib.SMTP:
        server = self._server
        context = None if server.tls is TlsMode.NONE else _context(server)
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port or {TlsMode.IMPLICIT: 465, TlsMode.STARTTLS: 587, TlsMode.NONE: 25}[server.tls],
            timeout=server.timeout_seconds,
            use_tls=server.tls is TlsMode.IMPLICIT,
            # None would go on in the clear when STARTTLS is stripped
            start_tls=server.tls is TlsMode.STARTTLS,
            tls_context=context,
            local_hostname=self._local_hostname,
        )
        try:
            # one deadline over all: no trickle of bytes can stretch it
            async with asyncio.timeout(4 * server.timeout_seconds):
                await self._greet(client)
        except TimeoutError as error:
            client.close()
            raise Deferred(Phase.CONNECT, None, "the server takes too long") from error
        except BaseException:
            client.close()
            raise
        return client

    async def _greet(self, client: aiosmtplib.SMTP) -> None:
        where = f"smtp {self._server.host}"
        try:
            await client.connect()
            await client._ehlo_or_helo_if_needed()
            if self._sign_in is not None:
                await self._log_in(client, self._sign_in)
        except aiosmtplib.SMTPAuthenticationError as error:
            text = _one_line(error.message)
            if 400 <= error.code < 500:
                raise AccountTrouble(f"{where}: login put off: {error.code} {text}") from None
            if self._sign_in is not None:
                self._sign_in.refused()
            raise SignInRefused(f"{where}: login refused: {error.code} {text}") from None
        except aiosmtplib.SMTPResponseException as error:
            if error.code >= 500:
                raise AccountTrouble(f"{where}: {error.code} {_one_line(error.message)}") from error
            raise Deferred(Phase.CONNECT, error.code, _one_line(error.message)) from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ValueError) as error:
            cause = _ssl_error(error)
            if cause is not None and is_tls_trouble(cause):
                raise TlsTrouble(f"{where}: {tls_problem(cause)}") from error
            if isinstance(error, aiosmtplib.SMTPNotSupported) or "STARTTLS" in str(error):
                raise TlsTrouble(f"{where}: {_one_line(error)}; nothing was sent in the clear") from error
            raise Deferred(Phase.CONNECT, None, _one_line(error)) from error

    async def _log_in(self, client: aiosmtplib.SMTP, sign_in: SignIn) -> None:
        try:
            secret = await asyncio.to_thread(sign_in.secret)
        except Transient as error:  # the token server, not this one
            raise Deferred(Phase.CONNECT, None, str(error)) from error
        offered = client.server_auth_methods
        # one method, once: three tries with a wrong password lock accounts
        if sign_in.oauth:
            await client.auth_xoauth2(sign_in.username, secret)
        elif "plain" in offered:
            await client.auth_plain(sign_in.username, secret)
        elif "login" in offered:
            await client.auth_login(sign_in.username, secret)
        elif "cram-md5" in offered:
            await client.auth_crammd5(sign_in.username, secret)
        else:
            raise SignInRefused(f"smtp {self._server.host}: offers no way to sign in that Postsale knows")

    # ------------------------------------------------------------------ one mail

    async def _envelope(self, client: aiosmtplib.SMTP, envelope_from: str, recipient: str, mime: bytes) -> SMTPProtocol:
        options = []
        if client.supports_extension("size"):
            options.append(f"SIZE={len(mime)}".encode())
        if not mime.isascii():
            if not client.supports_extension("8bitmime"):
                raise Refused(Phase.MAIL, 554, "the server takes no 8-bit mail")
            options.append(b"BODY=8BITMIME")
        together = client.supports_extension("pipelining") and not self._one_by_one
        await (self._together if together else self._commands)(
            client,
            (Phase.MAIL, b" ".join([b"MAIL", f"FROM:<{envelope_from}>".encode(), *options])),
            (Phase.RCPT, f"RCPT TO:<{recipient}>".encode()),
            (Phase.DATA, b"DATA"),
        )
        protocol = client.protocol
        if protocol is None:
            raise Deferred(Phase.DATA, None, "connection lost")
        return protocol

    async def _commands(self, client: aiosmtplib.SMTP, *commands: tuple[Phase, bytes]) -> None:
        phase = commands[0][0]
        try:
            # one deadline over all, however slowly the answers trickle in
            async with asyncio.timeout(len(commands) * self._server.timeout_seconds):
                for phase, line in commands:
                    await self._command(client, phase, line)
        except TimeoutError as error:
            raise Deferred(phase, None, "the server takes too long") from error

    async def _together(self, client: aiosmtplib.SMTP, *commands: tuple[Phase, bytes]) -> None:
        """As _commands, all in one write. A server that granted DATA although it refused before gets no byte of the message."""
        phases = [phase for phase, _ in commands]
        protocol = client.protocol
        if protocol is None or protocol.transport is None or protocol._command_lock is None or protocol._buffer:
            raise Deferred(phases[0], None, "connection lost, or the server is out of step")
        answers = _Answers(protocol, len(commands))
        problem: Exception | None = None
        try:
            async with protocol._command_lock, asyncio.timeout(len(commands) * self._server.timeout_seconds):
                await answers.to(b"".join(line + b"\r\n" for _, line in commands))
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ValueError) as error:
            problem = error
        for phase, response in zip(phases, answers.received, strict=False):
            _check(phase, response)
        if problem is not None and len(answers.received) < len(phases):
            # without any answer the connection was over before: a kept one that the server had tired of, say
            if answers.received and not self._one_by_one:
                self._one_by_one = True
                _logger.info("smtp.one_by_one", host=self._server.host, problem=_one_line(problem))
            reply = "the server takes too long" if isinstance(problem, TimeoutError) else _one_line(problem)
            raise Deferred(phases[len(answers.received)], None, reply) from problem

    async def _command(self, client: aiosmtplib.SMTP, phase: Phase, line: bytes) -> None:
        if client.protocol is None or client.protocol._buffer:
            raise Deferred(phase, None, "the server is out of step")
        try:
            response = await client.execute_command(line, timeout=None)
        except aiosmtplib.SMTPResponseException as error:  # an answer that is none
            raise Deferred(phase, None, _one_line(error.message)) from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ValueError) as error:
            raise Deferred(phase, None, _one_line(error)) from error
        _check(phase, response)

    async def _body(self, protocol: SMTPProtocol, mime: bytes) -> Accepted:
        """Write the message and wait for the server's word; whatever goes wrong from here on leaves its fate open."""
        data = PERIOD_REGEX.sub(b"..", normalize_message_line_endings(mime)) + b".\r\n"
        try:
            if protocol._command_lock is None or protocol._buffer:
                raise Deferred(Phase.DATA, None, "connection lost, or the server is out of step")
            async with protocol._command_lock, asyncio.timeout(self._final_reply_seconds):
                # before the write, or an answer that comes early is thrown away
                protocol._response_pending = True
                protocol.write(data)
                await protocol._drain_helper()
                response = await protocol.read_response()
        except aiosmtplib.SMTPResponseException as error:
            raise Lost(f"the answer to the message cannot be read: {_one_line(error.message)}") from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ValueError) as error:
            raise Lost(f"no answer to the message: {_one_line(error)}") from error
        except asyncio.CancelledError:
            raise Lost("stopped while the message was under way") from None
        reply = _one_line(response.message)
        if response.code == 250:
            return Accepted(response.code, reply)
        if 400 <= response.code < 500:
            raise Deferred(Phase.BODY, response.code, reply)
        if 500 <= response.code < 600:
            raise Refused(Phase.BODY, response.code, reply)
        raise Lost(f"an answer to the message that means nothing: {response.code}")


def _check(phase: Phase, response: aiosmtplib.SMTPResponse) -> None:
    """Raise what an answer before the message means for the mail, unless it is the one that was wanted."""
    if response.code in _WELCOME.get(phase, (250,)):
        return
    reply = _one_line(response.message)
    if 500 <= response.code < 600:
        raise Refused(phase, response.code, reply)
    raise Deferred(phase, response.code, reply)


class _Answers(asyncio.Protocol):
    """Takes the answers to several commands that go out together, in the place of the library's protocol, which drops all but one."""

    def __init__(self, protocol: SMTPProtocol, count: int) -> None:
        self.received: list[aiosmtplib.SMTPResponse] = []
        self._protocol = protocol
        self._count = count
        self._all: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def to(self, commands: bytes) -> None:
        """Write the commands and wait for all answers; what was received so far stays when that fails."""
        transport = self._protocol.transport
        assert isinstance(transport, asyncio.Transport)
        transport.set_protocol(self)
        try:
            self._protocol.write(commands)
            await self._all
        finally:
            transport.set_protocol(self._protocol)

    def data_received(self, data: bytes) -> None:
        buffer = self._protocol._buffer  # what nobody asked for is left there, where it is found before the next step
        buffer.extend(data)
        if self._all.done():
            return
        try:
            if len(buffer) > MAX_RESPONSE_LENGTH:
                raise aiosmtplib.SMTPResponseException(500, "an answer that does not end")
            while len(self.received) < self._count and (response := self._protocol._read_response_from_buffer()) is not None:
                self.received.append(response)
        except aiosmtplib.SMTPResponseException as error:
            self._all.set_exception(error)
        else:
            if len(self.received) == self._count:
                self._all.set_result(None)

    def eof_received(self) -> bool:
        self._end("the server closed the connection")
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost: {exc or 'closed'}")
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def _end(self, why: str) -> None:
        if not self._all.done():
            self._all.set_exception(aiosmtplib.SMTPServerDisconnected(why))


async def _quit(client: aiosmtplib.SMTP) -> None:
    with contextlib.suppress(aiosmtplib.SMTPException, OSError, TimeoutError, ValueError):
        if client.is_connected:
            await client.quit(timeout=2)
    client.close()


def _context(server: SmtpConfig) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if server.ca_file is not None:
        context.load_verify_locations(cafile=str(server.ca_file))
    return context


def _ssl_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS failure beneath a library's error."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _one_line(text: object) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", str(text) or type(text).__name__)[:300]
