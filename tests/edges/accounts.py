"""Edges pointed at servers of the tests."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.config import ImapConfig, SmtpConfig, TlsMode
from daemon.edges.imap import Imap
from daemon.edges.smtp import Smtp
from tests.servers import PASSWORD, MailServers, User


@dataclass
class Login:
    """A sign-in that is only values."""

    username: str = "shop@example.test"
    password: str = PASSWORD
    oauth: bool = False
    lasts: float | None = None

    def secret(self) -> str:
        return self.password

    def refused(self) -> None:
        """There is no other."""

    def session_seconds(self) -> float | None:
        return self.lasts


def imap_at(port: int, *, login: Login | None = None, **settings: Any) -> Imap:
    settings = {"host": "127.0.0.1", "tls": TlsMode.NONE, "timeout_seconds": 2.0} | settings
    return Imap(ImapConfig(port=port, **settings), login or Login())


def real_imap(servers: MailServers, user: User, **settings: Any) -> Imap:
    settings = {"host": "localhost", "port": servers.imaps_port, "tls": TlsMode.IMPLICIT, "ca_file": servers.ca_file} | settings
    return Imap(ImapConfig(**settings), Login(user.address, user.password))


def smtp_at(port: int, *, login: Login | None = None, final: float = 2.0, **settings: Any) -> Smtp:
    settings = {"host": "127.0.0.1", "tls": TlsMode.NONE, "timeout_seconds": 1.0} | settings
    return Smtp(SmtpConfig(port=port, **settings), login, final_reply_seconds=final)


def real_smtp(servers: MailServers, user: User, **settings: Any) -> Smtp:
    settings = {
        "host": "localhost",
        "port": servers.submission_port,
        "tls": TlsMode.STARTTLS,
        "ca_file": servers.ca_file,
    } | settings
    return Smtp(SmtpConfig(**settings), Login(user.address, user.password), final_reply_seconds=20)


def server_context(folder: Path, name: str = "server") -> ssl.SSLContext:
    """The server's side of TLS, with a certificate of make_certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context
