"""Durable single commits of the store, beside what the disk gives.

    python benchmarks/commits.py [--commits 2000] [--rounds 5] [--folder DIR] [--page] [--json]

In each round, one after the other: fdatasync after each 4 KB written over a file that has its size already; units of work
awaited one by one; 64 tasks that each await units of their own, which share commits. A unit stores one mail of 3 KB: a
case, its bytes, its event and the folder's cursor. Each is durable before its caller goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import Connection

from benchmarks import bench
from daemon.store import cases, folders
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.vocab import RawMail

BLOCK = 4096
AT_ONCE = 64


def fdatasyncs(folder: Path, count: int) -> float:
    """How many writes of a block the disk makes durable in a second, one after the other."""
    handle = os.open(folder / "block", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(handle, bytes(BLOCK * 256), 0)
        os.fsync(handle)
        began = time.perf_counter()
        for number in range(count):
            os.pwrite(handle, bytes(BLOCK), BLOCK * (number % 256))
            os.fdatasync(handle)
        return count / (time.perf_counter() - began)
    finally:
        os.close(handle)


def unit(uid: int) -> Callable[[Connection], object]:
    """Store one mail."""
    head = f"From: a@buyers.test\r\nSubject: order {uid}\r\nMessage-ID: <m{uid}@buyers.test>\r\n\r\n"
    mail = RawMail("shop", "INBOX", 1, uid, (head + "where is my parcel? " * 145).encode())
    return lambda c: cases.receive(c, [mail], now=datetime.now(UTC))


async def one_by_one(database: Database, first: int, count: int) -> float:
    """Units a second when each is awaited before the next."""
    began = time.perf_counter()
    for uid in range(first, first + count):
        await database.write(unit(uid))
    return count / (time.perf_counter() - began)


async def at_once(database: Database, first: int, count: int) -> float:
    """Units a second of many tasks, each awaiting its own."""

    async def task(number: int) -> None:
        for uid in range(first + number, first + count, AT_ONCE):
            await database.write(unit(uid))

    began = time.perf_counter()
    await asyncio.gather(*(task(number) for number in range(AT_ONCE)))
    return count / (time.perf_counter() - began)


async def measure(folder: Path, count: int, rounds: int) -> list[dict[str, float]]:
    """The three rates of each round."""
    database = Database(f"sqlite:///{folder}/commits.db")
    upgrade(database)
    now = datetime.now(UTC)
    database.write_now(lambda c: folders.open_folder(c, "shop", "INBOX", uidvalidity=1, newest_uid=0, now=now))
    found = []
    for number in range(rounds):
        first = number * 2 * count + 1
        found.append(
            {
                "fdatasync": fdatasyncs(folder, count),
                "one_by_one": await one_by_one(database, first, count),
                "at_once": await at_once(database, first + count, count),
            }
        )
        bench.progress(f"round {number + 1}: " + ", ".join(f"{name} {rate:.0f}/s" for name, rate in found[-1].items()))
    database.close()
    return found


def report(found: list[dict[str, float]], count: int) -> str:
    """The table with medians and ratios."""
    titles = {"fdatasync": "fdatasync of 4 KB", "one_by_one": "units, one by one", "at_once": f"units, {AT_ONCE} at once"}
    rows = []
    for name, title in titles.items():
        ratios = [each[name] / each["fdatasync"] for each in found]
        spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append((title, f"{median(each[name] for each in found):,.0f}", f"{median(ratios):.2f} ({spread})"))
    return (
        f"{bench.machine()}; load of the last minute at the end {bench.load():.2f}. {count:,} of each in each of {len(found)}"
        " rounds.\n\n" + bench.table(("", "a second", "ratio to fdatasync (of each round)"), rows) + "\n"
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's folder for temporary files")
    parser.add_argument("--page", action="store_true", help="write the section of docs/performance.md")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        found = asyncio.run(measure(Path(name), asked.commits, asked.rounds))
    text = f"`python benchmarks/commits.py --commits {asked.commits} --rounds {asked.rounds} --page`\n\n" + report(
        found, asked.commits
    )
    print(json.dumps({"commits": asked.commits, "rounds": found}) if asked.json else text)
    if asked.page:
        bench.write_page("Durable commits", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
