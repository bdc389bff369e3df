"""One mail at a time: from the moment at which LMTP has accepted it to the moment at which its answer is accepted.

    python benchmarks/latency.py [--messages 200] [--page] [--json]

Starts its own Dovecot and Postfix (as root). The service runs whole, in live mode, with an undo window of nothing, and
answers by a policy that asks nobody (the shipped playbook, with no marketplace in ask_on); beside it, benchmarks/minimal.py. Both have a mailbox of their own and get mails in
turn, the next one when the one before is answered, over verified TLS on kept connections. Dovecot tells of a new mail
half a second late; a plain IDLE client on the same mailbox takes that moment for each mail, and the time runs from there.
"""

from __future__ import annotations

import argparse
import contextlib
import email.utils
import json
import logging
import queue
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from imaplib import IMAP4_SSL
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench
from benchmarks.sending import smtp_sink
from daemon import resources
from tests.servers import MailServers, NotInstalled, User

PATIENCE = 60.0
#: What the service writes down of an answer, in its order.
STAGES = ("stored", "decided", "claimed", "granted", "accepted")


def order_id(number: int) -> str:
    """The order that mail ``number`` asks about."""
    return f"204-{4_000_000 + number:07d}-{7_000_000 + number:07d}"


def order_report(count: int) -> str:
    """Every order on its way, and not late."""
    bought = datetime.now(UTC) - timedelta(days=4)
    shipped, due = bought + timedelta(days=1), bought + timedelta(days=12)
    head = (
        "amazon-order-id\tshipment-id\tpurchase-date\tshipment-date\tsku\tproduct-name\tquantity-shipped\tcurrency\titem-price\t"
        "carrier\ttracking-number\testimated-arrival-date\tfulfillment-channel\tsales-channel\n"
    )
    return head + "".join(
        f"{order_id(n)}\tS{n}\t{bought.isoformat()}\t{shipped.isoformat()}\tLAMP-{n % 9}\tGarden lamp\t1\tGBP\t24.90\tRoyal Mail\t"
        f"RM{n:09d}GB\t{due.isoformat()}\tMFN\tamazon.co.uk\n"
        for n in range(count)
    )


def mail(number: int, name: str) -> tuple[str, str, bytes]:
    """A buyer's question that the service answers by itself: (Message-ID, writer, bytes)."""
    relay, message_id = f"k{number}j2m9x4q1w8@marketplace.amazon.co.uk", f"<{name}{number}@email.amazon.co.uk>"
    raw = (
        "Authentication-Results: mx.example.test; dkim=pass header.d=amazon.co.uk;\r\n"
        " dmarc=pass header.from=marketplace.amazon.co.uk\r\n"
        f"From: Petra Lindner - Amazon Marketplace <{relay}>\r\nTo: shop@example.test\r\n"
        f"Subject: Order delivery inquiry from Amazon customer Petra Lindner (Order: {order_id(number)})\r\n"
        f"Message-ID: {message_id}\r\nDate: {email.utils.formatdate(usegmt=True)}\r\n"
        "X-Space-Notification-Type: BBC_MESSAGE_SENT_TO_MERCHANT\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n\r\n"
        f"You have received a message.\r\n\r\n# {order_id(number)}:\r\n1 / Garden lamp [ASIN: B0ABCDEFGH]\r\n\r\n"
        "------------- Message:  -------------\r\nHello, where is my parcel? The tracking has not moved for days."
        "\r\n------------- End message -------------\r\n"
    )
    return message_id, relay, raw.encode()


class Watcher:
    """A plain IDLE client: when the server tells of new mail."""

    def __init__(self, servers: MailServers, user: User) -> None:
        context = ssl.create_default_context(cafile=str(servers.ca_file))
        self._imap = IMAP4_SSL("localhost", servers.imaps_port, ssl_context=context)
        self._imap.login(user.address, user.password)
        self._imap.select("INBOX", readonly=True)
        self._imap.send(b"T IDLE\r\n")
        self.told: queue.SimpleQueue[float] = queue.SimpleQueue()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError, ValueError, IMAP4_SSL.abort):
            while line := self._imap.readline():
                if b"EXISTS" in line:
                    self.told.put(time.time())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # under the thread that reads, which ends by it
            socket.socket.shutdown(self._imap.sock, socket.SHUT_RDWR)


