"""A full mailbox: the whole way from IMAP to durable drafts, beside the bare download of mbsync and getmail.

    python benchmarks/backlog.py [--mails 10000] [--getmail-mails 1000] [--runs 3] [--page] [--json]

Starts its own Dovecot and Postfix (as root), fills a mailbox, and in each run lets mbsync and getmail download it and
the service take it to the end: fetch, durable store, read, label, order facts, policy, draft, guard, durable outcome.
All three use verified TLS. The service runs its ingest and advance loops in live mode; nothing is sent. ``--page`` puts
the result, with a profile of the steps, into docs/performance.md.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import logging
import pstats
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench, corpus
from tests.servers import MailServers, NotInstalled, User

ROOT = Path(__file__).resolve().parent.parent
SERVICE = ROOT / "benchmarks" / "loops.py"
#: Seconds without any progress after which a run is given up.
PATIENCE = 60.0


@dataclass(frozen=True)
class Service:
    """One run of the service over the backlog."""

    wall: float  # from READY to the last durable outcome
    stored: float  # from READY to the last message stored
    start: float  # from the process's start to READY
    cpu: float
    idle_mb: float
    peak_mb: float
    outcomes: dict[str, int]


def first_contact(database: Path) -> bool:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as connection:
        return bool(connection.execute("SELECT count(*) FROM folders WHERE last_success_at IS NOT NULL").fetchone()[0])


def service_run(folder: Path, config: Path, count: int, home: Path, mails: list[bytes]) -> Service:
    """First contact with the empty mailbox, then the backlog, by a service started anew."""
    database, command = folder / "data" / "postsale.db", [str(SERVICE), str(config), "ingest", "advance"]
    with bench.Service(folder, command) as service:
        while not first_contact(database):
            service.check()
            time.sleep(0.05)
        time.sleep(1)
        idle = service.usage()
    bench.fill_maildir(home, mails)

    with bench.Service(folder, command) as service:
        began, before, stored, peak, looked = time.perf_counter(), service.usage(), 0.0, 0.0, 0.0
        last: dict[str, int] = {}
        moved = began
        while True:
            now = bench.states(database)
            if now != last:
                last, moved = now, time.perf_counter()
            elif time.perf_counter() - moved > PATIENCE:
                raise RuntimeError(f"no progress at {now}: {service.log()}")
            if not stored and sum(now.values()) >= count:
                stored = time.perf_counter() - began
            if sum(now.values()) >= count and not now.get("received", 0):
                break
            if time.perf_counter() - looked > 1:
                looked = time.perf_counter()
                peak = max(peak, service.usage().memory_mb)
                service.check()
            time.sleep(0.05 if count > 500 else 0.01)
        wall, after = time.perf_counter() - began, service.usage()
    return Service(
        wall=wall,
        stored=stored,
        start=service.start_seconds,
        cpu=after.cpu_seconds - before.cpu_seconds,
        idle_mb=idle.memory_mb,
        peak_mb=max(peak, after.memory_mb),
        outcomes=bench.states(database),
    )


# --------------------------------------------------------------------------- the others


def mbsync(folder: Path, servers: MailServers, user: User, count: int) -> tuple[float, float]:
    """Bare download to a Maildir at mbsync's defaults (it syncs every file to disk); (wall, processor) seconds."""
    folder.mkdir()
    (folder / "mail").mkdir()
    (folder / "rc").write_text(
        f'IMAPAccount a\nHost localhost\nPort {servers.imaps_port}\nUser {user.address}\nPass "{user.password}"\n'
        f"SSLType IMAPS\nCertificateFile {servers.ca_file}\n\nIMAPStore far\nAccount a\n\n"
        f"MaildirStore near\nPath {folder}/mail/\nInbox {folder}/mail/INBOX\n\n"
        f"Channel c\nFar :far:\nNear :near:\nPatterns INBOX\nSync Pull\nCreate Near\nSyncState {folder}/\n"
    )
    spent = bench.timed(["mbsync", "-q", "-c", str(folder / "rc"), "c"])
    found = sum(1 for part in ("new", "cur") for _ in (folder / "mail" / "INBOX" / part).iterdir())
    if found != count:
        raise RuntimeError(f"mbsync fetched {found} of {count}")
    return spent


