"""What single steps cost in a store that has grown, beside the same in a small one.

    python benchmarks/scale.py [--cases 1000000] [--small 1000] [--repeats 30] [--postgresql] [--plans] [--page] [--json]

Makes both stores by bulk SQL: cases over two years in the spread of states of a working service, with their threads,
senders, events, drafts, requests, outbox, attempts and feedback, and as many orders; what retention forgets is
forgotten; the same few dozen newest cases are open in both. Then each step of the service runs on both in turn. Writing steps are rolled
back, so that the times are those of the statements and not of the disk. ``--plans`` prints the query plans of the
statements of each step whose ratio is over 1.1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import Connection, text

from benchmarks import bench
from daemon.store import cases, drafts, folders, forgetting, labelling, orders, outbox, reports, requests, settings
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.vocab import CaseState, DeliveryKind, DraftState, Kind, Outgoing, RawMail
from tests.store.watching import watched

#: A million cases in two years.
SECONDS_APART = 63
#: The newest cases, which are open.
OPEN = 48
NOW = datetime(2026, 11, 2, 10, tzinfo=UTC)
WORKER = "bench:1"
LEASE = timedelta(minutes=5)


class Words:
    """What SQLite and PostgreSQL write differently."""

    def __init__(self, connection: Connection) -> None:
        self.lite = connection.dialect.name == "sqlite"

    def digest(self, n: str) -> str:
        return f"printf('%064x', {n})" if self.lite else f"lpad(to_hex({n}), 64, '0')"

    def ago(self, seconds: str) -> str:
        """A moment that many seconds before NOW."""
        if self.lite:
            return f"strftime('%Y-%m-%d %H:%M:%f000', {int(NOW.timestamp())} - ({seconds}), 'unixepoch')"
        return f"timestamptz '{NOW.isoformat()}' - ({seconds}) * interval '1 second'"

    def json(self, value: str) -> str:
        return value if self.lite else f"CAST({value} AS json)"

    def bytes(self, value: str) -> str:
        return f"CAST({value} AS blob)" if self.lite else f"convert_to({value}, 'UTF8')"

    def numbers(self, count: int, first: int = 1) -> str:
        if self.lite:
            return (
                f"(WITH RECURSIVE c(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM c WHERE n < {count}) SELECT n FROM c) s"
            )
        return f"generate_series({first}, {count}) AS s(n)"


def fill(connection: Connection, count: int) -> None:
    """A store with that many cases and orders."""
    w = Words(connection)
    old = count - OPEN  # the last case that has ended
    moment = w.ago(f"({count} - n) * {SECONDS_APART}")
    later = w.ago(f"({count} - n) * {SECONDS_APART} - 30")
    thread, no = "(n * 5 / 8 + 1)", "(1 = 0)"
    ended = (
        "CASE WHEN n % 100 < 60 THEN 'sent' WHEN n % 100 < 75 THEN 'ignored' WHEN n % 100 < 85 THEN 'closed'"
        " WHEN n % 100 < 90 THEN 'withdrawn' WHEN n % 100 < 92 THEN 'declined' WHEN n % 100 < 95 THEN 'shadowed' ELSE 'applied' END"
    )
    waiting = "CASE n % 3 WHEN 0 THEN 'awaiting_approval' WHEN 1 THEN 'human' ELSE 'deferred' END"
    state = f"CASE WHEN n <= {old} THEN {ended} ELSE {waiting} END"
    kept = max(1, count - 30 * 86_400 // SECONDS_APART)  # content of older cases is forgotten
    due = f"CASE WHEN n > {old} THEN {w.ago('-86400')} END"
    statements = {
        "folders": "INSERT INTO folders (mailbox, folder, uidvalidity, last_uid, baseline_uid, review_uid, last_success_at)"
        f" SELECT 'shop', 'INBOX', 1, {count}, 0, 0, {w.ago('0')}",
        "threads": f"INSERT INTO threads (id, mailbox, created_at) SELECT n, 'shop', {w.ago('0')} FROM {w.numbers(count * 5 // 8 + 1)}",
        "thread keys": "INSERT INTO thread_keys (mailbox, key, thread_id)"
        f" SELECT 'shop', {w.digest('n')}, {thread} FROM {w.numbers(count)}",
        "cases": "INSERT INTO cases (id, mailbox, folder, uidvalidity, uid, message_id, raw_sha256, content_key, size, truncated, review,"
        " internal_date, received_at, state, reason, due_at, attempts, deadline_at, thread_id, kind, marketplace, language, sender,"
        " order_id, label, sublabel, confidence, policy, template, mode, revision, model_version, playbook_version, updated_at)"
        f" SELECT n, 'shop', 'INBOX', 1, n, '<m' || n || '@buyers.test>', {w.digest('n')}, {w.digest('n')}, 7000, {no}, {no},"
        f" {moment}, {moment}, {state}, 'approved', {due}, 0, {w.ago(f'({count} - n) * {SECONDS_APART} - 86400')}, {thread},"
        f" 'buyer', 'amazon', 'en', 'buyer' || {thread} || '@buyers.test', '302-' || n, 'logistics_question', 'tracking', 0.97,"
        f" 'tracking', 'logistics_question/tracking', 'ask', 1, 'm1', 'p1', {later} FROM {w.numbers(count)}",
        "raw mail": "INSERT INTO raw_mail (case_id, body)"
        f" SELECT n, {w.bytes(repr('where is my parcel? ' * 100))} FROM {w.numbers(count, kept)}",
        "records": "INSERT INTO records (case_id, reading, outcome) SELECT n,"
        f" {w.json(repr(json.dumps({'prediction': {'abstained': False, 'label': 'logistics_question'}, 'text': 'x' * 400})))},"
        f" {w.json(repr('{}'))} FROM {w.numbers(count, kept)}",
        "events": "INSERT INTO events (case_id, at, from_state, to_state, reason, actor)"
        f" SELECT n, {moment}, NULL, 'received', 'arrived', 'postsale' FROM {w.numbers(count)}"
        f" UNION ALL SELECT n, {later}, 'received', 'awaiting_approval', 'drafted', 'postsale' FROM {w.numbers(count)}"
        f" UNION ALL SELECT n, {later}, 'awaiting_approval', 'sent', 'accepted', 'postsale' FROM {w.numbers(old)}",
        "drafts": "INSERT INTO drafts (case_id, revision, state, subject, body, language, author, recipient, message_id, mime, mime_sha256,"
        f" created_at) SELECT n, 1, CASE WHEN n > {old} THEN 'pending' ELSE 'approved' END, 's', 'b', 'en', 'postsale', 'b',"
        f" '<r' || n || '@shop.test>', {w.bytes(repr('x'))}, {w.digest('n')}, {moment} FROM {w.numbers(count)} WHERE n % 100 < 60 OR n > {old}",
        "replies": "INSERT INTO outbox (kind, mailbox, case_id, revision, recipient, recipient_key, envelope_from, message_id, dedupe_key,"
        " mime, mime_sha256, state, not_before, attempts, claimed_by, smtp_code, transmitted_at, copied_at, template, automatic,"
        f" created_at, updated_at) SELECT 'buyer_reply', 'shop', n, 1, 'b', 'buyer' || {thread} || '@buyers.test', 'shop@shop.test',"
        f" '<r' || n || '@shop.test>', n || ':1', CASE WHEN n >= {kept} THEN {w.bytes(repr('x' * 900))} END, {w.digest('n')}, 'sent', {later}, 1, 'boot', 250,"
        f" {later}, {later}, 'logistics_question/tracking', {no}, {moment}, {later} FROM {w.numbers(old)} WHERE n % 100 < 60",
        "notices": "INSERT INTO outbox (kind, mailbox, case_id, recipient, recipient_key, envelope_from, message_id, dedupe_key, mime_sha256,"
        " state, not_before, attempts, smtp_code, transmitted_at, automatic, created_at, updated_at) SELECT 'staff_notice', 'shop', n, 'boss',"
        f" 'boss', 'shop@shop.test', '<n' || n || '@shop.test>', 'ask:' || n, {w.digest('n')}, 'sent', {later}, 1, 250, {later}, {no},"
        f" {moment}, {later} FROM {w.numbers(count)} WHERE n % 100 < 70 OR n > {old}",
        "attempts": "INSERT INTO attempts (delivery_id, number, boot_id, started_at, phase, ended_at, code)"
        " SELECT id, 1, 'boot', updated_at, 'accepted', updated_at, 250 FROM outbox",
        "requests": "INSERT INTO approvals (token_hash, case_id, revision, mime_sha256, approver, approver_address, notice_message_id,"
        " purpose, created_at, expires_at, used_at, used_by, verdict)"
        f" SELECT {w.digest('n')}, n, 1, {w.digest('n')}, 'boss', 'boss@shop.test', '<n' || n || '@shop.test>',"
        f" CASE WHEN n > {old} AND n % 3 = 1 THEN 'human' ELSE 'request' END, {later}, {w.ago(f'({count} - n) * {SECONDS_APART} - 259200')},"
        f" CASE WHEN n <= {old} THEN {later} END, 'mail:1', 'approved' FROM {w.numbers(count)} WHERE n % 100 < 70 OR n > {old}",
        "feedback": "INSERT INTO feedback (case_id, at, by, predicted, final)".replace(" by,", ' "by",')
        + f" SELECT n, {later}, 'boss', 'logistics_question/tracking', 'logistics_question/tracking' FROM {w.numbers(old)} WHERE n % 20 = 0",
        "orders": "INSERT INTO orders (shop, order_id, report, facts, as_of, source) SELECT 'amazon', '302-' || n, 'all_orders',"
        f" {w.json(repr(json.dumps({'buyer_addr': None, 'rows': [{'report': 'all_orders', 'as_of': NOW.isoformat(), 'source': 'r', 'order_id': '1', 'state': 'shipped', 'title': 'Garden lamp', 'sku': 'L', 'quantity': '1', 'currency': 'EUR', 'price': '19.99'}]})))},"
        f" {w.ago('3600')}, 'r.txt' FROM {w.numbers(count)}",
    }
    for name, statement in statements.items():
        began = time.perf_counter()
        connection.execute(text(statement.replace(":", "\\:")))
        bench.progress(f"  {name}: {time.perf_counter() - began:.1f} s")


def build(database: Database, count: int) -> None:
    """Schema and rows; indexes are made after the rows, which is many times faster."""
    upgrade(database)

    def unit(connection: Connection) -> None:
        lite = connection.dialect.name == "sqlite"
        kept: list[tuple[str, str]] = []
        if lite:
            rows = connection.execute(
                text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
            ).all()
            kept = [(row[0], row[1]) for row in rows]
        for name, _ in kept:
            connection.execute(text(f"DROP INDEX {name}"))
        fill(connection, count)
        began = time.perf_counter()
        for _, statement in kept:
            connection.execute(text(statement.replace(":", "\\:")))
        if not lite:
            for table in ("threads", "cases", "events", "outbox"):
                connection.execute(
                    text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))")
                )
        bench.progress(f"  indexes: {time.perf_counter() - began:.1f} s")

    database.write_now(unit)
    while database.write_now(lambda c: labelling.close_day(c, now=NOW)):  # as the service does each night
        pass
    if not database.is_sqlite:
        with database.session() as connection:
            connection.execute(text("VACUUM ANALYZE"))


# --------------------------------------------------------------------------- the steps


def poll(connection: Connection, count: int) -> None:
    """A look at a folder with nothing new, and the reader's and the sender's rounds with nothing to do."""
    place = folders.get(connection, "shop", "INBOX")
    assert place is not None
    folders.unknown_uids(connection, place, [place.last_uid])
    folders.succeeded(connection, "shop", "INBOX", now=NOW)
    assert cases.claim(connection, worker=WORKER, limit=50, lease=LEASE, max_attempts=3, now=NOW) == []
    cases.next_due(connection)


def rescan(connection: Connection, count: int) -> None:
    """The comparison with the server's list of the last days."""
    place = folders.get(connection, "shop", "INBOX")
    assert place is not None
    lowest = folders.oldest_uid_to_rescan(connection, place, NOW - timedelta(hours=8))
    assert folders.unknown_uids(connection, place, range(lowest, count + 1)) == []


