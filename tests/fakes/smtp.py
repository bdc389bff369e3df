"""A scripted SMTP server that remembers what it took on itself: the oracle of the fault tests."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes, policy

from tests.fakes.faults import Cut, Kind, Server, Wire

STEPS = ("connect", "tls", "greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot", "quit")
KINDS = (Kind.RST, Kind.FIN, Kind.STALL, Kind.R421, Kind.R4XX, Kind.R5XX, Kind.GARBAGE, Kind.SPLIT)

_NEGATIVE = {
    Kind.R421: b"421 4.3.2 closing\r\n",
    Kind.R4XX: b"451 4.3.0 later\r\n",
    Kind.R5XX: b"554 5.7.1 no\r\n",
}


@dataclass(frozen=True)
class Taken:
    """One mail that the server took on itself, whether or not its answer came through."""

    sender: str
    recipients: tuple[str, ...]
    data: bytes
    at: float

    @property
    def message_id(self) -> str:
        return str(message_from_bytes(self.data, policy=policy.compat32)["Message-ID"]).strip()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class FakeSmtp(Server):
    """Speaks SMTP as far as a submission needs it; ``tls`` is None, "implicit" or "starttls".

    A fault at ``dot`` strikes after the mail was taken (the answer is lost)
    when ``takes_before_fault`` is set, else instead of taking it.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None = None,
        tls: str | None = None,
        password: str | None = None,
        takes_before_fault: bool = True,
        offer_starttls: bool = True,
    ) -> None:
        self.taken: list[Taken] = []
        self.auth_tries: list[float] = []
        self.commands: list[bytes] = []
        self.takes_before_fault = takes_before_fault
        self.on_step: Callable[[str], None] | None = None
        self.on_taken: Callable[[Taken], None] | None = None
        self.mechanisms = "PLAIN LOGIN CRAM-MD5 XOAUTH2"
        self.token: str | None = None
        self.auth_answer: bytes | None = None
        self.refused = 0
        self.offer_starttls = offer_starttls
        self.pipelining = True
        self.after_starttls = b""  # put into the same segment as the answer to STARTTLS, still in the clear
        self._context = context
        self._tls = tls
        self.password = password
        self._guard = threading.Lock()
        super().__init__()

    def accepted(self, message_id: str) -> int:
        """How often a mail was taken."""
        return sum(1 for t in self.taken if t.message_id == message_id)

    def _step(self, name: str) -> None:
        if self.on_step is not None:
            self.on_step(name)

    def converse(self, wire: Wire) -> None:
        secure = False
        if self._tls == "implicit":
            assert self._context is not None
            self.start_tls(wire, self._context, step="tls")
            secure = True
        self._step("greeting")
        wire.answer("greeting", b"220 fake ESMTP\r\n", failure=_NEGATIVE)
        sender = ""
        recipients: list[str] = []
        while True:
            line = wire.line()
            verb = line.split(b" ")[0].upper()
            self.commands.append(line)
            self._step(verb.decode("ascii", "replace").lower())
            if verb in {b"EHLO", b"HELO"}:
                extensions = [b"fake", b"SIZE 50000000", b"8BITMIME", *([b"PIPELINING"] if self.pipelining else [])]
                if self.password is not None or self.token is not None:
                    extensions.append(b"AUTH " + self.mechanisms.encode())
                if self._tls == "starttls" and self.offer_starttls and not secure:
                    extensions.append(b"STARTTLS")
                lines = [b"250-" + e for e in extensions[:-1]] + [b"250 " + extensions[-1]]
                wire.answer("ehlo", b"\r\n".join(lines) + b"\r\n", failure=_NEGATIVE)
            elif verb == b"STARTTLS":
                wire.answer("starttls", b"220 go\r\n" + self.after_starttls, failure=_NEGATIVE)
                assert self._context is not None
                self.start_tls(wire, self._context, step="tls")
                secure = True
            elif verb == b"AUTH":
                self._authenticate(wire, line)
            elif verb == b"MAIL":
                sender = _address(line)
                recipients = []
                wire.answer("mail", b"250 ok\r\n", failure=_NEGATIVE)
            elif verb == b"RCPT":
                recipients.append(_address(line))
                wire.answer("rcpt", b"250 ok\r\n", failure=_NEGATIVE)
            elif verb == b"DATA":
                wire.answer("data", b"354 go on\r\n", failure=_NEGATIVE)
                self._step("granted")
                self._take(wire, sender, tuple(recipients))
            elif verb == b"QUIT":
                wire.answer("quit", b"221 bye\r\n", failure=_NEGATIVE)
                return
            else:
                wire.send(b"250 ok\r\n")

    def _authenticate(self, wire: Wire, line: bytes) -> None:
        self.auth_tries.append(time.monotonic())
        words = line.split(b" ")
        good = False
        if words[1].upper() == b"PLAIN":
            good = base64.b64decode(words[2]).split(b"\0")[2].decode() == self.password
        elif words[1].upper() == b"XOAUTH2":
            good = f"auth=Bearer {self.token}\x01".encode() in base64.b64decode(words[2])
            if not good:
                wire.send(b"334 " + base64.b64encode(b'{"status":"400"}') + b"\r\n")
                assert wire.line() == b""
        self.refused += not good or self.auth_answer is not None
        if self.auth_answer is not None:
            wire.send(self.auth_answer)
            return
        wire.answer("auth", b"235 ok\r\n" if good else b"535 5.7.8 no\r\n", failure=_NEGATIVE)

    def _take(self, wire: Wire, sender: str, recipients: tuple[str, ...]) -> None:
        refused = False
        fault = wire.fault  # another thread may end it at any moment
        if fault is not None and fault.step == "body" and fault.struck < fault.times:
            if not wire._buffer:
                wire._more()
            refused = fault.kind in _NEGATIVE
            wire.answer("body", b"", failure=_NEGATIVE)
        lines: list[bytes] = []
        while True:
            line = wire.line()
            if line == b".":
                break
            lines.append(line[1:] if line.startswith(b".") else line)
        if refused:
            return
        taken = Taken(sender, recipients, b"".join(part + b"\r\n" for part in lines), time.monotonic())
        self._step("dot")
        fault = wire.fault
        struck_here = fault is not None and fault.step == "dot" and fault.struck < fault.times
        refuses = struck_here and fault is not None and fault.kind in _NEGATIVE
        if not refuses and (not struck_here or self.takes_before_fault or (fault and fault.kind is Kind.SPLIT)):
            with self._guard:
                self.taken.append(taken)
            if self.on_taken is not None:
                self.on_taken(taken)
            self._step("taken")
        wire.answer("dot", b"250 2.0.0 queued\r\n", failure=_NEGATIVE)
        self._step("answered")


def _address(line: bytes) -> str:
    found = re.search(rb"<([^>]*)>", line)
    if found is None:
        raise Cut
    return found.group(1).decode("ascii")
