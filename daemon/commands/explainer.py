"""The pure steps applied to raw mail, with what ships or with what a configuration names; nothing is stored or sent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from daemon import resources
from daemon.commands.scratch import order_shelf
from daemon.config import Config, OrdersConfig, ReadingConfig
from daemon.edges.orders.opening import open_orders
from daemon.edges.workers import WorkerFailure, WorkerLimits, WorkerPool
from daemon.errors import PostsaleError
from daemon.loops.profiles import MailboxProfile, profiles
from daemon.record import explain_record, reading_record
from daemon.tasks import Circumstances, DecideTask, MindFiles, ReadTask
from daemon.vocab import Identity

#: The documented fields, in their order; a record always has all of them.
FIELDS = (
    "file", "message_id", "from", "subject", "marketplace", "kind", "language", "text", "attachments", "order_ids",
    "gate", "prediction", "flags", "facts", "decision", "draft", "guard", "error",
)  # fmt: skip


class Explainer:
    """Workers, order sources and mind for as long as the ``async with`` lasts.

    Raises ConfigError for a playbook, and ModelRefused for a model, that cannot be used.
    """

    def __init__(self, config: Config | None, now: datetime, *, messages: int) -> None:
        """``messages``: about how many will come; few of them need no second process."""
        self._now = now
        self._config = config
        self._stack = ExitStack()
        self.reading = config.reading if config else ReadingConfig()
        self._stale_after = timedelta(hours=config.orders.stale_after_hours if config else 24)
        self._profiles = list(profiles(config).values()) if config else []
        self.processes = max(1, min(messages // 2, os.cpu_count() or 1))

    async def __aenter__(self) -> Explainer:
        files = self._mind_files()
        limits = WorkerLimits(self.reading.cpu_seconds, self.reading.wall_seconds, self.reading.memory_bytes)
        self._pool: WorkerPool[Any, Any] = WorkerPool(
            "daemon.mind:think",
            processes=self.processes,
            limits=limits,
            prepare="daemon.mind:prepare",
            arguments=(files,),
            warm_up="daemon.mind:warm_up",
        )
        try:
            self._pool.prepared()
        except BaseException:
            self._pool.close()
            raise
        orders = self._config.orders if self._config else OrdersConfig()
        self._orders = open_orders(orders, self._stack.enter_context(order_shelf(orders)), settle_seconds=0)
        try:
            await self._orders.refresh()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._pool.close()
        await self._orders.close()
        self._stack.close()

    async def explain(self, raw: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
        """One record for each mail, by its name; shared out among the workers."""
        names = list(raw)
        shares = [names[at :: self.processes] for at in range(self.processes)]
        done = await asyncio.gather(*(self._share({n: raw[n] for n in share}) for share in shares if share))
        return {name: record for share in done for name, record in share.items()}

    async def _share(self, raw: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
        records: dict[str, dict[str, Any]] = {}
        tasks = {name: ReadTask(content, self._profile(content)[0]) for name, content in raw.items()}
        readings = await self._map(tasks, records)
        asked = list(dict.fromkeys(order for reading in readings.values() for order in reading.envelope.order_ids))
        trouble: str | None = None
        try:
            known = await self._orders.lookup(asked, self._now)
        except PostsaleError as error:  # the rest is still worth knowing
            known, trouble = {}, f"orders: {error}"
        decisions = {
            name: DecideTask(
                reading,
                Circumstances(
                    now=self._now,
                    rows=[row for order in reading.envelope.order_ids for row in known.get(order, ())],
                    stale_after=self._stale_after,
                    shop_name=self._profile(raw[name])[1],
                ),
            )
            for name, reading in readings.items()
        }
        for name, outcome in (await self._map(decisions, records)).items():
            records[name] = explain_record(name, readings[name], outcome)
            if readings[name].envelope.order_ids:
                records[name]["error"] = trouble
        return records

    async def _map(self, tasks: Mapping[str, Any], records: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Apply the workers; what failed becomes a record with its error."""
        answers = await self._pool.map(list(tasks.values()))
        done: dict[str, Any] = {}
        for name, answer in zip(tasks, answers, strict=True):
            if isinstance(answer, WorkerFailure):
                records[name] = failed(name, str(answer), tasks[name])
            else:
                done[name] = answer
        return done

    def _profile(self, raw: bytes) -> tuple[Identity, str]:
        """Whose mailbox the mail came to: the one whose address stands in its header, else the first."""
        if not self._profiles:
            return Identity(), ""
        head = raw[:65_536].lower()
        found: MailboxProfile = next((p for p in self._profiles if p.sender.addr.lower().encode() in head), self._profiles[0])
        return found.identity, found.shop_name

    def _mind_files(self) -> MindFiles:
        if self._config is None:
            return MindFiles(resources.starter_model(), resources.playbook(), resources.templates())
        from daemon.judge import mind_files  # here: without a configuration the service's parts are not needed

        return mind_files(self._config)


def failed(name: str, error: str, task: object = None) -> dict[str, Any]:
    """The record of a mail that could not be explained; what was read of it, where that much worked."""
    record: dict[str, Any] = dict.fromkeys(FIELDS)
    record.update(file=name, attachments=[], order_ids=[], flags=[], guard=[])
    if isinstance(task, DecideTask):
        record.update({key: value for key, value in reading_record(task.reading).items() if key in FIELDS})
    record["error"] = error
    return record