def sender_round(connection: Connection, count: int) -> None:
    """The sender's round with nothing to do."""
    assert outbox.outlook(connection, "shop")[1] is None
    assert outbox.without_copy(connection, "shop", before=NOW) == []


def take_in(connection: Connection, count: int) -> None:
    """A mail is stored, claimed, understood, its order looked up, and its outcome written down."""
    raw = f"Message-ID: <new{count}@buyers.test>\r\n\r\nwhere is my parcel?".encode()
    [case_id] = cases.receive(connection, [RawMail("shop", "INBOX", 1, count + 1, raw)], now=NOW).case_ids
    [claimed] = cases.claim(connection, worker=WORKER, limit=50, lease=LEASE, max_attempts=3, now=NOW)
    what = cases.Understood(
        content_key="f" * 64,
        message_id=f"<new{count}@buyers.test>",
        sender=f"buyer{count * 5 // 8 - 40}@buyers.test",
        kind=Kind.BUYER,
        order_id=f"302-{count - 60}",
        thread_keys=(f"order:302-{count - 60}",),
        answers=(f"<r{count - 60}@shop.test>",),
    )
    cases.understand(connection, claimed.case_id, what, worker=WORKER, response_hours=24, now=NOW)
    cases.open_for_orders(connection, "shop", [f"302-{count - 60}"], before=case_id)
    assert orders.rows_of(connection, [("amazon", f"302-{count - 60}")])["amazon", f"302-{count - 60}"]
    done = cases.Settlement(case_id, CaseState.RECEIVED, CaseState.HUMAN, "abstained", reading={"text": "x"}, outcome={})
    cases.settle(connection, done, worker=WORKER, now=NOW)


