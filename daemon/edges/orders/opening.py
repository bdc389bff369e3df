"""Build the order book that a configuration describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from daemon.config import FolderSource, HttpSource, OrdersConfig, SqlSource
from daemon.edges.credentials import read_secret_file
from daemon.edges.orders import FolderReports, HttpOrders, LiveSource, OrderBook, Shelf, SqlOrders
from daemon.edges.orders.folder import SETTLE_SECONDS
from daemon.errors import ConfigError


def open_orders(
    config: OrdersConfig,
    shelf: Shelf,
    *,
    settle_seconds: float = SETTLE_SECONDS,
    progress: Callable[[str, int], None] | None = None,
    on_report: Callable[[Mapping[str, Any]], None] | None = None,
) -> OrderBook:
    """Every source of the configuration, its rows kept on ``shelf``.

    ``settle_seconds``: a report younger than this may still be being written. ``progress`` hears of long
    loads (file name, rows so far), ``on_report`` what became of each file.
    Raises ConfigError for a source that cannot be used or a secret that is not there.
    """
    folders: list[FolderReports] = []
    live: list[LiveSource] = []
    for number, source in enumerate(config.sources, start=1):
        key = f"orders.sources.{number}"
        match source:
            case FolderSource():
                folders.append(
                    FolderReports(
                        source.path,
                        shop=source.shop,
                        columns=source.columns,
                        settle_seconds=settle_seconds,
                        progress=progress,
                        on_report=on_report,
                    )
                )
            case SqlSource():
                password = read_secret_file(source.password_file, f"{key}.password_file") if source.password_file else None
                live.append(SqlOrders(source.url, source.query, shop=source.shop, password=password))
            case HttpSource():
                live.append(
                    HttpOrders(
                        source.url,
                        shop=source.shop,
                        header=_header(source, key),
                        timeout_seconds=source.timeout_seconds,
                        cache_seconds=source.cache_seconds,
                    )
                )
    return OrderBook(shelf, folders=folders, live=live)


def _header(source: HttpSource, key: str) -> tuple[str, str] | None:
    if source.header_file is None:
        return None
    name, colon, value = read_secret_file(source.header_file, f"{key}.header_file").partition(":")
    if not colon or not value.strip():
        raise ConfigError(str(source.header_file), f"{key}.header_file", "is no header line", "write Authorization: Bearer …")
    return name.strip(), value.strip()
