"""Somewhere to put order rows for the length of one command: memory while they are few, a temporary database else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.config import FolderSource, OrdersConfig
from daemon.edges.orders import MemoryShelf, Shelf

#: Reports of more bytes than this together are not held in memory (rows take about ten times their bytes).
MEMORY_BYTES = 20_000_000


@contextmanager
def order_shelf(config: OrdersConfig) -> Iterator[Shelf]:
    """A shelf for these sources; it is gone after the ``with`` block."""
    folders = [s.path for s in config.sources if isinstance(s, FolderSource) and s.path.is_dir()]
    if sum(p.stat().st_size for folder in folders for p in folder.iterdir() if p.is_file()) <= MEMORY_BYTES:
        yield MemoryShelf()
        return
    from daemon.store.db import Database
    from daemon.store.migrate import upgrade
    from daemon.store.orders import OrderShelf

    with tempfile.TemporaryDirectory(prefix="postsale-") as folder:
        database = Database(f"sqlite:///{Path(folder) / 'orders.db'}")
        try:
            upgrade(database)
            yield OrderShelf(database)
        finally:
            database.close()
