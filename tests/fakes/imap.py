"""A scripted IMAP server with folders in memory, for what Dovecot will not do on request."""

from __future__ import annotations

import base64
import contextlib
import re
import select
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fakes.faults import Cut, Kind, Server, Wire

STEPS = (
    "connect",
    "tls",
    "greeting",
    "capability",
    "auth",
    "select",
    "search",
    "fetch_size",
    "fetch_body",
    "store",
    "list",
    "append",
    "idle",
    "done",
    "logout",
)
KINDS = (
    Kind.RST,
    Kind.FIN,
    Kind.STALL,
    Kind.SLOW,
    Kind.BYE,
    Kind.NO,
    Kind.BAD,
    Kind.GARBAGE,
    Kind.SPLIT,
    Kind.GLUED,
    Kind.HALF,
    Kind.LONG_LINE,
)


@dataclass
class Message:
    raw: bytes
    flags: set[str] = field(default_factory=set)
    date: str = ""
    _headers: dict[str, list[str]] = field(default_factory=dict)

    def header(self, name: str) -> list[str]:
        """The values of a header field; its name in lower case."""
        if name not in self._headers:
            self._headers[name] = _fields(self.raw, name)
        return self._headers[name]


class Folder:
    def __init__(self) -> None:
        self.uidvalidity = 1
        self.next_uid = 1
        self.messages: dict[int, Message] = {}


class FakeImap(Server):
    """Folders by name; ``tls`` is None, "implicit" or "starttls"."""

    def __init__(
        self,
        *,
        password: str = "correct horse",
        context: ssl.SSLContext | None = None,
        tls: str | None = None,
        capabilities: str = "IMAP4rev1 IDLE ID AUTH=PLAIN SPECIAL-USE",
        special_sent: bool = True,
    ) -> None:
        self.folders: dict[str, Folder] = {"INBOX": Folder(), "Sent": Folder()}
        self.password = password
        self.token: str | None = None
        self.logins: list[float] = []
        self.login_answer: bytes | None = None
        self.refused = 0
        self.locks_after: int | None = None  # refused logins after which nobody is let in any more
        self.greeting = b"* OK fake ready\r\n"
        self.offer_starttls = True
        self.after_starttls = b""  # put into the same segment as the answer to STARTTLS, still in the clear
        self.commands: list[bytes] = []
        self.capabilities = capabilities
        self.special_sent = special_sent
        self.read_only = False
        self.forget_uidvalidity = False
        self.refuse_fetch: set[int] = set()
        self.break_on_fetch: set[int] = set()
        self.expunged_as_none: set[int] = set()
        self.before_idle_plus = b""
        self.after_idle_plus = b""
        self.on_command: Callable[[str], None] | None = None
        self._changed = threading.Condition()
        self._context = context
        self._tls = tls
        super().__init__()

    # ------------------------------------------------------------------ from the test

    def add(self, raw: bytes, *, folder: str = "INBOX") -> int:
        """Put a mail into a folder; returns its UID."""
        with self._changed:
            place = self.folders[folder]
            uid = place.next_uid
            place.next_uid += 1
            place.messages[uid] = Message(raw, date=time.strftime("%d-%b-%Y %H:%M:%S +0000", time.gmtime()))
            self._changed.notify_all()
            return uid

    def renumber(self, folder: str = "INBOX") -> None:
        """As a restored or repaired mailbox: another UIDVALIDITY, UIDs from one."""
        with self._changed:
            place = self.folders[folder]
            messages = list(place.messages.values())
            place.uidvalidity += 1000
            place.messages = {i + 1: m for i, m in enumerate(messages)}
            place.next_uid = len(messages) + 1

    def end_sessions(self, why: bytes) -> None:
        """Say BYE to everybody, and hang up."""
        for wire in list(self._live):
            with contextlib.suppress(Cut):
                wire.send(b"* BYE " + why + b"\r\n")
            wire.close()

    # ------------------------------------------------------------------ the conversation

    def converse(self, wire: Wire) -> None:
        if self._tls == "implicit":
            assert self._context is not None
            self.start_tls(wire, self._context, step="tls")
        wire.answer(
            "greeting",
            self.greeting,
            failure={Kind.BYE: b"* BYE no\r\n", Kind.NO: b"* NO no\r\n", Kind.BAD: b"* BAD no\r\n"},
        )
        session = _Session(self, wire)
        while True:
            line = wire.line()
            while match := re.search(rb"\{(\d+)(\+?)\}$", line):
                if not match.group(2):
                    wire.send(b"+ go on\r\n")
                line += b"\r\n" + wire.exactly(int(match.group(1))) + wire.line()
            self.commands.append(line)
            if session.handle(line):
                return


