"""An IMAP and an SMTP server on loopback, in memory, for the demonstration alone.

They run in one thread with an event loop of their own, on free ports. What
is submitted for an account of the sandbox is delivered there with the
Authentication-Results that a receiving server would write; everything else
has "left for the buyer" and is kept in a list.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from argparse import Namespace
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, TypeVar

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from proxyprotocol.noop import ProxyProtocolNoop
from proxyprotocol.reader import ProxyProtocolReader
from pymap.backend.dict import DictBackend
from pymap.imap import IMAPServer
from pymap.parsing.message import AppendMessage
from pymap.user import UserMetadata
from pysasl.hashing import Cleartext

T = TypeVar("T")
HOST = "127.0.0.1"
FOLDERS = ("Sent", "Drafts", "Trash")


@dataclass(frozen=True, slots=True)
class Departed:
    """A mail that left the sandbox."""

    sender: str
    recipient: str
    raw: bytes


@dataclass  # without slots: aiosmtpd reads all members, of which __weakref__ cannot be read then on Python 3.11.2
class Sandbox:
    """Both servers. ``accounts`` maps addresses to passwords; ``authserv_id`` is who says what is authentic."""

    accounts: Mapping[str, str]
    authserv_id: str
    on_delivery: Callable[[str, bytes], None] = lambda _address, _raw: None
    departed: list[Departed] = field(default_factory=list)
    imap_port: int = 0
    smtp_port: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _login: Any = None

    def start(self) -> None:
        """Listen; returns when both servers answer."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="demo-servers", daemon=True)
        self._thread.start()
        self._ask(self._listen()).result(timeout=30)

    def stop(self) -> None:
        """Close both servers and forget everything."""
        self._ask(self._close()).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread:
            self._thread.join(timeout=10)
        self._loop.close()

    def deliver(self, address: str, raw: bytes) -> None:
        """Put a mail into the INBOX of an account."""
        self._ask(self._append(address, raw)).result(timeout=10)

    def _ask(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _listen(self) -> None:
        arguments = Namespace(
            host=None, port="0", cert=None, key=None, tls=False, proxy_protocol=None, inherited_sockets=None, debug=False,
            demo_data=False, demo_user="nobody", demo_password=secrets.token_hex(), passlib_cfg=None, skip_services=[],
        )  # fmt: skip
        backend, config = await DictBackend.init(arguments, hash_context=Cleartext())
        config.apply_context()
        self._login = backend.login
        for address, password in self.accounts.items():
            user = UserMetadata(config, address, password=password)
            identity = await self._identity(address)
            await identity.set(user)
            async with identity.new_session() as session:
                for folder in FOLDERS:
                    await session.mailbox_set.add_mailbox(folder)
        reader = ProxyProtocolReader(ProxyProtocolNoop())
        imap = await asyncio.start_server(reader.get_callback(IMAPServer(backend.login, config)), host=HOST, port=0)
        smtp = await self._loop.create_server(self._smtp, host=HOST, port=0)
        for server in (imap, smtp):
            self._stack.push_async_callback(_close_server, server)
        self.imap_port, self.smtp_port = _port(imap.sockets), _port(smtp.sockets)

    async def _close(self) -> None:
        await self._stack.aclose()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _identity(self, address: str) -> Any:
        from pymap.backend.dict import Identity

        return Identity(address, self._login, None, frozenset())

    async def _append(self, address: str, raw: bytes) -> None:
        async with (await self._identity(address)).new_session() as session:
            inbox = await session.mailbox_set.get_mailbox("INBOX")
            await inbox.append(AppendMessage(raw, datetime.now(UTC), frozenset()), recent=True)
        self.on_delivery(address, raw)

    # ------------------------------------------------------------------ SMTP

    def _smtp(self) -> SMTP:
        return SMTP(self, hostname="mx.demo", authenticator=self._sign_in, auth_required=True, auth_require_tls=False)

    def _sign_in(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        if not isinstance(data, LoginPassword):
            return AuthResult(success=False, handled=False)
        expected = self.accounts.get(data.login.decode())
        return AuthResult(success=expected == data.password.decode(), handled=False, auth_data=data.login.decode())

    async def handle_DATA(self, _server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Take a submitted mail: into an account of ours, or out to the buyer."""
        raw: bytes = envelope.content
        for recipient in envelope.rcpt_tos:
            account = _base(recipient)
            if account in self.accounts:
                await self._append(account, self._stamped(raw, envelope.mail_from or "", recipient, session.auth_data))
            else:
                self.departed.append(Departed(envelope.mail_from or "", recipient, raw))
        return "250 taken"

    def _stamped(self, raw: bytes, sender: str, recipient: str, user: str) -> bytes:
        """The mail as a receiving server stores it, with what it knows of the sender."""
        domain = user.rpartition("@")[2]
        head = (
            f"Return-Path: <{sender}>\r\nDelivered-To: {recipient}\r\n"
            f"Authentication-Results: {self.authserv_id}; auth=pass smtp.auth={user};\r\n"
            f" dmarc=pass header.from={domain}\r\n"
            f"Received: from [127.0.0.1] by {self.authserv_id} with ESMTPA; {formatdate()}\r\n"
        )
        return head.encode() + raw


def _base(address: str) -> str:
    """An address without its +tag."""
    local, _, domain = address.rpartition("@")
    return f"{local.partition('+')[0]}@{domain}".lower()


def _port(sockets: tuple[socket.socket, ...]) -> int:
    port: int = sockets[0].getsockname()[1]
    return port


async def _close_server(server: asyncio.AbstractServer) -> None:
    server.close()
