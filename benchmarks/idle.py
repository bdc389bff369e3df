"""Many mailboxes in which nothing happens, in one service process: what they cost.

    python benchmarks/idle.py [--mailboxes 200] [--seconds 120] [--page] [--json]

Starts its own Dovecot (as root). The service watches every mailbox by IDLE; once all have been looked at and it has come
to rest, its processor time is taken over ``--seconds``. Alone beside it: what one mailbox costs in the same time.
"""

from __future__ import annotations

import argparse
import json
import logging
import sqlite3
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench
from tests.servers import MailServers, NotInstalled


@dataclass(frozen=True)
class Idle:
    """What an idle service with that many mailboxes cost."""

    mailboxes: int
    first_contact_seconds: float  # from READY until every mailbox had been looked at
    cpu_percent: float  # of one core
    memory_mb: float
    threads: int
    files: int  # open in the main process


def contacts(database: Path) -> int:
    """How many folders have been read to their end."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as connection:
        return int(connection.execute("SELECT count(*) FROM folders WHERE last_success_at IS NOT NULL").fetchone()[0])


def run(folder: Path, servers: MailServers, count: int, seconds: float) -> Idle:
    """Start, settle down, watch for a while."""
    config = bench.configure(folder, servers, [servers.add_user() for _ in range(count)])
    with bench.Service(folder, ["-m", "daemon", "run", "--config", str(config)]) as service:
        began, deadline = time.perf_counter(), time.monotonic() + 60 + count
        while (done := contacts(folder / "data" / "postsale.db")) < count:
            service.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {done} of {count} mailboxes were looked at: {service.log()}")
            time.sleep(0.1)
        first_contact = time.perf_counter() - began
        bench.progress(f"{count} mailboxes looked at after {first_contact:.1f} s; now watching for {seconds:.0f} s")
        service.wait_until_quiet(30)
        before, since = service.usage(), time.perf_counter()
        time.sleep(seconds)
        after, passed = service.usage(), time.perf_counter() - since
        process = Path(f"/proc/{service.process.pid}")
        return Idle(
            mailboxes=count,
            first_contact_seconds=first_contact,
            cpu_percent=(after.cpu_seconds - before.cpu_seconds) / passed * 100,
            memory_mb=after.memory_mb,
            threads=len(list((process / "task").iterdir())),
            files=len(list((process / "fd").iterdir())),
        )


def measure(count: int, seconds: float) -> list[Idle]:
    """One mailbox, then all."""
    with bench.mail_servers() as (servers, folder):
        return [run(folder / str(number), servers, number, seconds) for number in (1, count)]


def report(found: list[Idle], seconds: float) -> str:
    """The table."""
    rows = [
        (
            f"{each.mailboxes:,}",
            f"{each.cpu_percent:.2f} %",
            f"{each.memory_mb:.0f} MB",
            each.threads,
            each.files,
            f"{each.first_contact_seconds:.1f} s",
        )
        for each in found
    ]
    head = ("mailboxes", "processor, of one core", "memory (shared pages once)", "threads", "open files", "all looked at after")
    return (
        f"{bench.machine()}; load of the last minute at the end {bench.load():.2f}. Watched for {seconds:.0f} s.\n\n"
        + bench.table(head, rows)
        + "\n"
    )


def main() -> int:
    """The command line; exit status 1 when a server is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mailboxes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--page", action="store_true", help="write the section of docs/performance.md")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    try:
        found = measure(asked.mailboxes, asked.seconds)
    except NotInstalled as error:
        print(error, file=sys.stderr)
        return 1
    text = f"`python benchmarks/idle.py --mailboxes {asked.mailboxes} --seconds {asked.seconds:.0f} --page`\n\n" + report(
        found, asked.seconds
    )
    print(json.dumps([asdict(each) for each in found]) if asked.json else text)
    if asked.page:
        bench.write_page("Idle mailboxes", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
