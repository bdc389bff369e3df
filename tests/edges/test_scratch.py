"""A dry run over a large report takes a temporary database instead of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.commands.scratch import order_shelf
from daemon.config import FolderSource, OrdersConfig
from daemon.edges.orders import MemoryShelf
from daemon.edges.orders.opening import open_orders
from daemon.store.orders import OrderShelf
from daemon.vocab import OrderId
from tests.edges.test_orders import ID, NOW, all_orders, put, tsv


@pytest.mark.parametrize(("limit", "kind"), [(10_000_000, MemoryShelf), (10, OrderShelf)])
async def test_the_size_of_the_reports_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, kind: type) -> None:
    monkeypatch.setattr("daemon.commands.scratch.MEMORY_BYTES", limit)
    put(tmp_path, "a.txt", tsv(all_orders()))
    config = OrdersConfig(
        sources=(FolderSource(kind="folder", path=tmp_path), FolderSource(kind="folder", path=tmp_path / "gone"))
    )
    with order_shelf(config) as shelf:
        assert isinstance(shelf, kind)
        book = open_orders(OrdersConfig(sources=config.sources[:1]), shelf, settle_seconds=0)
        assert await book.refresh() == 1
        order = OrderId(ID, "amazon", "wrapper")
        assert len((await book.lookup([order], NOW))[order]) == 1