def send(connection: Connection, count: int) -> None:
    """An open draft is approved, queued, looked at again, and sent."""
    case_id = next(n for n in range(count - OPEN + 1, count) if n % 3 == 0)
    mime = b"x" * 1500
    mail = Outgoing(
        kind=DeliveryKind.BUYER_REPLY,
        mailbox="shop",
        recipient=f"buyer{case_id * 5 // 8 + 1}@buyers.test",
        envelope_from="shop@shop.test",
        message_id="<fresh@shop.test>",
        mime=mime,
        sha256=hashlib.sha256(mime).hexdigest(),
        dedupe_key="fresh",
        case_id=case_id,
        revision=1,
    )
    drafts.decide(connection, case_id, 1, DraftState.APPROVED, actor="boss", now=NOW)
    cases.move_case(
        connection, case_id, CaseState.AWAITING_APPROVAL, CaseState.QUEUED, reason="approved", actor="boss", now=NOW
    )
    outbox.enqueue(connection, mail, now=NOW)
    outbox.outlook(connection, "shop")
    outbox.uncertain_due(connection, "shop", now=NOW)
    outbox.waiting(connection, "shop", now=NOW)
    [row] = outbox.due(connection, "shop", now=NOW)
    drafts.order_states(connection, [(case_id, 1)])
    orders.rows_of(connection, [("amazon", f"302-{case_id}")])
    outbox.left_in_hour(connection, row.mailbox, besides=row.id, now=NOW)
    outbox.traffic(connection, row, now=NOW)
    outbox.overtaken(connection, row)
    outbox.claim(connection, row, boot_id="b", now=NOW)
    outbox.begin_transmit(connection, row.id, boot_id="b", now=NOW)
    outbox.accepted(connection, row, boot_id="b", code=250, reply="ok", now=NOW)