def getmail(folder: Path, servers: MailServers, user: User, count: int) -> tuple[float, float]:
    """Bare download to a Maildir by getmail6, not as root, which it refuses; (wall, processor) seconds."""
    for part in ("cur", "new", "tmp"):
        (folder / "mail" / part).mkdir(parents=True)
    (folder / "getmailrc").write_text(
        f"[retriever]\ntype = SimpleIMAPSSLRetriever\nserver = localhost\nport = {servers.imaps_port}\nusername = {user.address}\n"
        f"password = {user.password}\nca_certs = {servers.ca_file}\n\n[destination]\ntype = Maildir\npath = {folder}/mail/\n"
        "\n[options]\nread_all = true\ndelete = false\nverbose = 0\n"
    )
    for path in (folder.parent.parent, folder.parent, folder, *folder.rglob("*")):
        shutil.chown(path, "mail", "mail")
    spent = bench.timed(["getmail", f"--getmaildir={folder}", "--rcfile=getmailrc"], user="mail")
    found = sum(1 for _ in (folder / "mail" / "new").iterdir())
    if found != count:
        raise RuntimeError(f"getmail fetched {found} of {count}")
    return spent


# --------------------------------------------------------------------------- profile


def profile(mails: list[bytes], top: int = 14) -> tuple[list[tuple[str, float]], str]:
    """Milliseconds of processor time per message of each step, alone in one process; and where the slowest one spends it."""
    from datetime import UTC, datetime

    import numpy  # noqa: F401 - as in the workers, which score with it

    from daemon import mind, pipeline, resources, tasks
    from daemon.vocab import Identity

    thought = mind.load_mind(tasks.MindFiles(resources.starter_model(), resources.playbook(), resources.templates()))
    identity = Identity(own_addresses=frozenset({"shop@example.test"}), authserv_ids=("mx.example.test",))
    circumstances = tasks.Circumstances(now=datetime.now(UTC), shop_name="Lamp Shop")

    def spent(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return (time.process_time() - start) / len(mails) * 1000

    readings = [pipeline.read(raw, thought, identity) for raw in mails]  # warm
    steps = {
        "read": lambda: [pipeline.read(raw, thought, identity) for raw in mails],
        "decide": lambda: [pipeline.decide(reading, circumstances, thought) for reading in readings],
    }
    figures = sorted(((name, spent(work)) for name, work in steps.items()), key=lambda figure: -figure[1])
    profiler = cProfile.Profile()
    profiler.runcall(steps[figures[0][0]])
    out = io.StringIO()
    pstats.Stats(profiler, stream=out).strip_dirs().sort_stats("cumulative").print_stats(top)
    lines = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    return figures, "\n".join(lines[next(n for n, line in enumerate(lines) if "ncalls" in line) :])


# --------------------------------------------------------------------------- the run


def measure(count: int, getmail_count: int, runs: int, workers: int) -> dict[str, object]:
    """All runs, side by side; the order within a run is reference, service, reference."""
    mails = list(corpus.mails(count))
    ours: list[Service] = []
    sync: list[tuple[float, float]] = []
    get: list[tuple[float, float]] = []
    with bench.mail_servers() as (servers, folder):
        few = servers.add_user()
        bench.fill_maildir(servers.folder / "homes" / few.name, mails[:getmail_count])
        for number in range(runs):
            user, here = servers.add_user(), folder / str(number)
            home = servers.folder / "homes" / user.name
            config = bench.configure(here, servers, [user], report=corpus.report(count), workers=workers)
            ours.append(service_run(here, config, count, home, mails))
            bench.progress(f"run {number + 1}: service {count / ours[-1].wall:.0f}/s")
            sync.append(mbsync(here / "mbsync", servers, user, count))
            get.append(getmail(here / "getmail", servers, few, getmail_count))
            shutil.rmtree(here)
            shutil.rmtree(home / "Maildir")
    return {
        "mails": count,
        "bytes": sum(map(len, mails)),
        "median_bytes": int(median(map(len, mails))),
        "getmail_mails": getmail_count,
        "workers": workers,
        "load": round(bench.load(), 2),
        "service": [asdict(run) for run in ours],
        "mbsync": sync,
        "getmail": get,
    }


def report(result: dict[str, Any]) -> str:
    """The table with medians, rates and ratios."""
    count, few = int(str(result["mails"])), int(str(result["getmail_mails"]))
    ours: list[dict[str, Any]] = result["service"]
    sync: list[tuple[float, float]] = result["mbsync"]
    get: list[tuple[float, float]] = result["getmail"]
    wall = median(run["wall"] for run in ours)
    per = {
        "mbsync, bare download, its defaults": (median(w for w, _ in sync) / count, median(c for _, c in sync) / count),
        "getmail6, bare download": (median(w for w, _ in get) / few, median(c for _, c in get) / few),
    }
    rows: list[tuple[object, ...]] = [
        (
            "Postsale, IMAP to durable drafts and outcomes",
            f"{count / wall:,.0f}",
            f"{median(run['cpu'] for run in ours) / count * 1e6:,.0f}",
            "1",
        ),
        ("of these, fetched and stored durably", f"{count / median(r['stored'] for r in ours):,.0f}", "", ""),
    ]
    rows += [(name, f"{1 / w:,.0f}", f"{c * 1e6:,.0f}", f"{wall / count / w:.2f}") for name, (w, c) in per.items()]
    outcomes = ", ".join(f"{number} {state}" for state, number in sorted(ours[-1]["outcomes"].items()))
    each = ", ".join(f"{count / run['wall']:,.0f}/s" for run in ours)
    return (
        f"{bench.machine()}; load of the last minute at the end {result['load']}. {count:,} mails,"
        f" {int(str(result['bytes'])) / 1e6:.1f} MB, median {int(str(result['median_bytes'])) / 1000:.1f} KB; getmail fetched"
        f" {few:,} of them. Medians of {len(ours)} run(s), {result['workers']} workers.\n\n"
        + bench.table(("", "mails/s", "client CPU µs/mail", "our wall time, times theirs"), rows)
        + f"\n\nRuns of the service: {each}. Outcomes of the last: {outcomes}.\n"
        f"Start to READY {median(r['start'] for r in ours):.2f} s. Memory of all its processes (shared pages once): idle"
        f" {median(r['idle_mb'] for r in ours):.0f} MB, in the backlog at most {max(r['peak_mb'] for r in ours):.0f} MB.\n"
    )


def main() -> int:
    """The command line; exit status 1 when a server or a reference program is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mails", type=int, default=10_000)
    parser.add_argument("--getmail-mails", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="write the section of docs/performance.md")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    missing = [name for name in ("mbsync", "getmail") if shutil.which(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)} (Debian: isync, getmail6)", file=sys.stderr)
        return 1
    try:
        result = measure(asked.mails, min(asked.getmail_mails, asked.mails), asked.runs, asked.workers)
    except NotInstalled as error:
        print(error, file=sys.stderr)
        return 1
    figures, slowest = profile(list(corpus.mails(min(asked.mails, 500), seed=21)))
    text = (
        f"`python benchmarks/backlog.py --mails {asked.mails} --getmail-mails {result['getmail_mails']} --runs {asked.runs} --page`\n\n{report(result)}\n"
        f"Processor time of the two thinking steps, alone: {', '.join(f'{name} {ms:.2f} ms' for name, ms in figures)} per mail."
        f" Where {figures[0][0]} spends it:\n\n```\n{slowest}\n```\n"
    )
    print(json.dumps({**result, "steps_ms": dict(figures)}) if asked.json else text)
    if asked.page:
        bench.write_page("Backlog", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
