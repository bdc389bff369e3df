"""Order sources that are asked one order at a time: a read-only SQL query and an HTTP JSON endpoint."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from daemon.edges.orders import formats, values
from daemon.errors import ConfigError, Permanent, Transient

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES = 1_000_000
MAX_ROWS = 200
_CACHED_ORDERS = 10_000


class LiveSource(Protocol):
    """Something that can be asked for one order."""

    name: str
    shop: str

    async def rows(self, order_id: str, now: datetime) -> list[dict[str, Any]]: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class SqlOrders:
    """A SELECT with ``:order_id`` whose columns are called as our fields.

    The connection cannot write: SQLite is opened read-only, PostgreSQL's
    transaction is read-only; other databases need a user that may only read.
    """

    def __init__(self, url: str, query: str, *, shop: str, password: str | None = None, timeout_seconds: float = 10) -> None:
        self.name, self.shop = "sql", shop
        self._query = text(query)
        self._timeout = timeout_seconds
        if "order_id" not in self._query.compile().params:
            raise ConfigError("", "orders.sources.query", "has no :order_id in it", "write … WHERE order_no = :order_id")
        if query.lstrip().split(None, 1)[0].lower() not in ("select", "with"):
            raise ConfigError("", "orders.sources.query", "is no SELECT", "it may only read")
        self._engine = _read_only_engine(url, password)

    async def rows(self, order_id: str, now: datetime) -> list[dict[str, Any]]:
        """Fact rows of one order. Transient when the database does not answer, Permanent when the query is wrong."""
        found = await self._ask(order_id)
        return _fact_rows(found, order_id, self.shop, now, "sql")

    async def ping(self) -> None:
        """Ask for an order that does not exist."""
        await self._ask("\u0000-no-such-order".replace("\u0000", ""))

    async def close(self) -> None:
        await asyncio.to_thread(self._engine.dispose)

    async def _ask(self, order_id: str) -> list[Mapping[str, Any]]:
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._select, order_id), self._timeout)
        except TimeoutError as error:
            raise Transient("the orders database did not answer in time") from error
        except SQLAlchemyError as error:
            kind = (
                Transient
                if getattr(error, "connection_invalidated", False) or "Operational" in type(error).__name__
                else Permanent
            )
            raise kind(f"the orders database refused the query: {type(error).__name__}") from error

    def _select(self, order_id: str) -> list[Mapping[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(r) for r in connection.execute(self._query, {"order_id": order_id}).mappings().fetchmany(MAX_ROWS)]


def _read_only_engine(url: str, password: str | None) -> Engine:
    parsed = make_url(url)
    if password is not None:
        parsed = parsed.set(password=password)
    if parsed.get_backend_name() == "sqlite":
        path = quote(str(parsed.database))
        return create_engine(f"sqlite:///file:{path}?mode=ro&uri=true", pool_pre_ping=True)
    options: dict[str, Any] = {"postgresql_readonly": True} if parsed.get_backend_name() == "postgresql" else {}
    return create_engine(parsed, pool_size=2, max_overflow=2, pool_pre_ping=True, execution_options=options)


class HttpOrders:
    """A GET address with ``{order_id}`` that answers JSON: an object, a list of rows, or ``{"orders": […]}``.

    Items and parcels may stand in lists inside the object. 404 means that
    the order is not known. Redirects are not followed.
    """

    def __init__(
        self,
        url: str,
        *,
        shop: str,
        header: tuple[str, str] | None = None,
        timeout_seconds: float = 5,
        cache_seconds: float = 60,
        monotonic: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        import httpx  # here as below, since few set-ups have an endpoint

        self.name, self.shop = "http", shop
        if "{order_id}" not in url:
            raise ConfigError(
                "", "orders.sources.url", "has no {order_id} in it", "write https://shop.example/orders/{order_id}"
            )
        if not _is_safe(url):
            raise ConfigError("", "orders.sources.url", "is not https", "order data may cross the network only encrypted")
        self._url, self._timeout, self._cache_seconds, self._monotonic = url, timeout_seconds, cache_seconds, monotonic
        self._cache: OrderedDict[str, tuple[float, list[dict[str, Any]]]] = OrderedDict()
        headers = {"Accept": "application/json", **({header[0]: header[1]} if header else {})}
        self._client = httpx.AsyncClient(timeout=timeout_seconds, headers=headers, follow_redirects=False, transport=transport)

    async def rows(self, order_id: str, now: datetime) -> list[dict[str, Any]]:
        """Fact rows of one order, from the cache when it was asked for lately.

        Transient when the endpoint does not answer, Permanent when it answers with anything but JSON.
        """
        kept = self._cache.get(order_id)
        if kept is not None and self._monotonic() - kept[0] < self._cache_seconds:
            return kept[1]
        found = _fact_rows(_flat(await self._get(order_id)), order_id, self.shop, now, "http")
        self._cache[order_id] = (self._monotonic(), found)
        self._cache.move_to_end(order_id)
        while len(self._cache) > _CACHED_ORDERS:
            self._cache.popitem(last=False)
        return found

    async def ping(self) -> None:
        """Ask for an order that does not exist."""
        await self._get("no-such-order")

    async def close(self) -> None:
        await self._client.aclose()

    async def _get(self, order_id: str) -> Any:
        import httpx

        url = self._url.replace("{order_id}", quote(order_id, safe=""))
        try:
            async with asyncio.timeout(self._timeout), self._client.stream("GET", url) as answer:
                if answer.status_code in (404, 410):
                    return []
                if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
                    raise Transient(f"the orders endpoint answered {answer.status_code}")
                if answer.status_code != 200:
                    raise Permanent(f"the orders endpoint answered {answer.status_code}")
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise Permanent("the orders endpoint answered with more than a megabyte")
        except (httpx.TimeoutException, TimeoutError) as error:
            raise Transient("the orders endpoint did not answer in time") from error
        except httpx.HTTPError as error:
            raise Transient(f"the orders endpoint cannot be reached: {type(error).__name__}") from error
        try:
            return json.loads(body.decode("utf-8"))
        except ValueError as error:
            raise Permanent("the orders endpoint did not answer JSON") from error


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "https":
        return True
    host = parts.hostname or ""
    if host == "localhost":
        return parts.scheme == "http"
    try:
        return parts.scheme == "http" and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _flat(answer: Any) -> list[Mapping[str, Any]]:
    """The rows of a JSON answer: nested items and parcels become rows of their own."""
    if isinstance(answer, Mapping) and isinstance(answer.get("orders"), list):
        answer = answer["orders"]
    objects = answer if isinstance(answer, list) else [answer] if answer else []
    found: list[Mapping[str, Any]] = []
    for thing in objects[:MAX_ROWS]:
        if not isinstance(thing, Mapping):
            raise Permanent("the orders endpoint answered with something that is no order")
        head = {k: v for k, v in thing.items() if not isinstance(v, Mapping | list)}
        parts = [p for k in ("items", "parcels") for p in (thing.get(k) or []) if isinstance(p, Mapping)]
        found.append(head)
        identity = {k: head[k] for k in ("order_id", "shop", "as_of") if k in head}
        found.extend({**p, **identity} for p in parts)
    return found[:MAX_ROWS]


def _fact_rows(
    found: Sequence[Mapping[str, Any]], order_id: str, shop: str, now: datetime, report: str
) -> list[dict[str, Any]]:
    """Checked fact rows; a row about another order than the one asked for is left out."""
    rows = []
    for raw in found:
        cells = {str(k).lower(): _cell(v) for k, v in raw.items()}
        if cells.get("order_id") and values.order_key(shop, cells["order_id"]) != values.order_key(shop, order_id):
            continue
        as_of = now
        if cells.get("as_of"):
            try:
                as_of = min(now, values.moment(cells["as_of"]))
            except ValueError as error:
                raise Permanent("as_of of an order is no time with a zone") from error
        base = {
            "shop": shop,
            "order_id": order_id,
            "as_of": as_of.astimezone(UTC).isoformat(),
            "source": report,
            "report": report,
        }
        rows.append({**base, **formats.plain(cells)})
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime | date):
        return value.isoformat()
    return "true" if value is True else "false" if value is False else str(value)