def upkeep(connection: Connection, count: int) -> None:
    """A round of upkeep that finds nothing to do."""
    requests.unasked(connection, "shop")
    requests.undecided(connection, "shop")
    requests.unasked_people(connection)
    requests.asked_since(connection, "human", NOW - timedelta(hours=1))
    requests.unasked_uncertain(connection)
    requests.due(connection, now=NOW)
    requests.hold_over(connection, now=NOW)
    requests.vetoed(connection)
    requests.orphaned(connection)
    requests.answerable(connection, "shop")
    requests.next_due(connection)
    outbox.forget_notices(connection, before=NOW)


def retention(connection: Connection, count: int) -> None:
    """The hourly round of retention when nothing has become due."""
    assert not forgetting.purge_content(connection, now=NOW, days=31, days_by_marketplace={"amazon": 31})
    assert not forgetting.purge_cases(connection, now=NOW, days=1000)


def status(connection: Connection, count: int) -> None:
    """What `postsale status` asks."""
    reports.overview(connection, now=NOW)
    settings.paused(connection, "shop")


def status_labelling(connection: Connection, count: int) -> None:
    """What the model did in the last 30 days, as `postsale status` shows it; there is more of it in a large store."""
    labelling.labelling(connection, now=NOW)


STEPS: dict[str, Callable[[Connection, int], None]] = {
    "poll, nothing new": poll,
    "rescan": rescan,
    "sender's round, nothing due": sender_round,
    "a mail taken in: store, claim, understand, settle": take_in,
    "a reply sent: queue, looks, claim, two outcomes": send,
    "round of upkeep": upkeep,
    "round of retention, nothing due": retention,
    "status": status,
    "status: labels of 30 days": status_labelling,
}


class _Undone(Exception):
    """Rolls a step back."""


def timed(database: Database, step: Callable[[Connection, int], None], count: int) -> float:
    """Milliseconds of a step, inside a transaction that is then rolled back."""
    spent = 0.0

    def unit(connection: Connection) -> None:
        nonlocal spent
        began = time.perf_counter()
        step(connection, count)
        spent = (time.perf_counter() - began) * 1000
        raise _Undone

    with contextlib.suppress(_Undone):
        database.write_now(unit)
    return spent


