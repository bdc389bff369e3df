"""Prints the figures of approval by mail: false approvals, missed commands, races.

    python benchmarks/approvals.py [--postgresql URL-OF-AN-EMPTY-DATABASE]

The attacks and the client shapes are those of the tests; the races run in full (1,000 drafts, 10 approvers, every mail twice).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[1]))

from daemon.clock import FixedClock
from daemon.store.db import Database
from daemon.store.migrate import upgrade
from tests.approval.office import Office
from tests.approval.test_attacks import ATTACKS, test_none_of_them_approves_anything
from tests.approval.test_races import APPROVERS, DRAFTS, race
from tests.approval.test_shapes import test_shapes_of_real_clients_are_understood

NOW = datetime(2026, 11, 2, 10, tzinfo=UTC)


def office(folder: Path, name: str) -> Office:
    """A fresh office on SQLite."""
    database = Database(f"sqlite:///{folder}/{name}.db")
    upgrade(database)
    return Office(database, FixedClock(NOW))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgresql", metavar="URL", help="also run the races on this empty database")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(test_none_of_them_approves_anything(office(folder, "attacks")))
        print(f"  upper bound of the rate at 95 %: {3 / len(ATTACKS):.2%}")
        asyncio.run(test_shapes_of_real_clients_are_understood(office(folder, "shapes")))
        urls = {"SQLite": f"sqlite:///{folder}/races.db"}
        if arguments.postgresql:
            urls["PostgreSQL"] = arguments.postgresql
        for kind, url in urls.items():
            database = Database(url)
            upgrade(database)
            database.close()
            begun = time.monotonic()
            counts = race(url, DRAFTS, NOW, seed=1)
            print(
                f"races on {kind}: {DRAFTS} drafts, {APPROVERS} approvers, {sum(counts.values())} decisions sent, exactly one in force each; "
                f"{counts['refused']} told who had decided; {time.monotonic() - begun:.0f} s"
            )


if __name__ == "__main__":
    main()