class _Session:
    def __init__(self, server: FakeImap, wire: Wire) -> None:
        self.server = server
        self.wire = wire
        self.folder: Folder | None = None

    def handle(self, line: bytes) -> bool:
        """One command; True when the session is over."""
        tag, _, rest = line.partition(b" ")
        words = rest.split(b" ")
        verb = words[0].upper()
        if verb == b"UID":
            verb = b"UID " + words[1].upper()
            rest = rest.partition(b" ")[2]
        if self.server.on_command is not None:
            self.server.on_command(verb.decode("ascii", "replace"))
        rest = rest.partition(b" ")[2]
        handler = {
            b"CAPABILITY": self.capability,
            b"STARTTLS": self.starttls,
            b"LOGIN": self.login,
            b"AUTHENTICATE": self.authenticate,
            b"ID": lambda t, _: self.say("capability", t, b"* ID NIL\r\n"),
            b"NOOP": lambda t, _: self.say("noop", t),
            b"SELECT": self.select,
            b"EXAMINE": self.select,
            b"UID SEARCH": self.search,
            b"UID FETCH": self.fetch,
            b"UID STORE": self.store,
            b"LIST": self.list,
            b"APPEND": self.append,
            b"IDLE": self.idle,
            b"LOGOUT": lambda t, _: self.say("logout", t, b"* BYE bye\r\n"),
        }.get(verb)
        if handler is None:
            self.wire.send(tag + b" BAD unknown\r\n")
            return False
        handler(tag, rest)
        return verb == b"LOGOUT"

    def say(self, step: str, tag: bytes, untagged: bytes = b"", ok: bytes = b"OK done") -> None:
        negative = {
            Kind.NO: tag + b" NO fault\r\n",
            Kind.BAD: tag + b" BAD fault\r\n",
            Kind.BYE: b"* BYE fault\r\n",
        }
        self.wire.answer(step, untagged + tag + b" " + ok + b"\r\n", failure=negative)

    def capability(self, tag: bytes, _: bytes) -> None:
        words = self.server.capabilities.split()
        if not self.server.offer_starttls:
            words = [word for word in words if word != "STARTTLS"]
        self.say("capability", tag, b"* CAPABILITY " + " ".join(words).encode() + b"\r\n")

    def starttls(self, tag: bytes, _: bytes) -> None:
        self.wire.send(tag + b" OK begin\r\n" + self.server.after_starttls)
        assert self.server._context is not None
        self.server.start_tls(self.wire, self.server._context, step="tls")

    def login(self, tag: bytes, rest: bytes) -> None:
        self.server.logins.append(time.monotonic())
        self.finish_login(tag, rest.split(b" ", 1)[1].strip(b'"') == self.server.password.encode())

    def authenticate(self, tag: bytes, rest: bytes) -> None:
        self.server.logins.append(time.monotonic())
        self.wire.send(b"+ \r\n")
        given = base64.b64decode(self.wire.line())
        if rest.upper() == b"PLAIN":
            self.finish_login(tag, given.split(b"\0")[2] == self.server.password.encode())
            return
        good = f"auth=Bearer {self.server.token}\x01".encode() in given
        if not good:
            self.wire.send(b"+ " + base64.b64encode(b'{"status":"400"}') + b"\r\n")
            assert self.wire.line() == b""
        self.finish_login(tag, good)

    def finish_login(self, tag: bytes, good: bool) -> None:
        server = self.server
        locked = server.locks_after is not None and server.refused >= server.locks_after
        if server.login_answer is not None:
            server.refused += 1
            self.wire.send(tag + b" " + server.login_answer + b"\r\n")
        elif good and not locked:
            self.say("auth", tag)
        else:
            server.refused += 1
            self.wire.send(tag + b" NO [AUTHENTICATIONFAILED] no\r\n")

    def select(self, tag: bytes, rest: bytes) -> None:
        name = rest.strip(b'"').decode()
        if name not in self.server.folders:
            self.wire.send(tag + b" NO no such folder\r\n")
            return
        self.folder = self.server.folders[name]
        lines = [f"* {len(self.folder.messages)} EXISTS", "* 0 RECENT", "* FLAGS (\\Seen)"]
        lines.append(f"* OK [UIDNEXT {self.folder.next_uid}] next")
        if not self.server.forget_uidvalidity:
            lines.append(f"* OK [UIDVALIDITY {self.folder.uidvalidity}] valid")
        mode = b"OK [READ-ONLY] done" if self.server.read_only else b"OK [READ-WRITE] done"
        self.say("select", tag, "".join(part + "\r\n" for part in lines).encode(), mode)

    def search(self, tag: bytes, rest: bytes) -> None:
        assert self.folder is not None
        found = sorted(self.folder.messages)
        words = rest.decode("utf-8", "replace")
        if match := re.search(r"UID (\d+|\*)(?::(\d+|\*))?", words):
            highest = max(found, default=0)
            low = highest if match[1] == "*" else int(match[1])
            high = low if match[2] is None else highest if match[2] == "*" else int(match[2])
            low, high = min(low, high), max(low, high)
            found = [u for u in found if low <= u <= high]
        if match := re.search(r'HEADER "?([\w-]+)"? "?([^"]+?)"?$', words):
            field_name, value = match[1].lower(), match[2]
            found = [u for u in found if any(value in v for v in self.folder.messages[u].header(field_name))]
        self.say("search", tag, b"* SEARCH" + b"".join(b" %d" % u for u in found) + b"\r\n")

    def fetch(self, tag: bytes, rest: bytes) -> None:
        assert self.folder is not None
        numbers, _, items = rest.decode().partition(" ")
        uids = [int(n) for n in numbers.split(",")]
        whole = "BODY.PEEK[]" in items
        if whole and self.server.break_on_fetch & set(uids):
            self.wire.reset()
            raise Cut
        if whole and self.server.refuse_fetch & set(uids):
            self.wire.send(tag + b" NO cannot read it\r\n")
            return
        out = b""
        for uid in uids:
            message = self.folder.messages.get(uid)
            if message is None:
                if uid in self.server.expunged_as_none:
                    out += b"* %d FETCH (UID %d BODY[] NIL)\r\n" % (uid, uid)
                continue
            out += self.one(uid, message, items)
        self.say("fetch_body" if whole else "fetch_size", tag, out)

    def one(self, uid: int, message: Message, items: str) -> bytes:
        head = b"* %d FETCH (UID %d " % (uid, uid)
        if match := re.search(r"BODY\.PEEK\[\]<0\.(\d+)>", items):
            part = message.raw[: int(match[1])]
            return head + b"BODY[]<0> {%d}\r\n" % len(part) + part + b")\r\n"
        if "BODY.PEEK[]" in items:
            return head + b"BODY[] {%d}\r\n" % len(message.raw) + message.raw + b")\r\n"
        if match := re.search(r"BODY\.PEEK\[(HEADER\.FIELDS \([^)]*\))\]", items):
            part = message.raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            return head + b"BODY[%s] {%d}\r\n" % (match[1].encode(), len(part)) + part + b")\r\n"
        return head + b'RFC822.SIZE %d INTERNALDATE "%s")\r\n' % (len(message.raw), message.date.encode())

    def store(self, tag: bytes, rest: bytes) -> None:
        assert self.folder is not None
        numbers, _, what = rest.decode().partition(" ")
        for number in numbers.split(","):
            message = self.folder.messages.get(int(number))
            if message is not None:
                message.flags.update(re.findall(r"[\w$\\]+", what.partition("(")[2]))
        self.say("store", tag)

    def list(self, tag: bytes, _: bytes) -> None:
        out = b""
        for name in self.server.folders:
            flags = "\\HasNoChildren \\Sent" if name == "Sent" and self.server.special_sent else "\\HasNoChildren"
            out += f'* LIST ({flags}) "/" "{name}"\r\n'.encode()
        self.say("list", tag, out)

    def append(self, tag: bytes, rest: bytes) -> None:
        head, _, body = rest.partition(b"}\r\n")
        name = head.split(b" ")[0].strip(b'"').decode()
        size = int(re.search(rb"\{(\d+)\+?$", head)[1])  # type: ignore[index]
        self.server.add(body[:size], folder=name)
        self.say("append", tag)

    def idle(self, tag: bytes, _: bytes) -> None:
        assert self.folder is not None
        seen = self.folder.next_uid
        self.wire.send(self.server.before_idle_plus)
        self.wire.answer(
            "idle",
            b"+ idling\r\n" + self.server.after_idle_plus,
            failure={Kind.NO: tag + b" NO fault\r\n", Kind.BAD: tag + b" BAD fault\r\n", Kind.BYE: b"* BYE fault\r\n"},
        )
        while not self.wire._buffer:
            with self.server._changed:
                self.server._changed.wait(0.02)
            if self.folder.next_uid != seen:
                seen = self.folder.next_uid
                self.wire.send(b"* %d EXISTS\r\n" % len(self.folder.messages))
            if select.select([self.wire.sock], [], [], 0)[0]:
                break
        self.wire.line()
        self.say("done", tag)


def _fields(raw: bytes, name: str) -> list[str]:
    header = re.sub(rb"\r?\n[ \t]+", b" ", raw.partition(b"\r\n\r\n")[0]).decode("utf-8", "replace")
    return [line.partition(":")[2].strip() for line in header.splitlines() if line.partition(":")[0].lower() == name]