class Minimal:
    """The script, and when it had answered what."""

    def __init__(self, servers: MailServers, user: User) -> None:
        script = [sys.executable, str(bench.ROOT / "benchmarks" / "minimal.py"), user.address, user.password]
        ports = [str(servers.imaps_port), str(servers.smtps_port), str(servers.ca_file)]
        self._process = subprocess.Popen([*script, *ports], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        if self._lines.readline().strip() != "ready":
            raise RuntimeError("the minimal script does not start")

    def answered(self, message_id: str) -> dict[str, float]:
        """When the answer to a mail was accepted; waits for it."""
        name, _, moment = self._lines.readline().rpartition(" ")
        if name != message_id:
            raise RuntimeError(f"the minimal script answered {name or 'nothing'} and not {message_id}")
        return {"accepted": float(moment)}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Whole:
    """The service, and when it had answered what, as its own record of each attempt says."""

    def __init__(self, service: bench.Service, database: Path) -> None:
        self._service = service
        self._database = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)

    def watched(self) -> bool:
        """Whether the mailbox has been looked at for the first time."""
        return bool(self._database.execute("SELECT count(*) FROM folders WHERE last_success_at IS NOT NULL").fetchone()[0])

    def answered(self, message_id: str) -> dict[str, float]:
        """When the answer to a mail was accepted, and when the stages before were had; waits for it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = self._database.execute(
                "SELECT c.received_at, o.created_at, a.started_at, o.transmitted_at, a.ended_at FROM cases c JOIN outbox o ON o.case_id = c.id JOIN attempts a ON a.delivery_id = o.id"
                " WHERE c.mailbox = 'shop' AND c.message_id = ? AND a.phase = 'accepted' AND o.kind = 'buyer_reply'",
                (message_id,),
            ).fetchone()
            if found:
                moments = (datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() for moment in found)
                return dict(zip(STAGES, moments, strict=True))
            self._service.check()
            time.sleep(0.01)
        state = self._database.execute("SELECT state, reason FROM cases WHERE message_id = ?", (message_id,)).fetchone()
        raise RuntimeError(f"{message_id} was not answered: {state}; {self._service.log()}")

    def close(self) -> None:
        self._database.close()


def one(
    servers: MailServers, user: User, number: int, name: str, watcher: Watcher, answering: Minimal | Whole
) -> dict[str, float]:
    """Milliseconds of one mail: until the server told of it, and from there to the accepted answer."""
    message_id, writer, raw = mail(number, name)
    servers.deliver(user, raw, sender=writer)
    accepted = time.time()
    answered = answering.answered(message_id)
    told = watcher.told.get(timeout=PATIENCE)
    passed = {stage: (moment - told) * 1000 for stage, moment in answered.items()}
    return {"notice": (told - accepted) * 1000, "own": passed["accepted"], **passed}


@contextlib.contextmanager
def running(servers: MailServers, folder: Path, count: int) -> Iterator[dict[str, tuple[User, Watcher, Minimal | Whole]]]:
    """Both, ready for mail."""
    users = {"service": servers.add_user(), "minimal": servers.add_user()}
    playbook = folder / "playbook.toml"
    playbook.write_text(re.sub(r"(?m)^ask_on = .*$", "ask_on = []", resources.playbook().read_text("utf-8")), "utf-8")
    config = bench.configure(
        folder / "service",
        servers,
        [users["service"]],
        report=order_report(count),
        undo_seconds=0,
        extra=f'[playbook]\npath = "{playbook}"\n',
    )
    with (
        bench.Service(config.parent, ["-m", "daemon", "run", "--config", str(config)]) as service,
        contextlib.ExitStack() as stack,
    ):
        whole = Whole(service, config.parent / "data" / "postsale.db")
        stack.callback(whole.close)
        while not whole.watched():
            service.check()
            time.sleep(0.05)
        service.wait_until_quiet()
        minimal = Minimal(servers, users["minimal"])
        stack.callback(minimal.close)
        watchers = {name: Watcher(servers, user) for name, user in users.items()}
        for watcher in watchers.values():
            stack.callback(watcher.close)
        time.sleep(1)
        answering: dict[str, Minimal | Whole] = {"service": whole, "minimal": minimal}
        yield {name: (user, watchers[name], answering[name]) for name, user in users.items()}


def measure(count: int, warm: int = 2) -> dict[str, list[dict[str, float]]]:
    """All mails, to both in turn; the first ``warm`` do not count."""
    found: dict[str, list[dict[str, float]]] = {"service": [], "minimal": []}
    # answers go to the marketplace's domain, which is outside: Postfix hands them to a server that keeps nothing
    with (
        bench.mail_servers() as (servers, folder),
        smtp_sink(servers.outside_port),
        running(servers, folder, count + warm) as both,
    ):
        for number in range(count + warm):
            for name, (user, watcher, answering) in both.items():
                taken = one(servers, user, number, name, watcher, answering)
                if number >= warm:
                    found[name].append(taken)
            if number % 20 == 0:
                bench.progress(f"{number} of {count + warm} mails")
    return found


def report(found: dict[str, list[dict[str, float]]]) -> str:
    """The table with p50, p99 and ratios."""
    rows = []
    shares = {}
    for name, title in (("service", "Postsale, the whole service"), ("minimal", "minimal script: IDLE, FETCH, SMTP")):
        own, notice = ([each[part] for each in found[name]] for part in ("own", "notice"))
        shares[name] = (bench.share(own, 0.5), bench.share(own, 0.99))
        rows.append(
            (
                title,
                f"{shares[name][0]:.1f}",
                f"{shares[name][1]:.1f}",
                f"{bench.share(notice, 0.5):.1f}",
                f"{shares[name][0] + bench.share(notice, 0.5):.1f}",
            )
        )
    ratios = [ours / theirs for ours, theirs in zip(shares["service"], shares["minimal"], strict=True)]
    rows.append(("ratio", f"{ratios[0]:.2f}", f"{ratios[1]:.2f}", "", ""))
    stages = ", ".join(f"{stage} {bench.share([each[stage] for each in found['service']], 0.5):.1f} ms" for stage in STAGES)
    head = ("ms", "p50", "p99", "before that, the server's notice (p50)", "both (p50)")
    return (
        f"{bench.machine()}; load of the last minute at the end {bench.load():.2f}. {len(found['service'])} mails to each.\n\n"
        + bench.table(head, rows)
        + f"\n\nThe service's stages, p50 of the time since the notice: {stages}.\n"
    )


def main() -> int:
    """The command line; exit status 1 when a server is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--page", action="store_true", help="write the section of docs/performance.md")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    try:
        found = measure(asked.messages)
    except NotInstalled as error:
        print(error, file=sys.stderr)
        return 1
    text = f"`python benchmarks/latency.py --messages {asked.messages} --page`\n\n" + report(found)
    print(json.dumps(found) if asked.json else text)
    if asked.page:
        bench.write_page("Latency", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