def plans(database: Database, step: Callable[[Connection, int], None], count: int) -> list[str]:
    """The plan of each statement of a step, with the time that it took."""
    found: list[str] = []

    def unit(connection: Connection) -> None:
        with watched(connection) as asked:
            step(connection, count)
        explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
        for statement, values, spent in asked:
            if statement.startswith(("SELECT", "UPDATE", "DELETE")) and not isinstance(values, list):
                cursor = connection.connection.cursor()
                cursor.execute(explain + statement, values)
                steps = [str(row[-1]) for row in cursor.fetchall()]
                shown = " ".join(statement.split())
                found.append(
                    f"{spent:.2f} ms  {shown if len(shown) < 900 else shown[:300] + ' … ' + shown[-600:]}\n    "
                    + "\n    ".join(steps)
                )
        raise _Undone

    with contextlib.suppress(_Undone):
        database.write_now(unit)
    return found


@contextlib.contextmanager
def stores(postgresql: bool, folder: Path) -> Iterator[Callable[[str], Database]]:
    """Opens databases of either kind."""
    if not postgresql:
        yield lambda name: Database(f"sqlite:///{folder}/{name}.db")
        return
    from tests.servers import PostgresServer

    server = PostgresServer()
    server.start()
    try:
        yield lambda name: Database(server.url(server.create_database()))
    finally:
        server.remove()


def measure(count: int, small: int, repeats: int, *, postgresql: bool, explain: bool, folder: Path) -> dict[str, Any]:
    """Every step on both stores in turn."""
    times: dict[str, dict[str, list[float]]] = {}
    shown: list[str] = []
    with stores(postgresql, folder) as open_store:
        sizes = {"small": small, "large": count}
        databases = {}
        for name, number in sizes.items():
            bench.progress(f"{name} store, {number:,} cases:")
            databases[name] = open_store(name)
            build(databases[name], number)
        for title, step in STEPS.items():
            times[title] = {name: [] for name in sizes}
            for number in range(repeats + 1):
                for name, database in databases.items():
                    spent = timed(database, step, sizes[name])
                    if number:  # the first one warms up
                        times[title][name].append(spent)
            ratio = median(times[title]["large"]) / median(times[title]["small"])
            bench.progress(
                f"{title}: {median(times[title]['small']):.2f} ms, {median(times[title]['large']):.2f} ms, ratio {ratio:.2f}"
            )
            if explain and ratio > 1.1:
                shown += [f"== {title}", *plans(databases["large"], step, count)]
        size = sum(file.stat().st_size for file in folder.glob("large.db*"))
        for database in databases.values():
            database.close()
    return {"cases": count, "small": small, "repeats": repeats, "times_ms": times, "bytes": size, "plans": shown}


def report(result: dict[str, Any], kind: str) -> str:
    """The table with medians and ratios."""
    rows = []
    for title, found in result["times_ms"].items():
        few, many = median(found["small"]), median(found["large"])
        rows.append((title, f"{few:.2f}", f"{many:.2f}", f"{many / few:.2f}"))
    head = ("step, ms of its statements", f"at {result['small']:,} cases", f"at {result['cases']:,} cases and orders", "ratio")
    stored = f", {result['bytes'] / 1e9:.1f} GB" if result["bytes"] else ""
    return (
        f"{bench.machine()}; load of the last minute at the end {bench.load():.2f}. {kind}{stored}. Medians of {result['repeats']}.\n\n"
        + bench.table(head, rows)
        + "\n"
    )


def main() -> int:
    """The command line; exit status 1 when PostgreSQL is asked for and not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL of its own instead of SQLite")
    parser.add_argument("--plans", action="store_true", help="print the plans of slow steps")
    parser.add_argument("--folder", type=Path, help="where the stores are made; a million cases take some 3 GB")
    parser.add_argument("--page", action="store_true", help="write the section of docs/performance.md")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    from tests.servers import NotInstalled

    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        try:
            result = measure(
                asked.cases, asked.small, asked.repeats, postgresql=asked.postgresql, explain=asked.plans, folder=Path(name)
            )
        except NotInstalled as error:
            print(error, file=sys.stderr)
            return 1
    kind = "PostgreSQL" if asked.postgresql else "SQLite"
    flag = " --postgresql" if asked.postgresql else ""
    text_ = f"`python benchmarks/scale.py --cases {asked.cases} --repeats {asked.repeats}{flag} --page`\n\n" + report(
        result, kind
    )
    print(json.dumps(result) if asked.json else text_ + "\n".join(result["plans"]))
    if asked.page:
        bench.write_page(f"Scale, {kind}", text_)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
