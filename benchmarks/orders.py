"""How long a large order report takes to load, how much memory, and how fast an order is found in it.

    python benchmarks/orders.py [ROWS] [DATABASE URL]

Two rows per order, as the all-orders report writes them. Without a URL a SQLite file in a temporary folder.
"""

from __future__ import annotations

import asyncio
import random
import resource
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from daemon.edges.orders import FolderReports, OrderBook
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from daemon.store.orders import OrderShelf
from daemon.vocab import OrderId

HEAD = (
    "amazon-order-id\tpurchase-date\tlast-updated-date\torder-status\tfulfillment-channel\tsales-channel\tproduct-name\tsku\tasin\t"
    "item-status\tquantity\tcurrency\titem-price\tshipping-price\tship-country\n"
)


def order_id(number: int) -> str:
    return f"302-{number:07d}-{number * 7919 % 10_000_000:07d}"


def write_report(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(HEAD)
        for n in range(rows):
            file.write(
                f"{order_id(n // 2)}\t2026-11-20T10:00:00+00:00\t2026-11-21T10:00:00+00:00\tShipped\tMerchant\tAmazon.de\tLampe Nr. {n}\t"
                f"SKU-{n}\tB0{n:08d}\tShipped\t1\tEUR\t19.99\t0.00\tDE\n"
            )


async def measure(rows: int, url: str, folder: Path) -> None:
    report = folder / "report.txt"
    write_report(report, rows)
    database = Database(url)
    upgrade(database)
    reports = FolderReports(folder, settle_seconds=0, progress=lambda _, n: print(f"  {n:>9,} rows", flush=True))
    book = OrderBook(OrderShelf(database), folders=[reports])
    begun = time.perf_counter()
    await book.refresh()
    took = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{rows:,} rows ({report.stat().st_size / 1e6:.0f} MB) in {took:.1f} s, {rows / took:,.0f} rows/s, at most {memory} MB resident"
    )
    spent = []
    chance = random.Random(1)
    for _ in range(500):
        order = OrderId(order_id(chance.randrange(rows // 2)), "amazon", "wrapper")
        begun = time.perf_counter()
        found = await book.lookup([order], datetime.now(UTC))
        spent.append((time.perf_counter() - begun) * 1000)
        assert len(found[order]) == 2
    print(f"lookup of one order: median {statistics.median(spent):.2f} ms, 99 % under {sorted(spent)[494]:.2f} ms")
    database.close()


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "reports"
        folder.mkdir()
        asyncio.run(measure(rows, sys.argv[2] if len(sys.argv) > 2 else f"sqlite:///{name}/orders.db", folder))


if __name__ == "__main__":
    main()
