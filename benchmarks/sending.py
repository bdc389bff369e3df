"""Replies that wait in the outbox, sent: the deliver loop beside smtp-source, to Postfix and to smtp-sink.

    python benchmarks/sending.py [--replies 2000] [--connections 1 4] [--runs 3] [--profile] [--page] [--json]

Starts its own Postfix (as root) and smtp-sink. In each run smtp-source sends as many mails of the same size over as many
kept connections as the service then does, from frozen replies in its database: every last look is had, and the three
commits of each reply are durable. Postfix throws the mails away once it has them in its queue; smtp-sink at once, so that
its rate is the client's own limit. Neither client uses TLS, which smtp-source does not know.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import pstats
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from statistics import mean, median
from typing import Any

from sqlalchemy import Connection, func, select

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench, corpus, outgoing
from daemon.config import load
from daemon.store import settings, tables
from daemon.store.db import Database
from tests.servers import MailServers, NotInstalled, User, free_port, program, wait_for_port

SERVICE = bench.ROOT / "benchmarks" / "loops.py"
#: Where Postfix accepts and throws away.
DOMAIN = "drop.test"
#: Header bytes that smtp-source puts before the payload that it is told to send.
SOURCE_HEADER = 200
PATIENCE = 60.0


@dataclass(frozen=True)
class Run:
    """One run of both clients to one server, in replies a second."""

    server: str
    connections: int
    ours: float
    theirs: float
    cpu_us: float  # of the service, per reply


@contextlib.contextmanager
def smtp_sink(port: int | None = None) -> Iterator[int]:
    """A server that takes everything and keeps nothing, on this or any free port; the port."""
    port = port or free_port()
    process = subprocess.Popen(
        [program("smtp-sink"), "-4", "-u", "mail", f"127.0.0.1:{port}", "100"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, alive=process)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def wait_for_empty_queue(servers: MailServers) -> None:
    """Let Postfix throw away what it still has."""
    deadline = time.monotonic() + PATIENCE
    queues = [servers.folder / "p" / "q" / name for name in ("maildrop", "incoming", "active", "deferred")]
    while any(path.is_file() for queue in queues for path in queue.rglob("*")):
        if time.monotonic() > deadline:
            raise RuntimeError("Postfix does not get rid of its queue")
        time.sleep(0.1)


def smtp_source(port: int, count: int, connections: int, size: int) -> float:
    """Mails a second that smtp-source brings to a server over kept connections."""
    load = ["-s", str(connections), "-m", str(count), "-l", str(size - SOURCE_HEADER)]
    addresses = ["-N", "-f", "shop@example.test", "-t", f"buyer@{DOMAIN}"]
    wall, _ = bench.timed([program("smtp-source"), "-4", "-d", *load, *addresses, f"127.0.0.1:{port}"])
    return count / wall


def service(folder: Path, config: Path, count: int, profile: Path | None = None) -> tuple[float, float]:
    """Send what is queued, once the service has settled down; returns (replies a second, processor time of each in us).

    The time runs from the first claim to the last outcome.
    """
    database = Database(load(config).database_url)
    database.write_now(lambda c: settings.pause(c, actor="bench", now=datetime.now(UTC)))
    command = [str(SERVICE), str(config), "deliver", *(["--profile", str(profile)] if profile else [])]
    try:
        with bench.Service(folder, command) as running:
            running.wait_until_quiet()
            before, moved, last = running.usage(), time.perf_counter(), 0
            database.write_now(settings.resume)
            while True:
                states = database.read_now(_states)
                sent = states.get("sent", 0)
                if sent == count:
                    break
                last, moved = (sent, time.perf_counter()) if sent != last else (last, moved)
                if time.perf_counter() - moved > PATIENCE:
                    raise RuntimeError(f"no progress at {states}: {running.log()}")
                running.check()
                time.sleep(0.05)
            after = running.usage()
        seconds = database.read_now(_seconds)
    finally:
        database.close()
    return count / seconds, (after.cpu_seconds - before.cpu_seconds) / count * 1e6


def _states(connection: Connection) -> dict[str, int]:
    rows = connection.execute(select(tables.outbox.c.state, func.count().label("number")).group_by(tables.outbox.c.state))
    return {row.state: row.number for row in rows}


def _seconds(connection: Connection) -> float:
    first, last = connection.execute(select(func.min(tables.attempts.c.started_at), func.max(tables.attempts.c.ended_at))).one()
    seconds: float = (last - first).total_seconds()
    return seconds


def pair(
    server: str, port: int, servers: MailServers, user: User, folder: Path, count: int, connections: int, profile: Path | None
) -> Run:
    """Both clients to one server, one after the other."""
    config = bench.configure(
        folder, servers, [user], report=corpus.report(count), plain_smtp=port, connections=connections, workers=1
    )
    sizes = outgoing.queue(config, count, domain=DOMAIN)
    wait_for_empty_queue(servers)
    theirs = smtp_source(port, count, connections, round(mean(sizes)))
    wait_for_empty_queue(servers)
    ours, cpu = service(folder, config, count, profile)
    shutil.rmtree(folder)
    done = Run(server, connections, ours, theirs, cpu)
    bench.progress(f"{server}, {connections} kept: {ours:.0f}/s, smtp-source {theirs:.0f}/s, ratio {ours / theirs:.2f}")
    return done


def measure(count: int, connections: list[int], runs: int, *, profiled: bool) -> dict[str, object]:
    """All runs, the servers in turn."""
    found: list[Run] = []
    with bench.mail_servers() as (servers, folder), smtp_sink() as sink:
        user = servers.add_user()
        ports = {"Postfix": servers.smtp_port, "smtp-sink": sink}
        for number in range(runs):
            for kept in connections:
                for server, port in ports.items():
                    found.append(pair(server, port, servers, user, folder / f"{number}{server}{kept}", count, kept, None))
        load = round(bench.load(), 2)
        figures = ""
        if profiled:
            pair("smtp-sink", sink, servers, user, folder / "p", count, connections[-1], folder / "profile")
            figures = _figures(folder / "profile")
    return {"replies": count, "runs": [asdict(run) for run in found], "load": load, "profile": figures}


def _figures(file: Path, top: int = 25) -> str:
    out = StringIO()
    pstats.Stats(str(file), stream=out).strip_dirs().sort_stats("tottime").print_stats(top)
    lines = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    return "\n".join(lines[next(n for n, line in enumerate(lines) if "ncalls" in line) :])


def report(result: dict[str, Any]) -> str:
    """The table with medians and ratios."""
    runs = [Run(**run) for run in result["runs"]]
    rows = []
    for server, kept in dict.fromkeys((run.server, run.connections) for run in runs):
        some = [run for run in runs if (run.server, run.connections) == (server, kept)]
        ratios = ", ".join(f"{run.ours / run.theirs:.2f}" for run in some)
        rows.append(
            (
                server,
                kept,
                f"{median(run.ours for run in some):,.0f}",
                f"{median(run.theirs for run in some):,.0f}",
                f"{median(run.ours / run.theirs for run in some):.2f} ({ratios})",
                f"{median(run.cpu_us for run in some):,.0f}",
            )
        )
    head = ("to", "kept connections", "Postsale, replies/s", "smtp-source, mails/s", "ratio (of each run)", "our CPU µs/reply")
    return (
        f"{bench.machine()}; load of the last minute at the end {result['load']}. {result['replies']:,} replies in each run.\n\n"
        + bench.table(head, rows)
        + "\n"
    )


def main() -> int:
    """The command line; exit status 1 when a server or smtp-source is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=2_000)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="send once more under cProfile, and say where time goes")
    parser.add_argument("--page", action="store_true", help="write the section of docs/performance.md")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    try:
        result = measure(asked.replies, asked.connections, asked.runs, profiled=asked.profile)
    except NotInstalled as error:
        print(error, file=sys.stderr)
        return 1
    kept = " ".join(map(str, asked.connections))
    text = (
        f"`python benchmarks/sending.py --replies {asked.replies} --connections {kept} --runs {asked.runs} --page`\n\n"
        + report(result)
        + (f"\n```\n{result['profile']}\n```\n" if result["profile"] else "")
    )
    print(json.dumps(result) if asked.json else text)
    if asked.page:
        bench.write_page("Sending", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
